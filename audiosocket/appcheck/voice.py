"""The virtual caller's voice, and what is told about audio by its samples alone. PCM16 is 8 kHz mono little-endian; an
application that has another rate is spoken to through `widened` and heard through `narrowed`.

The voice is a synthetic one: syllables of a pitch under vowel formants with a breath of noise before each. A detector
of voice takes it for speech; there are no words in it. Every caller has a pitch and a seed of its own, so that its
audio is recognised wherever it turns up.
"""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audiosocket.appcheck.trace import AUDIBLE_DBFS
from audiosocket.errors import ConfigError
from audiosocket.g711 import Encoding, pcm_to_ulaw, ulaw_to_pcm

RATE = 8000
FRAME_SAMPLES = 160
SILENT_DBFS = -100.0
"""What stands for the level of digital silence."""
MAX_SPEECH_SECONDS = 15.0
AUDIBLE_RESEMBLANCE = 0.6
"""From this `resemblance` on, one is heard in the other; two callers of ours reach 0.3."""

_VOICE_DBFS = -20.0
_LINE_NOISE = 6.0
"""Standard deviation, in PCM16 steps (about -75 dBFS): a line is never digitally silent."""
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (530, 1840, 2480), (440, 1020, 2240))
"""The first three formants in Hz (Peterson and Barney, 1952: a, i, o, e, u-like)."""
_PITCHES = (112.0, 167.0, 139.0, 203.0, 125.0, 184.0)
_GUESS_SECONDS = 6.0
_MISREAD_DBFS = -9.0

Samples = NDArray[np.int16]
Floats = NDArray[np.float64]


