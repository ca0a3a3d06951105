"""How `rayline chaos` finds what it breaks, and how it breaks it: tables, doors, exceptions from outside, cut wires."""

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from waiting import until

from rayline.deploy.chaos.inflict import Injected, raise_inside
from rayline.deploy.chaos.network import Network, refusal
from rayline.deploy.chaos.pairs import Target
from rayline.deploy.chaos.serving import free_ports, grpc_addresses
from rayline.deploy.chaos.targets import Victim, bystanders, changed, part_of

BANNER = """Rayline is ready.
  gRPC   10.0.0.1:9000   (rayline.v1.InferenceService)
         10.0.0.2:9000
         [::1]:9001
  HTTP   http://10.0.0.1:8080/v1   (OpenAI)
Ctrl-C stops: running streams get to finish.
"""


def actor(kind: str, node: str = "n1", port: int = 1, owner_port: int = 2) -> dict[str, object]:
    """A row of Ray's table of actors."""
    return {
        "ActorClassName": kind,
        "Name": "name",
        "Pid": 77,
        "Address": {"NodeID": node, "IPAddress": "10.0.0.1", "Port": port},
        "OwnerAddress": {"NodeID": "n1", "IPAddress": "10.0.0.1", "Port": owner_port},
    }


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("RankActor", Target.RANK),
        ("ServeReplica:app:group-rayline-python", Target.LEADER),
        ("ServeReplica:app:router", Target.ROUTER),
        ("ServeController", Target.CONTROLLER),
    ],
)
def test_actors_play_the_parts_that_their_classes_name(kind: str, target: Target) -> None:
    found = part_of(actor(kind), "app", "n1")
    assert found is not None
    assert (found.target, found.pid, found.node_id, found.name, found.is_head) == (target, 77, "n1", "name", True)


LEADERS = [Victim(Target.LEADER, n, f"n{n}", "", group=f"g{n}") for n in (1, 2)]
RANKS = [Victim(Target.RANK, 10 * n + r, f"n{r}", "", group=f"g{n}") for n in (1, 2) for r in (n, 3)]
ROUTERS = [Victim(Target.ROUTER, 50 + n, f"n{n}", "") for n in (1, 2)]
ALL = [*LEADERS, *RANKS, *ROUTERS]


def gone(broken: Victim, takes_node: bool, *left: Victim) -> list[Victim]:
    """Who is said to be given up for nothing where only `left` are still there."""
    return bystanders(broken, takes_node, ALL, left)


def test_a_group_ends_with_any_of_its_processes_and_nobody_else_does() -> None:
    others = [victim for victim in ALL if victim.group != "g1"]
    assert gone(RANKS[0], False, *others) == gone(LEADERS[0], False, *others) == []
    assert gone(RANKS[0], False, *others[1:]) == [LEADERS[1]]
    assert gone(ROUTERS[0], False, *others, ROUTERS[1]) == [LEADERS[0], *RANKS[:2]]


def test_with_a_node_all_that_is_there_is_broken_and_groups_that_reach_there() -> None:
    assert gone(LEADERS[0], True, LEADERS[1], *RANKS[2:], ROUTERS[1]) == []
    assert gone(RANKS[1], True, *ROUTERS) == [], "both groups have a rank on this node"
    assert gone(LEADERS[0], True, ROUTERS[1]) == [LEADERS[1], *RANKS[2:]]


def test_other_applications_and_other_actors_play_none() -> None:
    for kind in ("ServeReplica:other:router", "ProxyActor", "Agent"):
        assert part_of(actor(kind), "app", "n1") is None


def test_ranks_are_of_the_group_whose_leader_made_them() -> None:
    leader = part_of(actor("ServeReplica:app:group-m", port=5), "app", "")
    rank = part_of(actor("RankActor", node="n2", port=9, owner_port=5), "app", "")
    other = part_of(actor("RankActor", node="n2", port=8, owner_port=6), "app", "")
    assert leader is not None and rank is not None and other is not None
    assert rank.group == leader.group != other.group


def test_a_process_of_another_node_is_another_one() -> None:
    here, there = Victim(Target.RANK, 5, "n1", ""), Victim(Target.RANK, 5, "n2", "")
    assert changed([here, there], [there]) == [here]


def test_every_door_of_the_banner_is_found() -> None:
    assert grpc_addresses(BANNER) == ("10.0.0.1:9000", "10.0.0.2:9000", "[::1]:9001")


def test_ports_that_are_held_are_not_free() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        taken = held.getsockname()[1]
        for _ in range(20):
            first = free_ports(3)
            assert taken not in range(first, first + 3)


# ---- an exception from outside


def loop_until_told(raised: list[BaseException], runs: threading.Event) -> None:
    try:
        runs.set()
        while True:
            time.sleep(0.001)
    except Injected as error:
        raised.append(error)


def test_an_exception_is_raised_in_the_thread_that_runs_the_function_and_in_no_other() -> None:
    raised, runs, over = list[BaseException](), threading.Event(), threading.Event()
    thread = threading.Thread(target=loop_until_told, args=(raised, runs), daemon=True)
    other = threading.Thread(target=over.wait, daemon=True)
    thread.start()
    other.start()
    assert runs.wait(60.0)
    raise_inside(None, __name__, "loop_until_told")
    thread.join(60.0)
    assert [type(error) for error in raised] == [Injected] and other.is_alive()
    over.set()
    other.join(60.0)
    assert not other.is_alive()


def test_no_thread_that_runs_it_is_no_harm() -> None:
    raise_inside(None, "rayline.workers.rank", "serve_rank")


# ---- a wire


@pytest.fixture
def network() -> Iterator[Network]:
    if (reason := refusal()) is not None:
        pytest.skip(reason)
    made = Network(number=random.randrange(128, 255))  # other runs on this machine have others
    try:
        made.open()
        yield made
    finally:
        made.close()


def reaches(source: str, target: tuple[str, int]) -> bool:
    with closing(socket.socket()) as sock:
        sock.settimeout(1.0)
        sock.bind((source, 0))
        try:
            sock.connect(target)
        except ConnectionRefusedError:
            return True  # by a machine that is there
        except OSError:
            return False
        return True


def test_a_wire_is_cut_and_joined(network: Network) -> None:
    first, second = network.add(), network.add()
    assert first != second and network.inside(first) != network.inside(second)
    until(lambda: reaches(network.head, (first, 9)) and reaches(network.head, (second, 9)))
    network.cut(first)
    assert not reaches(network.head, (first, 9))
    until(lambda: reaches(network.head, (second, 9)))
    network.join(first)
    until(lambda: reaches(network.head, (first, 9)))
