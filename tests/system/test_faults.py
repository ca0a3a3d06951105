"""Frozen processes under a running server: who notices, what clients see, what stands again afterwards."""

import time
from collections.abc import Callable
from contextlib import suppress

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from live_stream import MODEL, TOKENS, Stream
from server import Server
from waiting import until

from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc

STREAMS = 6
NOTICED_S = 3.0  # the next token elsewhere is to come by then
BACK_S = 15.0
SLACK = 3.0  # for machines that run other things beside

SERVING = health_pb2.HealthCheckResponse.SERVING


class System:
    """The server as its clients and its operator see it."""

    def __init__(self, server: Server):
        self.server = server
        channel = grpc.insecure_channel(server.grpc_address)
        self.stub = pb_grpc.InferenceServiceStub(channel)
        self.frozen: list[int] = []
        self._health = health_pb2_grpc.HealthStub(channel)

    def groups(self) -> int:
        return int(self.stub.ListModels(pb.ListModelsRequest()).models[0].groups)

    def health(self, name: str = "") -> int:
        return int(self._health.Check(health_pb2.HealthCheckRequest(service=name)).status)

    def http_health(self) -> tuple[int, dict[str, object]]:
        answer = httpx.get(self.server.http_url.replace("/v1", "/health"), timeout=5.0)
        return answer.status_code, answer.json()

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray names its processes after what they run."""
        found = []
        for process in self.server.descendants():
            with suppress(psutil.Error):
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def freeze(self, process: psutil.Process) -> float:
        """Stop a process; returns when."""
        self.frozen.append(process.pid)
        process.suspend()
        return time.monotonic()

    def streams(self) -> list[Stream]:
        streams = [Stream(self.stub) for _ in range(STREAMS)]
        until(lambda: all(len(stream.token_ids) > 5 for stream in streams), 30.0)
        return streams


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.long
def test_no_stream_is_lost_with_its_group_and_health_tells_the_truth(serve: Callable[..., Server]) -> None:
    """First a rank of one group freezes, then, while that one is being rebuilt, the leader of the other."""
    system = System(serve("--groups", "2", "--tp", "2"))
    leaders = system.processes("group-rayline")
    streams = system.streams()

    frozen_s = system.freeze(system.processes("RankActor")[0])
    noticed_s = until(lambda: system.groups() == 1, NOTICED_S * SLACK)
    until(lambda: all(stream.since_s() < 1.0 for stream in streams), NOTICED_S * SLACK)
    moved_s = time.monotonic() - frozen_s
    assert system.health() == system.health(MODEL) == SERVING, "the other group serves"

    until(lambda: sum(map(lives, leaders)) == 1, SLACK)
    leader_s = system.freeze(next(filter(lives, leaders)))
    silent_s = until(lambda: system.groups() == 0, NOTICED_S * SLACK)
    until(lambda: system.health() == system.health(MODEL) != SERVING, SLACK)
    assert system.http_health() == (503, {"status": "unavailable", "models": {MODEL: "unavailable"}})

    until(lambda: system.groups() > 0, BACK_S * SLACK)
    first_back_s = time.monotonic() - frozen_s
    until(lambda: system.groups() == 2, BACK_S * SLACK)
    both_back_s = time.monotonic() - leader_s
    assert system.health() == system.health(MODEL) == SERVING
    assert system.http_health() == (200, {"status": "ok", "models": {MODEL: "ok"}})
    until(lambda: len(system.processes("RankActor")) == 4 and len(system.processes("group-rayline")) == 2, 10.0)
    assert not [pid for pid in system.frozen if psutil.pid_exists(pid)], "a stopped process was left behind"

    whole = system.streams()
    for stream in [*streams, *whole]:
        stream.join()
    for stream in [*streams, *whole]:
        assert stream.code is None and stream.kinds[-1] == "finished" and stream.kinds.count("started") == 1
        assert len(stream.token_ids) == TOKENS
        assert stream.token_ids == whole[0].token_ids, "streams that moved say to the bit what the others say"
    assert sum(stream.moves for stream in streams) >= STREAMS and not sum(stream.moves for stream in whole)
    print(
        f"rank: noticed after {noticed_s:.2f} s, streams go on after {moved_s:.2f} s, group back after "
        f"{first_back_s:.1f} s; leader: noticed after {silent_s:.2f} s, both groups back after {both_back_s:.1f} s; "
        f"longest pause {max(stream.longest_gap_s for stream in streams):.1f} s"
    )
