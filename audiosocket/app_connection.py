"""The TCP connection to an application: how it is made, how it has ended, whether there is still a host behind it."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Sequence

from aiohappyeyeballs import AddrInfoType, start_connection

from audiosocket.resolver import Resolver

UNSENT_BYTES = 16_384
"""From so much on the kernel takes no more for a host that has no room (TCP_NOTSENT_LOWAT; the segment that it is
filling then may have 64 kB besides). What is on its way does not count: no distance slows an application down."""
GONE_SECONDS = 10.0
"""So long no packet of a host's that has been asked again and again: it is gone, or the way to it."""
_ASKED_TIMES = 3
EYEBALLS_SECONDS = 0.25
"""How long one address of a name may keep the next one waiting (RFC 8305)."""
_TCP_CLOSE = 7  # a state in Linux' tcp_info, for which the socket module has no name
_TCP_INFO = struct.Struct("=xxBB52xI")  # of the same: retransmissions and probes without an answer, ms since one


async def connected(resolver: Resolver, host: str, port: int) -> socket.socket:
    """A TCP connection. Raises `OSError`, and `ValueError` for what can be no name."""
    addresses: Sequence[AddrInfoType]
    try:  # an address needs no resolver, and no thread to wait for it
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        addresses = await resolver.addresses(host, port)
    connection = await _connected(addresses)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    return connection


async def _connected(addresses: Sequence[AddrInfoType]) -> socket.socket:
    if len(addresses) > 1:
        return await start_connection(addresses, happy_eyeballs_delay=EYEBALLS_SECONDS)
    family, kind, protocol, _, address = addresses[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


def gone(connection: socket.socket) -> bool:
    """Whether the host of an open connection, on which there is something to send, answers no more.

    TCP_USER_TIMEOUT does not tell: it also counts while a host that lives has no room, and answers every probe. One
    that has had none for long is asked ever more rarely, so that time alone does not tell either.
    """
    return said_gone(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))


def said_gone(tcp_info: bytes) -> bool:
    """The same of the beginning of Linux' `struct tcp_info`."""
    retransmitted, probes, last_ms = _TCP_INFO.unpack(tcp_info)
    return bool(last_ms >= GONE_SECONDS * 1000 and max(retransmitted, probes) >= _ASKED_TIMES)


def was_reset(connection: socket.socket) -> bool:
    """Whether a connection that is over, and whose socket is still open, did not end with the peer's FIN (or, under
    TLS, its close_notify)."""
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    # A peer that is gone answers what was under way to it with a reset, which is no part of how it ended: behind a FIN
    # the kernel tells it as EPIPE.
    return state == _TCP_CLOSE and connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != errno.EPIPE


def shut_down(connection: socket.socket) -> None:
    """Ends it at once, whoever holds it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already
