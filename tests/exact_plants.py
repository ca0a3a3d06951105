"""Kernels with a planted fault: what the exactness tests must find."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from rayline.kernels.backend import Weight
from rayline.kernels.graphs import DecodeLimits, Function
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.sampling import SamplingRows
from rayline.workers.sampler import SampleRequest, sampling_rows


class SumsByBatch(NativeKernels):
    """Sums a product along its depth in one piece when several rows come, in the tree's order when one comes."""

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        return super().linear(x, _by_rows(x, weight), bias)

    def linear_fp32(self, x: Tensor, weight: Weight) -> Tensor:
        return super().linear_fp32(x, _by_rows(x, weight))

    def replay(self, function: Function, limits: DecodeLimits | None = None) -> Function:  # type: ignore[override]
        """Not recorded: a program does not know how many rows come."""
        return function


def _by_rows(x: Tensor, weight: Weight) -> Weight:
    return weight if len(x) == 1 else replace(weight, segments=1)


def noise_by_row(requests: Sequence[SampleRequest], eos_ids: Sequence[int], vocab_size: int) -> SamplingRows:
    """As `sampling_rows`, but a row's noise also depends on its place in the batch."""
    rows = sampling_rows(requests, eos_ids, vocab_size)
    return replace(rows, seed=tuple(seed + at for at, seed in enumerate(rows.seed)))
