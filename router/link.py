"""One group over the network: the router's end of the multiplexed stream to a group's leader."""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Self

import grpc

from rayline.cluster.awake import AwakeTime
from rayline.protos import internal_pb2 as pb
from rayline.protos.blame import Presence, Suspect, presence
from rayline.protos.blame_wire import suspects_of, suspects_to_pb
from rayline.protos.channel_wire import (
    SECRET_KEY,
    failed_of,
    finished_of,
    info_of,
    load_of,
    prompt_scores_of,
    searched_of,
    submit_to_pb,
    token_of,
)
from rayline.protos.errors import DeadlineExceeded, RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed, Interim
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.internal_pb2_grpc import GroupChannelStub
from rayline.protos.journal import JournalAnswer, JournalCall
from rayline.protos.journal_wire import answer_of, call_to_pb
from rayline.protos.types import EngineRequest
from rayline.router.breaker import Trust
from rayline.router.inbox import Inbox

log = logging.getLogger(__name__)

WELCOME_TIMEOUT_S = 5.0
LISTEN_PERIOD_S = 0.1
BEAT_PERIOD_S = 0.5  # how often a leader hears of this router at least
SILENCE_S = 2.0  # a leader that lives is heard of every 0.25 s
IDLE_SILENCE_S = 4.0  # while nobody waits for it
LATE_GRACE_S = 0.5  # a group ends what is late by itself; only one that cannot leaves it to the router
MOST_UNREAD_TOKENS = 16_384
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

OnSuspects = Callable[[Sequence[Suspect]], object]
Outbox = asyncio.Queue[pb.RouterMessage]
Call = grpc.aio.StreamStreamCall[pb.RouterMessage, pb.LeaderMessage]


