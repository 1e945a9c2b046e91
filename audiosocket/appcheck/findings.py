"""What can be found wrong with an application, how bad it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from audiosocket.appcheck.trace import Trace
from audiosocket.dialects import DIALECTS


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Callers will notice: audio that nobody hears, calls that break."""
    WARNING = "warning"
    """It strays from the documents, or is unpleasant, and works here."""
    INFO = "info"
    """Worth knowing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found."""

    severity: Severity
    code: str
    scenarios: tuple[str, ...]
    """The calls in which it was seen."""
    seen: str
    documents: str
    """Where the platform's documents speak of it; empty where they do not."""
    remedy: str


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

RULES: dict[str, tuple[Severity, str, str]] = {
    # code: severity, topic in DOCUMENTS, remedy; for `media` and the like stands what the platform calls it
    "unreachable": (_E, "", "Check host, port and firewall, and that the application listens for the world."),
    "handshake_ended": (_E, "handshake", "Look into the application's log: it was reached, and ended the connection."),
    "certificate": (_E, "tls", "Install a certificate of a public authority for this name, with its whole chain."),
    "no_tls": (_E, "tls", "Serve TLS 1.2 or newer on this port, or give the port that does; ws:// is without TLS."),
    "status": (_E, "handshake", "Answer the upgrade with 101 on this very path. Behind a proxy: let it pass upgrades."),
    "unauthorised": (_E, "auth", "Give the application's credentials with --credentials-file, or correct them."),
    "handshake_timeout": (_E, "handshake", "Answer the upgrade before models are loaded or sessions are opened."),
    "handshake_broken": (_E, "handshake", "Answer with a WebSocket handshake as RFC 6455, section 4.2.2, has it."),
    "handshake_slow": (_W, "handshake", "Accept first, then prepare: the caller hears ringing, or nothing, meanwhile."),
    "not_offered": (_W, "rfc-handshake", "Select no subprotocol and no extension: the platform offers none."),
    "certificate_expires": (_W, "tls", "Renew the certificate, and see to it that this happens by itself."),
    "plain_ws": (_I, "tls", "Use wss:// where the way leaves your network: a call can be listened to on it."),
    "closes_at_once": (_E, "start", "Look into the application's log: it fell over, or refused, after the upgrade."),
    "closes_with_error": (_E, "close", "Look into the application's log for that moment; end a call with code 1000."),
    "closes_on_dtmf": (_E, "dtmf", "Take `dtmf` messages, if only to ignore them."),
    "closes_on_mark": (_E, "mark", "Take `returned mark` messages, if only to ignore them."),
    "closes_on_silence": (_W, "close", "Ask the caller whether they are there before the call is ended."),
    "lost": (_E, "rfc-close", "Look into the application's log: its process, or a proxy before it, dropped the call."),
    "protocol_error": (_E, "rfc-frames", "Use a WebSocket library as it is meant; proxies must not touch frames."),
    "message_too_big": (_E, "chunk", "Send shorter messages: seconds of audio, not minutes."),
    "ends_call": (_I, "close", "Nothing, if it is meant: a call whose application closes goes on to its next step."),
    "close_unanswered": (_W, "rfc-close", "Read the socket until it closes: every call leaves one behind otherwise."),
    "close_without_frame": (_W, "rfc-close", "Close the WebSocket, not the connection beneath it."),
    "never_speaks": (_E, "media", "Send `media` messages with audio in them; listen to what the application produces."),
    "binary": (_E, "messages", "Send JSON in text frames: send_text or send_str, not send_bytes."),
    "bad_json": (_E, "messages", "Send one JSON object in a text frame, in UTF-8."),
    "bad_base64": (_E, "media", "Encode with the standard base64 alphabet and its padding, without newlines."),
    "bad_shape": (_E, "messages", "Put the audio into media.payload, and the name into `mark.name`."),
    "mark_name": (_E, "mark", "Make `mark.name` a string."),
    "unknown_event": (_W, "messages", "Use `media`, `mark` and `clear`: nothing else means anything to the platform."),
    "misspelt_sid": (_W, "ids", "Spell it as the start message does."),
    "wrong_stream_sid": (_W, "ids", "Send the id of the start message, or leave it out."),
    "wrong_encoding": (_E, "encoding", "Convert the audio before it is base64-encoded."),
    "chunk_odd": (_W, "chunk", "Cut audio at whole samples, best into 3,200 bytes; keep the rest for the next."),
    "chunk_unaligned": (_W, "chunk", "Cut audio in multiples of 320 bytes; carry the rest over, pad the last piece."),
    "chunk_small": (_I, "chunk", "Nothing for here. On the hosted platform small pieces may jitter."),
    "chunk_big": (_W, "chunk", "Cut audio into pieces of 3,200 to 32,000 bytes: `clear` acts at once all the same."),
    "too_quiet": (_W, "", "Raise the level of the voice to about -20 dBFS."),
    "clipped": (_W, "", "Lower the level of the voice to about -20 dBFS: at full scale it is distorted."),
    "choppy": (_E, "media", "Send audio at least as fast as it is played, some 200 ms ahead."),
    "underruns": (_W, "media", "Stay some 200 ms ahead of what is being played."),
    "no_greeting": (_I, "", "Greet, unless it is meant so: callers who hear nothing say hello or hang up."),
    "late_greeting": (_W, "", "Have the greeting ready before calls come, or synthesise it at the start message."),
    "no_response": (_W, "", "If it waits for words, give it some: --speech FILE.wav; the check's voice has none."),
    "slow_response": (_W, "", "Shorten the end of speech detection, stream the answer, keep connections warm."),
    "talks_over": (_W, "", "Wait until the caller has finished."),
    "echoes_caller": (_W, "media", "Send the application's voice, not what was received."),
    "no_clear": (_W, "clear", "Send `clear` as soon as the caller speaks, and stop sending."),
    "slow_clear": (_W, "clear", "Decide by the first 100 to 300 ms of the caller's speech."),
    "stops_without_clear": (_I, "clear", "Nothing, if audio is sent as it is played; what is ahead needs a `clear`."),
    "audio_after_clear": (_W, "clear", "Cancel the answer before `clear` is sent: what comes after it is played."),
    "barge_in_untested": (_I, "clear", "Nothing: it did not speak long enough to be interrupted."),
    "ping_pong": (_W, "mark", "Do not answer a mark that comes back with the same mark."),
    "slow_network_ends": (_E, "", "Allow for gaps of a second in both directions before giving a call up."),
    "slow_network_silent": (_W, "", "Measure speech by the audio received, not by the time at which it arrives."),
    "no_lead": (_I, "media", "Stay 500 ms ahead of what is being played, and send `clear` when interrupted."),
    "refused_together": (_E, "", "Allow as many calls as there will be callers; see limits of server and proxy."),
    "crossed": (_E, "ids", "Keep the state of a call with its socket, not in a global variable."),
    "slower_together": (_W, "", "Do not block the event loop; more workers, or a larger machine."),
}

