"""`rayline serve`: check, start Ray where none was named, run the application, wait, drain, stop."""

import logging
import os
import secrets
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address
from rich.console import Console

from rayline.cluster.config import SystemConfig
from rayline.cluster.placement import group_bundles, total_cpus
from rayline.deploy.app import ROUTER_CPUS, ResolvedModel, Wiring, build, group_name, group_spec
from rayline.deploy.banner import ReadyModel, banner
from rayline.deploy.model_path import resolve_model, served_name
from rayline.deploy.progress import PhaseProgress, open_progress
from rayline.deploy.progress_link import ProgressListener
from rayline.protos.errors import ConfigError, RaylineError, Unavailable
from rayline.router.ports import free_port, probe_port
from rayline.router.tokenizer import Tokenizer
from rayline.workers.group import check_group, has_gpus
from rayline.workers.models.config import ModelConfig

APP_NAME = "rayline"
OBJECT_STORE_BYTES = 100 * 2**20  # tokens never pass through it
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
WATCH_PERIOD_S = 0.1

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Start:
    """The first failure a starting group told of, if any."""

    failed: threading.Event = field(default_factory=threading.Event)
    error: RaylineError | None = None

    def fail(self, error: RaylineError) -> None:
        self.error = self.error or error
        self.failed.set()


def serve(config: SystemConfig, console: Console | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM; returns the exit code. Raises ConfigError leaves before anything is started."""
    console = console or Console()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    models = check(config)
    stop = threading.Event()
    with _signals(stop), _cluster(config, len(models)), open_progress(console) as progress:
        wiring, listener, start = _listen(progress)
        handle = None
        try:
            handle = _run(config, models, wiring, start, stop)
            if handle is None:
                return 130
            listener.close()
            console.print(_ready(config, models, handle), highlight=False, markup=False, soft_wrap=True)
            stop.wait()
            console.print("stopping: running streams get to finish; Ctrl-C again stops at once")
            _drain(handle, config.router.drain_timeout_s)
        finally:
            ray_serve.delete(APP_NAME, _blocking=handle is not None)
    return 0


def check(config: SystemConfig) -> list[ResolvedModel]:
    """All that can be refused before a process is started: paths, files, tokenizers, sizes, ports."""
    models = [ResolvedModel(served_name(m.path, m.name), resolve_model(m.path), m) for m in config.models]
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise ConfigError(f"models = {names}: two models have one name", field="models")
    for model in models:
        check_group(group_spec(config, model))
        Tokenizer.load(model.path)
    for grpc_port, http_port in config.router.ports:
        _probe(config, "grpc_port", grpc_port)
        _probe(config, "http_port", http_port)
    _probe(config, "serve_port", config.router.serve_port)
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
        routers = config.router.replicas or 1
        cpus = total_cpus(bundles, config.parallel.groups * models, routers, ROUTER_CPUS)
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, int(cpus)),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    try:
        port = config.router.serve_port or free_port(config.router.host)
        ray_serve.start(http_options={"host": config.router.host, "port": port})
        yield
    finally:
        ray.shutdown()


def _listen(progress: PhaseProgress) -> tuple[Wiring, ProgressListener, Start]:
    """Where starting groups tell how far they are."""
    secret = secrets.token_hex(32)
    start = Start()
    numbers: dict[str, int] = {}

    def show(group: str, rank: int, phase: str, done: int, total: int) -> None:
        number = numbers.setdefault(group, len(numbers))
        progress.show(f"group {number} rank {rank}", phase, done, total)

    listener = ProgressListener(get_node_ip_address(), secret, show, start.fail)
    nodes = sum(node["Alive"] for node in ray.nodes())
    return Wiring(secret, listener.address, nodes, has_gpus()), listener, start


def _run(
    config: SystemConfig, models: Sequence[ResolvedModel], wiring: Wiring, start: Start, stop: threading.Event
) -> DeploymentHandle[Any] | None:
    """Deploy and wait until every group takes requests; None when told to stop meanwhile.

    Raises what a group failed with: Serve alone would try again and again.
    """
    target = ray_serve.RunTarget(build(config, models, wiring), name=APP_NAME, route_prefix="/")
    (handle,) = ray_serve.run_many([target], wait_for_applications_running=False)
    while not _is_running():
        if start.failed.wait(WATCH_PERIOD_S) and start.error is not None:
            raise start.error
        if stop.is_set():
            return None
    handle.broadcast("wait_ready", config.parallel.groups).results(timeout_s=READY_TIMEOUT_S)
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
    """Every router refuses new requests; running streams end within `timeout_s` or are cut."""
    finished = handle.broadcast("drain", timeout_s).results(timeout_s=timeout_s + STOP_TIMEOUT_S)
    if not all(finished):
        log.warning("some streams were still running after %.0f s and were cut", timeout_s)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM asks for a drain, the second interrupts it."""

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
