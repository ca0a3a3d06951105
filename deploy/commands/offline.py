"""A model loaded in the command's own process, with progress on standard error."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from rayline.deploy.llm import LLM, offline_group
from rayline.deploy.progress import open_progress
from rayline.workers.group import StartedGroup, start_group
from rayline.workers.local_launch import LocalLauncher


def load_model(model: str, options: Mapping[str, Any]) -> LLM:
    """`options`: the keys of OFFLINE_SECTIONS whose flags were given. The caller closes what it gets."""
    with open_progress(Console(file=sys.stderr)) as progress:
        return LLM(
            model,
            on_progress=lambda rank, phase, done, total: progress.show(f"rank {rank}", phase, done, total),
            **options,
        )


@contextmanager
def open_engine(model: str, options: Mapping[str, Any]) -> Iterator[StartedGroup]:
    """The group that `load_model` starts, without text: the model needs no tokenizer."""
    spec = offline_group(model, **options)
    launcher = LocalLauncher() if spec.parallel.tp * spec.parallel.pp > 1 else None
    with open_progress(Console(file=sys.stderr)) as progress:
        group = start_group(
            spec,
            launcher,
            lambda rank, phase, done, total: progress.show(f"rank {rank}", phase, done, total),
        )
    try:
        yield group
    finally:
        group.engine.close()
