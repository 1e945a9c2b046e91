"""Measurements of a running trunkbridge: they report what they saw and judge nothing (docs/performance.md)."""
