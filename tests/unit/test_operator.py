"""The operators' service: who is let in, what is asked, what is answered; and `rayline drain` on top of it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
from click.testing import CliRunner
from door_thread import door_of
from fakes import FakeGroup, saying, service_of

from rayline.cluster.config import RouterSection, SecuritySection, SystemConfig
from rayline.deploy.commands.drain import command
from rayline.deploy.operator_client import OperatorClient
from rayline.protos.errors import InvalidRequest, Unauthenticated, Unavailable
from rayline.router.grpc.api import build_grpc_server
from rayline.router.grpc.operator import is_local
from rayline.router.operations import Drained, GroupState

STATES = (GroupState("a", "m", 3, 1, False, ("n1", "n2")), GroupState("b", "m", 0, 0, True, ("n1",)))


class Recorded:
    """Operations that note what they are asked for. Group "stuck" keeps a stream; "gone" is not there."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float]] = []

    def groups(self) -> Sequence[GroupState]:
        return STATES

    async def drain(self, target: str, timeout_s: float) -> Sequence[Drained]:
        self.asked.append((target, timeout_s))
        if target == "gone":
            raise Unavailable("group gone is the only one", retry_after_s=2.0)
        return [Drained(target, 4, int(target == "stuck"), 0.5)]


@contextmanager
def served(operations: Recorded, *keys: str) -> Iterator[str]:
    """The address of a door with these operations and keys."""
    config = SystemConfig(router=RouterSection(grpc_port=0), security=SecuritySection(operator_keys=keys))
    service = service_of(FakeGroup(saying("x")))
    with door_of(lambda: build_grpc_server(service, config, operations=operations)) as address:
        yield address


def test_groups_are_listed_and_drained() -> None:
    operations = Recorded()
    with served(operations) as address, OperatorClient(address) as client:
        assert client.groups() == STATES
        assert client.drain("a", 7.5) == (Drained("a", 4, 0, 0.5),)
    assert operations.asked == [("a", 7.5)]


def test_what_cannot_be_done_comes_as_its_error() -> None:
    operations = Recorded()
    with served(operations) as address, OperatorClient(address) as client:
        with pytest.raises(Unavailable, match="the only one"):
            client.drain("gone", 1.0)
        for target, timeout_s in [("", 1.0), ("a", -1.0), ("a", 1e9)]:
            with pytest.raises(InvalidRequest):
                client.drain(target, timeout_s)
    assert operations.asked == [("gone", 1.0)]


def test_with_keys_only_their_owners_are_let_in() -> None:
    operations = Recorded()
    with served(operations, "one", "two") as address:
        for key in (None, "", "three", "One"):
            with OperatorClient(address, key) as client, pytest.raises(Unauthenticated):
                client.drain("a", 1.0)
        with OperatorClient(address, "two") as client:
            assert client.groups() == STATES
    assert operations.asked == []


@pytest.mark.parametrize(
    ("peer", "local"),
    [
        ("ipv4:127.0.0.1:4711", True),
        ("ipv6:%5B::1%5D:4711", True),
        ("ipv6:[::1]:4711", True),
        ("unix:/tmp/x", True),
        ("ipv4:10.0.0.7:4711", False),
        ("ipv6:%5B2001:db8::1%5D:4711", False),
        ("", False),
        ("ipv4:localhost.evil.example:1", False),
    ],
)
def test_without_keys_only_this_machine_is_let_in(peer: str, local: bool) -> None:
    assert is_local(peer) == local


def test_the_command_prints_and_tells_by_its_status() -> None:
    with served(Recorded()) as address:
        listed = CliRunner().invoke(command, ["--address", address], standalone_mode=False)
        assert listed.return_value == 0 and "a of m: serving, 3 running, 1 waiting, on n1, n2" in listed.output
        done = CliRunner().invoke(command, ["a", "--address", address, "--json"], standalone_mode=False)
        answer = {"group_id": "a", "streams": 4, "streams_left": 0, "seconds": 0.5}
        assert done.return_value == 0
        assert json.loads(done.output) == {"address": address, "target": "a", "drained": [answer]}
        stuck = CliRunner().invoke(command, ["stuck", "--address", address], standalone_mode=False)
        assert stuck.return_value == 1 and "1 were left" in stuck.output
