"""A model loaded in the command's own process, with progress on standard error."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from rayline.deploy.llm import LLM
from rayline.deploy.progress import open_progress


def load_model(model: str, options: Mapping[str, Any]) -> LLM:
    """`options`: the keys of OFFLINE_SECTIONS whose flags were given. The caller closes what it gets."""
    with open_progress(Console(file=sys.stderr)) as progress:
        return LLM(
            model,
            on_progress=lambda rank, phase, done, total: progress.show(f"rank {rank}", phase, done, total),
            **options,
        )
