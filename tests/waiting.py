"""Waiting for what happens elsewhere: for the event, never for a time, with a limit that no machine is too busy for."""

import asyncio
import time
from collections.abc import Callable

LIMIT_S = 120.0


def until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> float:
    """Wait until other threads or processes have made `condition` true; returns the seconds it took."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < limit_s, f"not within {limit_s:.0f} s"
        time.sleep(0.02)
    return time.monotonic() - began_s


async def until_async(condition: Callable[[], object], limit_s: float = LIMIT_S) -> float:
    """The same for what other tasks of this loop do, too."""
    began_s = time.monotonic()
    while not condition():
        assert time.monotonic() - began_s < limit_s, f"not within {limit_s:.0f} s"
        await asyncio.sleep(0.005)
    return time.monotonic() - began_s
