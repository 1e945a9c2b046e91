"""URLs of PostgreSQL: one server or several; what could not be meant is a mistake, and no password is repeated."""

from __future__ import annotations

import asyncpg.connect_utils
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiosocket.postgres_url import postgres_hosts

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql://u@db/x", [("db", 5432)]),
        ("postgres://db:6432/x", [("db", 6432)]),
        ("postgresql:///x", []),
        ("postgresql://u@/x?host=/run/pg", [("/run/pg", 5432)]),
        ("postgresql://u@/x?host=/run/a,/run/b&port=5433", [("/run/a", 5433), ("/run/b", 5433)]),
        ("postgresql://%2Frun%2Fpg/x", [("/run/pg", 5432)]),
        ("postgresql://u@h1:5432,h2:5433/x?target_session_attrs=read-write", [("h1", 5432), ("h2", 5433)]),
        ("postgresql://h1,h2/x?port=1,2", [("h1", 1), ("h2", 2)]),
        ("postgresql://h1,h2:7/x", [("h1", 5432), ("h2", 7)]),
        ("postgresql://[::1]:7,[2001:db8::2]/x?target_session_attrs=primary", [("::1", 7), ("2001:db8::2", 5432)]),
        ("postgresql://10.0.0.1,10.0.0.2/x?sslmode=verify-full&sslrootcert=/etc/ca.pem&search_path=tb", None),
    ],
)
def test_hosts(url, hosts):
    found = postgres_hosts(url)
    assert found == (hosts if hosts is not None else [("10.0.0.1", 5432), ("10.0.0.2", 5432)])


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://u:hunter2@h/x", "carries a password: move it to postgres_password"),
        ("postgresql://u:hunter2@h1,h2/x", "carries a password"),
        ("postgresql://h/x?password=hunter2", "carries a password"),
        ("postgresql://h/x?sslpassword=hunter2", "carries a password"),
        ("postgresql://u:hunter2@x@h/x", "more than one @"),
        ("postgresql://h1,/x", "a host of the URL is empty"),
        ("postgresql://,h1/x", "a host of the URL is empty"),
        ("postgresql://h1,,h2/x", "a host of the URL is empty"),
        ("postgresql://:5432/x", "a host of the URL is empty"),
        ("postgresql://h1:0/x", "a port of the URL is no number from 1 to 65535"),
        ("postgresql://h1:99999/x", "a port of the URL"),
        ("postgresql://h1:54a/x", "a port of the URL"),
        ("postgresql://h1:/x", "a port of the URL"),
        ("postgresql://h1:1:2/x", "expected HOST:PORT,HOST:PORT"),
        ("postgresql://::1/x", "expected HOST:PORT,HOST:PORT, IPv6 in brackets"),
        ("postgresql://[::1/x", "cannot be read"),
        ("postgresql://[h]/x", "cannot be read|no IPv6 address"),
        ("postgresql://h..1 /x", "neither a name nor an address"),
        ("postgresql://-h/x", "neither a name nor an address"),
        ("postgresql://h1,h2,h1:5432/x", "names h1 twice"),
        ("postgresql://" + ",".join(f"h{n}" for n in range(9)) + "/x", "9 hosts: at most 8"),
        ("postgresql://h1/x?host=h2", "hosts before its path and in \\?host="),
        ("postgresql://h1,h2,h3/x?port=1,2", "3 hosts and 2 ports"),
        ("postgresql://h1:1/x?port=2", "ports at its hosts and in \\?port="),
        ("postgresql://h/x?target_session_attrs=standby", "target_session_attrs in the URL is none of any, primary"),
        ("postgresql://h/x?sslmode=on", "sslmode in the URL is none of disable"),
        ("postgresql://h/x?connect_timeout=3", "connect_timeout of the URL is not known"),
        ("postgresql://h/x?sslmod=require", "sslmod of the URL is not known"),
        ("postgresql://h/x?sslmode", "not KEY=VALUE"),
        ("postgresql://h/x?sslmode=", "sslmode of the URL is empty"),
        ("postgresql://h/x?port=1&port=2", "port of the URL is given twice"),
        ("postgresql://h/x#y", "has a #fragment"),
    ],
)
def test_mistakes(url, why):
    with pytest.raises(ValueError, match=why) as caught:
        postgres_hosts(url)
    assert "hunter2" not in str(caught.value)


@given(st.text("ha1.-_:,@/?#[]%=&", max_size=40))
def test_any_text_is_hosts_or_a_mistake_and_never_read_otherwise_than_by_the_driver(text):
    url = f"postgresql://{text}"
    try:
        hosts = postgres_hosts(url)
    except ValueError:
        return
    read, _ = asyncpg.connect_utils._parse_connect_dsn_and_args(
        dsn=url,
        host=None,
        port=None,
        user=None,
        password="none",
        passfile=None,
        database=None,
        ssl=False,
        service=None,
        servicefile=None,
        direct_tls=None,
        server_settings=None,
        target_session_attrs=None,
        krbsrvname=None,
        gsslib=None,
    )
    if hosts:
        as_driven = [f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port) for host, port in hosts]
        assert read == as_driven
