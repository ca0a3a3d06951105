"""`rayline serve`: check, start Ray where none was named, run the application, wait, drain, stop."""

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray import serve as ray_serve
from ray._private.worker import global_worker
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address
from rich.console import Console

from rayline.cluster.config import SystemConfig
from rayline.cluster.placement import group_bundles, total_cpus
from rayline.deploy.actors import controller_answers
from rayline.deploy.app import ROUTER_CPUS, Wiring, build, group_name, group_spec
from rayline.deploy.banner import ReadyModel, banner
from rayline.deploy.model_path import resolve_model, served_name
from rayline.deploy.progress import PhaseProgress, open_progress
from rayline.deploy.progress_link import ProgressListener
from rayline.deploy.reload import ResolvedModel, check_reload
from rayline.protos.errors import ConfigError, RaylineError, Unavailable
from rayline.router.ports import free_port, probe_port
from rayline.router.tokenizer import Tokenizer
from rayline.workers.group import check_group, has_gpus
from rayline.workers.models.config import ModelConfig

APP_NAME = "rayline"
OBJECT_STORE_BYTES = 100 * 2**20  # tokens never pass through it
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
CONTROLLER_TIMEOUT_S = 5.0  # as long as a lost one takes to come back
ELSEWHERE_TIMEOUT_S = 60.0
WATCH_PERIOD_S = 0.1
END_TIMEOUT_S = 3.0  # for the processes of a Ray of our own

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Start:
    """The first failure a starting group told of, if any."""

    failed: threading.Event = field(default_factory=threading.Event)
    error: RaylineError | None = None

    def fail(self, error: RaylineError) -> None:
        self.error = self.error or error
        self.failed.set()


@dataclass(frozen=True, slots=True)
class Orders:
    """What signals ask for: `any` is set with each, and `stop` with those that end the server."""

    stop: threading.Event = field(default_factory=threading.Event)
    any: threading.Event = field(default_factory=threading.Event)


def serve(
    config: SystemConfig, console: Console | None = None, reread: Callable[[], SystemConfig] | None = None
) -> int:
    """Serve until Ctrl-C or SIGTERM; returns the exit code. Raises ConfigError leaves before anything is started.

    reread: on SIGHUP gives the config that groups are to have from then on.
    """
    console = console or Console()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    models = check(config)
    orders = Orders()
    with _signals(orders), _cluster(config, len(models)), open_progress(console) as progress:
        wiring, listener, start = _listen(progress)
        handle = None
        try:
            handle = _run(config, models, wiring, start, orders.stop)
            if handle is None:
                return 130
            listener.close()
            console.print(_ready(config, models, handle), highlight=False, markup=False, soft_wrap=True)
            _follow(orders, config, models, wiring, console, reread or (lambda: config))
            console.print("stopping: running streams get to finish; Ctrl-C again stops at once")
            _drain(handle, config.router.drain_timeout_s)
        finally:
            _delete(was_started=handle is not None)
    return 0


def _follow(
    orders: Orders,
    config: SystemConfig,
    models: Sequence[ResolvedModel],
    wiring: Wiring,
    console: Console,
    reread: Callable[[], SystemConfig],
) -> None:
    """Until told to stop: on each SIGHUP Serve replaces the groups whose configuration has changed, one by one."""
    while True:
        orders.any.wait()
        orders.any.clear()
        if orders.stop.is_set():
            return
        try:
            wanted = reread()
            resolved = check_models(wanted)
            check_reload(config, wanted, models, resolved)
            _deploy(wanted, resolved, wiring)
        except Exception as error:  # Serve's and Ray's own too: whatever it is, what runs goes on
            reason = error.message if isinstance(error, RaylineError) else f"{type(error).__name__}: {error}"
            console.print(f"not reloaded: {reason}", highlight=False, markup=False, soft_wrap=True)
            continue
        config, models = wanted, resolved
        console.print(f"reloaded: {config.parallel.groups} groups are to serve each model", highlight=False)


def check(config: SystemConfig) -> list[ResolvedModel]:
    """All that can be refused before a process is started: paths, files, tokenizers, sizes, ports."""
    models = check_models(config)
    for grpc_port, http_port in config.router.ports:
        _probe(config, "grpc_port", grpc_port)
        _probe(config, "http_port", http_port)
    _probe(config, "serve_port", config.router.serve_port)
    return models


def check_models(config: SystemConfig) -> list[ResolvedModel]:
    """Paths, files, tokenizers, sizes."""
    models = [ResolvedModel(served_name(m.path, m.name), resolve_model(m.path), m) for m in config.models]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(f"models = {names}: two models have one name", field="models")
    for model in models:
        check_group(group_spec(config, model))
        Tokenizer.load(model.path)
    return models


def _probe(config: SystemConfig, name: str, port: int) -> None:
    if port:
        probe_port(config.router.host, port, name)


@contextmanager
def _cluster(config: SystemConfig, models: int) -> Iterator[None]:
    """The cluster RAY_ADDRESS names, or one of our own on this machine that ends with us."""
    if "RAY_ADDRESS" in os.environ:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        bundles = group_bundles(config.parallel.tp, config.parallel.pp, has_gpus())
        groups = (config.parallel.groups + 1) * models  # one more, which an update starts before it ends another
        cpus = total_cpus(bundles, groups, config.router.replicas or 1, ROUTER_CPUS)
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, int(cpus)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    _stop_listening()
    try:
        port = config.router.serve_port or free_port(config.router.host)
        ray_serve.start(http_options={"host": config.router.host, "port": port})
        yield
    finally:
        with ExitStack() if "RAY_ADDRESS" in os.environ else _ending():
            ray.shutdown()


