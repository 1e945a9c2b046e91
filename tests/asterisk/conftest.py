"""Fixtures of the asterisk rung."""

from tests.pbx import asterisk_install, start_pbx

__all__ = ["asterisk_install", "start_pbx"]
