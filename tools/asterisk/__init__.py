"""A real Asterisk for tests, demo and development: found on the machine or unpacked, and run with our configuration."""
