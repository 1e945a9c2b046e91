"""The call controller of a PBX node: one actor per call, and what feeds them."""
