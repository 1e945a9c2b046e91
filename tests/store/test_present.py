"""Reports reach the controller at least once, and commands reach one that listens."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from ari_app.errors import Unavailable
from ari_app.store.present import Command, CommandReader, Present, ReportReader
from audiosocket.callspec import CallNotice, CallReport, LegOrder
from audiosocket.keys import notice_stream, orders_channel, report_stream
from audiosocket.registry import Registry
from audiosocket.runtime.stores import open_redis
from tests.store.test_registry import report
from tests.stores import until

pytestmark = pytest.mark.store

STREAM = report_stream("n1")
NOTICES = notice_stream(STREAM)


@contextlib.asynccontextmanager
async def running(awaitable):
    task = asyncio.create_task(awaitable)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Inbox(list):
    async def put(self, thing) -> None:
        self.append(thing)

    def numbers(self) -> list[int]:
        return [each.figures.caller_frames for each in self]


async def stored() -> None:
    """All is stored at once."""


def unheard(notice) -> None:
    raise AssertionError(f"nobody said {notice}")


async def send(client, *numbers: int) -> None:
    registry = Registry(client)
    for number in numbers:
        await registry.report(STREAM, report(number))
    await until(lambda: registry.outbox._sender is not None and registry.outbox._sender.done())


async def test_reports_arrive_in_order_and_are_removed(redis_client):
    inbox = Inbox()
    await send(redis_client, 1, 2)  # before any controller was there
    async with running(ReportReader(redis_client, "n1", stored).run(inbox.put, unheard)):
        await until(lambda: len(inbox) == 2)
        await send(redis_client, *range(3, 300))
        await until(lambda: len(inbox) == 299)
        await until(lambda: _empty(redis_client))
    assert inbox.numbers() == list(range(1, 300))
    assert isinstance(inbox[0], CallReport)


async def _empty(client) -> bool:
    return await client.xlen(STREAM) == 0


async def test_what_was_not_stored_comes_again_after_a_restart(redis_client):
    never = asyncio.Event()
    first, second = Inbox(), Inbox()
    await send(redis_client, 1, 2)

    async def not_stored():
        await never.wait()

    async with running(ReportReader(redis_client, "n1", not_stored).run(first.put, unheard)):
        await until(lambda: len(first) == 2)
    await send(redis_client, 3)
    async with running(ReportReader(redis_client, "n1", stored).run(second.put, unheard)):
        await until(lambda: len(second) == 3)
        await until(lambda: _empty(redis_client))
    assert first.numbers() == [1, 2]
    assert second.numbers() == [1, 2, 3]


async def test_redis_restarting_under_the_reader(redis_client, servers):
    inbox = Inbox()
    async with running(ReportReader(redis_client, "n1", stored).run(inbox.put, unheard)):
        await send(redis_client, 1)
        await until(lambda: len(inbox) == 1)
        await servers.redis.stop()
        servers.redis.start()
        await servers.ready()
        await send(redis_client, 2)
        await until(lambda: len(inbox) == 2)
    assert inbox.numbers() == [1, 2]


async def test_a_dropped_connection_repeats_nothing_that_was_handled(redis_client, empty_stores):
    inbox, held = Inbox(), asyncio.Event()

    async def later():
        await held.wait()

    async with (
        open_redis(empty_stores) as other,
        running(ReportReader(redis_client, "n1", later).run(inbox.put, unheard)),
    ):
        await send(other, 1)
        await until(lambda: len(inbox) == 1)
        for _ in range(3):
            await other.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)
        await send(other, 2)
        await until(lambda: len(inbox) == 2)
        held.set()
        await until(lambda: _empty(other))
    assert inbox.numbers() == [1, 2]


def notice(digits: str) -> CallNotice:
    return CallNotice(call_id="c", leg_uuid="l", event="digits", digits=digits, at_ms=1)


async def test_reports_and_notices_come_each_in_the_order_in_which_they_were_written(redis_client):
    inbox, told = Inbox(), []
    reader = ReportReader(redis_client, "n1", stored)
    registry = Registry(redis_client)
    registry.notify(STREAM, notice("1"))
    await send(redis_client, 1)
    registry.notify(STREAM, notice("2"))
    async with running(reader.run(inbox.put, told.append)):
        await until(lambda: len(told) == 2 and len(inbox) == 1)
        await redis_client.xadd(NOTICES, {"notice": b'{"event": "sung"}'})
        registry.notify(STREAM, notice("3"))
        await until(lambda: len(told) == 3)
        await until(lambda: _empty(redis_client))
    assert told == [notice("1"), notice("2"), notice("3")]
    assert inbox.numbers() == [1]


async def test_notices_of_a_worker_one_version_older(redis_client):
    inbox, told = Inbox(), []
    await redis_client.xadd(STREAM, {"notice": msgspec.json.encode(notice("1"))})
    await send(redis_client, 1)
    async with running(ReportReader(redis_client, "n1", stored).run(inbox.put, told.append)):
        await until(lambda: len(told) == 1 and len(inbox) == 1)
        await until(lambda: _empty(redis_client))


async def test_a_notice_is_heard_once_and_not_by_a_later_controller(redis_client):
    first, second = [], []
    registry = Registry(redis_client)
    async with running(ReportReader(redis_client, "n1", stored).run(Inbox().put, first.append)):
        registry.notify(STREAM, notice("1"))
        await until(lambda: len(first) == 1)
    registry.notify(STREAM, notice("2"))  # while no controller is there
    await until(lambda: registry.outbox._notifier is not None and registry.outbox._notifier.done())
    await asyncio.sleep(1)  # how long a busy machine may take to tell the time: that much is heard again
    async with running(ReportReader(redis_client, "n1", stored).run(Inbox().put, second.append)):
        registry.notify(STREAM, notice("3"))
        await until(lambda: second)
    assert (first, second) == ([notice("1")], [notice("3")])
    assert 0 < await redis_client.pttl(NOTICES) <= 3_600_000


async def test_an_old_notice_is_not_read_and_one_that_redis_missed_for_a_moment_is(redis_client, empty_stores):
    told = []
    reader = ReportReader(redis_client, "n1", stored)
    reader._began -= 60
    seconds, _ = await redis_client.time()
    for age in (30, 6, 3):
        await redis_client.xadd(
            NOTICES, {"notice": msgspec.json.encode(notice(str(age)))}, id=f"{(seconds - age)}000-1"
        )
    async with open_redis(empty_stores) as other, running(reader.run(Inbox().put, told.append)):
        await until(lambda: told)
        await other.client_kill_filter(_type="normal", skipme=True)
        await other.xadd(NOTICES, {"notice": msgspec.json.encode(notice("0"))})
        await until(lambda: len(told) == 2)
    assert told == [notice("3"), notice("0")]


async def test_no_number_of_notices_displaces_a_report(redis_client, monkeypatch):
    monkeypatch.setattr("audiosocket.outbox.REPORT_STREAM_MAX", 200)
    monkeypatch.setattr("audiosocket.outbox.NOTICE_STREAM_MAX", 200)
    registry, inbox = Registry(redis_client), Inbox()
    await send(redis_client, 1)
    for _ in range(900):
        registry.notify(STREAM, notice("1"))
    await until(lambda: registry.outbox._notifier is not None and registry.outbox._notifier.done())
    assert await redis_client.xlen(NOTICES) < 900
    async with running(ReportReader(redis_client, "n1", stored).run(inbox.put, lambda notice: None)):
        await until(lambda: inbox)
    assert inbox.numbers() == [1]


async def test_an_order_reaches_the_worker_s_channel(redis_client):
    order = LegOrder(leg_uuid="l", order="release")
    await Present(redis_client).send_order("gw/0", order)  # nobody listens: it is lost, and that is no error
    async with redis_client.pubsub() as listener:
        await listener.subscribe(orders_channel("gw/0"))
        await until(lambda: _subscribed(redis_client, orders_channel("gw/0")))
        await Present(redis_client).send_order("gw/1", order)
        await Present(redis_client).send_order("gw/0", order)
        while (message := await listener.get_message(timeout=5)) is None or message["type"] != "message":
            pass
        assert msgspec.json.decode(message["data"], type=LegOrder) == order


async def _subscribed(client, channel: str) -> bool:
    return (await client.pubsub_numsub(channel))[0][1] == 1


async def test_an_unreadable_or_trimmed_report_holds_nothing_up(redis_client):
    inbox = Inbox()
    for unreadable in (b"not json", b'{"call_id": "\xff"}', b'{"x": ' + b"[" * 5000):
        await redis_client.xadd(STREAM, {"report": unreadable})
    await redis_client.xadd(STREAM, {"other": b"field"})
    await send(redis_client, 1)
    never = asyncio.Event()
    async with running(ReportReader(redis_client, "n1", never.wait).run(Inbox().put, unheard)):
        await until(lambda: _pending(redis_client, 5))
    await redis_client.xtrim(STREAM, maxlen=0)  # what is pending now has no content any more
    await send(redis_client, 2)
    async with running(ReportReader(redis_client, "n1", stored).run(inbox.put, unheard)):
        await until(lambda: len(inbox) == 1)
        await until(lambda: _pending(redis_client, 0))
    assert inbox.numbers() == [2]


async def _pending(client, expected: int) -> bool:
    groups = await client.xinfo_groups(STREAM) if await client.exists(STREAM) else []
    return bool(groups) and groups[0]["pending"] == expected


async def test_an_error_of_the_handler_ends_the_reader(redis_client):
    async def broken(_):
        raise RuntimeError("a fault of ours")

    await send(redis_client, 1)
    with pytest.raises(ExceptionGroup) as caught:
        await ReportReader(redis_client, "n1", stored).run(broken, unheard)
    assert caught.group_contains(RuntimeError, match="a fault of ours")


async def test_a_command_reaches_the_controller_of_the_node_only(redis_client):
    present, one, two = Present(redis_client), Inbox(), Inbox()
    hangup = Command(verb="hangup", call_id="c", by="asha")
    with pytest.raises(Unavailable, match="no controller of node 'n1' listens"):
        await present.send_command("n1", hangup)
    async with (
        running(CommandReader(redis_client, "n1").run(one.put)),
        running(CommandReader(redis_client, "n2").run(two.put)),
    ):
        await until(lambda: _heard(present, "n2", hangup))
        await until(lambda: len(two) == 1)
        await until(lambda: _heard(present, "n1", hangup))
        await until(lambda: len(one) == 1)
    assert list(one) == list(two) == [hangup]


async def _heard(present, node, command) -> bool:
    try:
        await present.send_command(node, command)
    except Unavailable:
        return False
    return True


async def test_commands_are_heard_again_after_redis_returns_and_nonsense_is_passed_over(redis_client, servers):
    present, inbox = Present(redis_client), Inbox()
    hangup = Command(verb="hangup", call_id="c", by="asha")
    async with running(CommandReader(redis_client, "n1").run(inbox.put)):
        await until(lambda: _heard(present, "n1", hangup))
        await servers.redis.stop()
        servers.redis.start()
        await servers.ready()
        await until(lambda: _heard(present, "n1", hangup))
        await redis_client.publish("{trunkbridge}:commands:n1", b'{"verb": "explode"}')
        await present.send_command("n1", hangup)
        await until(lambda: len(inbox) == 3)
        await asyncio.sleep(2.5)  # over two silent rounds: a quiet channel is not taken for a dead one
        await present.send_command("n1", hangup)
        await until(lambda: len(inbox) == 4)
