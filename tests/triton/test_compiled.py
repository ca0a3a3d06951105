"""Decode steps through torch.compile: Rayline's operations in Triton's interpreter, what lies between compiled."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from recorded_launches import RecordedLaunches
from torch import Tensor
from torch._dynamo.aot_compile import SerializableCallable
from torch._ops import OpOverload

from rayline.cluster.parallel import Parallel
from rayline.kernels.backend import AttentionShape, KvLayer
from rayline.kernels.choice import KernelOptions
from rayline.kernels.compiled_triton import CompiledTritonKernels, compiled_rows
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits, GraphedSteps, Recorder
from rayline.kernels.native_quant import Quantisation
from rayline.kernels.opaque_operations import implementations
from rayline.kernels.rowwise import Rowwise
from rayline.kernels.triton_kernels import TritonKernels
from rayline.protos.errors import InternalError
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Alone
from rayline.workers.models.config import ModelConfig
from rayline.workers.models.decoder import Decoder
from rayline.workers.spec import RankSpec
from rayline.workers.weights import Weights
from rayline.workers.worker import Worker

pytestmark = pytest.mark.timeout(900)  # torch.compile takes seconds of a core, which others may want
UNITS = 50
TOKENS = torch.arange(900) * 37 % 100
LIMITS = DecodeLimits(rows=5, width=10, block_tokens=16)
CPU = torch.device("cpu")


class OneByOne(SerializableCallable):
    """A traced graph whose operations are called one after the other, so that they can be recorded."""

    def __init__(self, graph: torch.fx.GraphModule, runs: Mapping[str, Callable[..., Tensor]]) -> None:
        for node in graph.graph.nodes:
            if isinstance(node.target, OpOverload) and node.target.namespace.startswith("rayline_"):
                node.target = runs[node.target.name().split("::")[1]]
        graph.recompile()
        self._graph = graph

    def __call__(self, *inputs: Tensor) -> Any:
        return self._graph(*inputs)

    @classmethod
    def serialize_compile_artifacts(cls, fn: Any) -> bytes:
        raise NotImplementedError

    @classmethod
    def deserialize_compile_artifacts(cls, data: bytes) -> Any:
        raise NotImplementedError


def traced(
    recorder: Recorder, quantisation: Quantisation | None = None, rounding: Rowwise | None = None
) -> CompiledTritonKernels:
    """Kernels whose graphs are traced and called one by one. What an operator runs stands in its place."""
    kernels = CompiledTritonKernels("compiled", quantisation, UNITS, recorder, (), rounding)
    runs = implementations(kernels._opaque.step, kernels._attention, UNITS)
    kernels._compile = partial(compiled_rows, backend=lambda graph, inputs: OneByOne(graph, runs))
    return kernels


PROMPTS = [(0, 98, 2), (1, 0, 3), (2, 39, 1), (3, 0, 2)]  # what lies before is zeros
STEPS = [
    [(0, 100, 1), (1, 3, 1), (2, 40, 1)],  # compiled for many rows, captured for 4, one of them padding
    [(2, 41, 1), (0, 101, 1), (3, 2, 1), (1, 4, 1)],
    [(1, 5, 1), (2, 42, 1), (0, 102, 1)],  # padding where another sequence was
    [(0, 103, 1)],  # compiled for one
    [(3, 3, 1), (0, 104, 1)],  # a bucket that the graph of many rows was not traced with
    [(0, 105, 1), (1, 6, 2)],  # a piece of a prompt: launched
    [(1, 8, 1)],
]


@pytest.fixture(scope="module")
def checkpoint(random_checkpoint: Callable[..., Path]) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    heads = {"head_dim": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    window = {"sliding_window": 62, "layer_types": ["sliding_attention", "full_attention"]}
    return random_checkpoint(
        "qwen3", use_sliding_window=True, max_position_embeddings=900, tie_word_embeddings=True,
        **sizes, **heads, **window,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def counters() -> Iterator[None]:
    torch._dynamo.utils.counters.clear()
    yield


def compilations() -> int:
    """Graphs that torch has captured in this test."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class CalledAgain:
    """Records nothing: a step calls its function. Inductor's own code for CPUs is no launch that could be recorded."""

    def __init__(self) -> None:
        self.graphs = 0

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        self.graphs += 1
        function()
        return function


class Run:
    def __init__(self, path: Path, kernels: TritonKernels, pages: Any, limits: DecodeLimits | None) -> None:
        config = ModelConfig.load(path)
        with Weights.open(path) as weights:
            self.decoder = Decoder(
                config, range(config.layers), weights, Parallel(), Alone(), kernels, torch.float16, CPU
            )
        self.pages = pages(block_tokens=16, blocks=60)
        self.cache = KvCache(config.layers, 60, 16, config.kv_heads, config.head_dim, torch.float16, CPU)
        self.bound = self.decoder.bind(self.cache, limits)

    @torch.inference_mode()
    def logits(self, slices: list[tuple[int, int, int]]) -> Tensor:
        inputs = torch.cat([TOKENS[start : start + count] for _, start, count in slices])
        return self.decoder.forward(inputs, self.cache, self.pages.context(slices)).clone()


def assert_alike(ours: Run, theirs: Run) -> None:
    for slices in (PROMPTS, *STEPS):
        mine, other = ours.logits(slices), theirs.logits(slices)
        torch.testing.assert_close(mine, other, rtol=0, atol=0.01 * float(other.abs().max()))
    for mine_layer, other_layer in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        torch.testing.assert_close(mine_layer.keys, other_layer.keys, rtol=0, atol=0.02)
        torch.testing.assert_close(mine_layer.values, other_layer.values, rtol=0, atol=0.02)
    assert isinstance(ours.bound.body, GraphedSteps) and ours.bound.body.captured == (1, 2, 4)


