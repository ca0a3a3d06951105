"""The leader's face to the routers: one gRPC stream each, one message a step with all of its tokens."""

import asyncio
import hmac
import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import grpc

from rayline.cluster.awake import AwakeTime
from rayline.protos import internal_pb2 as pb
from rayline.protos.blame import presence
from rayline.protos.blame_wire import suspects_of, suspects_to_pb
from rayline.protos.channel_wire import SECRET_KEY, add_event, info_to_pb, load_to_pb, request_of
from rayline.protos.errors import InvalidRequest, RaylineError, TakenOver, Unavailable
from rayline.protos.events import EngineEvent, Failed, Interim
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.internal_pb2_grpc import GroupChannelServicer, add_GroupChannelServicer_to_server
from rayline.protos.journal import KeptAs
from rayline.protos.journal_wire import answer_to_pb, call_of
from rayline.workers.canary import Canary
from rayline.workers.engine import Engine
from rayline.workers.engine_thread import Abort, AskStats, EngineThread
from rayline.workers.journal import Journal
from rayline.workers.outbox import Outbox
from rayline.workers.pipeline import RankStats
from rayline.workers.suspects import Suspects

log = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.1  # how often a router without tokens in a step hears of the load
REPORT_PERIOD_S = 0.25  # how often a router hears of a live leader at least
ROUTER_SILENCE_S = 5.0  # a router that lives is heard of every 0.5 s
APART_LIMIT_S = 0.5  # for routers to hear who is computed alone; one that is stuck holds up nobody for longer
STUCK_GRACE_S = 0.5  # beyond what the engine's thread grants the ranks itself
CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def _awake_time() -> AwakeTime:
    return AwakeTime(asyncio.get_running_loop().time, 2 * REPORT_PERIOD_S)


@dataclass(eq=False)
class Connection:
    """One router. `streams` maps request ids to the router's own numbers for them.

    last_prompt: of its last submit, for the one that repeats it. silence: since it was last heard of. call: the task
    that runs its stream. knows_apart: it has said who is computed alone.
    """

    number: int
    outbox: Outbox = field(default_factory=Outbox)
    streams: dict[str, int] = field(default_factory=dict)
    request_ids: dict[int, str] = field(default_factory=dict)
    last_prompt: tuple[int, ...] = ()
    told_s: float = 0.0
    silence: AwakeTime = field(default_factory=_awake_time)
    call: asyncio.Task[None] | None = field(default_factory=asyncio.current_task)
    knows_apart: asyncio.Event = field(default_factory=asyncio.Event)


