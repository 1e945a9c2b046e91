"""`trunkbridge appcheck`: scripted calls against an application before any caller makes one.

`caller` places a call as the gateway does (its session, dialect, clock and WebSocket, with a virtual caller in place of
the media leg), `scenarios` scripts it, and what was seen is a `trace`. The judgement over traces is pure: `protocol`,
`talk` and `together` give `findings`, `figures` the numbers, `report` puts them into words.
"""
