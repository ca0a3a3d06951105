"""The next plan while it is being made: what was decided since the last one, then its slices."""

from dataclasses import dataclass, field

from rayline.protos.plan import Admission, Copy, Fork, Gain, Plan, Slice

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
    scores_budget: int = 0

    def open(self, budget: int) -> None:
        self.budget, self.scores_budget = budget, SCORED_TOKENS

    def add(self, item: Slice) -> None:
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
