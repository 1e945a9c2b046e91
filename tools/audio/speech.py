"""Recorded speech from Asterisk's sounds folder (Debian's `asterisk-core-sounds-en`), as PCM16 at 8 kHz, in memory.

Debian ships the prompts as raw GSM 06.10 frames (`.gsm`, 33 bytes for 20 ms); other packages as WAV. Both are read
through libsndfile.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile

from tools.audio.pcm import Pcm, silence

RATE = 8000


class SoundError(Exception):
    """A prompt is missing or not readable; the text says which file and what was expected."""


@lru_cache(maxsize=1024)
def _load(path: Path) -> Pcm:
    try:
        if path.suffix == ".gsm":
            samples, rate = soundfile.read(
                path, dtype="int16", format="RAW", subtype="GSM610", samplerate=RATE, channels=1
            )
        else:
            samples, rate = soundfile.read(path, dtype="int16")
    except (OSError, soundfile.SoundFileError) as error:
        raise SoundError(f"{path}: not readable as a sound file: {error}") from error
    if rate != RATE or samples.ndim != 1:
        raise SoundError(f"{path}: {rate} Hz, shape {samples.shape}: prompts are 8000 Hz mono")
    pcm: Pcm = samples
    pcm.setflags(write=False)  # one copy serves everyone
    return pcm


def prompt(folder: Path | str, name: str) -> Pcm:
    """The prompt `name` (such as `hello-world` or `digits/5`) of a sounds folder; read once, then from memory.

    The array is read-only. Raises SoundError when there is no such file or it is not 8 kHz mono.
    """
    base = Path(folder)
    for suffix in (".wav", ".gsm"):
        path = base / f"{name}{suffix}"
        if path.is_file():
            return _load(path)
    raise SoundError(
        f"{base / name}: no .wav or .gsm file of this name; is this the language folder of Asterisk's sounds,"
        " such as /usr/share/asterisk/sounds/en_US_f_Allison (Debian: asterisk-core-sounds-en)?"
    )


def speech(folder: Path | str, *names: str, pause_seconds: float = 0.15) -> Pcm:
    """Several prompts one after the other, with a short pause between two. Raises SoundError as `prompt` does."""
    pieces: list[Pcm] = []
    for name in names:
        if pieces:
            pieces.append(silence(pause_seconds, RATE))
        pieces.append(prompt(folder, name))
    return np.concatenate(pieces) if pieces else silence(0)
