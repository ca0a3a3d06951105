"""Ranks as Ray actors inside the leader's placement group: one bundle a stage."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util import get_node_ip_address
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayline.cluster.placement import bundle_of_stage
from rayline.protos.errors import Unavailable
from rayline.workers.channel import Channel, listen
from rayline.workers.rank import serve_rank
from rayline.workers.ranks import accept_ranks
from rayline.workers.spec import RankSpec

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 5.0
NAMESPACE = "rayline"  # where the actors of ranks are known by name


class RankActor:
    """The process of one rank. `run` never returns while the group lives: its end is the rank's end."""

    def run(self, addresses: list[str], rank: int, secret: str) -> None:
        if not serve_rank(addresses, rank, secret):
            os._exit(1)  # Ray ends an actor with its owner too, but not while its head is away

    def node(self) -> str:
        """Ray's id of the node this rank is on."""
        return str(ray.get_runtime_context().get_node_id())


class RayLauncher:
    """Makes the rank actors of one group. Used inside the leader, which owns them: they die with it."""

    def __init__(self, group: PlacementGroup) -> None:
        self._placement = group
        self._actors: dict[int, Any] = {}
        self._runs: dict[int, ray.ObjectRef[None]] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="rayline-"))

    @property
    def store_host(self) -> str:
        return str(get_node_ip_address())

    def launch(self, specs: Sequence[RankSpec]) -> dict[int, Channel]:
        """Place the actors and wait until each rank has said hello. Raises Unavailable when one dies."""
        secret = secrets.token_hex(32)
        near, near_address = listen(f"unix:{self._folder / 'leader'}")
        far, far_address = listen(f"tcp:{self.store_host}:0")
        try:
            for spec in specs:
                self._runs[spec.parallel.rank] = self._start(spec, [near_address, far_address], secret)
            return accept_ranks([near, far], len(specs), secret, START_TIMEOUT_S, self._check)
        finally:
            near.close()
            far.close()
            shutil.rmtree(self._folder, ignore_errors=True)  # nobody else comes: nothing is left to leave behind

    def nodes(self) -> dict[int, str]:
        """The node of each rank, as Ray names them."""
        return {rank: str(ray.get(actor.node.remote())) for rank, actor in self._actors.items()}

    def kill(self) -> None:
        """Have Ray end every rank by force: also those on other nodes, where the leader's own signals do not reach."""
        for actor in list(self._actors.values()):
            ray.kill(actor)

    def close(self) -> None:
        """Wait until the told ranks have ended, and have what hangs ended by force."""
        runs = list(self._runs.values())
        _, hanging = ray.wait(runs, num_returns=len(runs), timeout=STOP_TIMEOUT_S) if runs else ([], [])
        if hanging:
            self.kill()
        self._runs.clear()
        self._actors.clear()

    def _start(self, spec: RankSpec, addresses: list[str], secret: str) -> "ray.ObjectRef[None]":
        gpus = 1 if spec.device == "cuda" else 0
        actor: Any = (
            ray.remote(RankActor)
            .options(
                num_cpus=1,
                num_gpus=gpus,
                name=f"rank-{spec.parallel.rank}-{secrets.token_hex(4)}",
                namespace=NAMESPACE,
                max_restarts=0,
                max_concurrency=2,  # `node` answers while `run` runs
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._placement,
                    placement_group_bundle_index=bundle_of_stage(spec.parallel.stage),
                ),
            )
            .remote()
        )
        self._actors[spec.parallel.rank] = actor
        run: ray.ObjectRef[None] = actor.run.remote(addresses, spec.parallel.rank, secret)
        return run

    def _check(self) -> None:
        ended, _ = ray.wait(list(self._runs.values()), timeout=0)
        if ended:
            rank = next(rank for rank, run in self._runs.items() if run == ended[0])
            raise Unavailable(f"rank {rank} ended before it could load")
