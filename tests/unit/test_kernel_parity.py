"""One parity test for all operations: C++ for each instruction set against torch, the same call on both."""

from dataclasses import dataclass

import pytest
import torch
from kernel_operations import Operation, operations, uncompared
from native import every_isa, native_kernels
from torch import Tensor

from rayline.kernels.backend import AttentionShape, Kernels, KvLayer, RopeTables
from rayline.kernels.context import ForwardContext
from rayline.kernels.rope import inverse_frequencies, rope_tables
from rayline.kernels.torch_kernels import TorchKernels

SHAPE = AttentionShape(heads=6, kv_heads=2, head_dim=32, scale=0.2)
BLOCK_TOKENS, BLOCKS = 16, 12
LENS = (3, 40, 18)  # tokens in the cache after the step
COUNTS = (3, 1, 3)  # of them computed in it


def bf16(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@dataclass(frozen=True)
class Paged:
    """Three sequences of one step, their tables, and a cache in which the earlier steps have been."""

    def context(self, counts: tuple[int, ...], lens: tuple[int, ...]) -> ForwardContext:
        tables = torch.tensor([[9, 0, 0], [4, 2, 7], [5, 1, 0]], dtype=torch.int32)
        positions = [torch.arange(n - count, n) for n, count in zip(lens, counts, strict=True)]
        slots = [
            table[p // BLOCK_TOKENS].long() * BLOCK_TOKENS + p % BLOCK_TOKENS
            for table, p in zip(tables, positions, strict=True)
        ]
        starts = tuple(sum(counts[:s]) for s in range(len(counts) + 1))
        nothing = torch.empty(0, dtype=torch.int64)
        return ForwardContext(torch.cat(positions), torch.cat(slots), starts, lens, tables, nothing)

    def attended(self, kernels: Kernels, shape: AttentionShape, sinks: Tensor | None, norms: bool) -> Tensor:
        """Two steps: the earlier tokens, then the present ones on top of them."""
        size = BLOCK_TOKENS * shape.kv_heads * shape.head_dim
        layer = KvLayer(
            torch.zeros(BLOCKS, size).bfloat16(),
            torch.zeros(BLOCKS, size).bfloat16(),
            BLOCK_TOKENS,
            shape.kv_heads,
            shape.head_dim,
        )
        rope = RopeTables(*rope_tables(inverse_frequencies(shape.head_dim, 10_000.0), max(LENS)))
        qk_norm = (bf16(shape.head_dim, seed=8) + 1, bf16(shape.head_dim, seed=9) + 1) if norms else None
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        earlier = tuple(n - count for n, count in zip(LENS, COUNTS, strict=True))
        out = torch.empty(0)
        for seed, (counts, lens) in enumerate(((earlier, earlier), (COUNTS, LENS))):
            context = self.context(counts, lens)
            q = kernels.write_kv(bf16(sum(counts), width, seed=seed), shape, rope, qk_norm, 1e-5, layer, context)
            out = kernels.attend(q, shape, layer, context, sinks)
        return out


OPERATIONS: dict[str, Operation] = operations(bf16) | {
    "attention": lambda k: Paged().attended(k, SHAPE, None, norms=False),
    "attention with head norms": lambda k: Paged().attended(k, SHAPE, None, norms=True),
    "attention in a window": lambda k: Paged().attended(k, AttentionShape(6, 2, 32, 0.2, window=5), None, norms=False),
    "attention with a soft cap": lambda k: Paged().attended(
        k, AttentionShape(6, 2, 32, 0.2, soft_cap=1.5), None, norms=False
    ),
    "attention with sinks": lambda k: Paged().attended(k, SHAPE, torch.linspace(-1, 2, 6), norms=False),
}


@every_isa
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_in_cpp_gives_what_torch_gives(name: str, isa: str) -> None:
    """Within two roundings to bf16 of the largest number: sums go in another order, their inputs are rounded alike."""
    kernels = native_kernels(isa)
    ours, theirs = OPERATIONS[name](kernels), OPERATIONS[name](TorchKernels())
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    tolerance = 2 * 2.0**-8 * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert float(theirs.abs().max()) > 0.1


def test_every_operation_of_the_interface_is_compared() -> None:
    assert not uncompared(OPERATIONS)
