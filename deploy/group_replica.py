"""A replica group as a Ray Serve replica: the leader process that owns the ranks and the engine."""

import asyncio
import logging
import os
import threading
import time
from dataclasses import dataclass, replace

from ray import serve
from ray.util import get_node_ip_address
from ray.util.placement_group import get_current_placement_group

from rayline.cluster.config import LimitsSection
from rayline.cluster.kv_memory import KvPlan
from rayline.deploy.actors import own_name
from rayline.deploy.progress_link import ProgressSender
from rayline.protos.errors import RaylineError
from rayline.protos.group import GroupInfo
from rayline.router.directory import GroupAddress
from rayline.workers.group import GroupSpec, StartedGroup, start_group
from rayline.workers.journal import Journal
from rayline.workers.leader import Leader
from rayline.workers.loop_watch import LoopWatch
from rayline.workers.pipeline import RankStats
from rayline.workers.ray_launch import RayLauncher

log = logging.getLogger(__name__)

STOP_GRACE_S = 1.0
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
        self, spec: GroupSpec, secret: str, progress_address: str, log_level: str, limits: LimitsSection
    ) -> None:
        logging.getLogger("rayline").setLevel(log_level.upper())
        context = serve.get_replica_context()
        named = replace(spec, group_id=context.replica_id.unique_id, epoch=int(time.time()))
        self._started = await asyncio.to_thread(_start, named, secret, progress_address)
        journal = Journal(limits.journal_bytes, limits.journal_keep_s)
        self._leader = Leader(self._started.engine, self._started.info, secret, journal)
        await self._leader.start(get_node_ip_address())
        self._watch = asyncio.create_task(self._end_when_lost())
        self._loop_watch = LoopWatch(self._end)
        self._loop_watch.start()

    def describe(self) -> GroupAddress:
        """Where routers reach this group."""
        return GroupAddress(self._started.info.group_id, self._leader.address, own_name())

    def summary(self) -> GroupSummary:
        started = self._started
        weight_bytes = sum(rank.weight_bytes for rank in started.loaded)
        return GroupSummary(started.info, started.kernels, started.kv, weight_bytes, started.load_s, started.warm_up_s)

    async def follow(self, request_id: str, group_id: str) -> None:
        """Stay open as long as a stream runs here, so that Serve counts it; tokens go elsewhere.

        `group_id` is read by ChosenGroupRouter, which brought the call here.
        """
        await self._leader.follow(request_id)

    async def rank_stats(self) -> tuple[RankStats, ...]:
        return await self._leader.rank_stats()

    def check_health(self) -> None:
        """Raises when no step can be made any more; Serve then replaces the replica."""
        if not self._leader.healthy:
            raise RuntimeError("the engine of this group has stopped, or makes no progress")

    async def __del__(self) -> None:
        self._watch.cancel()
        self._loop_watch.close()
        await self._leader.stop(STOP_GRACE_S)

    async def _end_when_lost(self) -> None:
        """A group that lost a rank ends as a whole, its actors with it: Serve starts a new one."""
        await self._leader.lost.wait()
        await asyncio.sleep(FAREWELL_S)
        self._end()

    def _end(self) -> None:
        """End ranks and leader by force: nothing of them is waited for. Also called from the loop's watch."""
        threading.Timer(END_LIMIT_S, os._exit, [1]).start()
        self._started.engine.fence()
        os._exit(1)


def _start(spec: GroupSpec, secret: str, progress_address: str) -> StartedGroup:
    """Load the group in this process and its rank actors, telling the operator's terminal how far it is."""
    launcher = None
    if spec.parallel.tp * spec.parallel.pp > 1:
        placement = get_current_placement_group()
        assert placement is not None, "app.py gives every group of several ranks a placement group"
        launcher = RayLauncher(placement)
    with ProgressSender.open(progress_address, secret, spec.group_id) as progress:
        try:
            return start_group(spec, launcher, progress.show)
        except RaylineError as error:
            progress.fail(error)
            raise