_GENERAL = {
    "rfc-handshake": "RFC 6455, section 4.1",
    "rfc-frames": "RFC 6455, section 5",
    "rfc-close": "RFC 6455, section 7.1.2",
}
DOCUMENTS: dict[str, dict[str, str]] = {name: _GENERAL | platform.documents for name, platform in DIALECTS.items()}


def finding(
    dialect: str, code: str, seen: str, traces: Iterable[Trace], severity: Severity | None = None, remedy: str = ""
) -> Finding:
    """The finding `code`, seen in `traces`; `severity` and `remedy` where this one is not as its rule says."""
    usual, topic, usual_remedy = RULES[code]
    scenarios = tuple(dict.fromkeys(trace.scenario for trace in traces))
    where = DOCUMENTS[dialect].get(topic, "")
    said = _spelled(dialect, seen), _spelled(dialect, remedy or usual_remedy)
    return Finding(severity or usual, code, scenarios, said[0], where, said[1])


def _spelled(dialect: str, text: str) -> str:
    """`text` with the platform's words for messages."""
    platform = DIALECTS[dialect]
    for ours, theirs in (
        ("media", platform.media),
        ("mark", platform.mark),
        ("mark.name", platform.mark_name),
        ("clear", platform.clear),
        ("returned mark", platform.returned),
    ):
        text = text.replace(f"`{ours}`", f"`{theirs}`")
    return text


def in_order(found: Iterable[Finding]) -> list[Finding]:
    """The worst first, otherwise as found."""
    rank = list(Severity)
    return sorted(found, key=lambda one: rank.index(one.severity))
