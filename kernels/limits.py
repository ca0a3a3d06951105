"""What a machine can do at most, as it was measured: the figures that others are held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class MachineLimits:
    """Of the threads that measured. Operations are multiplications and additions, each counted.

    None: the CPU has no instruction for it (512-bit dot products of bf16, of int8).
    """

    read_bytes_per_s: float
    fma_flops_per_s: float
    bf16_flops_per_s: float | None
    int8_ops_per_s: float | None

    @property
    def flops_per_s(self) -> float:
        """Of products of bf16 or fp32 numbers, by whichever instruction is quicker."""
        return max(self.fma_flops_per_s, self.bf16_flops_per_s or 0.0)

    @property
    def int8_or_flops_per_s(self) -> float:
        """Of products of 8-bit numbers, which can be computed in fp32 too."""
        return max(self.flops_per_s, self.int8_ops_per_s or 0.0)


def median_limits(samples: Sequence[MachineLimits]) -> MachineLimits:
    """Of at least one sample of one machine, each figure by itself."""
    return MachineLimits(
        read_bytes_per_s=median(sample.read_bytes_per_s for sample in samples),
        fma_flops_per_s=median(sample.fma_flops_per_s for sample in samples),
        bf16_flops_per_s=_median_or_none([sample.bf16_flops_per_s for sample in samples]),
        int8_ops_per_s=_median_or_none([sample.int8_ops_per_s for sample in samples]),
    )


def _median_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
