"""Routers that die or freeze under running streams: clients of ours notice nothing but a pause."""

import itertools
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import psutil
import pytest
from server import Server, command, environment
from waiting import until

from rayline.protos import inference_pb2 as pb
from rayline.protos.client import Client
from rayline.protos.errors import PortInUse
from rayline.protos.resuming import Patience, Request
from rayline.router.ports import probe_port

GROUP = "ray::ServeReplica:rayline:group"
PROMPT = "def fibonacci(n):\n"
TOKENS = 1200
GOES_ON_S = {"kill": 1.0, "suspend": 3.0}  # the next event is to come by then
BACK_S = 30.0
SLACK = 4.0  # for machines that run other things beside


def request(**params: object) -> pb.GenerateRequest:
    given = {"max_tokens": TOKENS, "ignore_eos": True, "temperature": 1.0, "seed": 11} | params
    return pb.GenerateRequest(text=PROMPT, params=pb.SamplingParams(**given))


GRAMMAR = pb.StructuredOutput(regex="([a-z]{1,9} ){150}")
REQUESTS: dict[str, Request] = {
    "sampled, with penalties": request(repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.2, top_p=0.9),
    "grammar": request(structured_output=GRAMMAR, ignore_eos=False),
    "four choices": request(n=4, max_tokens=TOKENS // 4),
    "logprobs": request(logprobs=3, prompt_logprobs=1, temperature=0.8),
    "greedy, stop string": request(temperature=0.0, stop=["\nclass "], ignore_eos=False),
    "chat": pb.ChatRequest(
        messages=[pb.ChatMessage(role="user", content="Return the absolute path of a file.")],
        params=pb.SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=1.0, seed=5),
    ),
}


class Stream:
    """A stream read by a thread: its events and when each came."""

    def __init__(self, client: Client, asked: Request):
        self._client = client
        self._asked = asked
        self.events: list[pb.StreamResponse] = []
        self.times: list[float] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._client.stream(self._asked):
                self.events.append(event)
                self.times.append(time.monotonic())
        except Exception as error:
            self.error = error

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join(120.0)
        assert not self.runs, "the stream hangs"
        assert self.error is None, self.error

    def pause_s(self, since_s: float) -> float:
        """The longest time without an event from a moment on: some that were on their way still come."""
        times = [since_s, *(at for at in self.times if at > since_s)]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)


class Routers:
    """The server's routers as processes and doors."""

    def __init__(self, server: Server):
        self._server = server
        self.addresses = server.grpc_addresses

    def process(self, address: str) -> psutil.Process | None:
        """Whoever listens there."""
        port = int(address.rsplit(":", 1)[1])
        for process in self._server.descendants():
            with suppress(psutil.Error):
                if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                    return process
        return None

    def answers(self, address: str) -> bool:
        try:
            with Client([address]) as client:
                return len(client.models(1.0).models) == 1
        except Exception:
            return False


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    """On ports that are named, so that a router that is started anew is where the old one was."""
    grpc_port, http_port = (two_ports() for _ in range(2))
    ports = ("--grpc-port", str(grpc_port), "--http-port", str(http_port))
    return serve("--router-replicas", "2", "--groups", "2", *ports)


def two_ports() -> int:
    """The first of two free ports side by side."""
    for first in range(random.randrange(20_000, 30_000, 2), 32_000, 2):
        with suppress(PortInUse):
            for port in (first, first + 1):
                probe_port("127.0.0.1", port, "port")
            return first
    raise AssertionError("no free ports")


@pytest.fixture(scope="module")
def routers(server: Server) -> Routers:
    return Routers(server)


@pytest.fixture(scope="module")
def undisturbed(routers: Routers) -> dict[str, list[pb.StreamResponse]]:
    """By each router once, which also has their grammars compiled."""
    found = []
    for address in routers.addresses:
        with Client([address]) as client:
            found.append({name: list(client.stream(asked)) for name, asked in REQUESTS.items()})
    assert all(shown(found[0][name]) == shown(found[1][name]) for name in REQUESTS)
    return found[0]


def shown(events: Sequence[pb.StreamResponse]) -> dict[int | None, list[pb.StreamResponse]]:
    """What a stream says, choice by choice (their order among each other is chance), without names and durations."""
    said: dict[int | None, list[pb.StreamResponse]] = {}
    for event in events:
        copy = pb.StreamResponse()
        copy.CopyFrom(event)
        copy.index = 0
        choice: int | None = None
        match event.WhichOneof("event"):
            case "delta":
                choice = event.delta.choice
            case "choice_ended":
                choice = event.choice_ended.choice
            case "started":
                copy.started.request_id, copy.started.created_s = "", 0
            case "finished":
                copy.finished.ClearField("overhead")
                copy.finished.request_id, copy.finished.queue_s, copy.finished.usage.cached_tokens = "", 0.0, 0
        said.setdefault(choice, []).append(copy)
    return said


def leaders(server: Server) -> set[psutil.Process]:
    """The processes of all groups' leaders."""
    return {process for process in server.descendants() if _title(process).startswith(GROUP)}


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return "".join(process.cmdline()[:1])
    return ""


def test_two_routers_on_one_machine_are_listed_and_both_answer(server: Server, routers: Routers) -> None:
    assert len(set(routers.addresses)) == 2 and all(map(routers.answers, routers.addresses))
    status = command("status", "--json", "--address", routers.addresses[1])
    until(lambda: _status_of(subprocess.check_output(status, env=environment(), text=True), routers), 20.0)


def _status_of(text: str, routers: Routers) -> bool:
    found = json.loads(text)
    assert found["health"] == "SERVING"
    return {router["address"] for router in found["routers"]} == set(routers.addresses)


@pytest.mark.parametrize("fault", ["kill", pytest.param("suspend", marks=pytest.mark.long)])
def test_no_stream_is_lost_with_its_router(
    server: Server, routers: Routers, undisturbed: dict[str, list[pb.StreamResponse]], fault: str
) -> None:
    """Every kind of stream twice, so that both routers have each kind; one of the routers gets the fault.

    Serve must not take the groups for lost, too, that the frozen one still has calls in.
    """
    victim, groups = routers.addresses[0], leaders(server)
    process = routers.process(victim)
    assert process is not None
    with Client(routers.addresses) as client:
        streams = [(name, Stream(client, asked)) for name, asked in REQUESTS.items() for _ in routers.addresses]
        until(lambda: all(len(stream.events) > 12 for _, stream in streams), 60.0)
        running = [name for name, stream in streams if stream.runs]
        struck_s = time.monotonic()
        getattr(process, fault)()
        for _, stream in streams:
            stream.join()
        pauses = [stream.pause_s(struck_s) for _, stream in streams]
        assert len(running) > len(REQUESTS), "too fast to be disturbed"
        for name, stream in streams:
            assert [event.index for event in stream.events] == list(range(len(stream.events)))
            assert shown(stream.events) == shown(undisturbed[name]), name
        print(f"{fault}: longest pause {max(pauses):.2f} s of {len(streams)} streams")
        back_s = until(lambda: routers.answers(victim) and routers.process(victim) != process, BACK_S * SLACK)
    with Client(routers.addresses, patience=Patience(connect_s=BACK_S)) as client:
        assert shown(list(client.stream(REQUESTS["grammar"]))) == shown(undisturbed["grammar"])
    print(f"{fault}: router back within {back_s:.1f} s of the last stream's end")
    assert len(groups) == 2 and leaders(server) == groups
    assert max(pauses) < GOES_ON_S[fault] * SLACK
