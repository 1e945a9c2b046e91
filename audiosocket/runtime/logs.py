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

_NUMBER = re.compile(r"(?<![0-9A-Za-z_.:-])(\+?[0-9]{4})[0-9]{3,9}([0-9]{2})(?![0-9A-Za-z_.:-])")


def mask_number(text: str) -> str:
    """`text` with every phone number in it shown as its first and last digits."""
    return _NUMBER.sub(r"\1****\2", text)


def _mask(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str) and key not in ("timestamp", "call_id", "exception"):
            event[key] = mask_number(value)
    return event


def set_up(process: str, level: str = "info", form: Literal["json", "console"] = "json", mask: bool = True) -> None:
    """Configures structlog and the standard logging of libraries for this process."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if mask:
        processors.append(_mask)
    if form == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty()))
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