def utterance(seconds: float, number: int) -> Samples:
    """`seconds` of caller `number`'s voice; the same every time, and like no other caller's."""
    rng = np.random.default_rng(7_001 + number)
    pitch = _PITCHES[number % len(_PITCHES)] * (1 + 0.013 * (number // len(_PITCHES)))
    pieces: list[Floats] = []
    wanted = int(seconds * RATE)
    while sum(map(len, pieces)) < wanted:
        pieces.append(_syllable(rng, pitch * rng.uniform(0.92, 1.1)))
    voice = np.concatenate(pieces)[:wanted]
    voice *= 32768 * 10 ** (_VOICE_DBFS / 20) / max(1e-9, float(np.sqrt(np.mean(np.square(voice)))))
    return np.clip(voice, -30000, 30000).astype(np.int16)


def _syllable(rng: np.random.Generator, pitch: float) -> Floats:
    size = int(rng.uniform(0.16, 0.24) * RATE)
    at = np.arange(size) / RATE
    formants = _VOWELS[rng.integers(len(_VOWELS))]
    glide = pitch * (1 + 0.06 * np.sin(2 * np.pi * at * rng.uniform(2, 4)))
    phase = 2 * np.pi * np.cumsum(glide) / RATE
    voiced = np.zeros(size)
    for harmonic in range(1, int(3400 / pitch)):
        hertz = harmonic * pitch
        gain = sum(1 / (1 + ((hertz - formant) / 90) ** 2) / (index + 1) for index, formant in enumerate(formants))
        voiced += gain * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    voiced *= np.sin(np.pi * np.arange(size) / size) ** 0.5
    breath = np.diff(rng.normal(0, 0.3, int(0.03 * RATE) + 1))
    return np.concatenate((breath, voiced, np.zeros(int(0.02 * RATE))))


def read_speech(path: Path) -> Samples:
    """Recorded speech to be used instead of the synthetic voice: WAV, PCM16, mono, 8 kHz. Raises `ConfigError`."""
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
            data = file.readframes(int((MAX_SPEECH_SECONDS + 1) * RATE))
    except (OSError, EOFError, wave.Error) as error:
        raise ConfigError(f"{path}: not readable as a WAV file ({error}): give PCM16, mono, 8000 Hz") from None
    if form != (1, 2, RATE):
        raise ConfigError(
            f"{path}: {form[0]} channels, {form[1] * 8} bits, {form[2]} Hz: convert it to mono, 16 bits, 8000 Hz"
            " (ffmpeg -i IN -ac 1 -ar 8000 -c:a pcm_s16le OUT.wav)"
        )
    samples = np.frombuffer(data, "<i2").astype(np.int16)
    if not 0.2 * RATE <= len(samples) <= MAX_SPEECH_SECONDS * RATE:
        raise ConfigError(f"{path}: {len(samples) / RATE:.1f} s long: give 0.2 to {MAX_SPEECH_SECONDS:g} s of speech")
    if level_dbfs(data) < AUDIBLE_DBFS:
        raise ConfigError(
            f"{path}: nothing is heard in it ({level_dbfs(data):.0f} dBFS): give speech, some -20 dBFS loud"
        )
    return samples


class Line:
    """What the caller's side of the line carries: frames of 20 ms, μ-law, speech over a little noise."""

    def __init__(self, number: int) -> None:
        rng = np.random.default_rng(number)
        self._noise = [_to_ulaw(rng.normal(0, _LINE_NOISE, FRAME_SAMPLES)) for _ in range(50)]
        self._speech: list[bytes] = []
        self._count = 0

    def speak(self, samples: Samples) -> float:
        """Speaks from the next frame on; returns for how long, in seconds."""
        coded = _to_ulaw(samples)
        frames = [coded[at : at + FRAME_SAMPLES] for at in range(0, len(coded), FRAME_SAMPLES)]
        frames[-1] = frames[-1].ljust(FRAME_SAMPLES, b"\xff")
        self._speech = frames[::-1]
        return len(frames) * FRAME_SAMPLES / RATE

    @property
    def speaking(self) -> bool:
        """Whether there is speech left."""
        return bool(self._speech)

    def frame(self) -> bytes:
        """The next 20 ms: 160 bytes."""
        self._count += 1
        return self._speech.pop() if self._speech else self._noise[self._count % len(self._noise)]


def widened(codes: bytes, times: int) -> bytes:
    """μ-law of 8 kHz as PCM16 of so many times the rate: straight lines between the samples."""
    samples = np.frombuffer(ulaw_to_pcm(codes), "<i2")
    between: Floats = np.interp(np.arange(len(samples) * times) / times, np.arange(len(samples)), samples)
    return between.astype("<i2").tobytes()


def narrowed(pcm: bytes, times: int) -> bytes:
    """PCM16 of so many times 8 kHz as PCM16 of 8 kHz: of so many samples one, fit to be judged if not to be heard."""
    return pcm if times == 1 else np.frombuffer(pcm[: len(pcm) & ~1], "<i2")[::times].tobytes()


def level_dbfs(pcm: bytes) -> float:
    """RMS of PCM16 against full scale, `SILENT_DBFS` at the least. An odd last byte is no sample."""
    samples = np.frombuffer(pcm[: len(pcm) & ~1], "<i2").astype(np.float64)
    if not len(samples):
        return SILENT_DBFS
    rms = float(np.sqrt(np.mean(np.square(samples))))
    return max(SILENT_DBFS, 20 * float(np.log10(max(rms, 1e-9) / 32768)))


def clipped_share(pcm: bytes) -> float:
    """Share of the samples at full scale."""
    samples = np.frombuffer(pcm[: len(pcm) & ~1], "<i2").astype(np.int32)
    return float(np.mean(np.abs(samples) >= 32760)) if len(samples) else 0.0


def resemblance(pcm: bytes, spoken: Samples) -> float:
    """How well a piece of `spoken` is found anywhere in `pcm`: 0 not at all, 1 bit by bit."""
    heard = np.frombuffer(pcm[: len(pcm) & ~1], "<i2").astype(np.float64)
    middle = len(spoken) // 4
    template = spoken[middle : middle + RATE // 2].astype(np.float64)
    size = len(template)
    if len(heard) < size or not size:
        return 0.0
    length = len(heard) + size
    cross = np.fft.irfft(np.fft.rfft(heard, length) * np.conj(np.fft.rfft(template, length)), length)
    energy = np.concatenate(([0.0], np.cumsum(np.square(heard))))
    windows = energy[size:] - energy[:-size]
    scale = np.sqrt(np.maximum(windows, 1.0) * max(1.0, float(np.sum(np.square(template)))))
    return float(np.max(np.abs(cross[: len(windows)]) / scale))


def guess_encoding(pcm: bytes, encoding: Encoding) -> str:
    """What audio really is that was sent as `encoding` and taken for it: `ulaw`, `pcm16` or `swapped` (the two bytes of
    every sample the other way round, which one stray byte also does).

    Audio that is misread is nearly full scale all the time, and a sample of it is less like the next one than when it
    is read rightly. `pcm` is the audio as it was understood.
    """
    data = pcm[: int(_GUESS_SECONDS * RATE) * 2]
    data = data[: len(data) & ~3]
    if len(data) < RATE // 2 or level_dbfs(data) < _MISREAD_DBFS:
        return encoding.value
    if encoding is Encoding.ULAW:
        readings = {"pcm16": np.frombuffer(pcm_to_ulaw(data), "<i2")}
    else:
        readings = {"swapped": np.frombuffer(data, ">i2"), "ulaw": np.frombuffer(ulaw_to_pcm(data), "<i2")}
    best = max(readings, key=lambda name: _smoothness(readings[name]))
    smoother = _smoothness(readings[best]) - _smoothness(np.frombuffer(data, "<i2"))
    quieter = level_dbfs(data) - level_dbfs(readings[best].astype("<i2").tobytes())
    return best if smoother > 0.2 and quieter > 6 else encoding.value


def _to_ulaw(samples: NDArray[np.floating] | Samples) -> bytes:
    return pcm_to_ulaw(samples.astype("<i2").tobytes())


def _smoothness(samples: NDArray[np.integer]) -> float:
    values = samples.astype(np.float64)
    values -= values.mean()
    power = float(np.sum(np.square(values)))
    return float(np.sum(values[1:] * values[:-1])) / power if power else 1.0
