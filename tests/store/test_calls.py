"""Questions about the call records."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio
from pydantic import SecretStr

from ari_app.errors import StoreUnavailable
from ari_app.store.calls import AmbiguousCall, CallStore
from ari_app.store.postgres import connect_options, open_pool
from ari_app.store.records import CallRow
from ari_app.store.writer import RecordWriter
from audiosocket.settings import StoreUrls

pytestmark = pytest.mark.store

T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def row(number: int, **values) -> CallRow:
    base = {
        "call_id": str(uuid.UUID(int=number << 96)),
        "call_sid": f"{number:032x}",
        "node": "n1",
        "direction": "inbound",
        "trunk": "bsnl",
        "state": "connected",
        "created_at": T0 + timedelta(seconds=number & 0xF),
    }
    return CallRow(**(base | values))


ROWS = [
    row(0xAAAA0001, caller="+911", application="echo"),
    row(0xAAAA0002, trunk="other", ended_at=T0, state="ended"),
    row(0xBBBB0003, node="n2", callee="+912"),
    row(0xCCCC0004, caller="+911"),
]


@pytest_asyncio.fixture
async def store(pool):
    writer = RecordWriter(pool)
    writer.start()
    for each in ROWS:
        writer.call(each)
    await writer.stop(5)
    return CallStore(pool)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, [3, 2, 1, 0]),
        ({"limit": 2}, [3, 2]),
        ({"active_only": True}, [3, 2, 0]),
        ({"trunk": "other"}, [1]),
        ({"application": "echo"}, [0]),
        ({"caller": "+911"}, [3, 0]),
        ({"callee": "+912"}, [2]),
        ({"node": "n1", "active_only": True, "caller": "+911", "limit": 1}, [3]),
        ({"since": ROWS[2].created_at}, [3, 2]),
        ({"trunk": "'; DROP TABLE calls; --"}, []),
    ],
)
async def test_list(store, asked, expected):
    assert await store.list_calls(**asked) == [ROWS[index] for index in expected]


async def test_get_by_id_sid_and_prefix(store):
    assert await store.get_call(ROWS[2].call_id) == ROWS[2]
    assert await store.get_call(ROWS[2].call_id.upper()) == ROWS[2]
    assert await store.get_call(ROWS[2].call_id.replace("-", "")) == ROWS[2]
    assert await store.get_call(ROWS[2].call_sid) == ROWS[2]
    assert await store.get_call("CA" + ROWS[2].call_sid) == ROWS[2]  # as Twilio's protocol spells it
    assert await store.get_call(str(uuid.UUID(ROWS[2].call_sid))) == ROWS[2]  # as Plivo's does
    assert await store.get_call("bbbb") == ROWS[2]
    assert await store.get_call("aaaa0002-00") == ROWS[1]
    for unknown in ("dddd", "bbb", "", "x' OR 1=1", "%", "f" * 33):
        assert await store.get_call(unknown) is None
    with pytest.raises(AmbiguousCall, match="'aaaa' stands for more than one call"):
        await store.get_call("aaaa")


async def test_open_calls_of_a_node(store):
    assert await store.open_calls("n1") == [ROWS[0], ROWS[3]]


async def test_without_postgres(tmp_path):
    urls = StoreUrls(postgres=f"postgresql://x@/x?host={tmp_path}", redis="redis://127.0.0.1")
    pool = await open_pool(urls)  # a process starts without it
    with pytest.raises(StoreUnavailable, match="PostgreSQL cannot be used"):
        await CallStore(pool).list_calls()
    await pool.close()


async def test_a_password_is_used_and_never_shown(stores):
    urls = StoreUrls(
        postgres="postgresql://clerk@127.0.0.1:1/db", redis=stores.redis, postgres_password=SecretStr("tell-nobody")
    )
    assert "tell-nobody" not in repr(urls)
    assert connect_options(urls)["password"] == "tell-nobody"
    other = await open_pool(urls)
    with pytest.raises(StoreUnavailable) as caught:
        await CallStore(other).list_calls()
    assert "tell-nobody" not in str(caught.value)
    await other.close()


async def test_whether_a_callers_channel_is_in_the_records(pool):
    writer = RecordWriter(pool)
    writer.start()
    writer.call(row(0xDDDD0005, caller_channel_id="1.5", state="ended", ended_at=T0))
    await writer.stop(5)
    store = CallStore(pool)
    assert await store.knows_caller("n1", "1.5", T0)
    assert not await store.knows_caller("n2", "1.5", T0)
    assert not await store.knows_caller("n1", "1.6", T0)
    assert not await store.knows_caller("n1", "1.5", T0 + timedelta(hours=1)), "another Asterisk's, after a restart"
