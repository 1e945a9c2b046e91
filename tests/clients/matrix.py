"""All clients that are run."""

from __future__ import annotations

from tests.clients.aoai_phone import AoaiPhone
from tests.clients.base import Client
from tests.clients.bolna import Bolna, BolnaTwilio
from tests.clients.dograh import Dograh, DograhTwilio
from tests.clients.exotel_samples import Demo2021, EchoBot, SharedHost
from tests.clients.kairon import Kairon
from tests.clients.listeners import Rtaafin, StrictValidator
from tests.clients.node_bots import NodeBot, Shwey
from tests.clients.rapida import Rapida
from tests.clients.realtime_bridges import ElevenLabsBridge, GeminiBridge, OpenAiBridge
from tests.clients.sarvam_bridge import SarvamBridge
from tests.clients.vocode import Vocode, VocodeTwilio
from tests.clients.voice_bot import VoiceBot

RECREATED: tuple[type[Client], ...] = (
    Bolna,
    BolnaTwilio,
    Rapida,
    Dograh,
    DograhTwilio,
    SharedHost,
    OpenAiBridge,
    ElevenLabsBridge,
    GeminiBridge,
    EchoBot,
    Demo2021,
    SarvamBridge,
    VoiceBot,
    Rtaafin,
    AoaiPhone,
    StrictValidator,
    Shwey,
    NodeBot,
    Kairon,
    Vocode,
    VocodeTwilio,
)
INSTALLED = ("pipecat", "pipecat (Twilio)", "pipecat (Plivo)")
"""Run as the installed package, over whole calls: tests/asterisk/test_pipecat.py."""
