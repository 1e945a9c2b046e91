"""`python -m tools.asterisk provide`: makes sure that there is an Asterisk, and says which."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.asterisk.install import AsteriskUnavailable
from tools.asterisk.provide import default_cache_dir, provide


def main() -> int:
    """Exit status: 0 when there is an Asterisk, 1 when none can be had, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tools.asterisk", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("provide", help="find a usable Asterisk, or unpack one")
    command.add_argument("--cache", type=Path, default=default_cache_dir(), help="folder (default: %(default)s)")
    options = parser.parse_args()
    try:
        install = provide(options.cache.absolute(), lambda line: print(f"asterisk: {line}", flush=True))
    except AsteriskUnavailable as error:
        print(f"asterisk: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("asterisk: interrupted; nothing half-made is left", file=sys.stderr)
        return 130
    print(f"asterisk: {install.version} ({install.origin}), {install.argv[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
