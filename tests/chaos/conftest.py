"""One deployment for all runs that are told an address."""

import os
from collections.abc import Callable, Iterator

import pytest
from chaos_runs import Run, Running, chaos
from server import environment

from rayline.cluster.config import ParallelSection
from rayline.deploy.chaos.nodes import Nodes
from rayline.deploy.chaos.serving import serving

PARALLEL = ParallelSection(2, 2, 2)
CPUS = 16


@pytest.fixture(scope="session")
def running() -> Iterator[Running]:
    """Two groups of tp 2 x pp 2 and two routers on one node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())
        patch.setenv("RAY_kill_worker_timeout_milliseconds", "500")
        patch.setenv("RAY_worker_niceness", "0")
        for name, value in environment().items():
            patch.setenv(name, value)
        nodes = Nodes(CPUS, 0)
        try:
            nodes.start(0)
            patch.setenv("RAY_ADDRESS", nodes.ray_address)
            with serving("embedded", PARALLEL, nodes) as addresses:
                yield Running(nodes, addresses)
        finally:
            nodes.close()


@pytest.fixture
def on(running: Running) -> Callable[..., Run]:
    """on("calm", "--seconds", "5") -> a Run against the running deployment."""
    return lambda kind, *words: chaos(kind, "--address", ",".join(running.addresses), *words)
