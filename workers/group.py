"""Start one replica group: ranks, weights, KV cache, warm-up. What comes out is an engine that serves."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.cluster.kv_memory import LEAST_TOKENS, KvPlan, KvWish, RankMemory, plan_kv, static_slots
from rayline.cluster.machine import usable_cores
from rayline.cluster.parallel import Parallel, ranks
from rayline.kernels.choice import Choice, KernelOptions, default_block_tokens
from rayline.kernels.compiled_kernels import missing_compiler
from rayline.protos.errors import ConfigError
from rayline.protos.group import GroupInfo
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.channel import Channel
from rayline.workers.collectives import Alone
from rayline.workers.engine import Engine
from rayline.workers.fingerprint import fingerprint
from rayline.workers.in_process import InProcess
from rayline.workers.layers import tree_fits
from rayline.workers.models.config import ModelConfig
from rayline.workers.pipeline import Pipeline
from rayline.workers.ranks import OnRankProgress, Ranks, open_store
from rayline.workers.scheduling.blocks import BlockPool
from rayline.workers.scheduling.scheduler import Scheduler, SchedulerLimits
from rayline.workers.spec import Loaded, RankSpec
from rayline.workers.weights import Weights
from rayline.workers.worker import Worker, kernel_choice, kernels_of, stage_layers, torch_dtype

WARM_UP_TOKENS = 8


class Launcher(Protocol):
    """Makes the processes of a group's ranks: locally or as Ray actors."""

    @property
    def store_host(self) -> str:
        """Address of this process that every rank can reach."""
        ...

    def launch(self, specs: Sequence[RankSpec]) -> dict[int, Channel]: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """One group to start.

    sharing: groups, of all models, that divide this machine's memory and cores among themselves.
    spare_cores: left to the router and the clients on this machine.
    """

    group_id: str
    model: str
    path: Path
    dtype: str
    max_model_len: int
    engine: EngineSection
    parallel: ParallelSection
    max_waiting: int
    epoch: int = 0
    sharing: int = 1
    spare_cores: int = 0
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    max_waiting_tokens: int = sys.maxsize


@dataclass(frozen=True, slots=True)
class StartedGroup:
    """A group ready to serve, and what was measured while it started. kernels: why these compute."""

    engine: Engine
    info: GroupInfo
    kernels: str
    kv: KvPlan
    loaded: tuple[Loaded, ...]
    load_s: float
    warm_up_s: float


def start_group(
    spec: GroupSpec,
    launcher: Launcher | None,
    on_progress: OnRankProgress,
    clock: Callable[[], float] = time.monotonic,
) -> StartedGroup:
    """Start all ranks of a group; a group of one rank needs no launcher and runs in this process.

    Raises ModelError, ConfigError, NotEnoughMemory or Unavailable; nothing is left running then.
    """
    began = clock()
    config = ModelConfig.load(spec.path)
    weights = fingerprint(spec.path)  # before they are read: what changes meanwhile is no longer what it names
    dtype = config.dtype if spec.dtype == "auto" else spec.dtype
    spec = _resolved(spec, config)
    specs = _rank_specs(spec, config, dtype)
    if len(specs) == 1:
        worker, progress = Worker(specs[0], kernels_of(specs[0]), Alone(), None), partial(on_progress, 0)
        loaded = {0: worker.load(progress)}
        kv = _kv_plan(spec, config, loaded)
        worker.allocate(kv.blocks, progress)
        pipeline: Pipeline = InProcess(worker.steps, worker.stats, worker.launch_window)
    else:
        assert launcher is not None, "a group of several ranks needs a launcher"
        pipeline, loaded, kv = _start_ranks(spec, config, specs, launcher, on_progress)
    engine = _engine(spec, config, kv, pipeline, clock)
    loaded_s = clock()
    try:
        _warm_up(engine, on_progress)
    except BaseException:
        engine.close()
        raise
    numbers = numerics(specs[0], config)
    info = GroupInfo(
        group_id=spec.group_id,
        model=spec.model,
        numerics=numbers.name,
        exact=numbers.exact,
        max_model_len=kv.max_model_len,
        vocab_size=config.vocab_size,
        block_tokens=spec.engine.block_tokens,
        total_blocks=kv.blocks,
        max_waiting=spec.max_waiting,
        epoch=spec.epoch,
        max_waiting_tokens=spec.max_waiting_tokens,
        weights=weights,
    )
    return StartedGroup(engine, info, numbers.why, kv, tuple(loaded.values()), loaded_s - began, clock() - loaded_s)


