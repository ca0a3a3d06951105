"""Ranks that die of certain prompts. Python runs this in every process that has this folder on its path.

The first rank of a group that computes such a prompt writes a line to the file that DEADLY_LOG names, and dies by
SIGKILL, as it would of a bug in a kernel or for lack of memory. The engine's own code knows nothing of this.
"""

import os
import signal
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODULE = "rayline.workers.worker"
AT_ONCE = (7, 7, 7, 7)  # the prompt begins so: it kills whoever computes any of it
LATE = (8, 8, 8, 8)  # it kills whoever computes its sixth output token
LATE_TOKENS = 6


class Watch:
    """Wraps `Worker.execute`: knows how long each poisonous sequence's prompt is, and dies in time."""

    def __init__(self, worker: Any):
        self._execute = worker.execute
        self._prompts: dict[int, tuple[tuple[int, ...], int]] = {}

    def __call__(self, worker: Any, plan: Any) -> Any:
        for new in plan.admitted:
            if (start := tuple(new.prompt_ids[:4])) in (AT_ONCE, LATE):
                self._prompts[new.sequence] = start, len(new.prompt_ids)
        for item in plan.slices:
            start, length = self._prompts.get(item.sequence, ((), 0))
            if start == AT_ONCE or (start == LATE and item.start + item.count >= length + LATE_TOKENS):
                self._die(worker)
        return self._execute(worker, plan)

    def _die(self, worker: Any) -> None:
        if worker.spec.parallel.rank:
            return
        with open(os.environ["DEADLY_LOG"], "a") as log:
            log.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)


class Finder:
    """Finds the worker's module as Python does, and changes it once it is loaded."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_watch(module: ModuleType) -> None:
            load(module)
            watch = Watch(module.Worker)
            module.Worker.execute = lambda worker, plan: watch(worker, plan)  # type: ignore[attr-defined]

        spec.loader.exec_module = load_and_watch  # type: ignore[method-assign]
        return spec


if "DEADLY_LOG" in os.environ:
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
