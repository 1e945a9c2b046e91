"""The SIP caller against a real Asterisk: what it reports is what happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from audiosocket.loadtest.sip import run_load
from tests.pbx import listening
from tools.asterisk.instance import AsteriskInstance
from tools.asterisk.local import free_ports
from tools.audio.talkspurts import talkspurts
from tools.audio.tones import dominant_frequency, tone
from tools.sip.rtp_peer import Codec, RtpTicker
from tools.sip.sipp import CallAborted, CallRefused, Carrier, Ending

pytestmark = pytest.mark.asterisk


@pytest_asyncio.fixture
async def ticker() -> AsyncIterator[RtpTicker]:
    async with RtpTicker() as running:
        yield running


@pytest_asyncio.fixture
async def carrier(pbx: AsteriskInstance, ticker: RtpTicker, tmp_path: Path) -> AsyncIterator[Carrier]:
    async with Carrier(pbx.config.asterisk.sip_listen, "127.0.0.2", tmp_path / "carrier", ticker) as running:
        yield running


async def test_two_callers_of_two_carriers_hear_each_other(pbx, carrier, ticker, tmp_path):
    other_carrier = Carrier(pbx.config.asterisk.sip_listen, "127.0.0.3", tmp_path / "alaw", ticker, codec=Codec.ALAW)
    async with listening(pbx) as controller, other_carrier:
        calls, channels = [], []
        for which in (carrier, other_carrier):
            call = which.call("+918000000001", "+919000000007")
            channel = (await controller.next("StasisStart"))["channel"]
            assert channel["caller"]["number"] == "+919000000007"
            await controller.post(f"channels/{channel['id']}/answer")
            await call.answered()
            calls.append(call)
            channels.append(channel["id"])
        await controller.post("bridges/pair?type=mixing")
        await controller.post(f"bridges/pair/addChannel?channel={','.join(channels)}")
        said = [call.peer.play(tone(hz, 1)) for call, hz in zip(calls, (600, 1000), strict=True)]
        for playback in said:
            await playback.done.wait()
        await calls[0].peer.send_dtmf("4").wait()
        assert (await controller.next("ChannelDtmfReceived"))["digit"] == "4"
        assert await calls[0].hang_up() is Ending.BY_US
        await controller.next("StasisEnd")
        await controller.delete(f"channels/{channels[1]}")
        assert await calls[1].ended() is Ending.BY_THEM
        assert calls[1].reason is not None
        assert "cause=16" in calls[1].reason
    for call, hz in zip(calls, (1000, 600), strict=True):
        heard = call.peer.received_pcm()
        spurt = max(talkspurts(heard), key=lambda each: each.seconds)
        assert spurt.seconds == pytest.approx(1, abs=0.1)
        start = int(spurt.start_seconds * 8000)
        assert dominant_frequency(heard[start : start + 7200]) == pytest.approx(hz, abs=2)
        assert call.peer.reception().lost == 0
        assert call.invited_at < call.answered_at < call.ended_at


async def test_ringing_and_the_answer_are_timed(pbx, carrier):
    async with listening(pbx) as controller:
        call = carrier.call("+918000000001")
        channel = (await controller.next("StasisStart"))["channel"]["id"]
        await controller.post(f"channels/{channel}/ring")
        await asyncio.sleep(0.5)
        await controller.post(f"channels/{channel}/answer")
        await call.answered()
        assert 0 < call.ringing_at - call.invited_at < 0.3
        assert 0.45 < call.answered_at - call.ringing_at < 0.9


async def test_a_call_is_cancelled_while_it_rings(pbx, carrier):
    async with listening(pbx) as controller:
        call = carrier.call("+918000000001")
        channel = (await controller.next("StasisStart"))["channel"]["id"]
        await controller.post(f"channels/{channel}/ring")
        assert await call.hang_up() is Ending.CANCELLED
        assert call.sip_code == 487
        await controller.next("StasisEnd")


async def test_a_refusal_is_told_with_its_code(pbx, carrier):
    async with listening(pbx) as controller:
        call = carrier.call("+918000000001")
        channel = (await controller.next("StasisStart"))["channel"]["id"]
        await controller.delete(f"channels/{channel}?reason=busy")
        with pytest.raises(CallRefused, match="486 Busy"):
            await call.answered()
        assert (call.ending, call.sip_code) == (Ending.REFUSED, 486)


async def test_fifty_callers_at_once_are_each_followed_on_their_own(start_pbx, ticker, tmp_path):
    """Without a controller the PBX answers, plays its prompt and hangs up."""
    first = free_ports(220)[0]
    rtp = {"first": first + first % 2, "last": first + 210}
    pbx = await start_pbx({"asterisk": {"rtp": rtp, "fallback_prompt": "hello-world"}})
    async with Carrier(pbx.config.asterisk.sip_listen, "127.0.0.2", tmp_path / "carrier", ticker) as carrier:
        await fifty_calls(carrier)


async def fifty_calls(carrier: Carrier) -> None:
    calls = [carrier.call("+918000000001", f"+9190000001{index:02}") for index in range(50)]
    await asyncio.gather(*(call.answered(20) for call in calls))
    endings = await asyncio.gather(*(call.ended(30) for call in calls))
    assert set(endings) == {Ending.BY_THEM}
    for call in calls:
        assert sum(spurt.seconds for spurt in talkspurts(call.peer.received_pcm(call.answered_at))) > 1
        assert call.peer.reception().lost == 0


async def test_a_carrier_that_stops_hangs_its_calls_up(pbx, ticker, tmp_path):
    async with listening(pbx) as controller:
        async with Carrier(pbx.config.asterisk.sip_listen, "127.0.0.2", tmp_path / "brief", ticker) as carrier:
            call = carrier.call("+918000000001")
            channel = (await controller.next("StasisStart"))["channel"]["id"]
            await controller.post(f"channels/{channel}/answer")
            await call.answered()
        assert call.ending is Ending.BY_US
        await controller.next("StasisEnd")


async def test_a_sipp_that_dies_ends_its_calls_as_aborted(pbx, carrier):
    async with listening(pbx) as controller:
        call = carrier.call("+918000000001")
        await controller.next("StasisStart")
        carrier._process.kill()
        with pytest.raises(CallAborted, match="SIPp ended"):
            await call.answered()
        assert call.ending is Ending.ABORTED


class OddPbx(asyncio.DatagramProtocol):
    """Refuses every INVITE with a code that does not exist."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request, *lines = data.decode().split("\r\n")
        if request.startswith("INVITE"):
            kept = [line for line in lines if line.partition(":")[0] in ("Via", "From", "To", "Call-ID", "CSeq")]
            self.transport.sendto("\r\n".join(["SIP/2.0 699 Odd", *kept, "", ""]).encode(), addr)


