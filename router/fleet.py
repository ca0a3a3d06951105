"""What all streams of one model share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rayline.router.docket import Docket
from rayline.router.group import Group
from rayline.router.ledger import Ledger
from rayline.router.policy import GroupView, choose, view_of


@dataclass(frozen=True, slots=True)
class Fleet:
    """groups: that compute the model, by id, live. clock: seconds from any start.

    patience_s: how long a stream whose group was lost waits for another one to go on in.
    """

    groups: Mapping[str, Group]
    ledger: Ledger
    docket: Docket
    clock: Callable[[], float]
    patience_s: float

    def views(self, among: Iterable[Group]) -> list[GroupView]:
        """What the policy sees of them."""
        return [view_of(group, self.ledger) for group in among]

    def choose(self, tokens: int, turn: int, among: Iterable[Group]) -> Group:
        """The one that takes a request of `tokens`. Raises as `policy.choose` does."""
        return self.groups[choose(tokens, self.views(among), turn).group_id]
