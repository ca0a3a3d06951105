"""The operations that `rayline bench kernels` times, each with torch's ways to compute the same.

To add an operation, write a function that gives its cases for a model's shape, and name it in `CASES` and in
kernel_shapes.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from rayline.kernels import onednn
from rayline.kernels.backend import Weight
from rayline.kernels.edits import Edit, mask_of
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.sampling import SamplingRows, sample
from rayline.workers.bench.attention_cases import attention_cases
from rayline.workers.bench.kernel_bench import Case, Contender, random_bf16, recorded
from rayline.workers.bench.kernel_shapes import ModelShape
from rayline.workers.bench.quantised_cases import quantised_cases
from rayline.workers.collectives import Alone
from rayline.workers.layers import SEGMENTS
from rayline.workers.token_sampler import NativeSampler

EPS = 1e-5
DECODE_ROWS = (1, 8, 32)
PREFILL_ROWS = 512
OURS, TORCH = "rayline", "torch"


# ---- products


def linear_cases(shape: ModelShape) -> list[Case]:
    """Every matrix of a layer at decode and prefill sizes; the head only with as many rows as are sampled."""
    query = shape.heads * shape.head_dim
    matrices = [
        Matrix(shape.hidden, query + 2 * shape.kv_heads * shape.head_dim),
        Matrix(query, shape.hidden, SEGMENTS),
        Matrix(shape.hidden, 2 * shape.intermediate),
        Matrix(shape.intermediate, shape.hidden, SEGMENTS),
    ]
    head = Matrix(shape.hidden, shape.vocab)
    layer = [linear_case(rows, matrix) for matrix in matrices for rows in (*DECODE_ROWS, PREFILL_ROWS)]
    return [*layer, *(linear_case(rows, head) for rows in DECODE_ROWS)]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight [columns, depth], and the leaves of the tree that sums its products."""

    depth: int
    columns: int
    segments: int = 1


def linear_case(rows: int, matrix: Matrix) -> Case:
    columns, depth = matrix.columns, matrix.depth
    moved = 2 * (columns * depth + rows * depth + rows * columns)
    return Case(
        "linear", f"{rows} x {depth} x {columns}", moved, 2 * rows * columns * depth, partial(_linear, rows, matrix)
    )


def _linear(rows: int, matrix: Matrix, kernels: NativeKernels, copies: int) -> Mapping[str, Contender]:
    x = random_bf16(rows, matrix.depth)
    plain = [random_bf16(matrix.columns, matrix.depth) for _ in range(copies)]
    ours = [recorded(kernels, partial(_times, kernels, kernels.pack([each], matrix.segments)), x) for each in plain]
    found: dict[str, Contender] = {OURS: lambda copy: ours[copy]()}
    if onednn.is_available():
        packed = [onednn.pack(weight) for weight in plain]
        found["oneDNN prepacked"] = lambda copy: onednn.linear(x, packed[copy])
    found["F.linear"] = lambda copy: functional.linear(x, plain[copy])
    return found


def _times(kernels: NativeKernels, weight: Weight, x: Tensor) -> Tensor:
    return kernels.linear(x, weight)


# ---- between the products


def norm_cases(shape: ModelShape) -> list[Case]:
    """The residual sum and its norm."""
    return [
        Case(
            "norm", f"{rows} x {shape.hidden}", 2 * (4 * rows + 1) * shape.hidden, 0, partial(_norm, rows, shape.hidden)
        )
        for rows in (1, 32, PREFILL_ROWS)
    ]


def _norm(rows: int, dim: int, kernels: NativeKernels, copies: int) -> Mapping[str, Contender]:
    residual, weight = random_bf16(rows, dim), random_bf16(dim)
    inputs = [random_bf16(rows, dim) for _ in range(copies)]
    ours = [recorded(kernels, lambda x: kernels.add_rms_norm(x, residual, weight, EPS)[0], x) for x in inputs]
    return {
        OURS: lambda copy: ours[copy](),
        TORCH: lambda copy: functional.rms_norm(inputs[copy] + residual, (dim,), weight, EPS),
    }


