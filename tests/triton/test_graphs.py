"""Captured decode steps: launches recorded in Triton's interpreter and run again over other steps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded_launches import RecordedLaunches
from threaded_ranks import ThreadedRank, on_all_ranks
from torch import Tensor

from rayline.cluster.parallel import Parallel
from rayline.kernels.graphs import MOST_ROWS, DecodeLimits, GraphedSteps, bucket_of, decode_buckets
from rayline.kernels.native_quant import Quantisation
from rayline.kernels.triton_kernels import TritonKernels
from rayline.protos.errors import InternalError, NotEnoughMemory, RaylineError
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Alone
from rayline.workers.models.config import ModelConfig
from rayline.workers.models.decoder import Decoder
from rayline.workers.spec import RankSpec
from rayline.workers.weights import Weights
from rayline.workers.worker import Worker, graph_bytes

UNITS = 50
TOKENS = torch.arange(900) * 37 % 100
LIMITS = DecodeLimits(rows=5, width=56, block_tokens=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 100}
    heads = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    window = {"sliding_window": 620, "layer_types": ["sliding_attention"]}
    return random_checkpoint(
        "qwen3", use_sliding_window=True, max_position_embeddings=900, tie_word_embeddings=True,
        **sizes, **heads, **window,
    )  # fmt: skip


class Run:
    """A decoder whose decode steps are captured or not, over a cache of its own."""

    def __init__(self, path: Path, kernels: TritonKernels, pages: Any, limits: DecodeLimits | None) -> None:
        config = ModelConfig.load(path)
        with Weights.open(path) as weights:
            self.decoder = Decoder(
                config, range(config.layers), weights, Parallel(), Alone(), kernels, torch.float16, CPU
            )
        self.pages = pages(block_tokens=16, blocks=200)
        self.cache = KvCache(config.layers, 200, 16, config.kv_heads, config.head_dim, torch.float16, CPU)
        self.bound = self.decoder.bind(self.cache, limits)

    @torch.inference_mode()
    def logits(self, slices: list[tuple[int, int, int]]) -> Tensor:
        inputs = torch.cat([TOKENS[start : start + count] for _, start, count in slices])
        return self.decoder.forward(inputs, self.cache, self.pages.context(slices)).clone()

    @property
    def captured(self) -> tuple[int, ...]:
        assert isinstance(self.bound.body, GraphedSteps)
        return self.bound.body.captured


PROMPTS = [(0, 638, 2), (1, 0, 3), (2, 39, 1), (3, 0, 2)]  # what lies before is zeros
STEPS = [
    [(0, 640, 1), (1, 3, 1), (2, 40, 1)],  # captured for 4 rows, one of them padding
    [(2, 41, 1), (0, 641, 1), (3, 2, 1), (1, 4, 1)],
    [(1, 5, 1), (2, 42, 1), (0, 642, 1)],  # padding where another sequence was
    [(0, 643, 1)],
    [(3, 3, 1)],  # the same graph for a sequence of another length
    [(0, 644, 1), (1, 6, 2)],  # a piece of a prompt: no graph
]


@pytest.mark.parametrize(("is_exact", "weights"), [(False, None), (True, "int4")], ids=["ordinary", "exact int4"])
def test_replayed_steps_have_the_bits_of_steps_that_were_launched(
    is_exact: bool, weights: Any, checkpoint: Path, pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the exact class the same bits; in the ordinary one the keys are split for the longest that may come."""
    recorder = RecordedLaunches(monkeypatch)
    quantisation = weights and Quantisation(weights)
    graphed, plain = (
        Run(checkpoint, TritonKernels("triton", is_exact, quantisation, UNITS, recorder), pages, limits)
        for limits in (LIMITS, None)
    )
    for slices in (PROMPTS, *STEPS):
        ours, theirs = graphed.logits(slices), plain.logits(slices)
        if is_exact:
            assert ours.equal(theirs), slices
        else:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0.01 * float(theirs.abs().max()))
    assert graphed.captured == (1, 4)
    assert len(recorder.graphs) == 4, "a body and a head for each bucket, captured once"


