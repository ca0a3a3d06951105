"""A router that says what a test wants, and is cut where a test wants, behind a real gRPC server.

    python scripted_router.py

serves one in a process of its own, which sends an event every 0.05 s, and prints its address.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from door_thread import door_of

from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.errors import RaylineError
from rayline.router.grpc.api import GrpcDoor
from rayline.router.grpc.status import abort_with

Context = grpc.aio.ServicerContext[Any, Any]


def events_of(choices: Sequence[int], numerics: str = "scripted") -> list[pb.StreamResponse]:
    """A whole stream: started, a delta of choice c for each c of `choices`, the choices' ends, finished."""
    events: list[pb.StreamResponse] = [
        pb.StreamResponse(started=pb.Started(request_id="r", numerics=numerics, exact=True)),
        pb.StreamResponse(prompt_scored=pb.PromptScored()),
    ]
    for number, choice in enumerate(choices):
        events.append(pb.StreamResponse(delta=pb.Delta(choice=choice, text=f"{choices[:number].count(choice)}")))
    events += [pb.StreamResponse(choice_ended=pb.ChoiceEnded(choice=choice)) for choice in sorted(set(choices))]
    events.append(pb.StreamResponse(finished=pb.Finished(reason=pb.FINISH_REASON_STOP)))
    for index, event in enumerate(events):
        event.index = index
    return events


@dataclass
class ScriptedRouter(pb_grpc.InferenceServiceServicer):
    """Streams `events`. `cuts` says for each call, in order, after how many events it ends and in what error.

    An error of None is an end without a word. Later calls go to the end. `forgets`: a resume finds no stream.
    """

    events: Sequence[pb.StreamResponse]
    cuts: list[tuple[int, RaylineError | None]] = field(default_factory=list)
    calls: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    routers: str = ""
    delay_s: float = 0.0
    cancelled: int = 0
    forgets: Callable[[pb.ResumeRequest], RaylineError | None] = lambda request: None

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.StreamResponse]:
        async for event in self._said(request, self.events, context):
            yield event

    async def Chat(self, request: pb.ChatRequest, context: Context) -> AsyncIterator[pb.StreamResponse]:
        async for event in self._said(request, self.events, context):
            yield event

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> AsyncIterator[pb.StreamResponse]:
        if (error := self.forgets(request)) is not None:
            self.calls.append(request)
            await abort_with(context, error)
        async for event in self._said(request, self.events[request.next_index :], context):
            yield event

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pb.Model(name="scripted")])

    async def _said(
        self, request: Any, events: Sequence[pb.StreamResponse], context: Context
    ) -> AsyncIterator[pb.StreamResponse]:
        self.calls.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        await context.send_initial_metadata((("rayline-routers", self.routers),) if self.routers else ())
        until, error = self.cuts.pop(0) if self.cuts else (len(events), None)
        try:
            for event in events[:until]:
                await asyncio.sleep(self.delay_s)
                yield event
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if error is not None:
            await abort_with(context, error)


@contextmanager
def running(router: ScriptedRouter) -> Iterator[str]:
    """The address of `router`, which runs in a thread of its own."""

    def build() -> GrpcDoor:
        server = grpc.aio.server()
        pb_grpc.add_InferenceServiceServicer_to_server(router, server)
        return GrpcDoor(server, server.add_insecure_port("127.0.0.1:0"))

    with door_of(build) as address:
        yield address


if __name__ == "__main__":
    with running(ScriptedRouter(events_of([0] * 200), delay_s=0.05)) as served_at:
        print(served_at, flush=True)
        threading.Event().wait()
