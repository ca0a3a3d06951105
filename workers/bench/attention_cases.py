"""Attention over the paged cache as `rayline bench kernels` times it, beside torch's attention of the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rayline.kernels.backend import AttentionShape, KvLayer
from rayline.kernels.context import ForwardContext
from rayline.kernels.native_kernels import NativeKernels
from rayline.workers.bench.kernel_bench import Case, Contender, random_bf16, recorded
from rayline.workers.bench.kernel_shapes import ModelShape

BLOCK_TOKENS = 16
DECODED = ((1, 8192), (16, 2048), (64, 2048))  # sequences, and tokens of each
PREFILLED = ((512, 512), (512, 4096))  # newest tokens of one sequence, and all its tokens


@dataclass(frozen=True, slots=True)
class Layout:
    """`sequences` of `length` tokens each, of which the newest `queries` attend."""

    sequences: int
    queries: int
    length: int

    @property
    def scores(self) -> int:
        """Pairs of a query and a key it sees, of one head."""
        hidden = self.queries * (self.queries - 1) // 2
        return self.sequences * (self.queries * self.length - hidden)

    def context(self) -> ForwardContext:
        """Each sequence's blocks lie apart, in scrambled order."""
        rows, width = self.sequences * self.queries, self.length // BLOCK_TOKENS
        blocks = torch.randperm(self.sequences * width, generator=torch.Generator().manual_seed(0))
        tables = blocks.to(torch.int32).view(self.sequences, width)
        positions = torch.arange(self.length - self.queries, self.length).repeat(self.sequences)
        sequence = torch.arange(self.sequences).repeat_interleave(self.queries)
        slots = tables[sequence, positions // BLOCK_TOKENS].long() * BLOCK_TOKENS + positions % BLOCK_TOKENS
        starts = tuple(range(0, rows + 1, self.queries))
        return ForwardContext(positions, slots, starts, (self.length,) * self.sequences, tables, torch.arange(0))


def attention_cases(shape: ModelShape) -> list[Case]:
    """One token of several sequences, and a chunk of one prompt at its start and far into it."""
    decode = [_case(shape, Layout(sequences, 1, length), "decode") for sequences, length in DECODED]
    return [*decode, *(_case(shape, Layout(1, queries, length), "prefill") for queries, length in PREFILLED)]


def _case(shape: ModelShape, layout: Layout, kind: str) -> Case:
    cached = 2 * layout.sequences * layout.length * shape.kv_heads * shape.head_dim
    passed = 2 * layout.sequences * layout.queries * shape.heads * shape.head_dim  # queries in, results out
    return Case(
        "attention",
        f"{kind} {layout.sequences} x {layout.length}"
        if kind == "decode"
        else f"{kind} {layout.queries} of {layout.length}",
        2 * (cached + passed),
        4 * layout.scores * shape.heads * shape.head_dim,
        partial(_attention, shape, layout),
    )


def _attention(shape: ModelShape, layout: Layout, kernels: NativeKernels, copies: int) -> Mapping[str, Contender]:
    """The same bytes serve as our blocks and as torch's contiguous keys and values: both are random."""
    rows, blocks = layout.sequences * layout.queries, layout.sequences * layout.length // BLOCK_TOKENS
    q = random_bf16(rows, shape.heads * shape.head_dim)
    size = (blocks, BLOCK_TOKENS * shape.kv_heads * shape.head_dim)
    layers = [
        KvLayer(random_bf16(*size), random_bf16(*size), BLOCK_TOKENS, shape.kv_heads, shape.head_dim)
        for _ in range(copies)
    ]
    context = layout.context()
    heads = AttentionShape(shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim**-0.5)
    ours = [recorded(kernels, partial(_attend, kernels, heads, layer, context), q, context) for layer in layers]
    theirs = [_contiguous(shape, layout, q, layer) for layer in layers]
    return {"rayline": lambda copy: ours[copy](), "SDPA, not paged": lambda copy: theirs[copy]()}


def _attend(
    kernels: NativeKernels, heads: AttentionShape, layer: KvLayer, context: ForwardContext, q: Tensor
) -> Tensor:
    return kernels.attend(q, heads, layer, context)


def _contiguous(shape: ModelShape, layout: Layout, q: Tensor, layer: KvLayer) -> Callable[[], Tensor]:
    """torch's attention at its best: nothing to gather, and the query heads of a KV head in one product."""
    sequences, group = layout.sequences, shape.heads // shape.kv_heads
    k, v = (part.view(sequences, shape.kv_heads, layout.length, shape.head_dim) for part in (layer.keys, layer.values))
    if layout.queries == 1:
        folded = q.view(sequences, shape.kv_heads, group, shape.head_dim)
        return partial(scaled_dot_product_attention, folded, k, v)
    several = q.view(sequences, shape.heads, layout.queries, shape.head_dim)
    k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
    if layout.queries == layout.length:
        return partial(scaled_dot_product_attention, several, k, v, is_causal=True)
    past = layout.length - layout.queries
    mask = torch.ones(layout.queries, layout.length, dtype=torch.bool).tril(past)
    return partial(scaled_dot_product_attention, several, k, v, attn_mask=mask)
