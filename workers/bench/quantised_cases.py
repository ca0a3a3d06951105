"""Products with rounded weights as `rayline bench kernels` times them, beside the bf16 product of the same matrix."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor

from rayline.kernels.backend import Weight
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.native_quant import BITS, Quantisation
from rayline.workers.bench.kernel_bench import Case, Contender, random_bf16, recorded
from rayline.workers.bench.kernel_shapes import ModelShape

WAYS = (
    Quantisation("int8"),
    Quantisation("int8", "int8"),
    Quantisation("int4"),
    Quantisation("int4", "int8"),
)
ROWS = (1, 8, 32, 512)
SCALE_BYTES = 4  # of each column and group


def quantised_cases(shape: ModelShape) -> list[Case]:
    """The largest matrix of a layer, at decode and prefill sizes."""
    return [quantised_case(rows, shape.hidden, 2 * shape.intermediate, way) for way in WAYS for rows in ROWS]


def quantised_case(rows: int, depth: int, columns: int, way: Quantisation) -> Case:
    groups = -(-depth // way.group_of(way.weights))
    weight_bytes = columns * (depth * BITS[way.weights] // 8 + groups * SCALE_BYTES)
    return Case(
        "quantised",
        f"{rows} x {depth} x {columns} {way.name}",
        weight_bytes + 2 * rows * (depth + columns),
        2 * rows * columns * depth,
        partial(_quantised, rows, depth, columns, way),
        "int8" if way.activations == "int8" else "float",
    )


def _quantised(
    rows: int, depth: int, columns: int, way: Quantisation, kernels: NativeKernels, copies: int
) -> Mapping[str, Contender]:
    x, plain = random_bf16(rows, depth), random_bf16(columns, depth)
    rounding = NativeKernels(kernels.operations, way)

    def ours(chosen: NativeKernels) -> Contender:
        weights = [chosen.pack([plain]) for _ in range(copies)]
        programs = [recorded(chosen, partial(_times, chosen, weight), x) for weight in weights]
        return lambda copy: programs[copy]()

    return {"rayline": ours(rounding), "rayline, bf16 weights": ours(kernels)}


def _times(kernels: NativeKernels, weight: Weight, x: Tensor) -> Tensor:
    return kernels.linear(x, weight)
