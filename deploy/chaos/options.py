"""What a chaos run is asked for."""

from dataclasses import dataclass, field

from rayline.cluster.config import ParallelSection


@dataclass(frozen=True, slots=True)
class Options:
    """Which deployment, and what runs on it. addresses: of one that runs; () starts one of `model` and `parallel`.

    copies: streams of each workload at once. traffic: clients beside them. seed: of what is left to chance.
    """

    addresses: tuple[str, ...] = ()
    api_key: str | None = None
    model: str = "embedded"
    parallel: ParallelSection = field(default_factory=lambda: ParallelSection(2, 2, 2))
    workloads: tuple[str, ...] = ()
    tokens: int = 200
    copies: int = 2
    traffic: int = 2
    seed: int = 0
