"""How one group is cut into ranks: tensor parallel inside a stage, pipeline parallel between stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rayline.protos.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Parallel:
    """One rank's place. Global rank = stage * tp_size + tp_rank, so a stage's ranks are neighbours."""

    tp_rank: int = 0
    tp_size: int = 1
    stage: int = 0
    pp_size: int = 1

    @property
    def rank(self) -> int:
        return self.stage * self.tp_size + self.tp_rank

    @property
    def world_size(self) -> int:
        return self.tp_size * self.pp_size

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.pp_size - 1

    @property
    def reports(self) -> bool:
        """The one rank whose results the leader reads."""
        return self.is_last_stage and self.tp_rank == 0

    def at_stage(self, stage: int) -> "Parallel":
        """The same tensor-parallel rank in another stage."""
        return Parallel(self.tp_rank, self.tp_size, stage, self.pp_size)


def ranks(tp_size: int, pp_size: int) -> list[Parallel]:
    """All ranks of a group, by global rank."""
    return [Parallel(t, tp_size, s, pp_size) for s in range(pp_size) for t in range(tp_size)]


def divide(what: str, size: int, parts: int) -> int:
    """size / parts, or ConfigError naming what does not divide."""
    if size % parts:
        raise ConfigError(f"tp = {parts} does not divide {what} = {size}", field="tp")
    return size // parts


def balanced_stages(layer_bytes: Sequence[int], first_bytes: int, last_bytes: int, stages: int) -> list[range]:
    """Cut layers into `stages` runs so that the heaviest stage is as light as possible.

    `first_bytes` (the embedding) counts to the first stage, `last_bytes` (norm and head) to the last.
    Dynamic programme over cut positions; ties take the earliest cut. Raises ConfigError when there are
    more stages than layers.
    """
    layers = len(layer_bytes)
    if stages > layers:
        raise ConfigError(f"pp = {stages} is out of range: the model has {layers} layers", field="pp")
    sums = [0]
    for size in layer_bytes:
        sums.append(sums[-1] + size)

    def weight(a: int, b: int, stage: int) -> int:
        return sums[b] - sums[a] + first_bytes * (stage == 0) + last_bytes * (stage == stages - 1)

    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (0,))}
    for stage in range(stages):
        after: dict[int, tuple[int, tuple[int, ...]]] = {}
        for start, (heaviest, cuts) in best.items():
            for end in range(start + 1, layers - (stages - stage - 1) + 1):
                candidate = (max(heaviest, weight(start, end, stage)), (*cuts, end))
                after[end] = min(after.get(end, candidate), candidate)
        best = after
    cuts = best[layers][1]
    return [range(a, b) for a, b in pairwise(cuts)]
