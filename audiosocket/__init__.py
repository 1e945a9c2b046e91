"""trunkbridge's media plane: one worker process carries the audio of its calls.

AudioSocket from Asterisk comes in on one side, the application's WebSocket goes out on the other. Nothing here
imports `ari_app`: the gateway node faces the internet and carries only what it needs.
"""

__version__ = "0.1.0"
