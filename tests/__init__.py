"""trunkbridge's tests, by rung: unit, loop, store, asterisk (see docs/testing.md)."""
