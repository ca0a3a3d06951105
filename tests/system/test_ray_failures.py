"""Parts of Ray itself are lost under a running server: GCS, head, store, Serve's controller and proxies, nodes.

One cluster for all tests: a head without CPUs and two workers, on each a router and a group of two ranks. Clients ask
for the same stream again and again all the while; each test leaves the system whole.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ray_nodes import RayNodes, Redis
from server import Server, answer_of, start_server
from waiting import until

from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc

MODEL = "rayline-python"
TOKENS = 200
CLIENTS = 3
DETECTED_S = 15.0
GIVEN_UP_S = 12.0  # Ray has given a silent node up, by the health checks of ray_nodes.py
BACK_S = 150.0  # a group or a router stands again; machines that run other things beside take long
NODE_CPUS = 4  # a router, a leader, two ranks
SERVING = health_pb2.HealthCheckResponse.SERVING

pytestmark = pytest.mark.timeout(600)
with_redis = pytest.mark.skipif(not Redis.is_installed(), reason="needs redis-server, to outlive a GCS")


class System:
    """The cluster, the store of its head, the server on it, as operator and clients see them."""

    def __init__(self, nodes: RayNodes, redis: Redis | None, server: Server):
        self.nodes, self.server = nodes, server
        self._redis = redis
        channel = grpc.insecure_channel(server.grpc_address)
        self.stub = pb_grpc.InferenceServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)
        self.undisturbed = Answer(self.stub)

    @property
    def redis(self) -> Redis:
        assert self._redis is not None
        return self._redis

    @property
    def groups(self) -> int:
        return int(self.stub.ListModels(pb.ListModelsRequest()).models[0].groups)

    @property
    def leaders(self) -> list[psutil.Process]:
        return self.nodes.processes("ServeReplica:rayline:group-")

    @property
    def routers(self) -> list[psutil.Process]:
        return self.nodes.processes("ServeReplica:rayline:router")

    @property
    def controllers(self) -> list[psutil.Process]:
        return self.nodes.processes("ServeController")

    @property
    def replicas(self) -> set[int]:
        return {process.pid for process in [*self.leaders, *self.routers]}

    def serves(self) -> bool:
        """By its gRPC and its HTTP health, and by its operator's terminal."""
        health = self._health.Check(health_pb2.HealthCheckRequest(), timeout=5.0).status
        http = httpx.get(self.server.http_url.replace("/v1", "/health"), timeout=5.0).status_code
        return bool(health == SERVING and http == 200 and self.server.process.poll() is None)

    def other_node(self) -> int:
        """A worker node whose router is not the one that the clients use."""
        port = int(self.server.grpc_address.rpartition(":")[2])
        return next(node for node in self.nodes.workers if not any(_listens(r, port) for r in self._routers_of(node)))

    def lose_a_leader(self) -> float:
        """SIGKILL; returns when it was missed."""
        self.leaders[0].kill()
        until(lambda: self.groups == 1, DETECTED_S)
        return time.monotonic()

    def _routers_of(self, node: int) -> list[psutil.Process]:
        return self.nodes.processes("ServeReplica:rayline:router", node)

    @contextmanager
    def traffic(self) -> Iterator["Traffic"]:
        """Streams before, during and after what happens in the block: each is to be an undisturbed one's."""
        traffic = Traffic(self.stub)
        try:
            until(lambda: traffic.tokens > 10 * CLIENTS, BACK_S)
            yield traffic
        finally:
            traffic.stop()
        for answer in traffic.answers:
            assert (answer.code, answer.kinds[-1]) == (None, "finished")
            assert answer.token_ids == self.undisturbed.token_ids


class Answer:
    """One stream, read to its end."""

    def __init__(self, stub: pb_grpc.InferenceServiceStub, on_event: Callable[[], None] = lambda: None):
        self.token_ids: list[int] = []
        self.kinds: list[str | None] = []
        self.code: grpc.StatusCode | None = None
        self.moves = self.losses = 0
        self.longest_gap_s = 0.0
        params = pb.SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=1.0, seed=11)
        last_s = time.monotonic()
        try:
            for event in stub.Generate(pb.GenerateRequest(model=MODEL, text="def fibonacci(n):\n", params=params)):
                self.longest_gap_s = max(self.longest_gap_s, time.monotonic() - last_s)
                last_s = time.monotonic()
                self.kinds.append(event.WhichOneof("event"))
                self.token_ids += event.delta.token_ids
                self.moves += event.finished.overhead.moves
                self.losses += event.finished.overhead.losses
                on_event()
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            self.code = error.code()


