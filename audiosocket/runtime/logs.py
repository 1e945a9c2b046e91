"""Structured logs on standard output: JSON for journald, or columns for a person's terminal.

Events are `snake_case` facts; what belongs to one call is bound by `call_id`. Phone numbers are masked by a processor,
and nothing is logged per frame.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

# With a plus sign digits are a number of the public network (E.164: 7 to 15). Without one they are taken for a national
# number where they stand alone: not in an id, an address, a time or a fraction.
_NUMBER = re.compile(
    r"(\+[0-9]{4})[0-9]{1,9}([0-9]{2})(?![0-9])"
    r"|(?:(?<![0-9A-Za-z_.:+-])|(?<=sip:)|(?<=tel:))([0-9]{4})[0-9]{3,9}([0-9]{2})(?![0-9A-Za-z_-]|[.:][0-9])"
)


def mask_number(text: str) -> str:
    """`text` with every phone number in it shown as its first and last digits."""
    return _NUMBER.sub(lambda found: f"{found[1] or found[3]}****{found[2] or found[4]}", text)


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask_number(value)
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked(item) for item in value]
    return value


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key not in ("timestamp", "call_id"):
            event[key] = _masked(value)
    return event


def set_up(process: str, level: str = "info", form: Literal["json", "console"] = "json", mask: bool = True) -> None:
    """Configures structlog and the standard logging of libraries for this process."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # The text of an exception may hold a number too.
    masking = [_mask] if mask else []
    if form == "json":
        processors += [structlog.processors.format_exc_info, *masking, structlog.processors.JSONRenderer()]
    else:
        processors += [*masking, structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(process=process)
    # Libraries speak through the standard module; only their warnings concern an operator.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True)