def test_padding_writes_no_keys(checkpoint: Path, pages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(checkpoint, TritonKernels("triton", False, None, UNITS, RecordedLaunches(monkeypatch)), pages, LIMITS)
    run.logits([(0, 0, 1), (1, 0, 1), (2, 0, 1)])
    mine = {table[0] for table in run.pages.tables.values()}
    written = {int(at) for at in run.cache.layers[0].keys.abs().sum(1).nonzero()[:, 0]}
    assert written == mine


def test_a_step_that_no_graph_holds_is_launched(checkpoint: Path, pages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = RecordedLaunches(monkeypatch)
    run = Run(checkpoint, TritonKernels("triton", False, None, UNITS, recorder), pages, DecodeLimits(2, 1, 16))
    run.logits([(0, 0, 1), (1, 0, 1), (2, 0, 1)])  # too many rows
    run.logits([(0, 1, 20)])
    run.logits([(0, 21, 1)])  # too long a table
    assert not recorder.graphs


@given(st.integers(1, 2000))
def test_buckets_hold_every_number_of_rows_with_little_padding(most: int) -> None:
    buckets = decode_buckets(most)
    assert buckets[-1] == min(most, MOST_ROWS) and list(buckets) == sorted(set(buckets))
    for rows in range(1, buckets[-1] + 1):
        bucket = bucket_of(rows, buckets)
        assert rows <= bucket <= max(2 * rows - 1, rows + 31) and bucket in buckets


def test_no_graph_without_rows() -> None:
    assert decode_buckets(0) == ()


def test_what_waits_for_the_device_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would not see a step that a GPU could not capture."""
    x = torch.ones(3)

    def step() -> None:
        x.fill_(float(x.sum()))

    with pytest.raises(AssertionError, match="waits for the device"):
        RecordedLaunches(monkeypatch).record(step)


def test_a_rank_captures_every_bucket_before_it_serves(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Largest first; nothing is written to the cache, and the memory it takes is given to no block."""
    recorder, progress = RecordedLaunches(monkeypatch), []
    kernels = TritonKernels("triton", False, None, UNITS, recorder)
    spec = RankSpec(checkpoint, "float16", "cpu", Parallel(), 1, 16, 0, graph_rows=3)
    worker = Worker(spec, kernels, Alone(), None)
    monkeypatch.setattr(Worker, "_free_bytes", lambda self: 10**9)
    loaded = worker.load(lambda *step: progress.append(step))
    assert loaded.free_bytes == 10**9 - graph_bytes(ModelConfig.load(checkpoint), 1, 3, 2)
    worker.allocate(8, lambda *step: progress.append(step))
    assert [done for phase, done, total in progress if phase == "capture" and total == 3] == [0, 1, 2, 3]
    assert len(recorder.graphs) == 6
    assert not any(float(layer.keys.abs().sum()) for layer in worker._cache.layers)


def test_ranks_of_a_stage_that_would_capture_other_steps_do_not_start(checkpoint: Path) -> None:
    """Each would wait in a sum for a step that the other never computes."""

    def run(rank: ThreadedRank) -> str:
        place = Parallel(rank.rank, 2)
        spec = RankSpec(checkpoint, "float16", "cpu", place, 1, 16, 0, graph_rows=3 + rank.rank)
        worker = Worker(spec, TritonKernels("triton", False, None, UNITS), rank, None)
        worker.load(lambda *step: None)
        with pytest.raises(InternalError, match="differ in rows") as refused:
            worker.allocate(8, lambda *step: None)
        return str(refused.value)

    assert all("[[3, 8, 16], [4, 8, 16]]" in why for why in on_all_ranks(2, run))


@pytest.mark.parametrize(
    ("error", "raised"),
    [(RuntimeError("not when capturing"), InternalError), (torch.OutOfMemoryError("none left"), NotEnoughMemory)],
)
def test_a_step_that_cannot_be_captured_ends_the_start(
    error: RuntimeError, raised: type[RaylineError], checkpoint: Path
) -> None:
    class Failing:
        def record(self, function: Callable[[], None]) -> Callable[[], None]:
            raise error

    spec = RankSpec(checkpoint, "float16", "cpu", Parallel(), 1, 16, 0, graph_rows=3)
    worker = Worker(spec, TritonKernels("triton", False, None, UNITS, Failing()), Alone(), None)
    worker.load(lambda *step: None)
    with pytest.raises(raised, match=f"of 3 sequences cannot be captured: {error}.*decode_graphs = false"):
        worker.allocate(8, lambda *step: None)


def test_more_sequences_and_larger_models_are_kept_more_memory(checkpoint: Path) -> None:
    config = ModelConfig.load(checkpoint)
    sizes = [graph_bytes(config, 1, rows, 2) for rows in (0, 1, 8, 64, 512, 2000)]
    assert sizes[0] == 0 and sizes == sorted(sizes) and sizes[-1] == sizes[-2]
    narrow = replace(config, vocab_size=1, intermediate_size=4)
    of_ranks = [graph_bytes(narrow, tp_size, 64, 2) for tp_size in (1, 2, 4)]
    assert of_ranks == sorted(set(of_ranks)), "parts of sums"
    assert graph_bytes(config, 2, 64, 2) < graph_bytes(config, 1, 64, 2)
