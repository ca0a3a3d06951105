"""Who may wait in a group: the queue is bounded, and nobody waits in vain."""

from collections.abc import Callable

from rayline.cluster.retry_hint import RetryHints, excess
from rayline.protos.errors import DeadlineExceeded, Overloaded
from rayline.protos.types import EngineRequest
from rayline.workers.scheduling.drain_rate import DrainRate
from rayline.workers.scheduling.roster import Roster
from rayline.workers.scheduling.speed import Speed, sure_tokens


class Gate:
    """Refuses what the queue has no room for, and what cannot be done in the time that it has.

    drain and speed are fed by the scheduler; refusals say when to come again by the rate that was measured.
    """

    def __init__(
        self, roster: Roster, max_waiting: int, max_waiting_tokens: int, max_model_len: int, max_step_tokens: int
    ):
        self.drain = DrainRate()
        self.speed = Speed()
        self._hints = RetryHints()
        self._roster = roster
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._max_model_len = max_model_len
        self._max_step_tokens = max_step_tokens

    def check(self, request: EngineRequest, now_s: float, cached_tokens: Callable[[], int]) -> None:
        """Raise Overloaded or DeadlineExceeded. cached_tokens: of its prompt, looked up only where it may matter."""
        self._check_room(request, now_s)
        if request.timeout_s is not None:
            self._check_time(request, request.timeout_s, now_s, cached_tokens)

    def _check_room(self, request: EngineRequest, now_s: float) -> None:
        waiting, tokens = self._roster.waiting, self._roster.queue.tokens
        own = given_tokens(request)
        missing = excess(waiting, tokens, self._max_waiting, self._max_waiting_tokens, own)
        if waiting >= self._max_waiting:
            raise Overloaded(
                f"waiting = {waiting} requests: at most {self._max_waiting} may wait in a group",
                field="max_waiting",
                retry_after_s=self._hint_s(own, missing, now_s),
            )
        if missing > 0.0:
            raise Overloaded(
                f"waiting = {tokens} tokens, {own} more do not fit: at most {self._max_waiting_tokens} may wait in a "
                "group",
                field="max_waiting_tokens",
                retry_after_s=self._hint_s(own, missing, now_s),
            )

    def _check_time(
        self, request: EngineRequest, timeout_s: float, now_s: float, cached_tokens: Callable[[], int]
    ) -> None:
        if timeout_s <= 0.0:
            raise DeadlineExceeded("timeout_s had passed before the request reached a group", field="timeout_s")
        tokens, outputs = given_tokens(request), sure_tokens(request, self._max_model_len)
        least_s = self.speed.least_s(tokens, outputs, self._max_step_tokens)
        if least_s > timeout_s:
            least_s = self.speed.least_s(tokens - cached_tokens(), outputs, self._max_step_tokens)
        if least_s > timeout_s:
            raise DeadlineExceeded(
                f"timeout_s = {timeout_s:.3g} is too short: {tokens} tokens of prompt and {outputs} of output take "
                f"{least_s:.3g} s or more here, even when nobody else is served",
                field="timeout_s",
            )
        rate = self.drain.tokens_per_s
        ahead = self._roster.queue.tokens_before(request.tenant, request.priority) if rate else 0
        if ahead and ahead / rate + least_s > timeout_s:
            raise Overloaded(
                f"timeout_s = {timeout_s:.3g} is too short for the queue: {ahead} tokens wait before it, which takes "
                f"about {ahead / rate:.3g} s",
                field="timeout_s",
                retry_after_s=self._hint_s(tokens, ahead - rate * max(0.0, timeout_s - least_s), now_s),
            )

    def _hint_s(self, tokens: int, excess_tokens: float, now_s: float) -> float:
        return self._hints.refuse(tokens, excess_tokens, self.drain.tokens_per_s, now_s)


def given_tokens(request: EngineRequest) -> int:
    """Tokens that a request brings along: those that are computed before it gives its first one."""
    return len(request.prompt_ids) + len(request.output_ids)
