"""What the front doors serve: requests in the clients' words in, streams of events out.

Both doors call the same methods and differ only in how they write requests and events.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from rayline.protos.conversation import Conversation
from rayline.protos.errors import (
    ModelNotFound,
    RaylineError,
    RequestIdTaken,
    StreamNotFound,
    TakenOver,
    Unavailable,
    out_of_range,
)
from rayline.protos.events import StreamEvent
from rayline.protos.group import GroupInfo
from rayline.protos.journal import stream_key
from rayline.protos.types import Spec
from rayline.router.admission import Admitted, admit, check_ids, named
from rayline.router.call import Call
from rayline.router.docket import Docket
from rayline.router.fleet import Fleet
from rayline.router.grammars.desk import GrammarDesk
from rayline.router.grammars.wish import grammar_wish
from rayline.router.group import Group
from rayline.router.journal import Found, Look, RouterJournal
from rayline.router.ledger import Ledger
from rayline.router.mover import Mover
from rayline.router.moves import Move
from rayline.router.output_form import NO_FORMATS, ChatFormats
from rayline.router.prompt import LONG_CHARACTERS, conversation_characters, conversation_ids, is_long
from rayline.router.session import Session, Timing
from rayline.router.stream_record import StreamRecord
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
        dockets: Mapping[str, Docket] | None = None,
        router: str = "router",
        wall_clock: Callable[[], float] = time.time,
    ):
        """`clock` gives seconds from any start, `wall_clock` from 1970; `draw_seed` a number in [0, 2^63): the seed of
        requests without one.

        patience_s: how long a stream whose group was lost waits for another one to go on in.
        dockets: of each model, which requests may be why its groups were lost; default: what this service sees alone.
        router: this router's name in the journal, which no other one may have.
        """
        self._models = models
        self._desks = {model.name: GrammarDesk.of(model.tokenizer) for model in models.values()}
        self._clock = clock
        self._draw_seed = draw_seed
        self._ledger = Ledger()
        dockets = dockets or {name: Docket(clock=clock) for name in models}
        self._fleets = {
            name: Fleet(model.groups, self._ledger, dockets[name], clock, patience_s) for name, model in models.items()
        }
        self._movers = {name: Mover(fleet) for name, fleet in self._fleets.items()}
        self._turn = 0
        self._running: set[Call] = set()
        self._calls: dict[str, Call] = {}
        self._wall_clock = wall_clock
        self._journal = RouterJournal(self._groups, router)
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

    async def generate(
        self,
        spec: Spec,
        *,
        within_s: float = math.inf,
        is_known: bool | None = None,
        can_resume: bool = False,
        note: str = "",
    ) -> AsyncGenerator[StreamEvent, None]:
        """Started, what its choices bring, then exactly one Finished or Failed (see `protos.events`).

        A tenant's request id names one request: called again with the same content, within the time that streams are
        kept, it brings the same events from the first on, and an older call that still reads them ends with TakenOver.
        within_s: how long this call waits for the end, whatever the request says of all calls together.
        is_known: False where the id was just drawn; True where nothing but a known stream will do. can_resume: the
        client does so by itself, so it may be sent away at any time. note: what the door wants to know of a stream
        that is resumed.

        Started comes with the group's first answer, so everything that is wrong before is raised: a field
        out of range, PromptTooLong, ModelNotFound, RequestIdTaken, Overloaded, Unavailable. Closing the generator or
        cancelling the task that waits for it aborts the request in its group. Events are pulled: a slow
        reader holds back only its own stream.
        """
        arrived_s = self._clock()
        self._check_open()
        if not 0 < len(spec.request_id) <= MAX_ID_CHARACTERS:
            raise out_of_range("request_id", spec.request_id, f"1 to {MAX_ID_CHARACTERS} characters")
        key = stream_key(spec.tenant, spec.request_id)
        look = Look(None, 0, True) if is_known is False else await self._look(key)
        if is_known and look.found is None:
            raise _not_found(spec.request_id, look)
        if look.found is not None and not look.found.record.asks_for(spec):
            raise RequestIdTaken(
                f"request_id = {spec.request_id!r} names another request, of which the content is not the same",
                field="request_id",
            )
        record = StreamRecord(spec, self._draw_seed(), self._wall_clock(), note=note)
        stream = look.found or Found(record, look.turn)
        is_resumed = look.found is not None
        async with aclosing(self._read(key, stream, is_resumed, arrived_s, within_s, can_resume)) as events:
            async for event in events:
                yield event

    async def find(self, tenant: str, request_id: str) -> Found:
        """A stream that can be resumed. Raises StreamNotFound, or Unavailable while not all groups can be asked."""
        look = await self._look(stream_key(tenant, request_id))
        if look.found is None:
            raise _not_found(request_id, look)
        return look.found

    async def resume(
        self, found: Found, *, within_s: float = math.inf, can_resume: bool = False
    ) -> AsyncGenerator[StreamEvent, None]:
        """A stream again, from its first event on: what was said before is not computed again where a leader kept it.

        `found` comes from `find`. Raises as `generate` does.
        """
        spec = found.record.spec
        key = stream_key(spec.tenant, spec.request_id)
        async with aclosing(self._read(key, found, True, self._clock(), within_s, can_resume)) as events:
            async for event in events:
                yield event

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

    async def drain(self, timeout_s: float, *, is_last: bool = False) -> bool:
        """Refuse new requests and wait for the running ones. False when some still run after `timeout_s`.

        Clients that resume by themselves are sent to another router at once, unless this is the last one there is.
        """
        self._draining = True
        for call in [call for call in self._running if call.can_resume and not is_last]:
            call.end(Unavailable("the server is shutting down: resume through another one", retry_after_s=0.0))
        if self._running:
            log.info("draining: %d requests still run", self.running)
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), timeout_s)
            except TimeoutError:
                return False
        return True

    # ---- inside

    def _check_open(self) -> None:
        if self._draining:
            raise Unavailable("the server is shutting down", retry_after_s=1.0)

    async def _look(self, key: str) -> Look:
        """What the leaders know of a stream, and this router itself: a call that has not begun is in no journal yet."""
        look = await self._journal.look(key)
        call = self._calls.get(key)
        if call is None:
            return look
        found = look.found or Found(call.record, call.turn)
        return replace(look, found=replace(found, turn=max(found.turn, call.turn)))

    async def _read(
        self, key: str, stream: Found, is_resumed: bool, arrived_s: float, within_s: float, can_resume: bool
    ) -> AsyncGenerator[StreamEvent, None]:
        """One call's way through a stream."""
        self._check_open()
        record, page = stream.record, self._journal.page(key, stream.turn + 1)
        call = Call(key, record, page.ballot.turn, can_resume=can_resume)
        self._enter(call)
        try:
            model = self.model(record.spec.model)
            left_s = record.left_s(self._wall_clock() if is_resumed else record.created_s)
            self._turn += 1
            name = f"{record.spec.request_id}~{self._journal.router}-{self._turn}"
            admitted = named(await self._admit(model, record), name, key, page.ballot, record.seed)
            timing = Timing(arrived_s, self._clock() - arrived_s, arrived_s + min(within_s, left_s))
            fleet, mover = self._fleets[model.name], self._movers[model.name]
            session = Session(admitted, model.tokenizer, fleet, mover, timing, page)
            if is_resumed:
                events = session.again(self._turn, record, stream.traces)
            else:
                events = session.events(self._turn, record)
            async with aclosing(call.through(events)) as shown:
                async for event in shown:
                    yield event
        finally:
            page.end()
            self._leave(call)

    def _enter(self, call: Call) -> None:
        if (older := self._calls.get(call.key)) is not None:
            older.end(TakenOver("the stream is read through a later call"))
        self._calls[call.key] = call
        self._running.add(call)

    def _leave(self, call: Call) -> None:
        self._running.remove(call)
        if self._calls.get(call.key) is call:
            del self._calls[call.key]
        if not self._running:
            self._idle.set()

    def _groups(self) -> dict[str, Group]:
        return {group_id: group for model in self._models.values() for group_id, group in model.groups.items()}

    async def _admit(self, model: ServedModel, record: StreamRecord) -> Admitted:
        """What takes long happens beside the event loop: other streams go on."""
        spec = record.spec
        spec.check()
        desk = self._desks[model.name]
        wish = await _beside(is_long(spec), partial(grammar_wish, spec, model.chat, desk.special_ids))
        grammar = "" if wish is None else await wish.granted(desk)
        work = partial(admit, spec, model.tokenizer, model.chat, grammar, model.info, record.seed)
        return await _beside(is_long(spec), work)


def _not_found(request_id: str, look: Look) -> RaylineError:
    if not look.is_sure:
        return Unavailable("some groups do not answer: they may know of the stream", retry_after_s=1.0)
    return StreamNotFound(
        f"request_id = {request_id!r} names no stream that is kept: it never began, or ended too long ago",
        field="request_id",
    )


async def _beside(is_long: bool, work: Callable[[], T]) -> T:
    """The result of `work`, done in a thread when it takes long."""
    return await asyncio.to_thread(work) if is_long else work()
