"""`rayline chaos` as its users run it, and the deployment that it is let loose on."""

import json
import subprocess
from dataclasses import dataclass
from typing import Any

import psutil
from server import command, environment

from rayline.deploy.chaos.nodes import Nodes

TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class Run:
    """One `rayline chaos` that has ended."""

    status: int
    report: dict[str, Any]
    said: str


@dataclass(frozen=True, slots=True)
class Running:
    """A deployment that somebody else started: `rayline chaos` is told its address."""

    nodes: Nodes
    addresses: tuple[str, ...]

    def processes(self) -> list[psutil.Process]:
        """Ray's, and all that it started."""
        assert self.nodes.head is not None
        return self.nodes.head.family()


def chaos(*words: str) -> Run:
    """`rayline chaos WORDS --json`; raises when it ends without a report."""
    done = subprocess.run(
        [*command("chaos"), *words, "--json"], capture_output=True, text=True, env=environment(), timeout=TIMEOUT_S
    )
    assert done.stdout.startswith("{"), f"{done.returncode}: {done.stdout}{done.stderr}"
    print(done.stderr)
    return Run(done.returncode, json.loads(done.stdout), done.stderr)
