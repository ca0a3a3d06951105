"""Watches an event loop from a thread of its own: who waits in a loop cannot see that the loop itself stands still."""

import asyncio
import threading
import time
from collections.abc import Callable

from rayline.cluster.awake import AwakeTime

PERIOD_S = 0.25
LIMIT_S = 5.0


class LoopWatch:
    """Calls `on_stuck` once, in the watch's thread, when the running loop has not turned for `limit_s`.

    A process that was stopped as a whole has not waited. Code that keeps Python's lock stops the watch too.
    """

    def __init__(self, on_stuck: Callable[[], None], limit_s: float = LIMIT_S):
        self._loop = asyncio.get_running_loop()
        self._on_stuck = on_stuck
        self._limit_s = limit_s
        self._turned = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loop watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        waited = AwakeTime(time.monotonic, 2 * PERIOD_S)
        self._turned.set()
        while not self._closed.wait(PERIOD_S):
            if self._turned.is_set():
                waited.restart()
                self._turned.clear()
                self._loop.call_soon_threadsafe(self._turned.set)
            elif waited.look() > self._limit_s:
                self._on_stuck()
                return
