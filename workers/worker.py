"""One rank: loads its part of the model, makes room for keys and values, and says what it holds and did."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict

import psutil
import torch

from rayline.cluster.machine import available_bytes, host_name, usable_cores
from rayline.cluster.parallel import Parallel, balanced_stages
from rayline.kernels.backend import Kernels
from rayline.kernels.choice import Choice, Unfit, build, choose
from rayline.kernels.compiled_kernels import bucket_of
from rayline.kernels.cores import claim
from rayline.kernels.gpu import triton_misfit
from rayline.kernels.graphs import DecodeLimits, decode_buckets
from rayline.kernels.native_kernels import native_misfit
from rayline.protos.errors import ConfigError, InternalError, NotEnoughMemory
from rayline.workers.agreement import check_alike
from rayline.workers.batch import first_tokens, idle_tokens
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Collective
from rayline.workers.grammar import Grammars
from rayline.workers.last_stage import LastStage
from rayline.workers.marks import marks_of
from rayline.workers.models.config import (
    ModelConfig,
    embedding_bytes,
    head_bytes,
    kv_bytes_per_token,
    kv_heads_of_rank,
    layer_bytes,
)
from rayline.workers.models.decoder import Decoder
from rayline.workers.pipeline import RankStats
from rayline.workers.resident import Residents
from rayline.workers.spec import Loaded, RankSpec
from rayline.workers.stages import StageLinks
from rayline.workers.step_clock import StepClock
from rayline.workers.steps import Stage, Steps
from rayline.workers.token_feed import TokenFeed
from rayline.workers.token_sampler import token_sampler
from rayline.workers.weights import Weights

log = logging.getLogger(__name__)

GRAPH_BYTES = 8 * 2**20  # of one graph's launches and their arguments

OnProgress = Callable[[str, int, int], None]
"""(phase, done, total), called often."""


class Worker:
    """`steps` follow plans, once there is room for keys and values. `stages` is None in a group of one stage."""

    def __init__(self, spec: RankSpec, kernels: Kernels, collective: Collective, stages: StageLinks | None):
        self.spec = spec
        self._kernels = kernels
        self.config = ModelConfig.load(spec.path)
        self._collective = collective
        self._stages = stages
        self._device = torch.device(spec.device)
        self._dtype = torch_dtype(spec.dtype)
        self._layers = stage_layers(self.config, spec.parallel, self._dtype.itemsize)
        self._read_bytes = 0
        self._since = time.perf_counter()

    @property
    def launch_window(self) -> int:
        """Steps that are launched at once. With 2 one more is, before the running one is read back: by default where
        neither computing nor messages make the host wait."""
        wish = self.spec.async_scheduling
        is_free = self.spec.device == "cuda" and (self._stages is None or self._stages.are_of_device)
        return 2 if wish == "always" or (wish == "auto" and is_free) else 1

    # ---- start-up

    def load(self, on_progress: OnProgress) -> Loaded:
        """Read this rank's part of the weights. Raises ModelError or NotEnoughMemory."""
        with Weights.open(self.spec.path, lambda _: self._show_reading(weights, on_progress)) as weights:
            share = weights.total_bytes // self.spec.parallel.world_size
            if share > (free := self._free_bytes()):
                raise NotEnoughMemory(f"the weights need about {share} bytes for this rank, {free} are free")
            self._decoder = Decoder(
                self.config,
                self._layers,
                weights,
                self.spec.parallel,
                self._collective,
                self._kernels,
                self._dtype,
                self._device,
            )
            self._read_bytes = weights.bytes_read
        on_progress("read weights", share, share)
        free = max(0, self._free_bytes() - self._kept)
        return Loaded(host_name(), self._decoder.weight_bytes, weights.bytes_read, free, self.block_bytes)

    def _show_reading(self, weights: Weights, on_progress: OnProgress) -> None:
        share = weights.total_bytes // self.spec.parallel.world_size
        on_progress("read weights", min(weights.bytes_read, share), share)

    def allocate(self, blocks: int, on_progress: OnProgress) -> None:
        """Make room for `blocks` KV blocks, and compile what runs over them. Raises NotEnoughMemory."""
        if blocks * self.block_bytes > (free := self._free_bytes()):
            raise NotEnoughMemory(f"kv_bytes = {blocks * self.block_bytes} is more than the {free} bytes free")
        self._cache = KvCache(
            len(self._layers),
            blocks,
            self.spec.block_tokens,
            kv_heads_of_rank(self.config, self.spec.parallel.tp_size),
            self.config.head_dim,
            self._dtype,
            self._device,
            self.spec.static_cache,
        )
        if self.spec.graph_rows:
            self._capture(blocks, on_progress)  # on GPUs what is compiled is captured
        elif self.spec.kernels.compile:
            self._compile(blocks, on_progress)
        self.steps = self._new_steps()

    def _new_steps(self) -> Steps:
        residents = Residents()
        feed = TokenFeed(residents, self._device)
        last = self._new_last_stage(residents, feed) if self.spec.parallel.is_last_stage else None
        stage = Stage(
            self.spec.parallel,
            self._decoder,
            self._cache,
            residents,
            feed,
            last,
            self._stages,
            self.spec.block_tokens,
            self._device,
        )
        return Steps(stage, marks_of(self._device))

    def _new_last_stage(self, residents: Residents, feed: TokenFeed) -> LastStage:
        config = self.config
        sampler = token_sampler(self._kernels, self._collective, config.vocab_size, self.spec.parallel.tp_rank)
        grammars = Grammars(self.spec.path, config.vocab_size, config.eos_token_ids)
        return LastStage(sampler, grammars, residents, feed, config.eos_token_ids, config.vocab_size, self._stages)

    @torch.inference_mode()
    def _compile(self, slots: int, on_progress: OnProgress) -> None:
        """One decode step of each number of sequences that has its own graph, so that no client waits for it.

        It writes to the first place of slots that nobody holds yet.
        """
        sizes = sorted({min(bucket_of(rows), slots) for rows in range(1, slots + 1)})
        for done, rows in enumerate(sizes):
            on_progress("compile", done, len(sizes))
            inputs, context = self._decoder.blank(rows), first_tokens(rows, self.spec.block_tokens, self._device)
            self._decoder.forward(inputs, self._cache, context)
        on_progress("compile", len(sizes), len(sizes))

    @torch.inference_mode()
    def _capture(self, blocks: int, on_progress: OnProgress) -> None:
        """A graph for each bucket of decode steps, the largest first: it takes the memory that all others fit into.

        Its tokens write nothing. All ranks of a stage capture the same steps in the same order, as each waits for the
        others in the sums. Raises NotEnoughMemory, or InternalError; the group then ends.
        """
        limits = DecodeLimits(min(self.spec.graph_rows, blocks), self._table_width(blocks), self.spec.block_tokens)
        if self._collective.tp_size > 1:
            numbers = (limits.rows, limits.width, limits.block_tokens)
            check_alike(self._collective, self._device, "rows, table width and block tokens of decode graphs", numbers)
        self._decoder.bind(self._cache, limits)
        free = self._free_bytes()
        for done, rows in enumerate(reversed(limits.buckets)):
            on_progress("capture", done, len(limits.buckets))
            try:
                self._decoder.forward(self._decoder.blank(rows), self._cache, idle_tokens(rows, self._device))
            except torch.OutOfMemoryError as error:
                raise NotEnoughMemory(
                    f"decode steps of {rows} sequences cannot be captured: {error}; a smaller kv_memory_fraction or "
                    "decode_graphs = false leaves room"
                ) from None
            except RuntimeError as error:
                way_out = "compile = false" if self.spec.kernels.compile else "decode_graphs = false"
                raise InternalError(
                    f"decode steps of {rows} sequences cannot be captured: {error}; {way_out} does without"
                ) from error
        on_progress("capture", len(limits.buckets), len(limits.buckets))
        held = (free - self._free_bytes()) >> 20
        log.info(
            "%d graphs of decode steps hold %d MiB, %d were kept free", len(limits.buckets), held, self._kept >> 20
        )

    def _table_width(self, blocks: int) -> int:
        """Blocks of the longest sequence there can be."""
        return min(blocks, -(-self.config.max_model_len // self.spec.block_tokens))

    @property
    def _kept(self) -> int:
        """Bytes that graphs will take, which no KV block gets."""
        if not self.spec.graph_rows:
            return 0
        return graph_bytes(self.config, self.spec.parallel.tp_size, self.spec.graph_rows, self._dtype.itemsize)

    @property
    def block_bytes(self) -> int:
        """2 x layers x kv heads x head dim x bytes x tokens, for this rank's layers and heads."""
        token_bytes = kv_bytes_per_token(
            self.config, len(self._layers), self.spec.parallel.tp_size, self._dtype.itemsize
        )
        return token_bytes * self.spec.block_tokens

    def stats(self) -> RankStats:
        """Work since the last call."""
        now, clock = time.perf_counter(), self.steps.clock
        stats = RankStats(
            rank=self.spec.parallel.rank,
            stage=self.spec.parallel.stage,
            busy_s=clock.busy_s,
            wall_s=now - self._since,
            weight_bytes=self._decoder.weight_bytes,
            cache_bytes=self._cache.bytes,
            resident_bytes=psutil.Process().memory_info().rss,
            read_bytes=self._read_bytes,
            step_bytes=self._decoder.step_bytes,
            sample_s=clock.sample_s,
            sample_steps=clock.sample_steps,
            gap_s=clock.gap_s,
            steps=clock.steps,
        )
        self.steps.clock, self._since = StepClock(), now
        return stats

    def _free_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.mem_get_info(self._device)[0]
        return available_bytes()


def kernels_of(spec: RankSpec) -> Kernels:
    """The kernels that a rank is told to compute with, and their threads."""
    allowed = sorted(os.sched_getaffinity(0))
    # Under a quota smaller than the machine, the neighbours on a core cannot be known.
    cores = claim(spec.threads, allowed) if usable_cores() == len(allowed) else None
    return build(kernel_choice(spec, ModelConfig.load(spec.path)), spec.threads, cores)


def kernel_choice(spec: RankSpec, config: ModelConfig) -> Choice:
    """What computes on this rank. Raises ConfigError when the kernels that were asked for cannot."""
    depths = (config.hidden_size, config.intermediate_size // spec.parallel.tp_size)
    misfit = (
        triton_misfit(config.head_dim, spec.block_tokens)
        if spec.device == "cuda"
        else native_misfit(config.head_dim, depths, spec.block_tokens)
    )
    try:
        return choose(torch.device(spec.device), torch_dtype(spec.dtype), spec.kernels, misfit)
    except Unfit as error:
        value = asdict(spec.kernels)[error.field]
        raise ConfigError(f"{error.field} = {value} cannot run here: {error}", field=error.field) from None


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a resolved config value."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def graph_bytes(config: ModelConfig, tp_size: int, rows: int, dtype_bytes: int) -> int:
    """What captured decode steps of up to `rows` sequences may take of a device.

    All graphs share the numbers between operations and one result, the logits in fp32 being most of both; each has its
    list of launches. Ranks that gather a sum hold all parts twice, and what is joined of them, in fp32.
    """
    buckets = decode_buckets(rows)
    most = buckets[-1] if buckets else 0
    layer = 6 * config.hidden_size + 3 * config.intermediate_size // tp_size
    sums = 3 * 4 * tp_size * config.hidden_size if tp_size > 1 else 0
    logits = 3 * 4 * config.vocab_size // tp_size
    return len(buckets) * GRAPH_BYTES + most * (layer * dtype_bytes + sums + logits)


def stage_layers(config: ModelConfig, parallel: Parallel, dtype_bytes: int) -> range:
    """The layers of one rank's stage, cut so that the heaviest stage is as light as possible."""
    tp_size = parallel.tp_size
    each = layer_bytes(config, tp_size, dtype_bytes)
    first, last = embedding_bytes(config, tp_size, dtype_bytes), head_bytes(config, tp_size, dtype_bytes)
    return balanced_stages([each] * config.layers, first, last, parallel.pp_size)[parallel.stage]
