"""Being patient with a service that asks for it, as one process rather than request by request.

Microsoft asks that a client which is throttled sends nothing at all until the time is over:
requests it sends meanwhile count, and lead to its being blocked (SharePoint documentation,
"Avoid getting throttled or blocked in SharePoint Online").
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

__all__ = ["RETRIED", "THROTTLED", "Attempts", "Pause", "Retry", "requested_pause"]

THROTTLED = frozenset({429, 503})
RETRIED = frozenset({408, 500, 502, 504, 509}) | THROTTLED
"""Statuses that are the service's trouble, not the request's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How long to keep trying.

    Args:
        attempts: How often a request is sent that fails, or a download that makes no progress.
        patience: Seconds over which a request is put off because the service asks for it.
        shortest_pause: Seconds after the first failure; each further one doubles them.
        longest_pause: Seconds between attempts at most.
    """

    attempts: int = 6
    patience: float = 300.0
    shortest_pause: float = 0.5
    longest_pause: float = 30.0


class Pause:
    """The time before which no request of this process goes to a service.

    Shared by all clients of one service, whatever event loop or thread they run in.
    """

    _of: dict[str, Pause] = {}  # noqa: RUF012  # one for the process is the point
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._until = 0.0

    @classmethod
    def of(cls, service: str) -> Pause:
        """Return the pause of a service, given by its URL."""
        with cls._lock:
            return cls._of.setdefault(service, cls())

    def extend(self, seconds: float) -> None:
        """Let nobody send a request for some time from now."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)

    @property
    def seconds_left(self) -> float:
        """Seconds until requests may be sent; 0 when they may."""
        return max(0.0, self._until - time.monotonic())

    async def over(self) -> None:
        """Return when requests may be sent."""
        while (left := self.seconds_left) > 0:  # no event tells other loops
            # Those who waited do not all come at once.
            jitter = random.uniform(0, min(0.1 * left, 1.0))  # noqa: S311  # no secret
            await asyncio.sleep(left + jitter)


class Attempts:
    """One request's share of patience.

    Args:
        retry: How much there is.
    """

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._failures = 0
        self._deadline = time.monotonic() + retry.patience

    def allow_wait(self, seconds: float) -> bool:
        """Tell whether it may be put off for so long."""
        return time.monotonic() + seconds <= self._deadline

    async def next_after_failure(self) -> bool:
        """Wait before the next attempt; False at once where there is none left."""
        self._failures += 1
        if self._failures >= self._retry.attempts:
            return False
        pause = min(
            self._retry.shortest_pause * 2 ** (self._failures - 1), self._retry.longest_pause
        )
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # jitter
        return True

    def made_progress(self) -> None:
        """Count failures anew: something came of the last attempt."""
        self._failures = 0


def requested_pause(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a service asks to be left alone for; None where it does not say.

    `Retry-After` is in seconds or a date (RFC 9110, 10.2.3), a date by the service's own clock;
    SharePoint's `RateLimit-Reset` may ask for longer.
    """
    asked = [_seconds(headers.get("Retry-After", ""), headers.get("Date", ""))]
    asked += [_seconds(headers.get("RateLimit-Reset", ""), "")]
    known = [seconds for seconds in asked if seconds is not None]
    return max(known, default=None)


def _seconds(text: str, service_now: str) -> float | None:
    if text.strip().isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
    try:
        now = parsedate_to_datetime(service_now).timestamp()
    except ValueError:
        now = time.time()
    return max(0.0, until - now)
