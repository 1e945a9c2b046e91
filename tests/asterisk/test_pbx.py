"""A real Asterisk with the rendered configuration: what it loads, whom it serves, what a caller hears."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from tests.pbx import STRANGER, ULAW_CARRIER, StartPbx, config_for, ears, listening, sipp
from tests.worker_rig import until
from tools.asterisk.install import AsteriskInstall
from tools.asterisk.instance import AsteriskFailed, AsteriskInstance, basic_authorization

pytestmark = pytest.mark.asterisk

CALLER = "+919811111111"
NUMBER = "+918000000001"

JUSTIFIED = (
    # Said at every start, whatever the configuration holds: Asterisk's own documentation lacks the option.
    "Could not find option 'minimum_size' with type 'threadpool' in module 'stasis'",
    # Said on a machine without any Ethernet interface; nothing here uses the EID.
    "No ethernet interface found for seeding global EID",
    # Both said of a call for which there is no controller, which is what they are to say.
    "Failed to find outbound websocket per-call config for app 'trunkbridge'",
    "Stasis app 'trunkbridge' doesn't exist",
)


def complaints(pbx: AsteriskInstance, since: int = 0) -> list[str]:
    """Of the log, from so many characters on."""
    lines = [line for line in pbx.log.read_text()[since:].splitlines() if re.search(r"\b(WARNING|ERROR)\[", line)]
    lines += [line for line in pbx.output.read_text().splitlines() if line and not line.startswith("PBX UUID: ")]
    return [line for line in lines if not any(text in line for text in JUSTIFIED)]


def wanted_modules(pbx: AsteriskInstance) -> set[str]:
    return set(re.findall(r"^require = (\S+)$", (pbx.layout.etc / "modules.conf").read_text(), re.MULTILINE))


async def calls_processed(pbx: AsteriskInstance) -> int:
    """How many calls it has had so far."""
    found = re.search(r"^(\d+) calls? processed", await pbx.rx("core show channels"), re.MULTILINE)
    assert found is not None
    return int(found[1])


async def test_two_at_once_load_every_module_without_complaint(start_pbx: StartPbx) -> None:
    first, second = await start_pbx(), await start_pbx()
    assert first.pid != second.pid
    for pbx in (first, second):
        shown = await pbx.rx("module show")
        running = {line.split()[0] for line in shown.splitlines() if re.search(r"\.so .* Running ", line)}
        assert running == wanted_modules(pbx)
        # Sent to this instance and to no other.
        assert str(pbx.config.asterisk.ari.listen) in await pbx.rx("http show status")
    await first.stop()
    assert await second.rx("core show version")
    await second.stop()
    assert complaints(first) == complaints(second) == []


async def test_without_a_controller_the_caller_hears_the_prompt_and_is_hung_up(pbx: AsteriskInstance) -> None:
    logged = len(pbx.log.read_text())
    async with ears(ULAW_CARRIER) as caller:
        await sipp(pbx, "call_until_bye.xml", ULAW_CARRIER, caller=CALLER, number=NUMBER, rtp_port=str(caller.port))
        assert caller.seconds_of_sound > 1
        assert {payload_type for payload_type, _ in caller.heard} == {0}
        assert {len(payload) for _, payload in caller.heard} == {160}
    assert "0 active channels" in await pbx.rx("core show channels")
    assert complaints(pbx, logged) == []


async def test_the_alaw_trunk_speaks_alaw(pbx: AsteriskInstance) -> None:
    async with ears("127.0.0.3") as caller:
        await sipp(pbx, "call_until_bye.xml", "127.0.0.3", caller=CALLER, number="1000", rtp_port=str(caller.port))
        assert {payload_type for payload_type, _ in caller.heard} == {8}
        assert caller.seconds_of_sound > 1


async def test_after_the_prompt_the_fallback_extension_goes_on(pbx: AsteriskInstance, start_pbx: StartPbx) -> None:
    def dialplan(etc: Path) -> None:
        etc.mkdir(parents=True)
        (etc / "extensions-fallback.conf").write_text(
            "[trunkbridge-fallback]\nexten => desk,1,Playback(hello-world,noanswer)\n same => n,Hangup()\n"
        )

    going_on = await start_pbx({"asterisk": {"fallback_prompt": "hello-world", "fallback_extension": "desk"}}, dialplan)
    assert "app_dial.so" in wanted_modules(going_on) - wanted_modules(pbx)
    lengths = []
    for tried in (pbx, going_on):
        async with ears(ULAW_CARRIER) as caller:
            await sipp(tried, "call_until_bye.xml", ULAW_CARRIER, caller=CALLER, number="1", rtp_port=str(caller.port))
            lengths.append(caller.seconds_of_sound)
    assert lengths[1] > lengths[0] + 0.5
    assert complaints(going_on) == []


@pytest.mark.parametrize("caller", [CALLER, "carrier-ulaw", "softphone", "anonymous"])
async def test_an_unknown_address_is_refused_whatever_name_it_gives(pbx: AsteriskInstance, caller: str) -> None:
    log = pbx.layout.log / "security.log"
    processed, logged = await calls_processed(pbx), len(log.read_text())
    await sipp(pbx, "call_refused.xml.in", STRANGER, status=401, caller=caller, number=NUMBER, rtp_port="9")
    assert await calls_processed(pbx) == processed
    security = log.read_text()[logged:]
    assert "ChallengeSent" in security or "InvalidAccountID" in security


@pytest.mark.parametrize(
    ("number", "status"),
    [
        ("12abc", 484),
        ("1000,1)", 484),
        ("+91%24%7BSHELL(id)%7D", 484),
        ("1000&PJSIP%2Fx", 484),
        ("abc", 404),
        ("s", 404),
    ],
)
async def test_a_number_that_is_none_is_turned_away(pbx: AsteriskInstance, number: str, status: int) -> None:
    async with listening(pbx) as controller:
        await sipp(pbx, "call_refused.xml.in", ULAW_CARRIER, status=status, caller=CALLER, number=number, rtp_port="9")
        assert "StasisStart" not in controller.seen


@pytest.mark.parametrize("dialled", [NUMBER, f"{NUMBER};npdi=yes", "5"])
async def test_the_controller_is_told_line_and_number_and_may_let_go(pbx: AsteriskInstance, dialled: str) -> None:
    async with listening(pbx) as controller, ears(ULAW_CARRIER) as caller:
        call = asyncio.create_task(
            sipp(pbx, "call_until_bye.xml", ULAW_CARRIER, caller=CALLER, number=dialled, rtp_port=str(caller.port))
        )
        start = await controller.next("StasisStart")
        assert start["args"] == ["inbound", "carrier-ulaw", dialled.split(";")[0]]
        channel = start["channel"]
        assert channel["caller"]["number"] == CALLER
        assert channel["id"].startswith(f"{pbx.config.node}-")
        await controller.post(f"channels/{channel['id']}/answer")
        await controller.post(f"channels/{channel['id']}/continue")
        await call
        assert caller.seconds_of_sound == 0, "a call that the controller let go of must not hear the fallback prompt"


async def test_a_controller_that_goes_away_leaves_new_calls_to_the_prompt(pbx: AsteriskInstance) -> None:
    async with listening(pbx):
        pass
    async with ears(ULAW_CARRIER) as caller:
        await sipp(pbx, "call_until_bye.xml", ULAW_CARRIER, caller=CALLER, number=NUMBER, rtp_port=str(caller.port))
        assert caller.seconds_of_sound > 1


async def test_a_softphone_registers_with_its_password_and_with_no_other(pbx: AsteriskInstance) -> None:
    password = pbx.config.phones["softphone"].password.get_secret_value()
    wrong = ("-au", "softphone", "-ap", f"{password}x")
    await sipp(pbx, "register.xml.in", STRANGER, *wrong, status=401, phone="softphone")
    assert "No objects found" in await pbx.rx("pjsip show contacts")
    right = ("-au", "softphone", "-ap", password)
    await sipp(pbx, "register.xml.in", STRANGER, *right, status=200, phone="softphone")
    assert f"sip:softphone@{STRANGER}" in await pbx.rx("pjsip show contacts")


async def test_a_softphone_calls_under_the_number_of_the_settings(pbx: AsteriskInstance) -> None:
    phone = pbx.config.phones["softphone"]
    login = ("-au", "softphone", "-ap", phone.password.get_secret_value())
    async with listening(pbx) as controller, ears(STRANGER) as ear:
        rtp_port = str(ear.port)
        call = asyncio.create_task(
            sipp(
                pbx, "phone_call_until_bye.xml", STRANGER, *login, caller="softphone", number="1000", rtp_port=rtp_port
            )
        )
        start = await controller.next("StasisStart")
        assert start["args"] == ["inbound", "softphone", "1000"]
        assert start["channel"]["caller"]["number"] == phone.caller_id
        await controller.post(f"channels/{start['channel']['id']}/answer")
        await controller.delete(f"channels/{start['channel']['id']}")
        await call


async def test_ari_and_ami_want_their_passwords_and_are_on_loopback_only(pbx: AsteriskInstance) -> None:
    ari, ami = pbx.config.asterisk.ari, pbx.config.asterisk.ami
    async with aiohttp.ClientSession() as session:
        for headers in ({}, basic_authorization(ari.username, "wrong")):
            async with session.get(f"http://{ari.listen}/ari/channels", headers=headers) as response:
                assert response.status == 401
        for path in ("/httpstatus", "/static/", "/manager", "/rawman"):
            async with session.get(f"http://{ari.listen}{path}") as response:
                assert response.status == 404, path
    for listen in (ari.listen, ami.listen):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.8", int(listen.rpartition(":")[2]))


async def test_ami_shows_calls_and_endpoints_and_runs_nothing(pbx: AsteriskInstance) -> None:
    ami = pbx.config.asterisk.ami
    reader, writer = await asyncio.open_connection(*ami.listen.split(":"))

    async def ask(action: str, **fields: str) -> str:
        lines = [f"Action: {action}", *(f"{name}: {value}" for name, value in fields.items())]
        writer.write("".join(f"{line}\r\n" for line in [*lines, f"ActionID: {action}", ""]).encode())
        async with asyncio.timeout(5):
            while True:
                answer = (await reader.readuntil(b"\r\n\r\n")).decode()
                if "Response: " in answer and f"ActionID: {action}\r\n" in answer:
                    return answer.partition("Response: ")[2].split()[0]

    try:
        secret = ami.password.get_secret_value()
        assert await ask("Login", Username=ami.username, Secret=secret) == "Success"
        for action in ("CoreShowChannels", "Status", "CoreStatus", "CoreSettings", "PJSIPShowEndpoints"):
            assert await ask(action) == "Success", action
        assert await ask("Command", Command="core show version") == "Error"
        assert await ask("Originate", Channel="Local/1@trunk-carrier-ulaw", Application="Wait", Data="1") == "Error"
        updates = {"SrcFilename": "manager.conf", "DstFilename": "manager.conf", "Action-000000": "NewCat"}
        assert await ask("UpdateConfig", **updates, **{"Cat-000000": "x"}) == "Error"
    finally:
        writer.close()
        await writer.wait_closed()


async def test_a_very_long_folder_gets_a_short_run_folder(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    pbx = AsteriskInstance(asterisk_install, config_for(folder), folder)
    await pbx.start()
    run = pbx.layout.run
    try:
        assert "Asterisk" in await pbx.rx("core show version")
        assert run.is_dir()
    finally:
        await pbx.stop()
    assert not run.exists()
    assert not pbx.running


async def test_a_port_that_is_taken_is_told_before_the_start(pbx: AsteriskInstance, start_pbx: StartPbx) -> None:
    first = pbx.config.asterisk
    for place, taken in (
        ("ari.listen", {"ari": {"listen": first.ari.listen}}),
        ("ami.listen", {"ami": {"listen": first.ami.listen}}),
        ("sip_listen", {"sip_listen": first.sip_listen}),
    ):
        with pytest.raises(AsteriskFailed, match=f"asterisk.{place}: .* cannot be listened on: Address already in use"):
            await start_pbx({"asterisk": taken})


async def test_an_asterisk_that_does_not_come_up_is_told_with_its_log(
    asterisk_install: AsteriskInstall, tmp_path: Path
) -> None:
    pbx = AsteriskInstance(replace(asterisk_install, modules=tmp_path), config_for(tmp_path), tmp_path / "pbx")
    with pytest.raises(AsteriskFailed, match=r"(?s)ended with status .*Error loading module 'chan_pjsip.so'"):
        await pbx.start()
    assert not pbx.running


async def test_a_prompt_that_is_not_there_is_told_before_the_start(start_pbx: StartPbx) -> None:
    with pytest.raises(AsteriskFailed, match="no sound 'no-such-prompt'"):
        await start_pbx({"asterisk": {"fallback_prompt": "no-such-prompt"}})


async def test_it_restarts_after_a_crash_in_the_same_folder(start_pbx: StartPbx) -> None:
    pbx = await start_pbx()
    before = pbx.pid
    await pbx.kill()
    with pytest.raises(AsteriskFailed, match="is not running"):
        _ = pbx.pid
    await pbx.start()
    assert pbx.pid != before
    assert "Asterisk" in await pbx.rx("core show version")


_PARENT = """
import asyncio, sys
from pathlib import Path
from ari_app.settings import load
from tools.asterisk.instance import AsteriskInstance
from tools.asterisk.provide import provide

async def main():
    folder = Path(sys.argv[1])
    pbx = AsteriskInstance(provide(), load(folder / "trunkbridge.yml"), folder)
    await pbx.start()
    print(pbx.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_it_dies_with_a_parent_that_was_killed(asterisk_install: AsteriskInstall, tmp_path: Path) -> None:
    config_for(tmp_path)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PARENT, str(tmp_path)), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(60):
            pid = int(await parent.stdout.readline())
        os.kill(pid, 0)
    finally:
        parent.send_signal(signal.SIGKILL)
        await parent.wait()
    # The kernel gives it to init, which buries it in its own time.
    await until(lambda: not _alive(pid), "the orphaned Asterisk ends")


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
