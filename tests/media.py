"""What several media tests share: a call spec, and a scripted application for a session without IO."""

from __future__ import annotations

from typing import Any

from audiosocket.callspec import CallSpec, MediaFormat


def call_spec(**changes: Any) -> CallSpec:
    """A call spec with harmless values."""
    values: dict[str, Any] = {
        "call_id": "6f1c1f52-3b1e-4a55-9d2e-6f0c70a3c001",
        "leg_uuid": "0b8f3c3e-4c8e-4d57-8d5b-3e5b8b7f1001",
        "call_sid": "9a1b" * 8,
        "stream_sid": "0f3c" * 8,
        "account_sid": "acme1",
        "application": "test",
        "url": "ws://127.0.0.1:1/",
        "caller": "+919000000001",
        "callee": "+918000000002",
        "media_format": MediaFormat.ULAW,
        "fade_ms": 0.0,  # most tests compare frames bit by bit
        "report_stream": "reports",
        "created_at_ms": 0,
        "expires_at_ms": 2**50,
    }
    values |= changes
    # Its text will do, as on the wire.
    values["media_format"] = MediaFormat(values["media_format"])
    return CallSpec(**values)
