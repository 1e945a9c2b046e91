"""The command line: click groups that format rows and hold no rules."""
