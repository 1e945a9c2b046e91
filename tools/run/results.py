"""What a call leaves behind: a stereo recording, a picture of it, and everything found as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import msgspec
import numpy as np

from tools.audio.pcm import Pcm, silence, write_stereo_wav
from tools.audio.pictures import waveforms_png
from tools.run.call import LiveCall
from tools.run.evidence import Verdict
from tools.sip.rtp_peer import RATE

FILES = ("call.wav", "call.png", "result.json")
LABEL_SECONDS = 1.5


def channels(live: LiveCall) -> tuple[Pcm, Pcm]:
    """(what the caller said, what he heard), on one time axis whose 0 is the INVITE."""
    invited_at = live.call.invited_at or live.began_at
    said = silence(live.seconds)
    for sentence in live.said:
        if sentence.playback.started_at is not None:
            at = round((sentence.playback.started_at - invited_at) * RATE)
            room = said[at : at + len(sentence.samples)]
            np.copyto(room, sentence.samples[: len(room)])
    return said, live.call.peer.received_pcm(invited_at, live.seconds)


def write(folder: Path, live: LiveCall, verdict: Verdict, logs: list[Path]) -> None:
    """Writes the files of `FILES` into `folder`. Raises OSError."""
    said, heard = channels(live)
    write_stereo_wav(folder / "call.wav", said, heard)
    titles = ("caller", f"application, as the caller hears it ({live.line.codec.sdp_name} over RTP)")
    if len(said):
        # With room behind the end for the labels of what happened there.
        room = np.concatenate([said, silence(LABEL_SECONDS)])
        waveforms_png(folder / "call.png", room, heard, titles=titles, markers=verdict.markers)
    invited_at = live.call.invited_at or live.began_at
    result = {
        "good": verdict.good,
        "call_id": live.row.call_id if live.row else None,
        "call_sid": live.row.call_sid if live.row else None,
        "cut_short": live.cut_short,
        "seconds": live.seconds,
        "answer_ms": verdict.answer_ms,
        "first_audio_ms": verdict.first_audio_ms,
        "clear_ms": verdict.clear_ms,
        "yield_ms": verdict.yield_ms,
        "reception": asdict(verdict.reception),
        "media": msgspec.to_builtins(live.row.media) if live.row and live.row.media else None,
        "turns": [
            {
                "number": turn.number,
                "says": turn.says,
                "sent_seconds": turn.sent_at - invited_at,
                "heard_seconds": None if turn.heard_at is None else turn.heard_at - invited_at,
                "match": turn.match,
                "response_ms": turn.response_ms,
            }
            for turn in verdict.turns
        ],
        "checks": [asdict(check) for check in verdict.checks],
        "story": [{"seconds": moment.at - invited_at, "text": moment.text} for moment in live.story()],
        "logs": [str(path) for path in logs],
    }
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