@contextmanager
def _ending() -> Iterator[None]:
    """No process of ours is left behind: where the GCS is lost, Ray forgets its raylet's agents."""
    children = psutil.Process().children(recursive=True)
    yield
    for process in psutil.wait_procs(children, timeout=END_TIMEOUT_S)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _stop_listening() -> None:
    """End Ray's thread that waits for errors to print: logs hold them too, and without a GCS it would take a core."""
    global_worker.threads_stopped.set()


def _listen(progress: PhaseProgress) -> tuple[Wiring, ProgressListener, Start]:
    """Where starting groups tell how far they are."""
    secret = secrets.token_hex(32)
    start = Start()
    numbers: dict[str, int] = {}

    def show(group: str, rank: int, phase: str, done: int, total: int) -> None:
        number = numbers.setdefault(group, len(numbers))
        progress.show(f"group {number} rank {rank}", phase, done, total)

    listener = ProgressListener(get_node_ip_address(), secret, show, start.fail)
    return Wiring(secret, listener.address, _router_nodes(), has_gpus()), listener, start


def _router_nodes() -> int:
    """Nodes that have room for a router. A head is often started without CPUs, so that nothing is placed on it."""
    return sum(node["Alive"] and node["Resources"].get("CPU", 0.0) >= ROUTER_CPUS for node in ray.nodes())


def _run(
    config: SystemConfig, models: Sequence[ResolvedModel], wiring: Wiring, start: Start, stop: threading.Event
) -> DeploymentHandle[Any] | None:
    """Deploy and wait until every group takes requests; None when told to stop meanwhile.

    Raises what a group failed with (Serve alone would try again and again), or Unavailable.
    """
    handle = _deploy(config, models, wiring)
    while not _is_running():
        if start.failed.wait(WATCH_PERIOD_S) and start.error is not None:
            raise start.error
        if stop.is_set():
            return None
    try:
        handle.broadcast("wait_ready", config.parallel.groups).results(timeout_s=READY_TIMEOUT_S)
    except TimeoutError:
        raise Unavailable(f"not every router has reached all groups within {READY_TIMEOUT_S:.0f} s") from None
    return handle


def _deploy(config: SystemConfig, models: Sequence[ResolvedModel], wiring: Wiring) -> DeploymentHandle[Any]:
    target = ray_serve.RunTarget(build(config, models, wiring), name=APP_NAME, route_prefix="/")
    (handle,) = ray_serve.run_many([target], wait_for_applications_running=False)
    return handle


def _is_running() -> bool:
    """Raises Unavailable when Serve has given the application up."""
    application = ray_serve.status().applications[APP_NAME]
    if application.status == "DEPLOY_FAILED":
        raise Unavailable(f"the application did not start: {application.message}")
    return application.status == "RUNNING"


def _ready(config: SystemConfig, models: Sequence[ResolvedModel], handle: DeploymentHandle[Any]) -> str:
    """The banner, from what one group of each model says of itself."""
    doors = sorted(handle.broadcast("doors").results(timeout_s=READY_TIMEOUT_S))
    ready = []
    for model in models:
        group = ray_serve.get_deployment_handle(group_name(model.name), APP_NAME)
        summary = group.summary.remote().result(timeout_s=READY_TIMEOUT_S)
        ready.append(ReadyModel(ModelConfig.load(model.path), summary))
    return banner(ready, config.parallel, doors)


def _drain(handle: DeploymentHandle[Any], timeout_s: float) -> None:
    """Every router refuses new requests; running streams end within `timeout_s` or are cut. A lost router has none."""
    call = handle.broadcast("drain", timeout_s)
    try:
        finished = call.results(timeout_s=timeout_s + STOP_TIMEOUT_S, return_exceptions=True)
    except (DeploymentUnavailableError, TimeoutError):
        finished = [False]
    if False in finished:
        log.warning("some streams were still running after %.0f s and were cut", timeout_s)


def _delete(was_started: bool) -> None:
    """End what runs in the cluster. Raises Unavailable when it cannot be reached; our own cluster ends with us anyway.

    A process whose node was lost, such as a head that another one replaced, is told of nothing any more: then another
    process does it.
    """
    if controller_answers(CONTROLLER_TIMEOUT_S):
        ray_serve.delete(APP_NAME, _blocking=was_started)
    elif "RAY_ADDRESS" in os.environ and not _delete_elsewhere():
        raise Unavailable("Ray does not answer: what was started runs on; `serve shutdown` ends it once Ray is back")


def _delete_elsewhere() -> bool:
    program = f"import ray; from ray import serve; ray.init(log_to_driver=False); serve.delete({APP_NAME!r})"
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=ELSEWHERE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@contextmanager
def _signals(orders: Orders) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a drain, the second interrupts it; SIGHUP asks for a reload."""

    def handle(number: int, frame: object) -> None:
        if number != signal.SIGHUP:
            if orders.stop.is_set():
                raise KeyboardInterrupt
            orders.stop.set()
        orders.any.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
