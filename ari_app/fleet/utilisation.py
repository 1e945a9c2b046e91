"""How many calls an application may carry, from what its inference cluster says of its utilisation.

The cluster says what share of it is in use (1: all of it, more: work is queueing), and carries `calls` calls just now.
So `calls * target / utilisation` calls would bring it to its target, as far as it is the calls that use it.

- Above the target the limit goes down to that number, at once: work that queues is heard by every caller.
- Well below it (`BAND`) the limit goes up towards that number, by a quarter at most: what a call costs is known only
  of the calls that there are. It stays where fewer than half of the calls are there that it allows: more of what nobody
  uses would let a crowd in later, and nothing is known of what that would cost.
- Between the two nothing changes, so that a figure that trembles moves no limit.

What follows, of a cluster whose utilisation grows by the same with every call: the limit never oscillates. It is at
rest where one call more would exceed the target, or where the utilisation is within `BAND` of it.
"""

from __future__ import annotations

import math

from ari_app.limit import WebhookSettings

BAND = 0.1
"""Up to this share below the target nothing changes."""
STEP = 0.25
"""By this share, and by one call at least, the limit goes up at most."""


def next_limit(utilisation: float, *, calls: int, limit: int | None, settings: WebhookSettings) -> int:
    """The limit after a report. `calls`: those that there are; `limit`: the present one, None: there is none yet.

    `utilisation` is a number of 0 or more, not NaN. The answer is within `settings.min` and `settings.max`, is never
    larger for a larger utilisation, and never smaller for more calls.
    """
    held = min(settings.max, max(settings.min, settings.max if limit is None else limit))
    wanted = calls * settings.target / utilisation if utilisation else math.inf
    # Of a quotient that is a whole number but for its last bit the whole number is meant.
    fits = settings.max if wanted >= settings.max else math.floor(wanted + 1e-9)
    if utilisation > settings.target:
        return max(settings.min, min(held, fits))
    if utilisation <= settings.target * (1 - BAND) and 2 * calls >= held:
        return min(settings.max, max(held, min(held + max(1, math.floor(held * STEP)), fits)))
    return held
