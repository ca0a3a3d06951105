"""What the front doors serve: requests in the clients' words in, streams of events out.

Both doors call the same methods and differ only in how they write requests and events.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass

from rayline.protos.conversation import ChatMessage
from rayline.protos.errors import InvalidRequest, ModelNotFound, Unavailable, out_of_range
from rayline.protos.events import StreamEvent
from rayline.protos.group import GroupInfo
from rayline.protos.types import EngineRequest, Spec
from rayline.router.admission import check_ids, engine_request
from rayline.router.group import Group
from rayline.router.ledger import Ledger
from rayline.router.session import Session, Timing
from rayline.router.tokenizer import Tokenizer

THREAD_CHARACTERS = 16_384  # from here on (a few ms) text is tokenised beside the event loop
MAX_ID_CHARACTERS = 128

log = logging.getLogger("rayline.router")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model by the name clients use. `groups` is live: its owner adds and removes groups by id."""

    name: str
    tokenizer: Tokenizer
    groups: Mapping[str, Group]
    created_s: int

    @property
    def alive(self) -> bool:
        """Whether it has a group that can serve."""
        return any(group.alive for group in self.groups.values())

    @property
    def info(self) -> GroupInfo:
        """Limits of the model, the same in all its groups. Raises Unavailable while none is alive."""
        for group in self.groups.values():
            if group.alive:
                return group.info
        raise Unavailable(f"model {self.name!r} has no group that can serve", retry_after_s=1.0)


class Service:
    """The router's core: checks, tokenises, hands each request to a session."""

    def __init__(self, models: Mapping[str, ServedModel], clock: Callable[[], float], draw_seed: Callable[[], int]):
        """`clock` gives seconds from any start; `draw_seed` a seed in [0, 2^63) for requests without one."""
        self._models = models
        self._clock = clock
        self._draw_seed = draw_seed
        self._ledger = Ledger()
        self._turn = 0
        self._running: set[str] = set()
        self._draining = False
        self._idle = asyncio.Event()

    @property
    def running(self) -> int:
        """Requests between acceptance and their terminal event."""
        return len(self._running)

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def ready(self) -> bool:
        """True when every model has a group that can serve and nothing is being drained."""
        return not self._draining and all(model.alive for model in self._models.values())

    def models(self) -> Sequence[ServedModel]:
        return tuple(self._models.values())

    def model(self, name: str) -> ServedModel:
        """The model called `name`; "" means the only one. Raises ModelNotFound naming those there are."""
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise ModelNotFound(f"model = {name!r} is not served: there is {sorted(self._models)}", field="model")
        return self._models[name]

    async def generate(self, spec: Spec) -> AsyncGenerator[StreamEvent, None]:
        """Started, deltas, then exactly one Finished or Failed.

        Started comes with the group's first answer, so everything that is wrong before is raised: a field
        out of range, PromptTooLong, ModelNotFound, Overloaded, Unavailable. Closing the generator or
        cancelling the task that waits for it aborts the request in its group. Events are pulled: a slow
        reader holds back only its own stream.
        """
        if self._draining:
            raise Unavailable("the server is shutting down", retry_after_s=1.0)
        arrived_s = self._clock()
        self._enter(spec.request_id)
        try:
            model = self.model(spec.model)
            request = await self._request(model, spec)
            timing = Timing(arrived_s, self._clock() - arrived_s)
            session = Session(request, model.groups, model.tokenizer, self._ledger, self._clock, timing)
            self._turn += 1
            async with aclosing(session.events(self._turn)) as events:
                async for event in events:
                    yield event
        finally:
            self._leave(spec.request_id)

    async def tokenize(self, model: str, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Ids of `text` as a prompt of this model."""
        return await _encode(self.model(model).tokenizer, text, add_special_tokens)

    async def tokenize_chat(self, model: str, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """Ids of the prompt that the chat template makes of `messages`."""
        return await _chat_ids(self.model(model).tokenizer, messages)

    def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens shown. Raises InvalidRequest for ids outside the vocabulary."""
        tokenizer = self.model(model).tokenizer
        check_ids("token_ids", token_ids, tokenizer.vocab_size)
        return tokenizer.decode(token_ids, skip_special_tokens=False)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait for the running ones. False when some still run after `timeout_s`."""
        self._draining = True
        if self._running:
            log.info("draining: %d requests still run", self.running)
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    def _enter(self, request_id: str) -> None:
        if not 0 < len(request_id) <= MAX_ID_CHARACTERS:
            raise out_of_range("request_id", request_id, f"1 to {MAX_ID_CHARACTERS} characters")
        if request_id in self._running:
            raise InvalidRequest(f"request_id = {request_id!r} is running already", field="request_id")
        self._running.add(request_id)

    def _leave(self, request_id: str) -> None:
        self._running.remove(request_id)
        if not self._running:
            self._idle.set()

    async def _request(self, model: ServedModel, spec: Spec) -> EngineRequest:
        spec.check()
        prompt_ids = await self._prompt_ids(model.tokenizer, spec)
        return engine_request(spec, prompt_ids, model.info, model.tokenizer.bos_id, self._draw_seed())

    async def _prompt_ids(self, tokenizer: Tokenizer, spec: Spec) -> tuple[int, ...]:
        if spec.conversation is not None:
            return await _chat_ids(tokenizer, spec.conversation.messages)
        if spec.prompt is not None:
            return await _encode(tokenizer, spec.prompt, add_special_tokens=True)
        return spec.prompt_ids or ()


async def _encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> tuple[int, ...]:
    if len(text) < THREAD_CHARACTERS:
        return tokenizer.encode(text, add_special_tokens)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens)


async def _chat_ids(tokenizer: Tokenizer, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
    """The template writes the special tokens itself, so none are added."""
    text = tokenizer.render_chat([asdict(message) for message in messages])
    return await _encode(tokenizer, text, add_special_tokens=False)