def test_what_the_compiler_makes_gives_the_logits_of_launched_steps(checkpoint: Path, pages: Any) -> None:
    """Inductor's code between the operations; two graphs serve all buckets, and no later step makes another."""
    again = CalledAgain()
    ours = Run(checkpoint, CompiledTritonKernels("triton-compiled", None, UNITS, again), pages, LIMITS)
    theirs = Run(checkpoint, TritonKernels("triton", False, None, UNITS), pages, None)
    assert_alike(ours, theirs)
    assert compilations() == 4, "the layers and the head, for one row and for more"
    assert again.graphs == 6, "the layers and the head, for 1, 2 and 4 rows"
    with torch._dynamo.config.patch(error_on_recompile=True):
        for slices in STEPS:
            ours.logits(slices)
    assert compilations() == 4 and again.graphs == 6


@pytest.mark.parametrize(
    "weights", ["plain", "w8a8", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("int4", "int8", "fp8"))]
)
def test_replayed_compiled_steps_give_the_logits_of_launched_ones(
    weights: Any, checkpoint: Path, pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traced graph's operations recorded, and run again over other steps without any Python."""
    recorder = RecordedLaunches(monkeypatch)
    quantisation = Quantisation(weights) if weights in ("int4", "int8") else None
    rounding = weights if weights in ("w8a8", "fp8") else None
    kernels = traced(recorder, quantisation, rounding)
    plain = TritonKernels("triton", False, quantisation, UNITS, rounding=rounding)
    assert_alike(Run(checkpoint, kernels, pages, LIMITS), Run(checkpoint, plain, pages, None))
    assert compilations() == 4 and len(recorder.graphs) == 6


def test_padding_writes_no_keys(checkpoint: Path, pages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = RecordedLaunches(monkeypatch)
    kernels = traced(recorder)
    run = Run(checkpoint, kernels, pages, LIMITS)
    run.logits([(0, 0, 1), (1, 0, 1), (2, 0, 1)])
    mine = {table[0] for table in run.pages.tables.values()}
    written = {int(at) for at in run.cache.layers[1].keys.abs().sum(1).nonzero()[:, 0]}
    assert written == mine


class Watched:
    """Attention that notes where the keys it is given lie."""

    def __init__(self) -> None:
        self.places: list[int] = []

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None
    ) -> Tensor:
        self.places.append(layer.keys.data_ptr())
        return q.clone()


def test_the_cache_is_written_where_it_lies(checkpoint: Path, pages: Any) -> None:
    """A compiler that is told of a write may make it to a copy, and copy that back: of the whole cache, each step."""
    kernels = CompiledTritonKernels("compiled", None, UNITS, CalledAgain())
    watched = Watched()
    kernels._opaque = type(kernels._opaque)(watched, UNITS)
    run = Run(checkpoint, kernels, pages, LIMITS)
    run.logits([(0, 0, 1), (1, 0, 1)])
    run.logits([(0, 1, 1)])
    assert set(watched.places) == {layer.keys.data_ptr() for layer in run.cache.layers}
    with torch.profiler.profile(profile_memory=True) as profile:
        run.logits([(0, 2, 1)])
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    largest = max(event.nbytes() for event in results.events() if event.name() == "[memory]")
    assert largest < run.cache.layers[0].keys.nbytes


@pytest.mark.parametrize(("block_tokens", "is_static"), [(16, False), (912, True)], ids=["paged", "static"])
def test_a_rank_compiles_and_captures_before_it_serves(checkpoint: Path, block_tokens: int, is_static: bool) -> None:
    recorder = CalledAgain()
    progress: list[tuple[str, int, int]] = []
    options = KernelOptions(compile=True)
    spec = RankSpec(checkpoint, "float16", "cpu", Parallel(), 1, block_tokens, 0, options, is_static, graph_rows=3)
    worker = Worker(spec, traced(recorder), Alone(), None)
    worker.load(lambda *step: progress.append(step))
    worker.allocate(4, lambda *step: progress.append(step))
    assert [done for phase, done, total in progress if phase == "capture"] == [0, 1, 2, 3]
    assert recorder.graphs == 6 and compilations() == 4
    assert not any(float(layer.keys.abs().sum()) for layer in worker._cache.layers)


def test_a_step_that_cannot_be_compiled_ends_the_start_and_says_what_does_without(checkpoint: Path) -> None:
    def fail(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
        raise torch._dynamo.exc.InternalTorchDynamoError("no such GPU")

    kernels = CompiledTritonKernels("compiled", None, UNITS, CalledAgain())
    kernels._compile = fail
    spec = RankSpec(checkpoint, "float16", "cpu", Parallel(), 1, 16, 0, KernelOptions(compile=True), graph_rows=3)
    worker = Worker(spec, kernels, Alone(), None)
    worker.load(lambda *step: None)
    with pytest.raises(InternalError, match="no such GPU; compile = false does without"):
        worker.allocate(8, lambda *step: None)


def test_nothing_is_compiled_where_nothing_may_be_captured(checkpoint: Path, pages: Any) -> None:
    run = Run(checkpoint, CompiledTritonKernels("compiled", None, UNITS, CalledAgain()), pages, None)
    run.logits([(0, 0, 1), (1, 0, 1)])
    assert compilations() == 0


def test_operators_go_with_the_kernels_they_belong_to() -> None:
    """Else each group that starts in a process would leave its kernels behind."""
    kernels = CompiledTritonKernels("compiled", None, UNITS, CalledAgain())
    operations = weakref.ref(kernels._opaque)
    del kernels
    gc.collect()
    assert operations() is None
