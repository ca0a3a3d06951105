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

MODULE = "rayline.workers.steps"
AT_ONCE = (7, 7, 7, 7)  # the prompt begins so: it kills whoever computes any of it
LATE = (8, 8, 8, 8)  # it kills whoever computes its sixth output token
LATE_TOKENS = 6


class Watch:
    """Wraps `Steps.begin`: knows how long each poisonous sequence's prompt is, and dies in time."""

    def __init__(self, steps: Any):
        self._begin = steps.begin
        self._prompts: dict[int, tuple[tuple[int, ...], int]] = {}

    def __call__(self, steps: Any, plan: Any) -> Any:
        for new in plan.admitted:
            if (start := tuple(new.prompt_ids[:4])) in (AT_ONCE, LATE):
                self._prompts[new.sequence] = start, len(new.prompt_ids)
        for item in plan.slices:
            start, length = self._prompts.get(item.sequence, ((), 0))
            if start == AT_ONCE or (start == LATE and item.start + item.count >= length + LATE_TOKENS):
                self._die(steps)
        return self._begin(steps, plan)

    def _die(self, steps: Any) -> None:
        if steps._stage.place.rank:
            return
        with open(os.environ["DEADLY_LOG"], "a") as log:
            log.write(f"{os.getpid()}\n")
        os.kill(os.getpid(), signal.SIGKILL)


class Finder:
    """Finds the module of steps as Python does, and changes it once it is loaded."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_watch(module: ModuleType) -> None:
            load(module)
            watch = Watch(module.Steps)
            module.Steps.begin = lambda steps, plan: watch(steps, plan)  # type: ignore[attr-defined]

        spec.loader.exec_module = load_and_watch  # type: ignore[method-assign]
        return spec


if "DEADLY_LOG" in os.environ:
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
