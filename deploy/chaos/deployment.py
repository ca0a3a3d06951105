"""A running deployment that may be broken: its doors, its processes, and whether all of them are there."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray

from rayline.cluster.config import ParallelSection
from rayline.cluster.placement import group_bundles, total_cpus
from rayline.deploy.app import ROUTER_CPUS
from rayline.deploy.chaos.agent import Agents
from rayline.deploy.chaos.door import Door
from rayline.deploy.chaos.network import Network, refusal
from rayline.deploy.chaos.nodes import Nodes
from rayline.deploy.chaos.pairs import Target
from rayline.deploy.chaos.serving import ROUTERS, serving
from rayline.deploy.chaos.targets import Census, Victim, census, changed
from rayline.deploy.serve import APP_NAME
from rayline.protos.errors import RaylineError, Unavailable
from rayline.workers.group import has_gpus

POLL_S = 0.25
STEADY_S = 1.5  # what comes and goes again is not there


@dataclass(slots=True)
class Deployment:
    """nodes: where this command started the cluster itself. usual: what there is while nothing is broken."""

    addresses: tuple[str, ...]
    nodes: Nodes | None
    agents: Agents = field(default_factory=Agents)
    usual: Census | None = None

    def look(self) -> Census:
        return census(self.agents, APP_NAME)

    @property
    def network(self) -> Network | None:
        return self.nodes.network if self.nodes else None

    async def settle(self, door: Door, timeout_s: float, gone: Sequence[Victim] = ()) -> float:
        """Wait until every process is there and every router knows every group, and it stays so; returns the seconds.

        `gone`: those that were broken, and are not counted although they may still be listed. Nodes that ended are
        replaced meanwhile. Raises Unavailable after `timeout_s`.
        """
        began = time.monotonic()
        whole_s: float | None = None
        while whole_s is None or time.monotonic() - whole_s < STEADY_S:
            lacking = await self._lacking(door, gone)
            if lacking is None:
                whole_s = whole_s or time.monotonic()
            elif time.monotonic() - began > timeout_s:
                raise Unavailable(f"the deployment was not whole again after {timeout_s:.0f} s: {lacking}")
            else:
                whole_s = None
                if self.nodes is not None:
                    await asyncio.to_thread(self.nodes.repair)
            await asyncio.sleep(POLL_S)
        return whole_s - began

    async def _lacking(self, door: Door, gone: Sequence[Victim]) -> str | None:
        now = await asyncio.to_thread(self.look)
        if left := [victim for victim in gone if victim not in changed(gone, now.victims)]:
            return f"a broken {left[0].target} is still there, process {left[0].pid}"
        have = now.counts()
        if have.get(Target.RAYLET, 0) < now.nodes:
            return f"{have.get(Target.RAYLET, 0)} of {now.nodes} nodes answer"
        want = self.usual.counts() if self.usual is not None else have
        if missing := [target for target in want if have.get(target, 0) < want[target]]:
            return f"{have.get(missing[0], 0)} of {want[missing[0]]} processes of kind {missing[0]}"
        groups = want.get(Target.LEADER, 0)
        try:
            known = [sum(model.groups for model in models) for models in await door.models()]
        except RaylineError as error:
            return error.message
        if len(known) < want.get(Target.ROUTER, 0):
            return f"{len(known)} of {want[Target.ROUTER]} routers are known to each other"
        if min(known) < groups:
            return f"a router knows {min(known)} of {groups} groups"
        self.usual = self.usual or now
        return None


@contextmanager
def attached(addresses: tuple[str, ...]) -> Iterator[Deployment]:
    """A deployment that runs already, in the cluster that RAY_ADDRESS names."""
    if "RAY_ADDRESS" not in os.environ:
        raise Unavailable("RAY_ADDRESS must name the Ray cluster of the deployment at --address")
    with _connected(os.environ["RAY_ADDRESS"]):
        yield Deployment(addresses, None)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """As a driver of the cluster."""
    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    _obey()  # Ray puts a handler of its own in their place, which ends the process at once
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def started(model: str, parallel: ParallelSection, is_apart: bool) -> Iterator[Deployment]:
    """A Ray cluster and a deployment of our own, ended with this, also by Ctrl-C and SIGTERM.

    is_apart: each group on a node of its own.
    """
    bundles = group_bundles(parallel.tp, parallel.pp, has_gpus())
    group_cpus = int(total_cpus(bundles, 1, 1, ROUTER_CPUS))
    all_cpus = int(total_cpus(bundles, parallel.groups, ROUTERS, ROUTER_CPUS))
    network = Network() if is_apart and refusal() is None else None
    nodes = Nodes(int(ROUTER_CPUS) if is_apart else all_cpus, group_cpus, network)
    _obey()
    try:
        if network is not None:
            network.open()
        nodes.start(parallel.groups if is_apart else 0)
        with serving(model, parallel, nodes) as addresses, _connected(nodes.ray_address):
            yield Deployment(addresses, nodes)
    finally:
        nodes.close()
        if network is not None:
            network.close()


def _obey() -> None:
    """Ctrl-C and SIGTERM interrupt the run, so that it ends what it has started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
