"""`trunkbridge loadtest`: how many calls a media worker carries, and how well.

`generator` plays Asterisk's AudioSocket channels, `applications` the application; frames are `marked`, so that each one
that comes back is known. `modes` are the runs, `standalone` starts a worker for them, `sip` lets SIPp call through a
whole system instead, `machine` reads what processes use. Pure: `statistics`, `figures` (what was seen and what it
means), `ramp` (which step is next). `report` and `picture` show it.
"""