class Traffic:
    """Clients that ask again as soon as they have their answer."""

    def __init__(self, stub: pb_grpc.InferenceServiceStub):
        self.answers: list[Answer] = []
        self.tokens = 0
        self._stub = stub
        self._over = threading.Event()
        self._clients = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        for client in self._clients:
            client.start()

    @property
    def moves(self) -> int:
        return sum(answer.moves for answer in self.answers)

    @property
    def losses(self) -> int:
        return sum(answer.losses for answer in self.answers)

    @property
    def longest_gap_s(self) -> float:
        return max((answer.longest_gap_s for answer in self.answers), default=0.0)

    def goes_on(self) -> bool:
        """Whether requests that begin from now on are answered; waits for some."""
        before = len(self.answers)
        until(lambda: len(self.answers) >= before + 2 * CLIENTS, BACK_S)
        return True

    def stop(self) -> None:
        """No more requests; those that run end."""
        self._over.set()
        for client in self._clients:
            client.join(BACK_S)
            assert not client.is_alive(), "a stream hangs"

    def _ask(self) -> None:
        while not self._over.is_set():
            self.answers.append(Answer(self._stub, self._count))

    def _count(self) -> None:
        self.tokens += 1


class Share:
    """How busy a process has been since this was made."""

    def __init__(self, pid: int):
        self._process = psutil.Process(pid)
        self._began_s, self._used_s = time.monotonic(), self._cpu_s()

    @property
    def of_a_core(self) -> float:
        return (self._cpu_s() - self._used_s) / (time.monotonic() - self._began_s)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


def _listens(process: psutil.Process, port: int) -> bool:
    connections = process.net_connections(kind="tcp")
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with ExitStack() as end:
        redis = Redis(tmp_path_factory.mktemp("redis")) if Redis.is_installed() else None
        if redis is not None:
            end.callback(redis.kill)
        nodes = RayNodes(2, NODE_CPUS, redis)
        end.callback(nodes.close)
        with nodes.named():
            server = start_server("--groups", "2", "--tp", "2")
        end.callback(server.process.kill)
        yield System(nodes, redis, server)


@pytest.mark.long
def test_a_head_without_cpus_gets_no_router_and_the_server_starts(system: System) -> None:
    assert system.groups == len(system.routers) == 2 and system.serves()
    assert not system.nodes.processes("ServeReplica", system.nodes.head)
    assert len(system.undisturbed.token_ids) == TOKENS


@pytest.mark.long
def test_a_lost_node_takes_its_group_and_its_router_and_a_new_node_gets_both(system: System) -> None:
    node = system.other_node()
    elsewhere = {process.pid for process in system.leaders} - {p.pid for p in system.nodes.processes("group-", node)}
    with system.traffic() as traffic:
        system.nodes.lose_worker(node)
        noticed_s = until(lambda: system.groups == 1, DETECTED_S)
        assert traffic.goes_on() and system.serves()
        assert {process.pid for process in system.leaders} == elsewhere
        system.nodes.add_worker()
        back_s = until(lambda: system.groups == 2 and len(system.routers) == 2, BACK_S)
        assert traffic.goes_on() and system.serves()
    assert traffic.moves > 0
    print(
        f"node noticed after {noticed_s:.2f} s, group and router on the new one after {back_s:.1f} s, longest pause "
        f"{traffic.longest_gap_s:.2f} s"
    )


@pytest.mark.long
def test_a_node_is_drained_and_its_streams_go_on_elsewhere(system: System) -> None:
    node = system.other_node()
    system.nodes.add_worker()
    with system.traffic() as traffic:
        address = ("--address", system.server.grpc_address)
        drained = answer_of("drain", system.nodes.name(node), *address, "--timeout-s", "120")["drained"]
        assert [group["streams_left"] for group in drained] == [0]
        until(lambda: not system.nodes.processes("ServeReplica:rayline:", node), BACK_S)
        assert not system.nodes.processes("RankActor", node)
        system.nodes.lose_worker(node)
        until(lambda: system.groups == 2 and len(system.routers) == 2, BACK_S)
        assert traffic.goes_on() and system.serves()
    assert traffic.moves > 0 == traffic.losses
    print(f"drained after {drained[0]['seconds']:.1f} s, longest pause {traffic.longest_gap_s:.2f} s")


@pytest.mark.long
def test_nobody_misses_serves_controller_and_its_proxies(system: System) -> None:
    """The next controller takes over the replicas as they are. Its proxies are not our doors."""
    replicas = system.replicas
    with system.traffic() as traffic:
        gone = [*system.controllers, *system.nodes.processes("ProxyActor")]
        for process in gone:
            process.kill()
        assert system.serves() and system.groups == 2
        back_s = until(lambda: bool(system.controllers), BACK_S)
        proxies_s = until(lambda: len(system.nodes.processes("ProxyActor")) == 3, BACK_S)
        assert traffic.goes_on() and system.serves()
    assert system.replicas == replicas  # streams may still move, for the sake of balance
    print(f"controller back after {back_s:.1f} s, proxies after {back_s + proxies_s:.1f} s")


