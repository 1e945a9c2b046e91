"""`trunkbridge`: the operator's and the supervisor's way in.

Commands are imported when they are called: the gateway node has neither the control plane's libraries loaded nor its
configuration, and completion answers at once.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from audiosocket import __version__
from audiosocket.errors import MediaError

_COMMANDS = {
    "api": ("ari_app.api.process:api", "Run the HTTP interface: applications' limits."),
    "appcheck": ("audiosocket.appcheck.command:appcheck", "Call an application before any caller does."),
    "apps": ("ari_app.cli.apps:apps", "List applications, show and change their limits."),
    "calls": ("ari_app.cli.calls:calls", "List, show, watch and hang up calls."),
    "channels": ("ari_app.cli.channels:channels", "List, show and hang up Asterisk's live channels."),
    "completion": ("ari_app.cli.completion:completion", "Print the completion script of a shell."),
    "config": ("ari_app.cli.config:config", "Check a configuration file, render Asterisk's."),
    "controller": ("ari_app.controller.process:controller", "Run the call controller of a PBX node."),
    "db": ("ari_app.cli.db:db", "Migrate the database."),
    "doctor": ("ari_app.doctor.command:doctor", "Check this node end to end and say what to mend."),
    "gateway": ("audiosocket.cli:gateway", "Run one media worker, configured or standalone."),
    "loadtest": ("audiosocket.loadtest.command:loadtest", "Load a media worker and measure what it carries."),
    "nodes": ("ari_app.cli.nodes:nodes", "List the nodes, take them out of placement and let them back in."),
    "pairs": ("ari_app.cli.nodes:pairs", "List the node pairs and what they have to give."),
    "stores": ("ari_app.store.command:stores", "Run the embedded PostgreSQL and Redis."),
    "workers": ("ari_app.cli.workers:workers", "List the registered media workers and their load."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported on first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in sorted(_COMMANDS.items())])


@click.command(cls=LazyGroup)
@click.version_option(__version__, prog_name="trunkbridge")
def trunkbridge() -> None:
    """Run AI voice applications on your own SIP trunks.

    Configuration is one YAML file, given with --config or in TRUNKBRIDGE_CONFIG. Exit codes: 0 done, 1 failed, 2 wrong
    usage.
    """


def main() -> None:
    """The console script: every error of ours becomes one clear line and exit code 1."""
    # Imported here: it would cost the gateway node a control plane import otherwise.
    from ari_app.errors import TrunkbridgeError

    try:
        trunkbridge(prog_name="trunkbridge")
    except (MediaError, TrunkbridgeError) as error:
        _fail(error)
    except BaseExceptionGroup as group:
        ours, rest = group.split((MediaError, TrunkbridgeError))
        if rest is not None or ours is None:
            raise
        _fail(_first(ours))


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(error: BaseException) -> None:
    click.echo(f"Error: {error}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
