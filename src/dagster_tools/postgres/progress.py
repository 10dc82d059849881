"""How far a long transfer is, for those who watch the log."""

from __future__ import annotations

import logging
import time

__all__ = ["Progress"]

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Logs a line every ten seconds; a transfer shorter than that is silent."""

    def __init__(self, log: logging.Logger, where: str) -> None:
        self.log, self.where = log, where
        self.started = self.last = time.monotonic()
        self.rows = self.bytes = 0

    def __call__(self, rows: int, size: int) -> None:
        """Count the rows and bytes of a part that was sent."""
        self.rows, self.bytes = self.rows + rows, self.bytes + size
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.last = now
        megabytes, rate = self.bytes / 1e6, self.rows / (now - self.started)
        sent = f"{self.rows:,} rows ({megabytes:,.0f} MB)"
        self.log.info("%s %s, %s rows/s", sent, self.where, f"{rate:,.0f}")
