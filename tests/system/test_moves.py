"""Groups that leave a running server: drained, scaled in, replaced. Streams go on elsewhere without waiting."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import yaml
from live_stream import Stream
from server import Server, answer_of
from waiting import until

from rayline.deploy.operator_client import OperatorClient
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.router.operations import GroupState

SLACK = 6.0  # for machines that run other things beside
STREAMS = 12
TOKENS = 1900
GONE_S = 5.0
BACK_S = 20.0


def groups(server: Server) -> list[GroupState]:
    with OperatorClient(server.grpc_address) as operator:
        return sorted(operator.groups(), key=lambda group: group.group_id)


def streams(server: Server, count: int) -> list[Stream]:
    stub = pb_grpc.InferenceServiceStub(grpc.insecure_channel(server.grpc_address))
    found = [Stream(stub, TOKENS) for _ in range(count)]
    until(lambda: all(len(stream.token_ids) > 5 for stream in found), 60.0)
    return found


def check_ended(found: list[Stream]) -> None:
    """All to the last token, and all the same."""
    for stream in found:
        stream.join()
    for stream in found:
        assert stream.code is None and stream.kinds[-1] == "finished" and stream.kinds.count("started") == 1
        assert stream.token_ids == found[0].token_ids, "streams that moved say to the bit what the others say"


@pytest.mark.long
def test_streams_leave_a_group_that_is_drained_scaled_in_or_replaced(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    config = tmp_path / "rayline.yaml"
    settings = {"parallel": {"groups": 2}, "engine": {"max_running": 32}}
    config.write_text(yaml.safe_dump(settings))
    server = serve("--config", str(config))
    longest: dict[str, float] = {}

    # drain one of two
    found = streams(server, STREAMS)
    first = max(groups(server), key=lambda group: group.running)
    assert len(groups(server)) == 2 and first.running > 0
    drained = answer_of("drain", first.group_id, "--address", server.grpc_address)["drained"]
    assert isinstance(drained, list)
    assert 0 < drained[0]["streams"] <= STREAMS and not drained[0]["streams_left"]
    assert drained[0]["seconds"] < GONE_S * SLACK
    until(lambda: first.group_id not in [group.group_id for group in groups(server)], GONE_S * SLACK)
    assert all(stream.code is None for stream in found)
    until(lambda: len(groups(server)) == 2, BACK_S * SLACK)
    check_ended(found)
    assert sum(stream.moves for stream in found) >= drained[0]["streams"]
    longest["drain"] = max(stream.longest_gap_s for stream in found)

    # from two groups to one
    found = streams(server, STREAMS)
    config.write_text(yaml.safe_dump({**settings, "parallel": {"groups": 1}}))
    began_s = time.monotonic()
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(groups(server)) == 1, GONE_S * SLACK)
    scaled_s = time.monotonic() - began_s
    check_ended(found)
    longest["scale in"] = max(stream.longest_gap_s for stream in found)
    assert sum(stream.moves for stream in found) > 0

    # another engine in its place
    found = streams(server, STREAMS)
    before = {group.group_id for group in groups(server)}
    config.write_text(yaml.safe_dump({"parallel": {"groups": 1}, "engine": {"max_running": 16}}))
    server.process.send_signal(signal.SIGHUP)
    until(lambda: len(groups(server)) == 1 and before.isdisjoint(g.group_id for g in groups(server)), BACK_S * SLACK)
    check_ended(found)
    longest["update"] = max(stream.longest_gap_s for stream in found)
    print(
        f"drained group gone after {drained[0]['seconds']:.2f} s, scaled in after {scaled_s:.1f} s; longest pauses: "
        + ", ".join(f"{what} {pause_s:.2f} s" for what, pause_s in longest.items())
    )
