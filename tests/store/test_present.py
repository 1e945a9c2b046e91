"""Reports reach the controller at least once, and commands reach one that listens."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from ari_app.errors import Unavailable
from ari_app.store.present import Command, CommandReader, Present, ReportReader
from audiosocket.callspec import CallNotice, CallReport, LegOrder, orders_channel, report_stream
from audiosocket.registry import Registry
from audiosocket.runtime.stores import open_redis
from tests.store.test_registry import report
from tests.stores import until

pytestmark = pytest.mark.store

STREAM = report_stream("n1")


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
    await until(lambda: registry._sender is not None and registry._sender.done())


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


async def test_notices_and_reports_come_in_the_order_in_which_they_were_written(redis_client):
    told = []
    notices = [
        CallNotice(call_id="c", leg_uuid="l", event=event, digits=digits, at_ms=1)
        for event, digits in (("connected", ""), ("digits", "1#"))
    ]

    async def on_report(report) -> None:
        told.append(report)

    await redis_client.xadd(STREAM, {"notice": msgspec.json.encode(notices[0])})
    await send(redis_client, 1)
    await redis_client.xadd(STREAM, {"notice": b'{"event": "sung"}'})
    await redis_client.xadd(STREAM, {"notice": msgspec.json.encode(notices[1])})
    async with running(ReportReader(redis_client, "n1", stored).run(on_report, told.append)):
        await until(lambda: len(told) == 3)
        await until(lambda: _empty(redis_client))
    assert [told[0], told[2]] == notices
    assert isinstance(told[1], CallReport)


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
