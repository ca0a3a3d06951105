"""What one rank is told at start-up."""

from dataclasses import dataclass, field
from pathlib import Path

from rayline.cluster.parallel import Parallel
from rayline.kernels.choice import KernelOptions


@dataclass(frozen=True, slots=True)
class RankSpec:
    """Orders of one rank. `store_*` is the leader's torch.distributed store, unused by a group of one.

    graph_rows: decode steps of up to so many sequences are captured; 0: none.
    async_scheduling: whether one more step is launched before the running one is read back: auto, always, never.
    """

    path: Path
    dtype: str
    device: str
    parallel: Parallel
    threads: int
    block_tokens: int
    epoch: int
    kernels: KernelOptions = field(default_factory=KernelOptions)
    static_cache: bool = False
    graph_rows: int = 0
    async_scheduling: str = "auto"
    store_host: str = ""
    store_port: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a rank says once its weights are in memory."""

    host: str
    weight_bytes: int
    read_bytes: int
    free_bytes: int
    block_bytes: int
