"""Everything computed from ranks: tests, tables, figures, comparisons."""
