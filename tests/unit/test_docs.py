"""The documents name what there is: each setting with its default, command, metric, state, ending; and no dead link."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import pytest
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from ari_app.after import TransferSettings
from ari_app.applications import APPLICATIONS
from ari_app.call.ending import of_refusal, of_report, of_trigger
from ari_app.call.machine import FORKS, LATE, TABLE, Action, State, Trigger
from ari_app.call.onward import Onward, after_going_on
from ari_app.call.routing import NotAdmitted
from ari_app.cli.main import trunkbridge
from ari_app.domain.hangup import Cause
from ari_app.domain.termination import Result, Termination
from ari_app.limit import WebhookSettings
from ari_app.settings import (
    ApiSettings,
    AsteriskSettings,
    ControllerSettings,
    PhoneSettings,
    RouteSettings,
    TrunkSettings,
)
from audiosocket.callspec import CallNotice, CallReport, CallSpec, EndReason, LegOrder, MediaFigures, WorkerInfo
from audiosocket.dialects import DIALECTS
from audiosocket.settings import GatewaySettings, LogSettings, NodeSettings, StoreUrls
from tests.clients.matrix import INSTALLED, RECREATED
from tests.failure_cases import CASES as FAILURES

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md")), *sorted(ROOT.glob("a*/README.md"))]
SOURCES = [
    path for folder in ("ari_app", "audiosocket", "tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))
]

Rows = list[list[str]]


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(page: str, heading: str) -> str:
    """What stands under `heading`, up to the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    found = re.search(rf"^{re.escape(heading)}$(.*?)(?=^#{{1,{level}}} |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found is not None, f"no heading {heading!r}"
    return found[1]


def own(page: str, heading: str) -> str:
    """What stands under `heading`, without the sections below it."""
    return re.split(r"^#", section(page, heading), maxsplit=1, flags=re.MULTILINE)[0]


def rows(page: str) -> Rows:
    """The cells of all table rows, headings and rules left out."""
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells for cells in found if set("".join(cells)) - set("-")]


# Settings


