"""What a rank remembers of its sequences between steps."""

from array import array
from dataclasses import dataclass, field

from rayline.protos.plan import Admission, Fork, Plan
from rayline.protos.types import SamplingParams, TokenRules
from rayline.workers.history import History, needs_history


@dataclass(slots=True)
class Resident:
    """What a rank remembers of a sequence between steps. `token_ids` grows by what was sampled.

    history: made when it is first asked for, which ranks that never sample do not.
    """

    prompt_tokens: int
    token_ids: list[int]
    params: SamplingParams
    rules: TokenRules
    table: "array[int]" = field(default_factory=lambda: array("i"))  # int32, as kernels read it
    history: History | None = None
    needs_history: bool = field(init=False)

    def __post_init__(self) -> None:
        self.needs_history = needs_history(self.params, self.rules)

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens

    def gain(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        if self.history is not None:
            self.history.append(token_id)

    def kept_history(self) -> History | None:
        """What the request's rules need to know of its tokens; None where they need nothing."""
        if self.needs_history and self.history is None:
            prompt_ids, output_ids = self.token_ids[: self.prompt_tokens], self.token_ids[self.prompt_tokens :]
            self.history = History(self.params, self.rules, prompt_ids, output_ids)
        return self.history


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
            resident.gain(token_id)

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
            self._by_number[item.sequence].table[item.first_block :] = array("i", item.block_ids)


def _forked(fork: Fork, parent: Resident) -> Resident:
    """Its parameters differ from the parent's in the seed alone, so it remembers the same."""
    history = None if parent.history is None else parent.history.copy()
    return Resident(parent.prompt_tokens, list(parent.token_ids), fork.params, parent.rules, history=history)


def _resident(new: Admission) -> Resident:
    return Resident(len(new.prompt_ids), [*new.prompt_ids, *new.output_ids], new.params, new.rules)