def check_group(spec: GroupSpec) -> None:
    """Refuse what cannot start, without starting anything: model files, dtype, tp, pp, limits.

    Raises ModelError or ConfigError.
    """
    config = ModelConfig.load(spec.path)
    _rank_specs(_resolved(spec, config), config, config.dtype if spec.dtype == "auto" else spec.dtype)
    Weights.open(spec.path).close()


def device_type() -> str:
    """What ranks compute on here."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def kernel_options(engine: EngineSection) -> KernelOptions:
    return KernelOptions(
        engine.kernels, engine.quantize, engine.activations, engine.compile, engine.attention, engine.all_reduce
    )


def has_gpus() -> bool:
    """Whether ranks run on GPUs here."""
    return torch.cuda.is_available()


@dataclass(frozen=True, slots=True)
class Numerics:
    """What decides bits besides model and request, in one short name, and whether nothing else does."""

    name: str
    exact: bool
    why: str


def numerics(spec: RankSpec, config: ModelConfig) -> Numerics:
    """The numerics class of a group. Exact ones name tp only where its sums cannot share one tree."""
    choice = kernel_choice(spec, config)
    name = f"{spec.device}-{choice.name}-{spec.dtype}"
    depths = (config.heads * config.head_dim, config.intermediate_size)
    tp_size = spec.parallel.tp_size
    unit = choice.quantisation.group_of(choice.quantisation.weights) if choice.quantisation else 2
    is_one_tree = tp_size == 1 if choice.rowwise else all(tree_fits(depth, tp_size, unit) for depth in depths)
    if choice.exact and is_one_tree:
        return Numerics(name, True, choice.why)
    return Numerics(f"{name}-tp{tp_size}", choice.exact, choice.why)


def _resolved(spec: GroupSpec, config: ModelConfig) -> GroupSpec:
    """`spec` with what attention and the cache of its kind decide about the engine."""
    if not spec.engine.block_tokens:
        tokens = default_block_tokens(torch.device(device_type()), kernel_options(spec.engine))
        spec = replace(spec, engine=replace(spec.engine, block_tokens=tokens))
    if spec.engine.kv_cache != "static":
        return spec
    return replace(spec, engine=static_slots(spec.engine, spec.max_model_len or config.max_model_len))


def _rank_specs(spec: GroupSpec, config: ModelConfig, dtype: str) -> list[RankSpec]:
    device = device_type()
    places = ranks(spec.parallel.tp, spec.parallel.pp)
    for place in places:
        stage_layers(config, place, torch_dtype(dtype).itemsize)  # refuses tp and pp that do not divide
    cores = usable_cores() - spec.spare_cores
    threads = spec.engine.threads or max(1, cores // (len(places) * spec.sharing))
    if spec.engine.max_running > spec.engine.max_step_tokens:
        raise ConfigError(
            f"max_running = {spec.engine.max_running} is out of range: allowed is up to max_step_tokens = "
            f"{spec.engine.max_step_tokens}, one token for each running sequence",
            field="max_running",
        )
    if spec.max_model_len and not LEAST_TOKENS <= spec.max_model_len <= config.max_model_len:
        raise ConfigError(
            f"max_model_len = {spec.max_model_len} is out of range: the model allows {LEAST_TOKENS} to "
            f"{config.max_model_len}",
            field="max_model_len",
        )

    engine = spec.engine
    options = kernel_options(engine)
    is_static = engine.kv_cache == "static"

    def rank_spec(place: Parallel) -> RankSpec:
        return RankSpec(spec.path, dtype, device, place, threads, engine.block_tokens, spec.epoch, options, is_static)

    specs = [rank_spec(place) for place in places]
    choice = kernel_choice(specs[0], config)  # refuses kernels that cannot run
    if engine.compile:
        _check_compile(spec, choice)
    rows = graph_rows(engine, choice)
    return [replace(each, graph_rows=rows, async_scheduling=engine.async_scheduling) for each in specs]


def graph_rows(engine: EngineSection, choice: Choice) -> int:
    """Sequences of the largest decode step that ranks capture, if sums between them can be; 0 for none."""
    return engine.max_running if engine.decode_graphs and choice.gpu is not None else 0


def _check_compile(spec: GroupSpec, choice: Choice) -> None:
    """Raises ConfigError when decode steps cannot be compiled."""
    why = ""
    if choice.gpu is not None and not spec.engine.decode_graphs:
        why = "on GPUs its steps are captured: allowed is decode_graphs = true"
    elif choice.gpu is None and spec.engine.kv_cache != "static":
        why = "its graphs have fixed shapes, which needs kv_cache = static"
    elif spec.parallel.tp > 1:
        why = f"tp = {spec.parallel.tp} exchanges sums between ranks inside a step: allowed is tp = 1"
    elif choice.gpu is None and not choice.exact:
        why = missing_compiler()
    if why:
        raise ConfigError(f"compile = true cannot run here: {why}", field="compile")


def _start_ranks(
    spec: GroupSpec, config: ModelConfig, specs: list[RankSpec], launcher: Launcher, on_progress: OnRankProgress
) -> tuple[Ranks, dict[int, Loaded], KvPlan]:
    store = open_store(launcher.store_host)
    placed = [replace(s, store_host=launcher.store_host, store_port=store.port) for s in specs]
    try:
        channels = launcher.launch(placed)
    except BaseException:
        launcher.close()
        raise
    pipeline = Ranks(channels, {s.parallel.rank: s for s in placed}, _Processes(launcher, store))
    try:
        loaded = pipeline.load(on_progress)
        kv = _kv_plan(spec, config, loaded)
        pipeline.allocate(kv, on_progress)
    except BaseException:
        pipeline.close()
        raise
    return pipeline, loaded, kv


class _Processes:
    """The launcher's processes, and the store, which is to live as long as they."""

    def __init__(self, launcher: Launcher, store: object):
        self._launcher = launcher
        self._store: object | None = store

    def kill(self) -> None:
        self._launcher.kill()

    def close(self) -> None:
        self._launcher.close()
        self._store = None


