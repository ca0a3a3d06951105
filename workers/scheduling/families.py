"""The choices of one client's request: the first computes the prompt, the others begin where it ends."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from rayline.protos.types import EngineRequest
from rayline.workers.scheduling.sequence import Sequence


@dataclass(slots=True, eq=False)
class Family:
    """`trunk` computes the prompt. `siblings` wait for that, in the order in which they came."""

    trunk: Sequence
    siblings: list[Sequence] = field(default_factory=list)


class Families:
    """The choices that could fork from another one, by the name of their family.

    A family is here from its first choice on until that has begun to sample: whoever comes later starts like any other
    request, and finds the prompt in the prefix cache.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Family] = {}
        self.waiting = 0

    def join(self, sequence: Sequence) -> bool:
        """Whether `sequence` waits for a trunk from now on. Otherwise it goes its own way, perhaps as a trunk."""
        request = sequence.request
        if not _forks(request):
            return False
        family = self._by_name.get(request.family)
        if family is None:
            self._by_name[request.family] = Family(sequence)
            return False
        if not _alike(family.trunk.request, request):
            return False
        family.siblings.append(sequence)
        self.waiting += 1
        return True

    def has(self, name: str) -> bool:
        """Whether somebody computes the prompt of this family."""
        return name in self._by_name

    def is_trunk(self, sequence: Sequence) -> bool:
        family = self._by_name.get(sequence.request.family)
        return family is not None and family.trunk is sequence

    def trunk_of(self, sequence: Sequence) -> Sequence:
        """Who computes the prompt of `sequence`: itself, or the choice that it waits for."""
        family = self._by_name.get(sequence.request.family)
        return family.trunk if family is not None and sequence in family.siblings else sequence

    def split(self, trunk: Sequence, room: int) -> tuple[list[Sequence], list[Sequence]]:
        """The trunk begins to sample: the first `room` siblings, which fork, and those that start by themselves."""
        siblings = self._by_name.pop(trunk.request.family).siblings
        self.waiting -= len(siblings)
        return siblings[:room], siblings[room:]

    def leave(self, sequence: Sequence, start: Callable[[Sequence], None]) -> None:
        """`sequence` has ended. If it was a trunk that never sampled, the next one is told to `start` in its place."""
        family = self._by_name.get(sequence.request.family)
        if family is None:
            return
        if sequence in family.siblings:
            family.siblings.remove(sequence)
            self.waiting -= 1
        elif family.trunk is sequence and family.siblings:
            family.trunk = family.siblings.pop(0)
            self.waiting -= 1
            start(family.trunk)
        elif family.trunk is sequence:
            del self._by_name[sequence.request.family]


def _forks(request: EngineRequest) -> bool:
    """Resumed choices have different tokens; prompt logprobs and beams are each one's own; suspects run alone."""
    is_alone = request.params.beam_width or request.apart_at is not None
    return bool(request.family) and not (request.output_ids or is_alone)


def _alike(trunk: EngineRequest, request: EngineRequest) -> bool:
    """Equal names should mean this, but a router is not to be trusted with others' keys and values."""
    return request.params.prompt_logprobs is None and _shared(trunk) == _shared(request)


def _shared(request: EngineRequest) -> tuple[object, ...]:
    params = replace(request.params, seed=None, prompt_logprobs=None)
    return request.prompt_ids, params, request.rules, request.cache_salt, request.tenant, request.priority
