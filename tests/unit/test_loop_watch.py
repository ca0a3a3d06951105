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
    watch = LoopWatch(lambda: print("stuck", flush=True), 0.6)
    watch.start()
    print("ready", flush=True)
    await asyncio.sleep(1.8)
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
    assert stuck.wait(10.0), "blocks the loop, as whatever holds it up would"
    assert 0.4 < time.monotonic() - began < 5.0
    watch.close()


async def test_a_loop_that_turns_is_left_in_peace() -> None:
    stuck = threading.Event()
    watch = LoopWatch(stuck.set, 0.5)
    watch.start()
    for _ in range(12):
        time.sleep(0.1)  # busy, but with pauses
        await asyncio.sleep(0)
    watch.close()
    assert not stuck.is_set()


def test_a_process_that_was_stopped_as_a_whole_is_not_stuck() -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS / "typing")}
    command = [sys.executable, "-c", STOPPED_AND_WOKEN]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read() == "end\n"
