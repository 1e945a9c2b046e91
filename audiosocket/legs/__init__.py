"""How audio reaches a session: one file per kind of media leg between Asterisk and the worker."""