async def test_a_call_that_sipp_gives_up_is_aborted_with_its_reason(ticker, tmp_path):
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(OddPbx, local_addr=("127.0.0.1", 0))
    host, port = transport.get_extra_info("sockname")
    async with Carrier(f"{host}:{port}", "127.0.0.2", tmp_path, ticker) as carrier:
        call = carrier.call("+918000000001")
        with pytest.raises(CallAborted, match="unexpected message"):
            await call.answered()
        assert call.ending is Ending.ABORTED
    transport.close()


async def test_load_counts_what_became_of_every_call(pbx, tmp_path):
    async with listening(pbx) as controller:

        async def answer_all_but_every_third() -> None:
            for index in range(12):
                channel = (await controller.next("StasisStart"))["channel"]["id"]
                if index % 3 == 2:
                    await controller.delete(f"channels/{channel}?reason=busy")
                else:
                    await controller.post(f"channels/{channel}/answer")

        answering = asyncio.create_task(answer_all_but_every_third())
        result = await run_load(
            pbx.config.asterisk.sip_listen,
            "127.0.0.2",
            tmp_path / "load",
            callee="+918000000001",
            calls=12,
            calls_per_second=10,
            hold_seconds=1,
            audio=tone(440, 1),
        )
        await answering
    assert (result.successful, result.failed) == (8, 4)
    assert result.sip_codes == {486: 4}
    assert result.failures == {"FailedUnexpectedMessage": 4}
    assert len(result.answer_ms) == 8
