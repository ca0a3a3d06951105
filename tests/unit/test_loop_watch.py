"""The watch over an event loop, against loops that turn and one that does not."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from rayline.workers.loop_watch import LoopWatch

TESTS = Path(__file__).parents[1]
STOPPED_AND_WOKEN = """
import asyncio
from rayline.workers.loop_watch import LoopWatch

async def main():
    watch = LoopWatch(lambda: print("stuck", flush=True), 1.2)
    watch.start()
    print("ready", flush=True)
    await asyncio.sleep(3.0)
    watch.close()
    print("end", flush=True)

asyncio.run(main())
"""


async def test_a_loop_that_stands_still_is_told_of_while_it_does() -> None:
    stuck = threading.Event()
    watch = LoopWatch(stuck.set, 0.5)
    watch.start()
    await asyncio.sleep(0)
    began = time.monotonic()
    assert stuck.wait(60.0), "blocks the loop, as whatever holds it up would"
    assert time.monotonic() - began > 0.4
    watch.close()


async def test_a_loop_that_turns_is_left_in_peace() -> None:
    """Busy, but with pauses. Other processes may make a pause come late: then the watch is right."""
    stuck, longest_s = threading.Event(), 0.0
    watch = LoopWatch(stuck.set, 0.5)
    watch.start()
    for _ in range(12):
        began_s = time.monotonic()
        time.sleep(0.1)
        await asyncio.sleep(0)
        longest_s = max(longest_s, time.monotonic() - began_s)
    watch.close()
    assert not stuck.is_set() or longest_s > 0.25


def test_a_process_that_was_stopped_as_a_whole_is_not_stuck() -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS / "typing")}
    command = [sys.executable, "-c", STOPPED_AND_WOKEN]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "end\n"
