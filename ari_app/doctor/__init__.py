"""Looks at one node end to end, and says what is to be mended."""
