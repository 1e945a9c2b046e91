"""Addresses of Redis: which are read, and what is said of those that are not."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from audiosocket.runtime.redis_address import RedisAddress, read_address
from audiosocket.settings import StoreUrls

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://h", "unix:///run/redis.sock?db=1"])
def test_one_server_is_left_to_the_client(url: str) -> None:
    assert read_address(url) == RedisAddress("server", url)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        (
            "redis+sentinel://h1:26379,h2:7/present/3",
            RedisAddress("sentinel", "redis://h1:26379/3", (("h1", 26379), ("h2", 7)), "present"),
        ),
        (
            "rediss+sentinel://us%40er@[fd00::1],10.0.0.6/my.master?ssl_ca_certs=/ca.pem",
            RedisAddress(
                "sentinel",
                "rediss://us%40er@[fd00::1]:26379/0?ssl_ca_certs=/ca.pem",
                (("fd00::1", 26379), ("10.0.0.6", 26379)),
                "my.master",
            ),
        ),
        ("redis+cluster://h1,h2:7001", RedisAddress("cluster", "redis://h1:6379/0", (("h1", 6379), ("h2", 7001)))),
        ("rediss+cluster://h1/0", RedisAddress("cluster", "rediss://h1:6379/0", (("h1", 6379),))),
    ],
)
def test_several_servers(url: str, address: RedisAddress) -> None:
    assert read_address(url) == address
    StoreUrls(postgres="postgresql://x", redis=url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://h1:26379", "the master's name"),
        ("redis+sentinel://h1:26379/two words", "the master's name"),
        ("redis+sentinel://h1/present/first", "no number"),
        ("redis+sentinel:///present", "HOST:PORT"),
        ("redis+sentinel://h1,,h2/present", "HOST:PORT"),
        ("redis+sentinel://h1:port/present", "HOST:PORT"),
        ("redis+sentinel://h1:0/present", "HOST:PORT"),
        ("redis+sentinel://h1:70000/present", "HOST:PORT"),
        ("redis+sentinel://[::1/present", "HOST:PORT"),
        ("redis+cluster://h1/1", "database 0 only"),
        ("redis+cluster://h1#top", "#fragment"),
        ("redis+sentinel://user:tell-nobody@h1,h2/present", "carries a password"),
        ("redis+cluster://:tell-nobody@h1,h2", "carries a password"),
        ("redis+cluster://h1?password=tell-nobody", "carries a password"),
        ("redis+other://h1", "pattern"),
        ("redis+sentinel+cluster://h1/present", "pattern"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(url: str, why: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StoreUrls(postgres="postgresql://x", redis=url)
    (problem,) = caught.value.errors()
    assert why in problem["msg"]
    assert "tell-nobody" not in problem["msg"]


def test_a_password_for_sentinels_needs_sentinels() -> None:
    with pytest.raises(ValidationError, match="no Sentinels are given"):
        StoreUrls(postgres="postgresql://x", redis="redis://h", redis_sentinel_password=SecretStr("x"))
