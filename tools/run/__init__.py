"""`make run` and `make demo`: everything started, one real call placed, shown, recorded and judged."""
