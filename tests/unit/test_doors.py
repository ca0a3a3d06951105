"""Several routers on one machine: ports of their own, and each knows where the others are."""

import asyncio
import socket
from collections.abc import Sequence

import pytest

from rayline.deploy.router_watch import RouterWatch
from rayline.protos.errors import ConfigError, PortInUse
from rayline.router.doors import Doors, alone
from rayline.router.ports import listening_socket

OWN = Doors("127.0.0.1", 9000, 8080)
OTHER = Doors("127.0.0.1", 9001, 8081)


def test_addresses_are_written_as_clients_take_them() -> None:
    assert (OWN.grpc_address, OWN.http_address) == ("127.0.0.1:9000", "127.0.0.1:8080")
    assert Doors("::1", 9000, 8080).grpc_address == "[::1]:9000"
    assert not alone()


def test_a_socket_that_listens_keeps_others_off_its_port() -> None:
    with listening_socket("127.0.0.1", 0, "http_port") as taken:
        port = taken.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        with pytest.raises(PortInUse, match=f"http_port = {port}") as refused:
            listening_socket("127.0.0.1", port, "http_port")
    assert refused.value.field == "http_port"
    listening_socket("127.0.0.1", port, "http_port").close()


def test_a_host_that_is_not_ours_is_no_taken_port() -> None:
    with pytest.raises(ConfigError, match="cannot be opened") as refused:
        listening_socket("192.0.2.1", 0, "http_port")
    assert not isinstance(refused.value, PortInUse)


async def test_a_router_knows_the_doors_of_all_and_keeps_them_while_one_is_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rayline.deploy.router_watch.PERIOD_S", 0.01)
    answers: list[Sequence[Doors] | Exception] = [[OTHER, OWN], TimeoutError(), [], [OWN]]
    seen: list[Sequence[Doors]] = []

    async def ask() -> Sequence[Doors]:
        seen.append(watch.doors)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = RouterWatch(ask, OWN)
    assert watch.doors == (OWN,)
    watch.start()
    while len(seen) < 5:
        await asyncio.sleep(0.01)
    await watch.close()
    assert seen[:5] == [(OWN,), (OWN, OTHER), (OWN, OTHER), (OWN, OTHER), (OWN,)]