def _kv_plan(spec: GroupSpec, config: ModelConfig, loaded: dict[int, Loaded]) -> KvPlan:
    memory = [RankMemory(rank.host, rank.free_bytes, rank.block_bytes) for rank in loaded.values()]
    engine = spec.engine
    wish = KvWish(
        kv_bytes=engine.kv_bytes,
        memory_fraction=engine.kv_memory_fraction,
        block_tokens=engine.block_tokens,
        max_model_len=spec.max_model_len,
        model_limit=config.max_model_len,
        max_running=engine.max_running,
        groups=spec.sharing,
        is_static=engine.kv_cache == "static",
    )
    return plan_kv(memory, wish)


def _engine(spec: GroupSpec, config: ModelConfig, kv: KvPlan, pipeline: Pipeline, clock: Callable[[], float]) -> Engine:
    limits = SchedulerLimits(
        block_tokens=spec.engine.block_tokens,
        max_model_len=kv.max_model_len,
        max_step_tokens=spec.engine.max_step_tokens,
        max_running=spec.engine.max_running,
        max_waiting=spec.max_waiting,
        max_waiting_tokens=spec.max_waiting_tokens,
        depth=spec.parallel.pp,
        prefix_caching=spec.engine.prefix_caching,
        max_preemptions=spec.engine.max_preemptions,
        priority_aging_s=spec.engine.priority_aging_s,
        tenant_weights=spec.tenant_weights,
        decode_stretch=spec.engine.decode_stretch,
    )
    scheduler = Scheduler(limits, BlockPool(kv.blocks), frozenset(config.eos_token_ids), spec.epoch)
    return Engine(scheduler, pipeline, config.vocab_size, clock)


def _warm_up(engine: Engine, on_progress: OnRankProgress) -> None:
    """Run a short request through every rank, so that the first client pays for no first call."""
    tokens = min(WARM_UP_TOKENS, engine.scheduler.limits.max_model_len - 2)
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, seed=0)
    engine.add(EngineRequest("warm-up", (0,) * max(1, tokens), params))
    while engine.has_work:
        engine.step()
    on_progress(0, "warm up", 1, 1)
