"""What the front doors serve: requests in the clients' words in, streams of events out.

Both doors call the same methods and differ only in how they write requests and events.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from rayline.protos.conversation import Conversation
from rayline.protos.errors import InvalidRequest, ModelNotFound, Unavailable, out_of_range
from rayline.protos.events import StreamEvent
from rayline.protos.group import GroupInfo
from rayline.protos.types import Spec
from rayline.router.admission import Admitted, admit, check_ids
from rayline.router.docket import BlameLimits, Docket
from rayline.router.grammars.desk import GrammarDesk
from rayline.router.grammars.wish import grammar_wish
from rayline.router.group import Group
from rayline.router.ledger import Ledger
from rayline.router.mover import Mover
from rayline.router.moves import Move
from rayline.router.output_form import NO_FORMATS, ChatFormats
from rayline.router.prompt import LONG_CHARACTERS, conversation_characters, conversation_ids, is_long
from rayline.router.session import Session, Timing
from rayline.router.tokenizer import Tokenizer

MAX_ID_CHARACTERS = 128

T = TypeVar("T")
log = logging.getLogger("rayline.router")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model by the name clients use. `groups` is live: its owner adds and removes groups by id.

    chat: how it writes tool calls and thoughts.
    """

    name: str
    tokenizer: Tokenizer
    groups: Mapping[str, Group]
    created_s: int
    chat: ChatFormats = NO_FORMATS

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

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        clock: Callable[[], float],
        draw_seed: Callable[[], int],
        patience_s: float = 0.0,
        docket: Docket | None = None,
    ):
        """`clock` gives seconds from any start; `draw_seed` a seed in [0, 2^63) for requests without one.

        patience_s: how long a stream whose group was lost waits for another one to go on in.
        docket: which requests may be why groups were lost; default: one that nobody else writes to.
        """
        self._models = models
        self._patience_s = patience_s
        self._desks = {model.name: GrammarDesk.of(model.tokenizer) for model in models.values()}
        self._clock = clock
        self._draw_seed = draw_seed
        self._ledger = Ledger()
        self._docket = docket or Docket(BlameLimits(), clock)
        self._movers = {name: Mover(model.groups, self._ledger, clock) for name, model in models.items()}
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
        """Started, what its choices bring, then exactly one Finished or Failed (see `protos.events`).

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
            admitted = await self._admit(model, spec)
            timing = Timing(arrived_s, self._clock() - arrived_s)
            session = Session(
                admitted,
                model.groups,
                model.tokenizer,
                self._ledger,
                self._docket,
                self._clock,
                timing,
                self._patience_s,
                self._movers[model.name],
            )
            self._turn += 1
            async with aclosing(session.events(self._turn)) as events:
                async for event in events:
                    yield event
        finally:
            self._leave(spec.request_id)

    async def tokenize(self, model: str, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Ids of `text` as a prompt of this model."""
        work = partial(self.model(model).tokenizer.encode, text, add_special_tokens)
        return await _beside(len(text) >= LONG_CHARACTERS, work)

    async def tokenize_chat(self, model: str, conversation: Conversation) -> tuple[int, ...]:
        """Ids of the prompt that the chat template makes of a conversation."""
        conversation.check()
        work = partial(conversation_ids, conversation, self.model(model).tokenizer)
        return await _beside(conversation_characters(conversation) >= LONG_CHARACTERS, work)

    def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`, special tokens shown. Raises InvalidRequest for ids outside the vocabulary."""
        tokenizer = self.model(model).tokenizer
        check_ids("token_ids", token_ids, tokenizer.vocab_size)
        return tokenizer.decode(token_ids, skip_special_tokens=False)

    def start(self) -> None:
        """From now on streams move on from groups that drain, and from full ones to empty ones."""
        for mover in self._movers.values():
            mover.start()

    def move_streams(self) -> Sequence[Move]:
        """One round of it, now."""
        return [move for mover in self._movers.values() for move in mover.look()]

    def close(self) -> None:
        """End the processes that check grammars. Nothing may be asked any more."""
        for mover in self._movers.values():
            mover.close()
        for desk in self._desks.values():
            desk.close()

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

    async def _admit(self, model: ServedModel, spec: Spec) -> Admitted:
        """What takes long happens beside the event loop: other streams go on."""
        spec.check()
        desk = self._desks[model.name]
        wish = await _beside(is_long(spec), partial(grammar_wish, spec, model.chat, desk.special_ids))
        grammar = "" if wish is None else await wish.granted(desk)
        seed = self._draw_seed()
        work = partial(admit, spec, model.tokenizer, model.chat, grammar, model.info, seed)
        return await _beside(is_long(spec), work)


async def _beside(is_long: bool, work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread when it takes long."""
    return await asyncio.to_thread(work) if is_long else work()
