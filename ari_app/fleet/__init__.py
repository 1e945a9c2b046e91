"""Which media worker carries which call."""
