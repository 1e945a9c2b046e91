"""What the `legs` benchmark saw of one scenario: what became of each frame, and the figures that it makes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from audiosocket.loadtest import machine, marked
from tools.bench.report import Value, spread
from tools.sip.sipp import Call

AFTER_SECONDS = 10.0
"""What is seen after a stall."""
FRAME_SECONDS = 0.02
SLICE_SECONDS = 0.25
BACK_MS = 20.0
"""The delay is back when its median stays within this of the one before the stall."""

Arrivals = dict[tuple[bytes, int], float]
"""When each marked frame came to the application, by whose it is (as PCM16) and its number."""

_ENDS = ("legs lost", "calls lost", "new call, longest ms")
COST_COLUMNS = ("leg", "worker % a call", "Asterisk % a call", "to worker B/s", "to Asterisk B/s", "others' cores")
LOSS_COLUMNS = ("leg", "loss %", "p50 ms", "p99 ms", "max ms", "sent", "lost up", "lost down", *_ENDS)
STALL_COLUMNS = (
    *("leg", "stall s", "before p50 ms", "p99 ms", "during p50 ms", "p99 ms, during"),
    *("after p50 ms", "p99 ms, after", "back after s", "lost up", "lost down", *_ENDS),
)


@dataclass(frozen=True, slots=True)
class Spoken:
    """What one caller said in a scenario."""

    call: Call
    number: int
    frames: int
    first_packet: int
    """How many packets the caller had received before."""
    began_at: float


@dataclass(slots=True)
class Seen:
    """One scenario."""

    spoken: list[Spoken] = field(default_factory=list)

    began: float = 0.0
    """When the stall began, or the first frame left."""
    sent: int = 0
    lost_up: int = 0
    lost_down: int = 0
    left: list[float] = field(default_factory=list)
    """When each frame that came back had left."""
    trips: list[float] = field(default_factory=list)
    """Its time to the application and back, in ms."""
    legs_lost: int = 0
    calls_lost: int = 0
    probe_ms: float | None = None
    usage: machine.Usage | None = None
    to_worker: float = 0.0
    to_asterisk: float = 0.0

    def hear(self, arrivals: Arrivals) -> None:
        """Finds out what has become of each frame, once all is over."""
        for spoken in self.spoken:
            at_mouth, at_app = marked.ulaw_whose(spoken.number), marked.pcm_whose(spoken.number)
            back: dict[int, float] = {}
            for packet in spoken.call.peer.packets[spoken.first_packet :]:
                if packet.payload.startswith(at_mouth):
                    which = marked.NUMBER_OF_ULAW.get(packet.payload[marked.WHOSE_SAMPLES : marked.TAG_SAMPLES])
                    if which is not None:
                        back.setdefault(which, packet.arrived_at)
            up = sum((at_app, which) in arrivals for which in range(spoken.frames))
            self.sent += spoken.frames
            self.lost_up += spoken.frames - up
            self.lost_down += up - len(back)
            for which, at in back.items():
                left = spoken.began_at + which * FRAME_SECONDS
                self.left.append(left)
                self.trips.append((at - left) * 1000)

    def losses(self) -> tuple[Value, ...]:
        """Cells of `LOSS_COLUMNS`."""
        return (*spread(self.trips, 50, 99, 100), self.sent, self.lost_up, self.lost_down, *self._ends())

    def costs(self, calls: int) -> tuple[Value, ...]:
        """Cells of `COST_COLUMNS`."""
        assert self.usage is not None
        shares = [self.usage.cores[name] * 100 / calls for name in ("worker", "Asterisk")]
        return (*shares, self.to_worker / calls, self.to_asterisk / calls, self.usage.others)

    def stall(self, seconds: float) -> tuple[Value, ...]:
        """Cells of `STALL_COLUMNS`."""
        left, trips = np.array(self.left), np.array(self.trips)
        arrived, thawed = left + trips / 1000, self.began + seconds
        before = spread(trips[arrived < self.began], 50, 99)
        during = spread(trips[(left >= self.began - FRAME_SECONDS) & (left < thawed)], 50, 99)
        after = spread(trips[left >= thawed + AFTER_SECONDS / 2], 50, 99)
        slices = np.arange(thawed, thawed + AFTER_SECONDS, SLICE_SECONDS)
        medians = [spread(trips[(arrived >= at) & (arrived < at + SLICE_SECONDS)], 50)[0] for at in slices]
        back: float | None = None
        for index in reversed(range(len(slices))):
            median = medians[index]
            if before[0] is None or median is None or median > before[0] + BACK_MS:
                break
            back = index * SLICE_SECONDS
        return (*before, *during, *after, back, self.lost_up, self.lost_down, *self._ends())

    def _ends(self) -> tuple[Value, ...]:
        return (self.legs_lost, self.calls_lost, self.probe_ms)