def fields(model: type[BaseModel], prefix: str = "", without: tuple[str, ...] = ()) -> Iterator[tuple[str, FieldInfo]]:
    """A model's settings by their dotted names; sections are entered."""
    for name, field in model.model_fields.items():
        if name in without:
            continue
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and name != "dialect_options":
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def shown(field: FieldInfo) -> str:
    """A default as the tables write it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ([], {}) or isinstance(value, BaseModel):
        return "none"
    if isinstance(value, list):
        return f"`[{', '.join(str(item.value if isinstance(item, Enum) else item) for item in value)}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"{value:g}" if isinstance(value, float) else f"{value}" if isinstance(value, int) else f"`{value}`"


def of_applications() -> Iterator[tuple[str, FieldInfo]]:
    """The keys of applications of all dialects; where defaults differ, that of the first."""
    found: dict[str, FieldInfo] = {}
    for model in APPLICATIONS.values():
        found = dict(fields(model)) | found
    yield from found.items()


def options(dialect: str) -> type[BaseModel]:
    kind = APPLICATIONS[dialect].model_fields["dialect_options"].annotation
    assert isinstance(kind, type)
    return kind


SECTIONS = {
    "## Top": [
        *fields(NodeSettings, without=("store", "log", "gateway")),
        ("store", NodeSettings.model_fields["store"]),
        *fields(StoreUrls, "store."),
        *fields(LogSettings, "log."),
    ],
    "## asterisk": [*fields(AsteriskSettings)],
    "## trunks": [*fields(TrunkSettings)],
    "## phones": [*fields(PhoneSettings)],
    "## applications": [*of_applications()],
    **{f"### dialect_options of {name}": [*fields(options(name))] for name in DIALECTS},
    "### transfer": [*fields(TransferSettings)],
    "### webhook": [*fields(WebhookSettings)],
    "## routes": [*fields(RouteSettings)],
    "## gateway": [*fields(GatewaySettings)],
    "## controller": [*fields(ControllerSettings)],
    "## api": [*fields(ApiSettings)],
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_setting_is_documented_with_its_default_and_limits(heading: str) -> None:
    table = {cells[0].strip("`"): cells for cells in rows(own(text("configuration.md"), heading)) if "`" in cells[0]}
    settings = dict(SECTIONS[heading])
    assert sorted(table) == sorted(settings)
    for name, field in settings.items():
        _, kind, default, *_ = table[name]
        assert default == shown(field), name
        for rule in field.metadata:
            for limit in (getattr(rule, "ge", None), getattr(rule, "le", None)):
                # A range of few values is written as the values.
                assert limit is None or re.search(rf"\b{limit:.0f}\b", kind), f"{name}: {limit} is not in {kind!r}"
        if SecretStr in (field.annotation, *get_args(field.annotation)):
            assert kind == "secret", name


def test_no_section_of_the_file_is_left_out() -> None:
    from ari_app.settings import Config

    own = {"node", "pair", "state_dir", "store", "cluster_secret", "log", "prompts"}
    documented = {heading.strip("# ") for heading in SECTIONS} | own
    assert set(Config.model_fields) <= documented


def test_every_dialect_is_a_setting_and_has_its_page() -> None:
    assert sorted(APPLICATIONS) == sorted(DIALECTS)
    for name, model in APPLICATIONS.items():
        assert sorted(get_args(model.model_fields["dialect"].annotation)) == sorted(DIALECTS)
        assert name in text(f"protocol-{name}.md")
    for page in ("configuration.md", "cli.md", "appcheck.md"):
        assert [name for name in DIALECTS if f"`{name}`" not in text(page)] == [], page


# Commands


def commands(group: click.Group, path: str = "trunkbridge") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(trunkbridge))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_a_section_with_its_arguments_and_options(path: str) -> None:
    page, command = text("cli.md"), COMMANDS[path]
    arguments = [param.human_readable_name for param in command.params if isinstance(param, click.Argument)]
    described = section(page, f"### {' '.join([path, *arguments])}")
    for param in command.params:
        if isinstance(param, click.Option) and param.name not in ("config_path", "form"):
            assert re.search(rf"`{param.opts[-1]}\b", described), f"{path}: {param.opts[-1]} is not described"


def test_no_command_is_documented_that_does_not_exist() -> None:
    for page in PAGES:
        for found in re.findall(r"^### (trunkbridge (?:[a-z]+ ?)+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert found.strip() in COMMANDS, f"{page.name}: {found}"


# What the processes tell


def test_every_metric_is_documented() -> None:
    source = (ROOT / "audiosocket" / "status.py").read_text(encoding="utf-8")
    defined = set(re.findall(r'"(trunkbridge_[a-z_]+)"', source))
    documented = set(re.findall(r"`(trunkbridge_[a-z_]+?)(?:_total)?(?:\{[a-z]+\})?`", text("operations.md")))
    assert documented == defined
    source = (ROOT / "ari_app" / "controller" / "status.py").read_text(encoding="utf-8")
    defined = set(re.findall(r'"(trunkbridge_[a-z_]+)"', source))
    documented = set(
        re.findall(r"^\| `(trunkbridge_[a-z_]+?)(?:_total)?(?:\{[a-z,]+\})?`", text("monitoring.md"), re.M)
    )
    assert documented == defined


@pytest.mark.parametrize("message", [CallSpec, WorkerInfo, CallReport, CallNotice, LegOrder])
def test_every_field_of_the_contract_is_documented(message: type[msgspec.Struct]) -> None:
    (row,) = [cells for cells in rows(text("architecture.md")) if cells[0] == f"`{message.__name__}`"]
    assert re.findall(r"`(\w+)`", row[2]) == list(message.__struct_fields__)


@pytest.mark.parametrize(
    ("heading", "table"),
    [("## The states of a call", TABLE), ("### Of a call that forks", FORKS)],
    ids=["all", "forks"],
)
def test_the_table_of_states_is_the_machine(
    heading: str, table: dict[tuple[State, Trigger], tuple[State, tuple[Action, ...]]]
) -> None:
    documented: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for states, triggers, target, actions in rows(own(text("architecture.md"), heading))[1:]:
        for state, trigger in product(states.split(", "), triggers.split(", ")):
            assert (state, trigger) not in documented
            documented[state, trigger] = (target, actions.split(", ") if actions else [])
    assert documented == {
        (state.value, trigger.value): (target.value, [action.value for action in actions])
        for (state, trigger), (target, actions) in table.items()
    }


def endings() -> Iterator[tuple[str, str, str]]:
    """(reason, result, cause) of what the rules alone can tell."""
    for reason in EndReason:
        report = CallReport(
            call_id="", leg_uuid="", worker_id="", reason=reason, started_at_ms=0, ended_at_ms=0, figures=MediaFigures()
        )
        found = of_report(report)
        if found is not None:
            yield found.reason, found.result.value, str(found.hangup_cause)
    for name, cause in (
        ("unknown_number", Cause.UNALLOCATED_NUMBER),
        ("invalid_number", Cause.INVALID_NUMBER_FORMAT),
        ("unknown_trunk", Cause.CALL_REJECTED),
        ("trunk_full", Cause.NO_CIRCUIT_AVAILABLE),
        ("node_full", Cause.SWITCHING_EQUIPMENT_CONGESTION),
        ("asterisk_slow", Cause.SWITCHING_EQUIPMENT_CONGESTION),
        ("node_cordoned", Cause.SWITCHING_EQUIPMENT_CONGESTION),
    ):
        refused = of_refusal(NotAdmitted(name, "", cause))
        yield name, refused.result.value, str(refused.hangup_cause)
    to_ending = {trigger for (_, trigger), (target, _) in TABLE.items() if target is State.ENDING}
    to_ending.add(Trigger.SNOOP_FAILED)
    place = Onward("continued", "", "", "", {})
    for name in ("continued", "transferred"):
        onward = after_going_on(Termination(Result.SUCCESS, "application_ended"), replace(place, reason=name))
        yield onward.reason, onward.result.value, "none"
    for trigger, connected in product(sorted(to_ending - {Trigger.REFUSED, Trigger.PLACE_FAILED}), (True, False)):
        told = of_trigger(trigger, connected=connected)
        if told is not None:
            yield (
                told.reason,
                told.result.value,
                "the caller's" if trigger in LATE and not told.hangup_cause else str(told.hangup_cause),
            )


def test_every_ending_is_documented_with_its_result_and_cause() -> None:
    documented = {
        name: cells[1:3]
        for cells in rows(section(text("operations.md"), "## How calls end"))
        for name in re.findall(r"`(\w+)`", cells[0])
    }
    for reason, result, cause in endings():
        assert reason in documented, reason
        found_result, found_cause = documented[reason]
        assert (found_result, found_cause.split(" (")[0]) == (result, cause), reason


# Clients


def test_the_clients_are_those_that_are_run() -> None:
    table = {cells[0]: cells[1] for cells in rows(section(text("compatibility.md"), "## Clients"))[1:]}
    run = dict.fromkeys(INSTALLED, "package") | {kind.name: "re-creation" for kind in RECREATED}
    assert table == run


# Failures


def test_every_way_to_fail_is_a_test_and_every_test_is_documented() -> None:
    table = rows(section(text("failures.md"), "## What counts as failure"))
    named = [(name, cells) for cells in table for name in re.findall(r"`([^`]+)`", cells[-1])]
    assert [cells[0] for cells in table if cells[-1] != "tests" and "`" not in cells[-1]] == []
    assert {name for name, _ in named if "::" not in name} == set(FAILURES)
    for name, cells in named:
        if "::" in name:
            path, _, function = name.partition("::")
            assert f"def {function}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), name
        else:
            told = re.findall(r"`(\w+)`", cells[2])
            assert FAILURES[name].reason in told or cells[2].startswith("the "), name


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_leads_nowhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_relative_to(ROOT), target
        assert linked.is_file(), f"{target}: no such file"
        assert not anchor or anchor in anchors(linked), f"{target}: no such heading"


def test_code_and_settings_name_only_documents_that_exist() -> None:
    named: dict[str, Any] = {}
    for path in (
        *SOURCES,
        *PAGES,
        ROOT / "trunkbridge.example.yml",
        ROOT / "Makefile",
        ROOT / "asterisk-conf/README.md",
    ):
        for found in re.findall(r"\bdocs/([\w-]+\.md)", path.read_text(encoding="utf-8")):
            named.setdefault(found, path.relative_to(ROOT))
    assert {name: by for name, by in named.items() if not (DOCS / name).is_file()} == {}


def test_every_document_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in sorted(DOCS.glob("*.md")) if f"docs/{page.name}" not in readme] == []
