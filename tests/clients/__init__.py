"""Applications of other people, run unchanged against the gateway."""
