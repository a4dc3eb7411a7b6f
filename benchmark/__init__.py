"""A reproducibility benchmark for LLM-based sequential recommendation."""