def silu_cases(shape: ModelShape) -> list[Case]:
    """The gate of SwiGLU."""
    dim = shape.intermediate
    return [
        Case("silu", f"{rows} x {dim}", 2 * 3 * rows * dim, 0, partial(_silu, rows, dim))
        for rows in (1, 32, PREFILL_ROWS)
    ]


def _silu(rows: int, dim: int, kernels: NativeKernels, copies: int) -> Mapping[str, Contender]:
    inputs = [random_bf16(rows, 2 * dim) for _ in range(copies)]
    ours = [recorded(kernels, kernels.silu_gate, x) for x in inputs]
    return {
        OURS: lambda copy: ours[copy](),
        TORCH: lambda copy: functional.silu(inputs[copy][:, :dim]) * inputs[copy][:, dim:],
    }


# ---- sampling


@dataclass(frozen=True, slots=True)
class Draw:
    """How tokens are drawn. penalised: so many logits are lowered first; masked: half of all ids are forbidden."""

    name: str
    temperature: float = 1.0
    top_p: float = 1.0
    typical_p: float = 1.0
    top_n_sigma: float = 0.0
    penalised: int = 0
    masked: bool = False
    logprobs: int | None = None


DRAWS = (
    Draw("greedy", 0.0),
    Draw("random"),
    Draw("top-p 0.9", top_p=0.9),
    Draw("typical-p 0.9", typical_p=0.9),
    Draw("top-n-sigma 1", top_n_sigma=1.0),
    Draw("penalties", penalised=1000),
    Draw("mask", masked=True),
    Draw("penalties, top-p 0.9, 5 logprobs", top_p=0.9, penalised=1000, logprobs=5),
)


def sample_cases(shape: ModelShape) -> list[Case]:
    """From logits to tokens; of the bytes only the logits count."""
    return [
        Case("sample", f"{rows} x {shape.vocab} {draw.name}", 4 * rows * shape.vocab, 0, build)
        for rows in (1, 32)
        for draw in DRAWS
        for build in [partial(_sample, rows, shape.vocab, draw)]
    ]


def _sample(rows: int, vocab: int, draw: Draw, kernels: NativeKernels, copies: int) -> Mapping[str, Contender]:
    generator = torch.Generator().manual_seed(0)
    logits = [4.0 * torch.randn(rows, vocab, generator=generator) for _ in range(copies)]
    several = tuple(range(rows))
    how = SamplingRows(
        temperature=(draw.temperature,) * rows,
        top_k=(0,) * rows,
        top_p=(draw.top_p,) * rows,
        min_p=(0.0,) * rows,
        typical_p=(draw.typical_p,) * rows,
        top_n_sigma=(draw.top_n_sigma,) * rows,
        seed=several,
        position=several,
        edits=(_edit(draw, vocab),) * rows,
        logprobs=(draw.logprobs,) * rows,
    )
    ours = NativeSampler(kernels, Alone(), vocab, 0)
    return {OURS: lambda copy: ours.sample(logits[copy], how), TORCH: lambda copy: sample(logits[copy], how)}


def _edit(draw: Draw, vocab: int) -> Edit | None:
    if not draw.penalised and not draw.masked:
        return None
    seen = torch.arange(0, vocab, -(-vocab // draw.penalised)) if draw.penalised else None
    counts = None if seen is None else torch.ones(len(seen))
    mask = mask_of(range(0, vocab, 2), vocab) if draw.masked else None
    return Edit(seen, counts, frequency_penalty=0.5, presence_penalty=0.5, mask=mask)


# ---- the list


CASES: Mapping[str, Callable[[ModelShape], Sequence[Case]]] = {
    "linear": linear_cases,
    "quantised": quantised_cases,
    "attention": attention_cases,
    "norm": norm_cases,
    "silu": silu_cases,
    "sample": sample_cases,
}


def cases(shape: ModelShape, operations: Sequence[str]) -> list[Case]:
    """All cases of these operations, in the order of `CASES`."""
    return [case for name, make in CASES.items() if name in operations for case in make(shape)]
