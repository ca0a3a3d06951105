"""The leader's face to the routers: one gRPC stream each, one message a step with all of its tokens."""

import asyncio
import hmac
import itertools
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import grpc

from rayline.cluster.awake import AwakeTime
from rayline.protos import internal_pb2 as pb
from rayline.protos.channel_wire import SECRET_KEY, add_event, info_to_pb, load_to_pb, request_of
from rayline.protos.errors import RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed, PromptScores, TokenEvent
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.internal_pb2_grpc import GroupChannelServicer, add_GroupChannelServicer_to_server
from rayline.workers.canary import Canary
from rayline.workers.engine import Engine
from rayline.workers.engine_thread import Abort, AskStats, EngineThread
from rayline.workers.pipeline import RankStats

log = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.1  # how often a router without tokens in a step hears of the load
REPORT_PERIOD_S = 0.25  # how often a router hears of a live leader at least
STUCK_GRACE_S = 0.5  # beyond what the engine's thread grants the ranks itself
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Routers ping an idle link too; by default a server takes that for an attack and hangs up.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
)


@dataclass(eq=False)
class Connection:
    """One router. `streams` maps request ids to the router's own numbers for them.

    last_prompt: of its last submit, for the one that repeats it.
    """

    number: int
    outbox: asyncio.Queue[pb.LeaderMessage | None] = field(default_factory=asyncio.Queue)
    streams: dict[str, int] = field(default_factory=dict)
    request_ids: dict[int, str] = field(default_factory=dict)
    last_prompt: tuple[int, ...] = ()
    told_s: float = 0.0


class Leader(GroupChannelServicer):
    """Serves one started engine to any number of routers. Lives on one event loop; `start` and `stop` frame it."""

    def __init__(self, engine: Engine, info: GroupInfo, secret: str):
        self.info = info
        self._secret = secret
        self._engine = engine
        self._thread = EngineThread(engine, Canary(info.exact), self._emit, self._on_lost)
        self._watch: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._connections: set[Connection] = set()
        self._owners: dict[str, Connection] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._numbers = itertools.count()
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
            while True:
                if (message := await connection.outbox.get()) is None:
                    return
                yield message
        finally:
            reader.cancel()
            self._connections.discard(connection)
            for request_id in connection.streams:
                self._thread.post(Abort(request_id))

    async def _read(self, connection: Connection, messages: AsyncIterator[pb.RouterMessage]) -> None:
        async for message in messages:
            if message.HasField("submit"):
                request = request_of(message.submit, connection.last_prompt)
                connection.last_prompt = request.prompt_ids
                if request.request_id in self._owners:
                    self._refuse(connection, message.submit)
                    continue
                connection.streams[request.request_id] = message.submit.stream
                connection.request_ids[message.submit.stream] = request.request_id
                self._owners[request.request_id] = connection
                self._thread.post(request)
            elif (request_id := connection.request_ids.get(message.abort.stream)) is not None:
                self._thread.post(Abort(request_id))

    def _refuse(self, connection: Connection, submit: pb.Submit) -> None:
        step = pb.Step(load=load_to_pb(self.load))
        text = f"request_id {submit.request_id!r} is already running"
        step.failed.add(stream=submit.stream, kind="InvalidRequest", message=text, field="request_id")
        connection.outbox.put_nowait(pb.LeaderMessage(step=step))

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

    def _fence(self, error: RaylineError) -> None:
        """End the group although its engine's thread cannot: every stream with one Failed, then the ranks."""
        log.error("%s", error.message)
        failed: list[EngineEvent] = [Failed(request_id, error) for request_id in self._owners]
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
        for event in events:
            connection = self._owners.get(event.request_id)
            if connection is None:
                continue
            step = steps.setdefault(connection, pb.Step())
            add_event(step, connection.streams[event.request_id], event)
            if not isinstance(event, TokenEvent | PromptScores):
                self._forget(event.request_id, connection)
        now = self._loop.time()
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
        del connection.request_ids[connection.streams.pop(request_id)]
        if (ended := self._ended.pop(request_id, None)) is not None:
            ended.set()
