"""The next plan while it is being made: what was decided since the last one, then its slices."""

from dataclasses import dataclass, field

from rayline.protos.plan import Admission, Copy, Fork, Gain, Plan, Slice
from rayline.workers.scheduling.pace import Allowance, Work

SCORED_TOKENS = 128  # of one step at most: the logits of each are a whole row of the vocabulary


@dataclass(slots=True)
class Draft:
    """Forks, gains and releases come at any time, the rest between `open` and `close`."""

    forked: list[Fork] = field(default_factory=list)
    gained: list[Gain] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    admitted: list[Admission] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    members: set[int] = field(default_factory=set)  # sequences that this plan computes or samples
    budget: int = 0
    allowance: Allowance = field(default_factory=Allowance)  # of time for prompts
    prompts: Work = field(default_factory=Work)
    decodes: int = 0
    scores_budget: int = 0

    def open(self, budget: int) -> None:
        self.budget, self.scores_budget = budget, SCORED_TOKENS
        self.allowance, self.prompts, self.decodes = Allowance(), Work(), 0

    @property
    def work(self) -> Work:
        return Work(self.decodes, self.prompts.prompt_tokens, self.prompts.attended)

    @property
    def has_room(self) -> bool:
        """Whether one more sequence could have a slice."""
        return self.budget > 0 and not self.allowance.is_spent

    def add(self, item: Slice, is_prompt: bool) -> None:
        """is_prompt: it is a chunk of many tokens, not the next one of a stream."""
        if is_prompt:
            self.allowance.take(item.start, item.count)
            self.prompts = self.prompts.with_prompt(item.start, item.count)
        else:
            self.decodes += 1
        self.slices.append(item)
        self.members.update((item.sequence, *item.forks))
        self.budget -= item.count
        if item.scores:
            self.scores_budget -= item.count

    def close(self, epoch: int, step: int) -> Plan:
        """The plan; what follows belongs to the next one."""
        plan = Plan(
            epoch,
            step,
            tuple(self.admitted),
            tuple(self.slices),
            tuple(self.released),
            tuple(self.forked),
            tuple(self.gained),
            tuple(self.copies),
        )
        for part in (self.admitted, self.slices, self.released, self.forked, self.gained, self.copies, self.members):
            part.clear()
        return plan
