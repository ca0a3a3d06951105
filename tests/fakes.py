"""Stand-ins that run the real interfaces without a model: a group in this process."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from small_tokenizers import served

from rayline.protos.errors import RaylineError, Unavailable
from rayline.protos.events import (
    Beam,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    PromptScores,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.journal import JournalAnswer, JournalCall
from rayline.protos.types import EngineRequest
from rayline.router.breaker import Trust
from rayline.router.output_form import NO_FORMATS, ChatFormats
from rayline.router.service import ServedModel, Service
from rayline.router.tokenizer import Tokenizer
from rayline.workers.journal import Journal

CHAT = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}"
Script = Callable[[EngineRequest], Sequence[int]]


def info(group_id: str = "g0", max_model_len: int = 64, vocab_size: int = 400) -> GroupInfo:
    return GroupInfo(group_id, "tiny", "fake", True, max_model_len, vocab_size, 16, 8, 4, 0)


@dataclass
class FakeGroup:
    """Says the ids its script gives for a request, one each `delay_s`.

    A prompt's tokens have the logprob -position. Beams say what the script says, each one a token less.

    `refuses` names the requests that are refused, all of them by default; `logprob_of` is each token's logprob.
    `holds_at`: no more than so many tokens of a request are said before a test sets it to None.
    `prefill_s`: before the first token, for each output token of the request that it has not seen in another one.
    `refusal` is answered instead of the first token; `loss_after` tokens later the group fails with `loss`
    (raised when `raises`). `finished` holds the ids of requests that got their terminal event,
    `aborted` those that ended without one.
    """

    script: Script
    info: GroupInfo = field(default_factory=info)
    load: GroupLoad = field(default_factory=GroupLoad)
    alive: bool = True
    trust: Trust = Trust.FULL
    delay_s: float = 0.0
    refusal: RaylineError | None = None
    loss: Exception | None = None
    loss_after: int = 0
    silent: bool = False
    holds_at: int | None = None
    prefill_s: float = 0.0
    refuses: Callable[[EngineRequest], bool] = lambda request: True
    logprob_of: Callable[[EngineRequest], float] = lambda request: -0.5
    requests: list[EngineRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    held: Journal = field(default_factory=lambda: Journal(2**20, 0.0))
    _computed: int = 0
    _cuts: dict[str, asyncio.Event] = field(default_factory=dict)

    async def journal(self, call: JournalCall) -> JournalAnswer:
        """Held in this process, by what leaders hold it with."""
        return self.held.take(call, 0, asyncio.get_running_loop().time())

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        """Requests are shown under their clients' names."""
        name = request.request_id
        request = replace(request, request_id=_clients_name(name), family=_clients_name(request.family))
        self.requests.append(request)
        ended = self.aborted
        cut = self._cuts[request.request_id] = asyncio.Event()
        now_s = asyncio.get_running_loop().time()
        self.held.begin(request, now_s)
        try:
            async for event in self._events(request, cut):
                if request.kept is not None:
                    self.held.say(request.kept, event, now_s)
                if not isinstance(event, TokenEvent | PromptScores) and not cut.is_set():
                    ended = self.finished
                yield event
        finally:
            ended.append(request.request_id)
            self._cuts.pop(request.request_id, None)

    def abort(self, request_id: str) -> None:
        if (cut := self._cuts.get(_clients_name(request_id))) is not None:
            cut.set()

    async def _events(self, request: EngineRequest, cut: asyncio.Event) -> AsyncGenerator[EngineEvent, None]:
        if self.refusal is not None and self.refuses(request):
            yield Failed(request.request_id, self.refusal)
            return
        if request.params.prompt_logprobs is not None:
            for start in range(1, len(request.prompt_ids), 2):
                yield _scores(request, start)
        token_ids = list(self.script(request))
        if request.params.beam_width:
            yield _searched(request, token_ids)
            return
        limit = request.params.max_tokens or 0
        await asyncio.sleep(self.prefill_s * max(0, len(request.output_ids) - self._computed))
        self._computed = max(self._computed, len(request.output_ids))
        for index, token_id in list(enumerate(token_ids[:limit]))[len(request.output_ids) :]:
            if self.loss is not None and index >= self.loss_after:
                raise self.loss
            while self.holds_at is not None and index >= self.holds_at and not cut.is_set():
                await asyncio.sleep(0.001)
            if await _is_cut(cut, self.delay_s):
                yield Failed(request.request_id, Unavailable("the stream leaves its group"))
                return
            yield self._token(request, index, token_id)
        if self.silent:
            return
        reason = FinishReason.LENGTH if len(token_ids) >= limit else FinishReason.STOP
        usage = Usage(len(request.prompt_ids), min(limit, len(token_ids)), cached_tokens=1)
        yield Finished(request.request_id, reason, usage, queue_s=0.25)

    def _token(self, request: EngineRequest, index: int, token_id: int) -> TokenEvent:
        n = request.params.logprobs
        if n is None:
            return TokenEvent(request.request_id, index, token_id)
        logprob = self.logprob_of(request)
        top = tuple(TokenLogprob(token_id + rank, logprob - rank) for rank in range(n))
        return TokenEvent(request.request_id, index, token_id, logprob, top)


def _clients_name(name: str) -> str:
    """Without what the router adds to tell calls apart."""
    return re.sub(r"~[^~/]*-\d+", "", name)


async def _is_cut(cut: asyncio.Event, delay_s: float) -> bool:
    """Whether a stream is aborted before its next event."""
    if not delay_s:
        await asyncio.sleep(0)
        return cut.is_set()
    with suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await cut.wait()
    return cut.is_set()


def _scores(request: EngineRequest, start: int) -> PromptScores:
    """Two tokens of the prompt, or its last one."""
    n = request.params.prompt_logprobs or 0
    places = range(start, min(start + 2, len(request.prompt_ids)))
    return PromptScores(
        request.request_id,
        start,
        tuple(
            (
                TokenLogprob(request.prompt_ids[at], -float(at)),
                tuple(TokenLogprob(rank, -float(rank)) for rank in range(n)),
            )
            for at in places
        ),
    )


def _searched(request: EngineRequest, token_ids: Sequence[int]) -> Finished:
    """As many beams as were asked for: the script's tokens, each time one less."""
    beams = tuple(
        Beam(tuple(said), -float(rank), tuple(-0.5 for _ in said), FinishReason.STOP)
        for rank in range(request.params.n)
        if (said := token_ids[: len(token_ids) - rank])
    )
    usage = Usage(len(request.prompt_ids), sum(len(beam.token_ids) for beam in beams), cached_tokens=1)
    return Finished(request.request_id, FinishReason.STOP, usage, queue_s=0.25, beams=beams)


def saying(text: str, tokenizer: Tokenizer | None = None) -> Script:
    """A script that says `text` whatever is asked."""
    token_ids = (tokenizer or served("byte_level")).encode(text, add_special_tokens=False)
    return lambda request: token_ids


def service_of(
    *groups: FakeGroup,
    template: str | None = CHAT,
    clock: Callable[[], float] = lambda: 0.0,
    chat: ChatFormats = NO_FORMATS,
    patience_s: float = 0.0,
    router: str = "router",
) -> Service:
    """A service of one model, "tiny", over these groups."""
    tokenizer = served("byte_level", template, bos_token="<s>", eos_token="</s>")
    model = ServedModel("tiny", tokenizer, {group.info.group_id: group for group in groups}, 1_700_000_000, chat)
    return Service({"tiny": model}, clock, lambda: 42, patience_s, router=router, wall_clock=lambda: 0.0)
