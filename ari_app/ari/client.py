"""Requests to Asterisk's REST interface: one method for each thing that a call controller or an operator asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import aiohttp

from ari_app.ari.errors import AriMalformed, AriNotFound, AriRejected, AriUnauthorized
from ari_app.ari.models import AsteriskInfo, AsteriskModule, Bridge, Channel, RtpStatistics
from ari_app.ari.transport import AriTransport, decode_answer, path_of
from ari_app.domain.hangup import Cause
from ari_app.domain.ids import BridgeId, ChannelId, LegUuid
from audiosocket.callspec import WEBSOCKET_LEG_VARIABLE, WEBSOCKET_PATH, WEBSOCKET_SUBPROTOCOL

MAX_EVENT_BYTES = 1024 * 1024
"""An event is 1 to 4 kB."""

DTMF_MS = 100
"""Length of a digit, and of the pause to the next: twice what receivers must make out (ITU-T Q.24)."""
DTMF_PAUSE_MS = 100

WEBSOCKET_CONNECT_MS = 500
"""How long Asterisk may take to connect a WebSocket media leg."""
_EXTERNAL = "/channels/externalMedia"
_NO_CLIENTS = "render Asterisk's configuration again (sorcery.conf) and restart it"


class AriClient(AriTransport):
    """Asterisk's REST interface for one Stasis application. Use it as a context manager, on one event loop.

    Every method raises `AriUnavailable` when Asterisk cannot be reached or does not answer in time (what was asked for
    may have happened then), `AriNotFound` when what it names does not exist, and otherwise another `AriError`; and
    `ValueError` for an empty id.
    """

    # Asterisk itself

    async def info(self) -> AsteriskInfo:
        """Version and start time."""
        return await self._fetch("/asterisk/info", AsteriskInfo)

    async def modules(self) -> dict[str, str]:
        """The modules that are loaded, by name (`chan_pjsip.so`), and whether they run: `Running`, `Not Running`."""
        return {module.name: module.status for module in await self._fetch("/asterisk/modules", list[AsteriskModule])}

    async def ping(self, seconds: float) -> None:
        """Asks whether Asterisk's HTTP server answers within so many seconds; no channel is touched for it."""
        await self._send("GET", "/asterisk/ping", seconds=seconds)

    # The application

    async def set_event_filter(self, disallowed: Iterable[str]) -> None:
        """Keeps event types from being sent. It holds until the application goes, so it is set on every connect."""
        body = {"disallowed": [{"type": name} for name in disallowed]}
        await self._send("PUT", path_of("applications", self.app, "eventFilter"), body=body)

    async def subscribe(self, channel_id: ChannelId) -> None:
        """Asks for a channel's events until it is destroyed. Without it, a channel that came through the dialplan is
        silent after its StasisEnd, and its ChannelDestroyed, with the cause, never comes.

        Raises `AriInvalid` when the channel does not exist.
        """
        await self._send(
            "POST", path_of("applications", self.app, "subscription"), {"eventSource": f"channel:{channel_id}"}
        )

    # Channels

    async def list_channels(self) -> list[Channel]:
        """Every channel of this Asterisk, not only ours."""
        return await self._fetch("/channels", list[Channel])

    async def get_channel(self, channel_id: ChannelId) -> Channel:
        """One channel, whoever it belongs to."""
        return await self._fetch(path_of("channels", channel_id), Channel)

    async def answer(self, channel_id: ChannelId) -> None:
        """Answers a channel; one that is up stays so. Raises `AriConflict` when it is not in our application."""
        await self._send("POST", path_of("channels", channel_id, "answer"))

    async def ring(self, channel_id: ChannelId) -> None:
        """Lets the caller hear ringing (SIP 180)."""
        await self._send("POST", path_of("channels", channel_id, "ring"))

    async def start_music(self, channel_id: ChannelId, music: str) -> None:
        """Plays a class of music on hold to a channel, until it is ended or joins a bridge; the class of which there is
        none is silent."""
        await self._send("POST", path_of("channels", channel_id, "moh"), {"mohClass": music})

    async def stop_music(self, channel_id: ChannelId) -> None:
        """Ends music on hold."""
        await self._send("DELETE", path_of("channels", channel_id, "moh"))

    async def hangup(
        self, channel_id: ChannelId, cause: int = Cause.NORMAL_CLEARING, *, missing_ok: bool = False
    ) -> bool:
        """Ends a channel, in our application or not, with a Q.850 cause. True when there was one.

        With `missing_ok` a channel that is gone already is no error.
        """
        return await self._delete(path_of("channels", channel_id), {"reason_code": str(int(cause))}, missing_ok)

    async def external_media(
        self, channel_id: ChannelId, *, host: str, leg_uuid: LegUuid, media_format: str
    ) -> Channel:
        """Creates an AudioSocket channel to `host` (`IP:PORT`, an IP literal) that enters our application.

        It may be used once its own StasisStart came. Asterisk connects before it answers: a refused connection is an
        `AriRejected` at once, a host that does not answer one after 2 s. A channel id that is in use is an
        `AriRejected` too (not a conflict), after Asterisk has connected and hung up again.
        After `AriUnavailable` hang the channel up with `missing_ok`: it may exist.
        """
        return await self._external(channel_id, host, "audiosocket", "tcp", leg_uuid, media_format)

    async def external_rtp(
        self, channel_id: ChannelId, *, host: str, leg_uuid: LegUuid, media_format: str
    ) -> tuple[Channel, str]:
        """Creates an RTP channel to `host` (`IP:PORT`) that enters our application, and tells the address that it sends
        from and listens on (`IP:PORT`, IPv6 in brackets). `media_format` is `ulaw` or `alaw`: Asterisk sends other
        formats under payload types of its own choice. Nobody need be there at `host`. Otherwise as `external_media`.

        Raises `AriMalformed` when Asterisk tells no address; the channel exists then.
        """
        channel = await self._external(channel_id, host, "rtp", "udp", leg_uuid, media_format)
        told = channel.channelvars
        address, port = told.get("UNICASTRTP_LOCAL_ADDRESS", ""), told.get("UNICASTRTP_LOCAL_PORT", "")
        if not address or not port:
            raise AriMalformed("POST", "/channels/externalMedia", 200, "no UNICASTRTP_LOCAL_ADDRESS and _PORT")
        return channel, f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    async def external_websocket(
        self, channel_id: ChannelId, *, host: str, leg_uuid: LegUuid, media_format: str
    ) -> Channel:
        """Creates a WebSocket channel (`chan_websocket`) to `host` (`IP:PORT`), which tells the leg's UUID in its first
        message and speaks JSON. Asterisk dials what it has an object for, which is written before, each time alike: it
        is gone when Asterisk restarts.

        It answers before it connects: what cannot be connected is destroyed without a StasisStart. Not repeated on a
        stale connection: a channel id that is in use crashes Asterisk 22.10.1.
        """
        client = "trunkbridge-" + re.sub(r"[^0-9A-Za-z.]", "-", host)
        values = {
            "uri": f"ws://{host}{WEBSOCKET_PATH}",
            "protocols": WEBSOCKET_SUBPROTOCOL,
            "connection_type": "per_call_config",
            "connection_timeout": str(WEBSOCKET_CONNECT_MS),
            "reconnect_attempts": "1",
        }
        fields = [{"attribute": name, "value": value} for name, value in values.items()]
        path = path_of("asterisk", "config", "dynamic", "res_websocket_client", "websocket_client", client)
        try:
            await self._send("PUT", path, body={"fields": fields})
        except (AriNotFound, AriRejected) as error:
            if isinstance(error, AriUnauthorized):
                raise
            raise AriRejected("PUT", path, error.status, f"{error.message}: {_NO_CLIENTS}") from None
        variables = {WEBSOCKET_LEG_VARIABLE: str(leg_uuid)}
        options = {"connection_type": "client", "transport_data": "f(json)"}
        query = self._media_query(channel_id, client, "none", "websocket", leg_uuid, media_format) | options
        answer = await self._send("POST", _EXTERNAL, query, body={"variables": variables}, repeat=False)
        return decode_answer("POST", _EXTERNAL, answer, Channel)

    async def _external(
        self, channel_id: ChannelId, host: str, encapsulation: str, transport: str, leg_uuid: LegUuid, media_format: str
    ) -> Channel:
        query = self._media_query(channel_id, host, encapsulation, transport, leg_uuid, media_format)
        return await self._create(_EXTERNAL, query, Channel, lambda: self.get_channel(channel_id))

    def _media_query(
        self, channel_id: ChannelId, host: str, encapsulation: str, transport: str, leg_uuid: LegUuid, media_format: str
    ) -> dict[str, str]:
        return {
            "channelId": channel_id,
            "app": self.app,
            "external_host": host,
            "encapsulation": encapsulation,
            "transport": transport,
            "format": media_format,
            "data": leg_uuid,
        }

    async def snoop(self, channel_id: ChannelId, snoop_id: ChannelId) -> Channel:
        """Creates a channel that enters our application and carries what channel `channel_id`, in our application or
        not, says (`spy=in`); nothing that is sent to it is heard there.

        It may be used once its own StasisStart came, and ends by itself with the channel that it listens to.
        """
        query = {"app": self.app, "spy": "in", "whisper": "none", "snoopId": snoop_id}
        return await self._create(
            path_of("channels", channel_id, "snoop"), query, Channel, lambda: self.get_channel(snoop_id)
        )

    async def continue_in_dialplan(
        self, channel_id: ChannelId, *, context: str, extension: str, priority: int = 1
    ) -> None:
        """Lets a channel leave our application and go on in the dialplan.

        Not repeated on a stale connection, for the channel may have left. Raises `AriConflict` when it is not ours.
        """
        query = {"context": context, "extension": extension, "priority": str(priority)}
        await self._send("POST", path_of("channels", channel_id, "continue"), query, repeat=False)

    async def send_dtmf(self, channel_id: ChannelId, digits: str) -> None:
        """Sends digits to a channel's far end, in its own way (RFC 4733 for SIP), after those that are being sent.

        Returns when Asterisk has queued them. Not repeated on a stale connection: they would be heard twice.
        """
        query = {"dtmf": digits, "duration": str(DTMF_MS), "between": str(DTMF_PAUSE_MS)}
        await self._send("POST", path_of("channels", channel_id, "dtmf"), query, repeat=False)

    async def set_variables(self, channel_id: ChannelId, values: Mapping[str, str]) -> None:
        """Sets channel variables, all in one request."""
        await self._send("POST", path_of("channels", channel_id, "variables"), body={"variables": dict(values)})

    async def rtp_statistics(self, channel_id: ChannelId) -> RtpStatistics:
        """RTP figures so far. Raises `AriRejected` (403) for a channel that has no RTP."""
        return await self._fetch(path_of("channels", channel_id, "rtp_statistics"), RtpStatistics)

    # Bridges

    async def list_bridges(self) -> list[Bridge]:
        """Every bridge of this Asterisk, not only ours."""
        return await self._fetch("/bridges", list[Bridge])

    async def get_bridge(self, bridge_id: BridgeId) -> Bridge:
        """One bridge."""
        return await self._fetch(path_of("bridges", bridge_id), Bridge)

    async def create_bridge(self, bridge_id: BridgeId, bridge_type: str = "mixing") -> Bridge:
        """Creates a bridge. Raises `AriConflict` when it existed before."""
        query = {"bridgeId": bridge_id, "type": bridge_type}
        return await self._create("/bridges", query, Bridge, lambda: self.get_bridge(bridge_id))

    async def add_to_bridge(self, bridge_id: BridgeId, *channel_ids: ChannelId) -> None:
        """Puts channels into a bridge; one that is in it leaves and enters again.

        Raises `AriInvalid` when a channel is gone, `AriConflict` when one is not in our application.
        """
        await self._send("POST", path_of("bridges", bridge_id, "addChannel"), {"channel": ",".join(channel_ids)})

    async def destroy_bridge(self, bridge_id: BridgeId, *, missing_ok: bool = False) -> bool:
        """Removes a bridge; its channels stay. True when there was one; see `hangup` for `missing_ok`."""
        return await self._delete(path_of("bridges", bridge_id), None, missing_ok)

    # Events

    async def connect_events(self, heartbeat_seconds: float) -> aiohttp.ClientWebSocketResponse:
        """The event WebSocket of our application, for `EventStream`.

        Pings are sent every `heartbeat_seconds` in which nothing came; without a pong within half that time the next
        receive reports an error. A connection with the same application's name takes the events from one before it.
        """
        path = "/events"

        async def attempt() -> aiohttp.ClientWebSocketResponse:
            return await self._open().ws_connect(
                self._url(path, {"app": self.app, "subscribeAll": "false"}),
                heartbeat=heartbeat_seconds,
                max_msg_size=MAX_EVENT_BYTES,
            )

        return await self._counted("GET", path, attempt, repeat=False)