class GroupLink:
    """A Group reached through its leader's channel. Made by `GroupLink.open`; lost for good at end-of-stream.

    departing: those who started the group want to end it: it lives, and counts as draining.
    trust: set by whoever knows how groups in its place fared.
    apart: id of the request that the group computes alone, which then is to blame for its loss; "" for none.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        call: Call,
        info: GroupInfo,
        outbox: Outbox,
        on_suspects: OnSuspects,
        most_unread_tokens: int,
    ):
        self._channel = channel
        self._call = call
        self._info = info
        self._outbox = outbox
        self._on_suspects = on_suspects
        self._most_unread_tokens = most_unread_tokens
        self._streams: dict[int, tuple[str, Inbox]] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[JournalAnswer]] = {}
        self._last_prompt: tuple[int, ...] = ()
        self._load = GroupLoad(total_blocks=info.total_blocks, free_blocks=info.total_blocks)
        self._lost: RaylineError | None = None
        self._reader: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._was_heard = False
        self.silent = False
        self.apart = ""
        self.trust = Trust.FULL
        self.departing = False

    @classmethod
    async def open(
        cls,
        address: str,
        secret: str,
        on_suspects: OnSuspects = lambda suspects: None,
        most_unread_tokens: int = MOST_UNREAD_TOKENS,
        timeout_s: float = WELCOME_TIMEOUT_S,
    ) -> Self:
        """Connect to a leader. Raises Unavailable when it does not answer within `timeout_s` or refuses the secret.

        on_suspects is called with what other routers say of requests that may kill groups.
        most_unread_tokens: of a stream; a client that is further behind is given up.
        """
        channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        outbox: Outbox = asyncio.Queue()
        call = GroupChannelStub(channel).Connect(_drain(outbox), metadata=((SECRET_KEY, secret),))
        messages = aiter(call)
        try:
            first = await asyncio.wait_for(anext(messages), timeout_s)
        except (grpc.aio.AioRpcError, TimeoutError, StopAsyncIteration) as error:
            call.cancel()
            await channel.close()
            reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
            raise Unavailable(f"the group at {address} does not answer: {reason}") from None
        link = cls(channel, call, info_of(first.welcome), outbox, on_suspects, most_unread_tokens)
        link._reader = asyncio.create_task(link._read(messages))
        link._listener = asyncio.create_task(link._listen())
        return link

    @property
    def info(self) -> GroupInfo:
        return self._info

    @property
    def load(self) -> GroupLoad:
        return replace(self._load, draining=True) if self.departing else self._load

    @property
    def alive(self) -> bool:
        return self._lost is None

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent]:
        """What comes before the end, then exactly one Finished or Failed; closing the generator aborts at the group.

        The group ends what is late; the router does where the group cannot.
        """
        if self._lost is not None:
            yield Failed(request.request_id, self._lost, Presence.ABSENT)
            return
        stream = next(self._numbers)
        events = Inbox(request.request_id, self._most_unread_tokens)
        self._streams[stream] = (request.request_id, events)
        self._outbox.put_nowait(self._submit(stream, request))
        late: asyncio.TimerHandle | None = None
        if request.timeout_s is not None:
            wait_s = max(0.0, request.timeout_s) + LATE_GRACE_S
            late = asyncio.get_running_loop().call_later(wait_s, self._expire, stream, request.timeout_s)
        try:
            while isinstance(event := await events.get(), Interim):
                yield event
            yield event
        finally:
            if late is not None:
                late.cancel()
            self._leave(stream)

    def _leave(self, stream: int) -> None:
        """Nobody listens to it any more."""
        if self._streams.pop(stream, None) is not None:
            self._outbox.put_nowait(pb.RouterMessage(abort=pb.Abort(stream=stream)))

    def _expire(self, stream: int, timeout_s: float) -> None:
        if (entry := self._streams.get(stream)) is not None:
            text = f"timeout_s = {timeout_s:.3g} have passed, and group {self._info.group_id} has not ended it"
            self._leave(stream)
            entry[1].put(Failed(entry[0], DeadlineExceeded(text, field="timeout_s")))

    async def journal(self, call: JournalCall) -> JournalAnswer:
        """Ask the journal that the leader holds. Raises Unavailable when the group is lost."""
        if self._lost is not None:
            raise self._lost
        if call.act == "end":  # nobody acts on the answer
            self._outbox.put_nowait(pb.RouterMessage(journal=call_to_pb(0, call)))
            return JournalAnswer(True)
        number = next(self._numbers)
        answer: asyncio.Future[JournalAnswer] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self._outbox.put_nowait(pb.RouterMessage(journal=call_to_pb(number, call)))
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    def abort(self, request_id: str) -> None:
        for stream, (name, events) in list(self._streams.items()):
            if name == request_id:
                self._leave(stream)
                events.put(Failed(request_id, Unavailable("the stream leaves its group")))

    def _submit(self, stream: int, request: EngineRequest) -> pb.RouterMessage:
        """The choices of one request come one behind the other: their prompt crosses the wire once."""
        repeats = request.prompt_ids is self._last_prompt and bool(request.prompt_ids)
        self._last_prompt = request.prompt_ids
        return pb.RouterMessage(submit=submit_to_pb(stream, request, repeats))

    def tell(self, suspects: Sequence[Suspect]) -> None:
        """Say to all routers of this group what this one knows."""
        self._outbox.put_nowait(pb.RouterMessage(blame=pb.Blame(suspects=suspects_to_pb(suspects))))

    async def close(self) -> None:
        """Hang up; streams still open end with Failed."""
        self._lose(Unavailable("the router is closing its link to the group"))
        self._call.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._reader is not None:
            await self._reader
        await self._channel.close()

    # ---- incoming

    async def _read(self, messages: AsyncIterator[pb.LeaderMessage]) -> None:
        reason = "its leader ended the connection"
        try:
            async for message in messages:
                self._was_heard = True
                if message.HasField("journal"):
                    self._answer(message.journal)
                elif message.HasField("blame"):
                    self._take_blame(message.blame)
                else:
                    self._take(message.step)
        except grpc.aio.AioRpcError as error:
            reason = error.details() or str(error.code())
        except asyncio.CancelledError:
            reason = "the router hung up"
        except Exception as error:  # a message of another version: streams must not wait for ever
            reason = f"{type(error).__name__}: {error}"
            self._call.cancel()
        self._lose(Unavailable(f"group {self._info.group_id} was lost: {reason}", retry_after_s=1.0))

    async def _listen(self) -> None:
        """Tell the leader again and again that this router lives, and listen whether it does.

        Count the group as lost when it has been silent for too long, and stop taking what it still sends.

        `silent` says so, for whoever may end its processes. A router that was busy or stopped itself did not listen.
        """
        clock = asyncio.get_running_loop().time
        waited, told_s = AwakeTime(clock, 2 * LISTEN_PERIOD_S), clock()
        while self._lost is None:
            await asyncio.sleep(LISTEN_PERIOD_S)
            if clock() - told_s >= BEAT_PERIOD_S:
                told_s = clock()
                self._outbox.put_nowait(pb.RouterMessage(alive=pb.Alive()))
            if self._was_heard:
                self._was_heard = False
                waited.restart()
            elif waited.look() > (SILENCE_S if self._streams else IDLE_SILENCE_S):
                self.silent = True
                reason = f"nothing was heard of its leader for {waited.look():.1f} s"
                self._lose(Unavailable(f"group {self._info.group_id} was lost: {reason}", retry_after_s=1.0))
                self._call.cancel()

    def _answer(self, message: pb.JournalAnswer) -> None:
        if (asked := self._asked.get(message.number)) is not None and not asked.done():
            asked.set_result(answer_of(message))

    def _take(self, step: pb.Step) -> None:
        self._load = load_of(step.load)
        for messages, read in (
            (step.scores, prompt_scores_of),
            (step.tokens, token_of),
            (step.searched, searched_of),
            (step.finished, finished_of),
            (step.failed, failed_of),
        ):
            self._tell_all(messages, read)

    def _take_blame(self, blame: pb.Blame) -> None:
        if blame.HasField("apart"):
            self.apart = blame.apart
            self._outbox.put_nowait(pb.RouterMessage(blame=pb.Blame(apart=blame.apart)))
        if blame.suspects:
            self._on_suspects(suspects_of(blame.suspects))

    def _tell_all(self, messages: Iterable[Any], read: Callable[[Any, str], EngineEvent]) -> None:
        """messages: of one kind, each of a stream; `read` makes an event of one and the name of its request."""
        for message in messages:
            if (entry := self._streams.get(message.stream)) is None:
                continue
            request_id, inbox = entry
            inbox.put(event := read(message, request_id))
            if not isinstance(event, Interim):
                del self._streams[message.stream]
            elif inbox.is_given_up:
                self._leave(message.stream)

    def _lose(self, error: RaylineError) -> None:
        if self._lost is None:
            self._lost = error
            log.warning("%s", error.message)
        for request_id, events in self._streams.values():
            events.put(Failed(request_id, self._lost, presence(request_id, self.apart)))
        self._streams.clear()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(self._lost)
                asked.exception()  # whoever asked may have given up meanwhile


async def _drain(outbox: Outbox) -> AsyncIterator[pb.RouterMessage]:
    while True:
        yield await outbox.get()
