"""What a rank remembers of its sequences between steps."""

from dataclasses import dataclass, field

from rayline.protos.plan import Admission, Fork, Plan
from rayline.protos.types import SamplingParams, TokenRules


@dataclass(slots=True)
class Resident:
    """What a rank remembers of a sequence between steps. `token_ids` grows by what was sampled."""

    prompt_tokens: int
    token_ids: list[int]
    params: SamplingParams
    rules: TokenRules
    table: list[int] = field(default_factory=list)

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens


class Residents:
    """All sequences a rank knows, by number. Follows plans: admit, fork, gain, release, extend tables."""

    def __init__(self) -> None:
        self._by_number: dict[int, Resident] = {}

    def __getitem__(self, number: int) -> Resident:
        return self._by_number[number]

    def __len__(self) -> int:
        return len(self._by_number)

    def gain(self, number: int, token_id: int) -> None:
        """Append a sampled token, unless the sequence was released meanwhile."""
        if (resident := self._by_number.get(number)) is not None:
            resident.token_ids.append(token_id)

    def follow(self, plan: Plan) -> None:
        """Bring the records up to what `plan` says before it is computed."""
        for new in plan.admitted:
            self._by_number[new.sequence] = _resident(new)
        for fork in plan.forked:
            self._by_number[fork.sequence] = _forked(fork, self._by_number[fork.parent])
        for given in plan.gained:
            self.gain(given.sequence, given.token_id)
        for number in plan.released:
            self._by_number.pop(number, None)
        for item in plan.slices:
            self._by_number[item.sequence].table[item.first_block :] = item.block_ids


def _forked(fork: Fork, parent: Resident) -> Resident:
    return Resident(parent.prompt_tokens, list(parent.token_ids), fork.params, parent.rules)


def _resident(new: Admission) -> Resident:
    return Resident(len(new.prompt_ids), [*new.prompt_ids, *new.output_ids], new.params, new.rules)
