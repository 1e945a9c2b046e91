"""Process plumbing without a word of telephony: configuration files, logs, signals, systemd, metrics."""
