"""One rank: loads its part of the model, follows plans, computes its stage, samples on the last one."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import psutil
import torch
from torch import Tensor

from rayline.cluster.machine import available_bytes, host_name, usable_cores
from rayline.cluster.parallel import Parallel, balanced_stages
from rayline.kernels.backend import Kernels
from rayline.kernels.choice import Choice, Unfit, build, choose
from rayline.kernels.compiled_kernels import bucket_of
from rayline.kernels.cores import claim
from rayline.kernels.gpu import triton_misfit
from rayline.kernels.graphs import DecodeLimits, decode_buckets
from rayline.kernels.native_kernels import native_misfit
from rayline.protos.errors import ConfigError, NotEnoughMemory
from rayline.protos.plan import Plan, Slice, StepResult
from rayline.workers.batch import Wanted, first_tokens, forward_context, idle_tokens, input_ids, wanted
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Collective
from rayline.workers.grammar import Grammars
from rayline.workers.last_stage import LastStage
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
from rayline.workers.token_sampler import token_sampler
from rayline.workers.weights import Weights

log = logging.getLogger(__name__)

GRAPH_BYTES = 8 * 2**20  # of one graph's launches and their arguments

OnProgress = Callable[[str, int, int], None]
"""(phase, done, total), called often."""


class Worker:
    """Computes plans in the order they come. `stages` is None in a group of one stage."""

    def __init__(self, spec: RankSpec, kernels: Kernels, collective: Collective, stages: StageLinks | None):
        self.spec = spec
        self._kernels = kernels
        self.config = ModelConfig.load(spec.path)
        self._collective = collective
        self._stages = stages
        self._device = torch.device(spec.device)
        self._dtype = torch_dtype(spec.dtype)
        self._residents = Residents()
        self._last_stage = self._new_last_stage() if spec.parallel.is_last_stage else None
        self._layers = stage_layers(self.config, spec.parallel, self._dtype.itemsize)
        self._read_bytes = 0
        self._busy_s = self._sample_s = 0.0
        self._sample_steps = 0
        self._since = time.perf_counter()

    def _new_last_stage(self) -> LastStage:
        config, tp_rank = self.config, self.spec.parallel.tp_rank
        sampler = token_sampler(self._kernels, self._collective, config.vocab_size, tp_rank)
        grammars = Grammars(self.spec.path, config.vocab_size, config.eos_token_ids)
        return LastStage(sampler, grammars, self._residents, config, self._stages)

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
        if self.spec.kernels.compile:
            self._compile(blocks, on_progress)
        if self.spec.graph_rows:
            self._capture(blocks, on_progress)

    @torch.inference_mode()
    def _compile(self, slots: int, on_progress: OnProgress) -> None:
        """One decode step of each number of sequences that has its own graph, so that no client waits for it.

        It writes to the first place of slots that nobody holds yet.
        """
        sizes = sorted({min(bucket_of(rows), slots) for rows in range(1, slots + 1)})
        for done, rows in enumerate(sizes):
            on_progress("compile", done, len(sizes))
            inputs = torch.zeros(rows, dtype=torch.int64, device=self._device)
            if not self.spec.parallel.is_first_stage:
                inputs = inputs.new_zeros((rows, self.config.hidden_size), dtype=self._dtype)
            self._decoder.forward(inputs, self._cache, first_tokens(rows, self.spec.block_tokens, self._device))
        on_progress("compile", len(sizes), len(sizes))

    @torch.inference_mode()
    def _capture(self, blocks: int, on_progress: OnProgress) -> None:
        """A graph for each bucket of decode steps, the largest first: it takes the memory that all others fit into.

        Its tokens write nothing. Raises NotEnoughMemory.
        """
        limits = DecodeLimits(min(self.spec.graph_rows, blocks), self._table_width(blocks), self.spec.block_tokens)
        self._decoder.bind(self._cache, limits)
        free = self._free_bytes()
        for done, rows in enumerate(reversed(limits.buckets)):
            on_progress("capture", done, len(limits.buckets))
            inputs = torch.zeros(rows, dtype=torch.int64, device=self._device)
            if not self.spec.parallel.is_first_stage:
                inputs = inputs.new_zeros((rows, self.config.hidden_size), dtype=self._dtype)
            try:
                self._decoder.forward(inputs, self._cache, idle_tokens(rows, self._device))
            except torch.OutOfMemoryError as error:
                raise NotEnoughMemory(
                    f"decode steps of {rows} sequences cannot be captured: {error}; a smaller kv_memory_fraction or "
                    "decode_graphs = false leaves room"
                ) from None
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

    # ---- steps

    def foresee(self, plan: Plan) -> None:
        """Told of each plan as soon as it comes, before earlier ones are computed: its receive is posted
        then, so that the stage before never waits for this one to ask."""
        if not self.spec.parallel.is_first_stage:
            assert self._stages is not None
            self._stages.expect_hidden(plan.tokens, self.config.hidden_size, self._dtype)

    @torch.inference_mode()
    def execute(self, plan: Plan) -> StepResult | None:
        """Compute one plan. Only the reporting rank of the last stage returns a result."""
        began, waited = time.perf_counter(), self._waited_s
        self._residents.follow(plan)
        if self._last_stage is not None:
            self._last_stage.follow(plan)
        if plan.copies:
            self._cache.copy(plan.copies)
        asked = wanted(plan.slices, self._residents)
        context = forward_context(plan.slices, self._residents, asked.tokens, self.spec.block_tokens, self._device)
        inputs = self._inputs(plan)
        output = self._decoder.forward(inputs, self._cache, context)
        sampling = time.perf_counter()
        result: StepResult | None = None
        if self._last_stage is None:
            self._hand_on(asked, output)
        else:
            result = self._last_stage.answer(plan, asked, output)
        sample_s = 0.0 if result is None else time.perf_counter() - sampling
        self._sample_s += sample_s
        self._sample_steps += bool(asked.sampling or asked.beams)
        busy_s = time.perf_counter() - began - (self._waited_s - waited)
        self._busy_s += busy_s
        if result is None or not self.spec.parallel.reports:
            return None
        return replace(result, busy_s=busy_s, sample_s=sample_s)

    def stats(self) -> RankStats:
        """Work since the last call."""
        now = time.perf_counter()
        stats = RankStats(
            rank=self.spec.parallel.rank,
            stage=self.spec.parallel.stage,
            busy_s=self._busy_s,
            wall_s=now - self._since,
            weight_bytes=self._decoder.weight_bytes,
            cache_bytes=self._cache.bytes,
            resident_bytes=psutil.Process().memory_info().rss,
            read_bytes=self._read_bytes,
            step_bytes=self._decoder.step_bytes,
            sample_s=self._sample_s,
            sample_steps=self._sample_steps,
        )
        self._busy_s, self._sample_s, self._sample_steps, self._since = 0.0, 0.0, 0, now
        return stats

    def _inputs(self, plan: Plan) -> Tensor:
        """Token ids [T] on the first stage, the previous stage's hidden states [T, hidden] on the others."""
        if not self.spec.parallel.is_first_stage:
            assert self._stages is not None
            return self._stages.next_hidden()
        if self._stages is not None:
            self._await_tokens(plan.slices, self._stages)
        return input_ids(plan.slices, self._residents, self._device)

    def _await_tokens(self, slices: tuple[Slice, ...], stages: StageLinks) -> None:
        """Take in sampled tokens until every token this plan computes is known here."""
        while any(s.start + s.count > len(self._residents[s.sequence].token_ids) for s in slices):
            for sequence, token in stages.next_tokens():
                self._residents.gain(sequence, token)

    def _hand_on(self, asked: Wanted, output: Tensor) -> None:
        """Pass hidden states on; the first stage also waits for what the last one samples. Tokens of beams come with
        later plans."""
        assert self._stages is not None
        self._stages.send_hidden(output.clone())  # the next step writes over it
        if self.spec.parallel.is_first_stage and asked.sampling:
            self._stages.expect_tokens(asked.sampling)

    @property
    def _waited_s(self) -> float:
        return 0.0 if self._stages is None else self._stages.waited_s

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
    list of launches.
    """
    buckets = decode_buckets(rows)
    most = buckets[-1] if buckets else 0
    layer = 6 * config.hidden_size + 3 * config.intermediate_size // tp_size
    logits = 3 * 4 * config.vocab_size // tp_size
    return len(buckets) * GRAPH_BYTES + most * (layer * dtype_bytes + logits)


def stage_layers(config: ModelConfig, parallel: Parallel, dtype_bytes: int) -> range:
    """The layers of one rank's stage, cut so that the heaviest stage is as light as possible."""
    tp_size = parallel.tp_size
    each = layer_bytes(config, tp_size, dtype_bytes)
    first, last = embedding_bytes(config, tp_size, dtype_bytes), head_bytes(config, tp_size, dtype_bytes)
    return balanced_stages([each] * config.layers, first, last, parallel.pp_size)[parallel.stage]
