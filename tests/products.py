"""Products that kernels are compared by: what they are given, and how near the result must come."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

UNITS = 50  # processors of a device that is not there: enough to cut every depth


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Product:
    """x [rows, depth] by a weight [columns, depth], + bias."""

    rows: int
    columns: int
    depth: int
    has_bias: bool
    is_wide: bool
    dtype: torch.dtype

    @property
    def x(self) -> Tensor:
        return numbers(self.rows, self.depth).to(self.dtype)

    @property
    def weight(self) -> Tensor:
        return numbers(self.columns, self.depth, seed=1).to(self.dtype)

    @property
    def bias(self) -> Tensor | None:
        return numbers(self.columns, seed=2).to(self.dtype) if self.has_bias and not self.is_wide else None

    def of(self, x: Tensor, weight: Tensor) -> Tensor:
        """In fp64, of these numbers."""
        return x.double() @ weight.double().T + (0 if self.bias is None else self.bias.double())

    def expect_near(self, ours: Tensor, theirs: Tensor) -> None:
        """Within the rounding of the result, and that of sums in fp32."""
        assert ours.dtype == (torch.float32 if self.is_wide else self.dtype)
        rounding = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=rounding, atol=2e-6 * self.depth)


def products(
    rows: st.SearchStrategy[int],
    columns: st.SearchStrategy[int],
    depths: st.SearchStrategy[int],
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float16),
) -> st.SearchStrategy[Product]:
    return st.builds(Product, rows, columns, depths, st.booleans(), st.booleans(), st.sampled_from(dtypes))
