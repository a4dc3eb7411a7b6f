"""Raw files to verified data sets, and data sets to batches."""
