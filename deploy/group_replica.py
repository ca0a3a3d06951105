"""A replica group as a Ray Serve replica: the leader process that owns the ranks and the engine."""

import asyncio
import logging
import os
import threading
import time
from dataclasses import dataclass, replace

import ray
from ray import serve
from ray.util import get_node_ip_address
from ray.util.placement_group import get_current_placement_group

from rayline.cluster.config import LimitsSection
from rayline.cluster.kv_memory import KvPlan
from rayline.deploy.actors import own_name
from rayline.deploy.nodes import draining_nodes
from rayline.deploy.progress_link import ProgressSender
from rayline.protos.errors import RaylineError, Unavailable
from rayline.protos.group import GroupInfo
from rayline.router.directory import GroupAddress
from rayline.router.operations import Drained
from rayline.workers.group import GroupSpec, StartedGroup, start_group
from rayline.workers.journal import Journal
from rayline.workers.leader import Leader
from rayline.workers.loop_watch import LoopWatch
from rayline.workers.pipeline import RankStats
from rayline.workers.ray_launch import RayLauncher

log = logging.getLogger(__name__)

STOP_GRACE_S = 1.0
DRAIN_POLL_S = 0.02
NODE_PERIOD_S = 1.0
END_LIMIT_S = 1.0  # for Ray to take the order to end ranks on other nodes
FAREWELL_S = 0.2  # the last messages leave before a lost group's process ends


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """What `rayline serve` prints of a group that has started. kernels: which compute, and why."""

    info: GroupInfo
    kernels: str
    kv: KvPlan
    weight_bytes: int
    load_s: float
    warm_up_s: float


class GroupReplica:
    """Wrapped by `serve.deployment` in app.py. Tokens never pass through its methods, only life cycle does."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        spec: GroupSpec,
        secret: str,
        progress_address: str,
        log_level: str,
        limits: LimitsSection,
        drain_timeout_s: float,
    ) -> None:
        logging.getLogger("rayline").setLevel(log_level.upper())
        context = serve.get_replica_context()
        named = replace(spec, group_id=context.replica_id.unique_id, epoch=int(time.time()))
        self._drain_timeout_s = drain_timeout_s
        self._started, self._nodes = await asyncio.to_thread(_start, named, secret, progress_address)
        journal = Journal(limits.journal_bytes, limits.journal_keep_s)
        self._leader = Leader(self._started.engine, self._started.info, secret, journal)
        await self._leader.start(get_node_ip_address())
        self._watch = asyncio.create_task(self._end_when_lost())
        self._node_watch = asyncio.create_task(self._leave_draining_nodes())
        self._draining: asyncio.Task[Drained] | None = None
        self._loop_watch = LoopWatch(self._end)
        self._loop_watch.start()

    def describe(self) -> GroupAddress:
        """Where routers reach this group."""
        return GroupAddress(self._started.info.group_id, self._leader.address, own_name(), self._nodes)

    def summary(self) -> GroupSummary:
        started = self._started
        weight_bytes = sum(rank.weight_bytes for rank in started.loaded)
        return GroupSummary(started.info, started.kernels, started.kv, weight_bytes, started.load_s, started.warm_up_s)

    async def follow(self, request_id: str, group_id: str) -> bool:
        """Stay open as long as a stream runs here, so that Serve counts it; tokens go elsewhere.

        `group_id` is read by ChosenGroupRouter, which brought the call here; False when it names another group, which
        is gone.
        """
        if group_id != self._started.info.group_id:
            return False
        await self._leader.follow(request_id)
        return True

    async def drain(self, timeout_s: float, group_id: str) -> Drained:
        """Have the routers take all streams elsewhere, then end: Serve starts another group in this one's place.

        Raises Unavailable when `group_id` names another group, which is gone.
        """
        if group_id != self._started.info.group_id:
            raise Unavailable(f"group {group_id} is gone")
        if self._draining is None:
            self._draining = asyncio.create_task(self._drain(timeout_s))
        return await asyncio.shield(self._draining)

    async def rank_stats(self) -> tuple[RankStats, ...]:
        return await self._leader.rank_stats()

    def check_health(self) -> None:
        """Raises when no step can be made any more; Serve then replaces the replica."""
        if not self._leader.healthy:
            raise RuntimeError("the engine of this group has stopped, or makes no progress")

    async def __del__(self) -> None:
        self._watch.cancel()
        self._node_watch.cancel()
        self._loop_watch.close()
        await self._leader.stop(STOP_GRACE_S)

    async def _end_when_lost(self) -> None:
        """A group that lost a rank ends as a whole, its actors with it: Serve starts a new one."""
        await self._leader.lost.wait()
        await asyncio.sleep(FAREWELL_S)
        self._end()

    async def _drain(self, timeout_s: float) -> Drained:
        began_s, streams = time.monotonic(), self._leader.drain()
        log.info("draining: %d streams are to move", streams)
        while self._leader.streams and time.monotonic() - began_s < timeout_s:
            await asyncio.sleep(DRAIN_POLL_S)
        asyncio.get_running_loop().call_later(FAREWELL_S, self._end)
        seconds = time.monotonic() - began_s
        return Drained(self._started.info.group_id, streams, self._leader.streams, seconds)

    async def _leave_draining_nodes(self) -> None:
        """Serve replaces replicas on nodes that are drained, but knows of the leader's node only."""
        own, *others = self._nodes
        while others:
            await asyncio.sleep(NODE_PERIOD_S)
            try:
                draining = await asyncio.to_thread(draining_nodes)
            except Exception as error:  # Ray's control plane may be away for a while
                log.warning("which nodes are drained is not known: %s", error)
                continue
            if own not in draining and not draining.isdisjoint(others):
                await self.drain(self._drain_timeout_s, self._started.info.group_id)
                return

    def _end(self) -> None:
        """End ranks and leader by force: nothing of them is waited for. Also called from the loop's watch."""
        threading.Timer(END_LIMIT_S, os._exit, [1]).start()
        self._started.engine.fence()
        os._exit(1)


def _start(spec: GroupSpec, secret: str, progress_address: str) -> tuple[StartedGroup, tuple[str, ...]]:
    """Load the group in this process and its rank actors, telling the operator's terminal how far it is.

    With it come the nodes it is on, the leader's first.
    """
    launcher = None
    if spec.parallel.tp * spec.parallel.pp > 1:
        placement = get_current_placement_group()
        assert placement is not None, "app.py gives every group of several ranks a placement group"
        launcher = RayLauncher(placement)
    with ProgressSender.open(progress_address, secret, spec.group_id) as progress:
        try:
            started = start_group(spec, launcher, progress.show)
        except RaylineError as error:
            progress.fail(error)
            raise
    own = str(ray.get_runtime_context().get_node_id())
    others = set(launcher.nodes().values()) - {own} if launcher is not None else set[str]()
    return started, (own, *sorted(others))
