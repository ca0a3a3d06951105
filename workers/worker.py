"""One rank: loads its part of the model, follows plans, computes its stage, samples on the last one."""

import os
import time
from collections.abc import Callable, Sequence
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
from rayline.kernels.native_kernels import native_misfit
from rayline.kernels.sampling import RowLogprobs
from rayline.protos.errors import ConfigError, NotEnoughMemory
from rayline.protos.events import TokenLogprob
from rayline.protos.plan import Candidates, Plan, Refused, Sampled, Scored, Slice, StepResult
from rayline.workers.batch import ScoredRun, Wanted, first_tokens, forward_context, input_ids, wanted
from rayline.workers.beams import candidates_needed
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Collective
from rayline.workers.grammar import Grammars
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
from rayline.workers.sampler import SampleRequest, sampled, sampling_rows
from rayline.workers.spec import Loaded, RankSpec
from rayline.workers.stages import StageLinks
from rayline.workers.token_sampler import token_sampler
from rayline.workers.weights import Weights

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
        self._sampler = token_sampler(kernels, collective, self.config.vocab_size, spec.parallel.tp_rank)
        self._device = torch.device(spec.device)
        self._dtype = torch_dtype(spec.dtype)
        self._residents = Residents()
        self._grammars = Grammars(spec.path, self.config.vocab_size, self.config.eos_token_ids)
        self._layers = stage_layers(self.config, spec.parallel, self._dtype.itemsize)
        self._read_bytes = 0
        self._busy_s = self._sample_s = 0.0
        self._sample_steps = 0
        self._since = time.perf_counter()

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
        return Loaded(host_name(), self._decoder.weight_bytes, weights.bytes_read, self._free_bytes(), self.block_bytes)

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
        if self.spec.parallel.is_last_stage:
            self._grammars.follow(plan)
        if plan.copies:
            self._cache.copy(plan.copies)
        asked = wanted(plan.slices, self._residents)
        context = forward_context(plan.slices, self._residents, asked.tokens, self.spec.block_tokens, self._device)
        inputs = self._inputs(plan)
        output = self._decoder.forward(inputs, self._cache, context)
        if not self.spec.parallel.is_last_stage:
            self._hand_on(asked, output)
        sampling = time.perf_counter()
        result = self._answer(plan, asked, output) if self.spec.parallel.is_last_stage else None
        sample_s = time.perf_counter() - sampling
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

    def _answer(self, plan: Plan, asked: Wanted, logits: Tensor) -> StepResult:
        """What the last stage makes of its logits [N, this rank's share of the vocabulary]."""
        samples, beams = len(asked.sampling), len(asked.sampling) + len(asked.beams)
        scored = self._score(asked.scored, logits[beams:])
        candidates = self._search(asked.beams, logits[samples:beams])
        chosen, stuck = self._sample(asked.sampling, logits[:samples])
        gained, refused = self._grammars.accept(chosen)
        refused += stuck + self._grammars.refused(asked.beams)
        return StepResult(plan.epoch, plan.step, gained, candidates=candidates, scored=scored, refused=refused)

    def _sample(self, numbers: Sequence[int], logits: Tensor) -> tuple[tuple[Sampled, ...], tuple[Refused, ...]]:
        """A token for each sequence, or why it gets none."""
        if not numbers:
            return (), ()
        requests = [self._sample_request(number) for number in numbers]
        rows = self._sampler.sample(logits, sampling_rows(requests, self.config.eos_token_ids, self.config.vocab_size))
        token_ids = rows.token_ids
        token_ids[list(rows.stuck)] = 0  # plans in flight count on a token, whatever it is
        for number, token_id in zip(numbers, token_ids.tolist(), strict=True):
            self._residents.gain(number, token_id)
        if self._stages is not None:
            self._stages.send_tokens(token_ids)
        return sampled(requests, rows)

    def _search(self, numbers: Sequence[int], logits: Tensor) -> tuple[Candidates, ...]:
        """The best next tokens of beams, from which the leader chooses."""
        if not numbers:
            return ()
        requests = [self._sample_request(number) for number in numbers]
        eos_ids, vocab_size = self.config.eos_token_ids, self.config.vocab_size
        most = [min(candidates_needed(request.params, request.rules, eos_ids), vocab_size) for request in requests]
        rows = self._sampler.candidates(logits, sampling_rows(requests, eos_ids, vocab_size), most)
        return tuple(
            Candidates(number, tuple(TokenLogprob(*pair) for pair in row))
            for number, row in zip(numbers, rows, strict=True)
        )

    def _score(self, runs: Sequence[ScoredRun], logits: Tensor) -> tuple[Scored, ...]:
        """Logprobs of prompt tokens, of the raw logits of the tokens before them."""
        if not runs:
            return ()
        residents = [self._residents[run.sequence] for run in runs]
        tokens = [t for run, known in zip(runs, residents, strict=True) for t in known.token_ids[run.start : run.end]]
        tops = [
            known.params.prompt_logprobs or 0
            for run, known in zip(runs, residents, strict=True)
            for _ in range(run.start, run.end)
        ]
        found = iter(self._sampler.score(logits, tokens, tops))
        own = iter(tokens)
        return tuple(
            Scored(run.sequence, run.start, tuple(_scores(next(own), next(found)) for _ in range(run.start, run.end)))
            for run in runs
        )

    def _sample_request(self, number: int) -> SampleRequest:
        resident, mask = self._residents[number], self._grammars.mask(number)
        return SampleRequest(
            number,
            resident.params,
            len(resident.token_ids),
            resident.output_tokens,
            resident.rules,
            resident.kept_history(),
            None if mask.words is None else torch.from_numpy(mask.words),
            mask.must_end,
        )

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
    misfit = native_misfit(
        config.head_dim, (config.hidden_size, config.intermediate_size // spec.parallel.tp_size), spec.block_tokens
    )
    try:
        return choose(torch.device(spec.device), torch_dtype(spec.dtype), spec.kernels, misfit)
    except Unfit as error:
        value = asdict(spec.kernels)[error.field]
        raise ConfigError(f"{error.field} = {value} cannot run here: {error}", field=error.field) from None


def _scores(token_id: int, row: RowLogprobs) -> tuple[TokenLogprob, tuple[TokenLogprob, ...]]:
    return TokenLogprob(token_id, row.logprob), tuple(TokenLogprob(*pair) for pair in row.top)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a resolved config value."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def stage_layers(config: ModelConfig, parallel: Parallel, dtype_bytes: int) -> range:
    """The layers of one rank's stage, cut so that the heaviest stage is as light as possible."""
    tp_size = parallel.tp_size
    each = layer_bytes(config, tp_size, dtype_bytes)
    first, last = embedding_bytes(config, tp_size, dtype_bytes), head_bytes(config, tp_size, dtype_bytes)
    return balanced_stages([each] * config.layers, first, last, parallel.pp_size)[parallel.stage]
