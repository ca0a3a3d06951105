"""What operators ask of a deployment, done through Ray and Serve from inside of a router."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle

from rayline.deploy.nodes import drain_node, node_called
from rayline.protos.errors import InvalidRequest, RaylineError, Unavailable
from rayline.router.directory import Directory
from rayline.router.operations import Drained, GroupState

log = logging.getLogger(__name__)

POLL_S = 0.05
ANSWER_S = 10.0  # beyond what a group is given itself


@dataclass(frozen=True, slots=True)
class OperatedModel:
    """A model's groups as routers know them, and as Serve reaches them."""

    directory: Directory
    handle: DeploymentHandle[Any]


class RayOperations:
    """The Operations of a router replica."""

    def __init__(self, models: Mapping[str, OperatedModel]):
        self._models = models

    def groups(self) -> Sequence[GroupState]:
        return [
            GroupState(
                group_id,
                name,
                group.load.running,
                group.load.waiting,
                group.load.draining,
                model.directory.nodes(group_id),
            )
            for name, model in self._models.items()
            for group_id, group in model.directory.groups.items()
            if group.alive
        ]

    async def drain(self, target: str, timeout_s: float) -> Sequence[Drained]:
        states = self.groups()
        if state := next((state for state in states if state.group_id == target), None):
            return [await self._drain_group(state, timeout_s)]
        if (node_id := await asyncio.to_thread(node_called, target)) is not None:
            return await self._drain_node(node_id, timeout_s)
        there = sorted(state.group_id for state in states)
        raise InvalidRequest(f"target = {target!r} is neither a group nor a node: groups are {there}", field="target")

    async def _drain_group(self, state: GroupState, timeout_s: float) -> Drained:
        self._check_elsewhere(state, {state.group_id})
        call = self._models[state.model].handle.drain.remote(timeout_s, group_id=state.group_id)
        try:
            drained: Drained = await asyncio.wait_for(call, timeout_s + ANSWER_S)
        except RaylineError:
            raise
        except Exception as error:
            raise Unavailable(f"group {state.group_id} was lost while it was drained: {error}") from None
        return drained

    async def _drain_node(self, node_id: str, timeout_s: float) -> list[Drained]:
        """Serve replaces what it has on the node, then ends it; a group that only has ranks there ends itself."""
        began_s = time.monotonic()
        left = {state.group_id: state for state in self.groups() if node_id in state.nodes}
        for state in left.values():
            self._check_elsewhere(state, set())
        await asyncio.to_thread(drain_node, node_id, timeout_s)
        log.info("node %s is drained: %d groups leave it", node_id, len(left))
        drained = []
        while left:
            await asyncio.sleep(POLL_S)
            seconds, now = time.monotonic() - began_s, {state.group_id: state for state in self.groups()}
            is_late = seconds > timeout_s
            for group_id, state in list(left.items()):
                if group_id not in now or is_late:
                    running = now[group_id].running + now[group_id].waiting if group_id in now else 0
                    drained.append(Drained(group_id, state.running + state.waiting, running, seconds))
                    del left[group_id]
        return drained

    def _check_elsewhere(self, leaving: GroupState, with_it: set[str]) -> None:
        """Streams of a model's only group can go nowhere: that is no drain."""
        groups = self._models[leaving.model].directory.groups
        others = [g for g in groups.values() if g.alive and not g.load.draining and g.info.group_id not in with_it]
        if not others:
            raise Unavailable(f"group {leaving.group_id} is the only one of {leaving.model!r} that serves")
