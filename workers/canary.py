"""A request of the group to itself: while nobody asks for anything, one token now and then shows that it still can.

It goes through scheduler, ranks and sampler like any other request, so what would fail for a client fails here first.
"""

import secrets

from rayline.protos.errors import Unavailable
from rayline.protos.events import EngineEvent, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams

PERIOD_S = 2.0
TENANT = "rayline canary"
PRIORITY = 2**31 - 1  # behind everybody
PROMPT_IDS = (0,)
PARAMS = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True, seed=0)


class Canary:
    """Says when to ask and judges the answer. One thread uses it.

    exact: equal requests have equal answers here. Another answer than the first one then means that the group
    computes wrongly.
    """

    def __init__(self, exact: bool):
        self._exact = exact
        self._request_id = f"canary-{secrets.token_hex(8)}"
        self._running = False
        self._last_s: float | None = None
        self._token_id: int | None = None

    def request(self, now_s: float) -> EngineRequest | None:
        """The request to run now, or None while none is due. `now_s`: of a moment in which the engine is idle."""
        if self._last_s is None:
            self._last_s = now_s
        if now_s - self._last_s < PERIOD_S:
            return None
        self._running = True
        return EngineRequest(
            self._request_id, PROMPT_IDS, PARAMS, priority=PRIORITY, tenant=TENANT, family=self._request_id
        )

    def worked(self, now_s: float) -> None:
        """A step of anybody's ended: as good as an answer of its own."""
        self._last_s = now_s

    def take(self, events: list[EngineEvent]) -> list[EngineEvent]:
        """`events` without its own. Raises Unavailable when its token is not the one it should be."""
        if not self._running:
            return events
        for event in events:
            if event.request_id == self._request_id:
                self._judge(event)
        return [event for event in events if event.request_id != self._request_id]

    def _judge(self, event: EngineEvent) -> None:
        if not isinstance(event, TokenEvent):
            self._running = False
            return
        if self._token_id is None:
            self._token_id = event.token_id
        if self._exact and event.token_id != self._token_id:
            raise Unavailable(
                f"the group computes wrongly: it answered its own request with token {event.token_id} instead of "
                f"{self._token_id}"
            )
