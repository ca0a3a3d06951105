"""A placement group for ranks that a driver, not a Serve replica, leads: `LLM(launcher="ray")`."""

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rayline.cluster.placement import group_bundles
from rayline.protos.errors import Unavailable
from rayline.workers.group import has_gpus
from rayline.workers.ray_launch import RayLauncher

RESERVE_TIMEOUT_S = 300.0


class ReservedLauncher(RayLauncher):
    """A RayLauncher that gives its placement group back when it closes."""

    def close(self) -> None:
        super().close()
        remove_placement_group(self._placement)


def reserve_group(tp: int, pp: int) -> ReservedLauncher:
    """Reserve one bundle a stage in the cluster this process is connected to.

    Raises Unavailable when the cluster has no room within RESERVE_TIMEOUT_S.
    """
    if not ray.is_initialized():
        ray.init()
    group = placement_group(group_bundles(tp, pp, has_gpus()), strategy="PACK")
    if not group.wait(RESERVE_TIMEOUT_S):
        remove_placement_group(group)
        raise Unavailable(f"the Ray cluster has no room for tp = {tp} x pp = {pp} within {RESERVE_TIMEOUT_S:.0f} s")
    return ReservedLauncher(group)
