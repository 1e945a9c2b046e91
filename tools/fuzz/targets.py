"""What is fuzzed: each target takes any bytes and returns, or raises because a rule is broken.

A parser's documented errors are caught here; every other exception is a find. Nothing is sent anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tools.fuzz import control_targets, gate_target, media_targets, rtp_target, stream_targets, text_targets


class Target(NamedTuple):
    """One parser, or one machine that is fed operations."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    """Inputs to begin with: such as the parser meets in calls."""
    compiled: bool = False
    """Whether compiled code takes part, where there is any."""


TARGETS: dict[str, Target] = {
    "audiosocket": Target(stream_targets.frames, stream_targets.LEG_SEEDS),
    "leg": Target(stream_targets.leg, stream_targets.LEG_SEEDS, compiled=True),
    "websocket_events": Target(stream_targets.websocket_events, stream_targets.EVENT_SEEDS),
    "fragments": Target(stream_targets.fragments, stream_targets.FRAGMENT_SEEDS),
    "gate": Target(gate_target.gate, gate_target.GATE_SEEDS, compiled=True),
    "rtp": Target(rtp_target.packets, rtp_target.RTP_SEEDS),
    "exotel": Target(media_targets.exotel, media_targets.MESSAGE_SEEDS, compiled=True),
    "twilio": Target(media_targets.twilio, media_targets.MESSAGE_SEEDS, compiled=True),
    "plivo": Target(media_targets.plivo, media_targets.MESSAGE_SEEDS, compiled=True),
    "observer": Target(media_targets.observer, media_targets.OBSERVER_SEEDS),
    "playout": Target(media_targets.playout, media_targets.MACHINE_SEEDS, compiled=True),
    "session": Target(media_targets.session, media_targets.MACHINE_SEEDS, compiled=True),
    "contract": Target(text_targets.contract, text_targets.CONTRACT_SEEDS),
    "masked_url": Target(text_targets.masked, text_targets.MASKED_SEEDS),
    "urls": Target(text_targets.urls, text_targets.URL_SEEDS),
    "url_answer": Target(text_targets.url_answer, text_targets.ANSWER_SEEDS),
    "config": Target(text_targets.config, text_targets.CONFIG_SEEDS),
    "reports": Target(control_targets.reports, text_targets.CONTRACT_SEEDS),
    "ari_events": Target(control_targets.ari_events, control_targets.ARI_SEEDS),
    "ari_answers": Target(control_targets.ari_answers, control_targets.ANSWER_SEEDS),
    "ami": Target(control_targets.ami, control_targets.AMI_SEEDS),
    "numbers": Target(control_targets.numbers, control_targets.NUMBER_SEEDS),
}