@pytest.mark.long
def test_a_group_is_rebuilt_by_the_controller_that_came_after(system: System) -> None:
    with system.traffic() as traffic:
        system.lose_a_leader()
        back_s = until(lambda: system.groups == 2, BACK_S)
    assert traffic.moves > 0
    print(f"group back after {back_s:.1f} s, longest pause {traffic.longest_gap_s:.2f} s")


@pytest.mark.long
@with_redis
def test_a_lost_gcs_is_not_noticed_and_groups_still_stand_in_for_each_other(system: System) -> None:
    """A group lost meanwhile takes its ranks with it although Ray cannot end them, and comes back with the GCS."""
    replicas = system.replicas
    with system.traffic() as traffic:
        system.nodes.lose_gcs()
        share = Share(system.server.process.pid)
        assert traffic.goes_on() and system.serves() and system.groups == 2
        assert share.of_a_core < 0.05, "`rayline serve` has nothing to do meanwhile"
        assert system.replicas == replicas  # streams may still move, for the sake of balance
        system.lose_a_leader()
        assert traffic.goes_on() and system.serves() and traffic.moves > 0
        until(lambda: len(system.nodes.processes("RankActor")) == 2, DETECTED_S)
        system.nodes.restart_gcs()
        back_s = until(lambda: system.groups == 2, BACK_S)
        assert traffic.goes_on() and system.serves()
    assert len(system.replicas & replicas) == 3, "only what was lost was made anew"
    print(f"group back {back_s:.1f} s after the GCS, longest pause {traffic.longest_gap_s:.2f} s")


@pytest.mark.long
@with_redis
def test_a_lost_store_takes_the_gcs_with_it_and_nothing_else(system: System) -> None:
    replicas = system.replicas
    with system.traffic() as traffic:
        system.redis.kill()
        assert traffic.goes_on() and system.serves() and system.groups == 2
        system.redis.start()
        system.nodes.lose_gcs()  # it has ended by itself
        system.nodes.restart_gcs()
        assert traffic.goes_on() and system.serves()
    assert system.replicas == replicas  # streams may still move, for the sake of balance
    system.lose_a_leader()
    until(lambda: system.groups == 2, BACK_S)


@pytest.mark.long
@with_redis
def test_a_lost_head_is_replaced_under_streams_that_do_not_notice(system: System) -> None:
    replicas = system.replicas
    with system.traffic() as traffic:
        system.nodes.lose_head()
        assert not system.controllers
        assert traffic.goes_on() and system.serves() and system.groups == 2
        system.nodes.restart_head()
        back_s = until(lambda: bool(system.controllers), BACK_S)
        assert traffic.goes_on() and system.serves()
        assert system.replicas == replicas  # streams may still move, for the sake of balance
        system.lose_a_leader()
        group_s = until(lambda: system.groups == 2, BACK_S)
    print(f"controller on the new head after {back_s:.1f} s; a group lost then is back after {group_s:.1f} s")


@pytest.mark.long
def test_a_node_whose_raylet_freezes_serves_on_until_ray_ends_it(system: System) -> None:
    """Ray gives it up after 5 s; its processes live, and streams stay there, until the raylet wakes and sees it."""
    node = system.other_node()
    raylet = psutil.Process(node)
    with system.traffic() as traffic:
        raylet.suspend()
        time.sleep(GIVEN_UP_S)
        assert traffic.goes_on() and system.serves()
        raylet.resume()
        until(lambda: not raylet.is_running() or raylet.status() == psutil.STATUS_ZOMBIE, 2 * DETECTED_S)
        system.nodes.lose_worker(node)  # what is left of it
        until(lambda: system.groups == 1, DETECTED_S)
        system.nodes.add_worker()
        until(lambda: system.groups == 2 and len(system.routers) == 2, BACK_S)
        assert traffic.goes_on() and system.serves()


@pytest.mark.long
def test_ctrl_c_still_ends_the_server_and_leaves_ray_running(system: System) -> None:
    """Where Redis is, the node that it was on is the head that was lost: Ray tells it nothing any more."""
    system.server.interrupt()
    assert system.server.process.wait(BACK_S) == 0
    until(lambda: not system.replicas and not system.nodes.processes("RankActor"), DETECTED_S)
    assert all(psutil.pid_exists(raylet) for raylet in system.nodes.workers)


@pytest.mark.long
def test_ctrl_c_ends_a_server_whose_own_gcs_is_gone(serve: Callable[..., Server]) -> None:
    """Nobody starts the GCS of `rayline serve` again: it serves on, and can be ended."""
    server = serve("--groups", "1")
    stub = pb_grpc.InferenceServiceStub(grpc.insecure_channel(server.grpc_address))
    whole = Answer(stub)
    processes = server.descendants()
    (gcs,) = [process for process in processes if "gcs_server" in process.name()]
    gcs.kill()
    assert Answer(stub).token_ids == whole.token_ids and len(whole.token_ids) == TOKENS
    server.interrupt()
    assert server.process.wait(BACK_S) == 0
    _, left = psutil.wait_procs(processes, timeout=DETECTED_S)
    assert not left
