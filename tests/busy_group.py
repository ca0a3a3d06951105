"""A group of two ranks with streams without end, beside twice as many busy loops as there are cores.

    python busy_group.py SECONDS [MODEL_DIRECTORY]

says "ready" once all of it runs, and the number of steps at the end; a group that is given up ends it with a traceback.
"""

import multiprocessing
import os
import sys
import time
from pathlib import Path

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.deploy.model_path import resolve_model
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.engine import Engine
from rayline.workers.group import GroupSpec, start_group
from rayline.workers.local_launch import LocalLauncher

STREAMS = 4
PARAMS = SamplingParams(max_tokens=200, ignore_eos=True, seed=3)


def embedded(tp: int, pp: int, path: Path | None = None) -> GroupSpec:
    """A group of the embedded model, or another one, in `tp` x `pp` processes of this machine."""
    engine, parallel = EngineSection(threads=1, kv_bytes=2**24), ParallelSection(tp, pp)
    return GroupSpec("g0", "busy", path or resolve_model("embedded"), "auto", 0, engine, parallel, 100)


def soak(engine: Engine, seconds: float) -> int:
    """Prompts of all lengths and their streams for some seconds; returns the steps."""
    end, steps, number = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        while len(engine.scheduler.request_ids) < STREAMS:
            engine.add(EngineRequest(f"s{number}", tuple(range(3, 3 + 37 * (number % 11 + 1))), PARAMS))
            number += 1
        engine.step()
        steps += 1
    return steps


def busy() -> None:
    while True:
        pass


def main(seconds: float, path: Path | None = None) -> None:
    loops = 2 * len(os.sched_getaffinity(0))
    engine = start_group(embedded(2, 1, path), LocalLauncher(), lambda *_: None).engine
    for _ in range(loops):
        multiprocessing.get_context("fork").Process(target=busy, daemon=True).start()
    print("ready", flush=True)
    try:
        print(f"{soak(engine, seconds)} steps", flush=True)
    finally:
        engine.close()


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
