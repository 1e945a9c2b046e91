"""Asterisk's REST interface: requests in `client`, what they answer in `models`, events in `events` and `stream`."""