class Leader(GroupChannelServicer):
    """Serves one started engine to any number of routers. Lives on one event loop; `start` and `stop` frame it."""

    def __init__(self, engine: Engine, info: GroupInfo, secret: str, journal: Journal):
        self.info = info
        self._journal = journal
        self._kept: dict[str, KeptAs] = {}
        self._secret = secret
        self._engine = engine
        self._thread = EngineThread(engine, Canary(info.exact), self._emit, self._on_lost, self._on_apart)
        self._watch: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._owners: dict[str, Connection] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._numbers = itertools.count()
        self._suspects = Suspects()
        self._apart = ""
        self._server = grpc.aio.server(options=CHANNEL_OPTIONS)
        self.load = engine.load()
        self.lost = asyncio.Event()
        self._draining = False
        self.address = ""

    async def start(self, host: str) -> None:
        """Listen on a port of the system's choice and start stepping; `address` is set then."""
        add_GroupChannelServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(f"{host}:0")
        self.address = f"{host}:{port}"
        await self._server.start()
        self._thread.start()
        self._watch = asyncio.create_task(self._watch_engine())

    async def stop(self, grace_s: float) -> None:
        """End the channel and the engine; streams still open get a Cancelled from gRPC after `grace_s`."""
        if self._watch is not None:
            self._watch.cancel()
        await self._server.stop(grace_s)
        await asyncio.to_thread(self._thread.stop)

    @property
    def healthy(self) -> bool:
        return self._thread.alive

    def drain(self) -> int:
        """Have the routers take all streams elsewhere and bring no new ones. Returns how many run now."""
        self._draining = True
        self.load = replace(self.load, draining=True)
        for connection in self._connections:
            self._tell_load(connection)
        return len(self._owners)

    @property
    def streams(self) -> int:
        """How many run here."""
        return len(self._owners)

    async def rank_stats(self) -> tuple[RankStats, ...]:
        """Every rank's share of the work since the last call."""
        answer: asyncio.Future[tuple[RankStats, ...]] = self._loop.create_future()
        self._thread.post(AskStats(lambda stats: self._loop.call_soon_threadsafe(answer.set_result, stats)))
        return await answer

    async def follow(self, request_id: str) -> None:
        """Return when a request has ended, or at once if it is not running here."""
        if request_id in self._owners:
            await self._ended.setdefault(request_id, asyncio.Event()).wait()

    # ---- the gRPC service

    async def Connect(
        self,
        request_iterator: AsyncIterator[pb.RouterMessage],
        context: "grpc.aio.ServicerContext[pb.RouterMessage, pb.LeaderMessage]",
    ) -> AsyncIterator[pb.LeaderMessage]:
        """One router's stream. Its end aborts what it had submitted."""
        shown = dict(context.invocation_metadata() or ()).get(SECRET_KEY, "")
        if not hmac.compare_digest(str(shown).encode(), self._secret.encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong secret: this channel is internal")
        if self.lost.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the group was lost")
        connection = Connection(next(self._numbers))
        self._connections.add(connection)
        reader = asyncio.create_task(self._read(connection, request_iterator))
        try:
            yield pb.LeaderMessage(welcome=info_to_pb(self.info))
            yield pb.LeaderMessage(blame=self._blame(apart=self._apart))
            while True:
                if (message := await connection.outbox.get()) is None:
                    return
                yield message
        finally:
            reader.cancel()
            self._connections.discard(connection)
            self._journal.lose(connection.number, self._loop.time())
            connection.knows_apart.set()
            for request_id in connection.streams:
                self._thread.post(Abort(request_id))

    async def _read(self, connection: Connection, messages: AsyncIterator[pb.RouterMessage]) -> None:
        async for message in messages:
            connection.silence.restart()
            if message.HasField("submit"):
                self._submit(connection, message.submit)
            elif message.HasField("journal"):
                self._ask_journal(connection, message.journal)
            elif message.HasField("blame"):
                self._take_blame(connection, message.blame)
            elif (request_id := connection.request_ids.get(message.abort.stream)) is not None:
                self._thread.post(Abort(request_id))

    def _submit(self, connection: Connection, submit: pb.Submit) -> None:
        request = request_of(submit, connection.last_prompt)
        connection.last_prompt = request.prompt_ids
        if request.request_id in self._owners:
            error: RaylineError = InvalidRequest(
                f"request_id {request.request_id!r} is already running", field="request_id"
            )
            self._refuse(connection, submit.stream, error)
            return
        if self._journal.begin(request, self._loop.time()) is not None:
            self._refuse(connection, submit.stream, _taken_over(request.request_id))
            return
        connection.streams[request.request_id] = submit.stream
        connection.request_ids[submit.stream] = request.request_id
        self._owners[request.request_id] = connection
        if request.kept is not None:
            self._kept[request.request_id] = request.kept
        self._thread.post(request)

    def _refuse(self, connection: Connection, stream: int, error: RaylineError) -> None:
        step = pb.Step(load=load_to_pb(self.load))
        add_event(step, stream, Failed("", error))
        connection.outbox.put_nowait(pb.LeaderMessage(step=step))

    def _ask_journal(self, connection: Connection, message: pb.JournalCall) -> None:
        """Who claims a stream ends what still runs of it for an older call."""
        call = call_of(message)
        answer = self._journal.take(call, connection.number, self._loop.time())
        if answer.accepted and call.act in ("write", "claim"):
            older = [name for name, kept in self._kept.items() if kept.key == call.key and kept.ballot < call.ballot]
            self._deliver([Failed(request_id, _taken_over(request_id)) for request_id in older], self.load)
            for request_id in older:
                self._thread.post(Abort(request_id))
        if message.number:
            connection.outbox.put_nowait(pb.LeaderMessage(journal=answer_to_pb(message.number, answer)))

    # ---- who is to blame for a loss

    def _take_blame(self, sender: Connection, blame: pb.Blame) -> None:
        """What one router says of suspects goes to all others."""
        if blame.HasField("apart") and blame.apart == self._apart:
            sender.knows_apart.set()
        if not blame.suspects:
            return
        self._suspects.take(suspects_of(blame.suspects), self._loop.time())
        for connection in self._connections - {sender}:
            connection.outbox.put_nowait(pb.LeaderMessage(blame=pb.Blame(suspects=blame.suspects)))

    def _blame(self, apart: str) -> pb.Blame:
        """All that a router has to know."""
        return pb.Blame(apart=apart, suspects=suspects_to_pb(self._suspects.left(self._loop.time())))

    def _on_apart(self, request_id: str) -> None:
        """In the engine's thread: return when the routers know who is computed alone from now on."""
        told = asyncio.run_coroutine_threadsafe(self._tell_apart(request_id), self._loop)
        with suppress(TimeoutError):
            told.result(2 * APART_LIMIT_S)

    async def _tell_apart(self, request_id: str) -> None:
        self._apart = request_id
        waits = []
        for connection in self._connections:
            connection.knows_apart.clear()
            connection.outbox.put_nowait(pb.LeaderMessage(blame=pb.Blame(apart=request_id)))
            waits.append(asyncio.create_task(connection.knows_apart.wait()))
        if waits:
            _, late = await asyncio.wait(waits, timeout=APART_LIMIT_S)
            for task in late:
                task.cancel()

    # ---- progress

    async def _watch_engine(self) -> None:
        """Tell every router again and again that the group lives, as long as its engine does."""
        waited, beat_s = AwakeTime(self._loop.time, 2 * REPORT_PERIOD_S), self._thread.beat_s
        while not self.lost.is_set():
            await asyncio.sleep(REPORT_PERIOD_S)
            if beat_s != self._thread.beat_s:
                waited.restart()
                beat_s = self._thread.beat_s
            elif waited.look() > self._engine.pipeline.limit_s + STUCK_GRACE_S:
                self._fence(Unavailable(f"the group was lost: its engine stood still for {waited.look():.1f} s"))
            self._report(self._loop.time() - REPORT_PERIOD_S)
            self._listen()

    def _fence(self, error: RaylineError) -> None:
        """End the group although its engine's thread cannot: every stream with one Failed, then the ranks."""
        log.error("%s", error.message)
        failed: list[EngineEvent] = [Failed(name, error, presence(name, self._apart)) for name in self._owners]
        self._deliver(failed, self.load)
        self._hang_up()
        self._thread.fence(error)

    def _report(self, told_before_s: float) -> None:
        """Tell the load to routers that have not heard anything since, unless they do not even take what is there."""
        for connection in self._connections:
            if connection.told_s <= told_before_s and connection.outbox.empty():
                self._tell_load(connection)

    def _tell_load(self, connection: Connection) -> None:
        connection.told_s = self._loop.time()
        connection.outbox.put_nowait(pb.LeaderMessage(step=pb.Step(load=load_to_pb(self.load))))

    def _listen(self) -> None:
        """Hang up on routers that are silent (they froze, or their network is gone) or do not read. What they submitted
        is aborted."""
        for connection in self._connections:
            if connection.outbox.is_overfull and connection.call is not None:
                log.warning("router %d does not read what the group says", connection.number)
                connection.call.cancel()
            if connection.silence.look() > ROUTER_SILENCE_S and connection.call is not None:
                log.warning("router %d was silent for %.1f s", connection.number, connection.silence.look())
                connection.call.cancel()

    def _hang_up(self) -> None:
        """The group is lost: routers see the end of their streams behind the last events."""
        self.lost.set()
        for connection in self._connections:
            connection.outbox.put_nowait(None)

    # ---- from the engine's thread

    def _emit(self, events: list[EngineEvent], load: GroupLoad) -> None:
        self._loop.call_soon_threadsafe(self._deliver, events, load)

    def _on_lost(self, error: RaylineError) -> None:
        self._loop.call_soon_threadsafe(self._hang_up)

    def _deliver(self, events: list[EngineEvent], load: GroupLoad) -> None:
        """Sort one step's events by router: one message to each."""
        self.load = load = replace(load, draining=self._draining)
        steps: dict[Connection, pb.Step] = {}
        now = self._loop.time()
        for event in events:
            connection = self._owners.get(event.request_id)
            if connection is None:
                continue
            step = steps.setdefault(connection, pb.Step())
            add_event(step, connection.streams[event.request_id], event)
            if (kept := self._kept.get(event.request_id)) is not None:
                self._journal.say(kept, event, now)
            if not isinstance(event, Interim):
                self._forget(event.request_id, connection)
        idle = load.running + load.waiting == 0  # nothing will follow that corrects an older report
        for connection in self._connections:
            if connection not in steps and not idle and now - connection.told_s < LOAD_PERIOD_S:
                continue
            connection.told_s = now
            step = steps.get(connection) or pb.Step()
            step.load.CopyFrom(load_to_pb(load))
            connection.outbox.put_nowait(pb.LeaderMessage(step=step))

    def _forget(self, request_id: str, connection: Connection) -> None:
        del self._owners[request_id]
        self._kept.pop(request_id, None)
        del connection.request_ids[connection.streams.pop(request_id)]
        if (ended := self._ended.pop(request_id, None)) is not None:
            ended.set()


def _taken_over(request_id: str) -> TakenOver:
    return TakenOver(f"{request_id} is read through a later call")
