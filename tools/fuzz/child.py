"""python -m tools.fuzz.child TARGET [libFuzzer options and corpus folders]: one target under atheris, until it ends.

The product is imported with its branches and comparisons instrumented, so that an input which takes a new way through
it is kept and varied further.
"""

from __future__ import annotations

import logging
import sys
import time

import atheris
import structlog

INSTRUMENTED = ["audiosocket", "ari_app", "panoramisk", "yaml"]


def main() -> None:
    """Never returns: libFuzzer ends the process, with 0 when all runs were good."""
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tools.fuzz.targets import TARGETS
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    logging.disable(logging.CRITICAL)
    atheris.Setup([sys.argv[0], *options], TARGETS[name].run)
    print(f"stat::began_unix_ms: {time.time_ns() // 1_000_000}", flush=True)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
