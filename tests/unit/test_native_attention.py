"""Paged attention in C++: right by torch, and the same bits for a query however it came to be asked."""

import math
import resource
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import pytest
import torch
from native import every_isa, library_or_skip, native_kernels
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rayline.kernels.backend import AttentionShape, KvLayer, RopeTables
from rayline.kernels.context import ForwardContext
from rayline.kernels.library import ISAS
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.norm import rms_norm
from rayline.kernels.rope import inverse_frequencies, rope_tables, rotate

EPS = 1e-6
POSITIONS = 2048
BF16_ERROR = 3e-3  # of a result rounded to bf16, relative to the norm; 2^-9 at most for each number


@dataclass(frozen=True)
class Slice:
    """Tokens [start, start + count) of a sequence, whose earlier tokens are in the cache."""

    sequence: int
    start: int
    count: int


class Cache:
    """Sequences of projected tokens in one paged layer, as a model's layer would hold them."""

    def __init__(self, shape: AttentionShape, lengths: list[int], block_tokens: int = 16, seed: int = 0) -> None:
        self.shape, self.block_tokens = shape, block_tokens
        width = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
        tokens = torch.Generator().manual_seed(1)
        self.qkv = [2 * torch.randn(length, width, generator=tokens).bfloat16() for length in lengths]
        blocks = [-(-length // block_tokens) for length in lengths]
        order = torch.randperm(sum(blocks), generator=torch.Generator().manual_seed(seed)).int() + 1
        self.tables = torch.zeros(len(lengths), max(blocks), dtype=torch.int32)
        for row, ids in zip(self.tables, order.split(blocks), strict=True):
            row[: len(ids)] = ids
        size = (sum(blocks) + 1, block_tokens * shape.kv_heads * shape.head_dim)
        keys, values = (torch.zeros(size, dtype=torch.bfloat16) for _ in range(2))
        self.layer = KvLayer(keys, values, block_tokens, shape.kv_heads, shape.head_dim)
        self.rope = RopeTables(*rope_tables(inverse_frequencies(shape.head_dim, 10000.0), POSITIONS))

    def context(self, slices: list[Slice]) -> ForwardContext:
        rows = torch.tensor([s.sequence for s in slices])
        at = [torch.arange(s.start, s.start + s.count) for s in slices]
        slots = [
            self.tables[s.sequence].long()[positions // self.block_tokens] * self.block_tokens
            + positions % self.block_tokens
            for s, positions in zip(slices, at, strict=True)
        ]
        starts = tuple(accumulate((s.count for s in slices), initial=0))
        lens = tuple(s.start + s.count for s in slices)
        return ForwardContext(torch.cat(at), torch.cat(slots), starts, lens, self.tables[rows], rows)

    def inputs(self, slices: list[Slice]) -> Tensor:
        return torch.cat([self.qkv[s.sequence][s.start : s.start + s.count] for s in slices])

    def step(self, kernels: NativeKernels, slices: list[Slice], sinks: Tensor | None = None) -> Tensor:
        """What a layer computes of some tokens. [T, heads, head_dim]"""
        context = self.context(slices)
        q = kernels.write_kv(self.inputs(slices), self.shape, self.rope, None, EPS, self.layer, context)
        out = kernels.attend(q, self.shape, self.layer, context, sinks)
        return out.view(-1, self.shape.heads, self.shape.head_dim)

    def turned(self, sequence: int) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a whole sequence by the torch functions. Each [n, heads, head_dim]."""
        shape, length = self.shape, len(self.qkv[sequence])
        heads = self.qkv[sequence].view(length, shape.heads + 2 * shape.kv_heads, shape.head_dim)
        qk, v = heads.tensor_split([shape.heads + shape.kv_heads], dim=1)
        q, k = rotate(qk, self.rope.cos[:length], self.rope.sin[:length]).tensor_split([shape.heads], dim=1)
        return q, k, v


def in_fp64(cache: Cache, sequence: int, sinks: Tensor | None = None) -> Tensor:
    """The attention of a whole sequence, written out. [n, heads, head_dim]"""
    shape = cache.shape
    q, k, v = (part.double() for part in cache.turned(sequence))
    k, v = (part.repeat_interleave(shape.heads // shape.kv_heads, dim=1) for part in (k, v))
    scores = torch.einsum("nhd,khd->hnk", q, k) * shape.scale
    if shape.soft_cap:
        scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
    age = torch.arange(len(q))[:, None] - torch.arange(len(q))
    is_visible = (age >= 0) & (age < (shape.window or len(q)))
    scores = scores.masked_fill(~is_visible, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, len(q), 1)), dim=-1)
    return torch.einsum("hnk,khd->nhd", scores.softmax(-1)[:, :, : len(q)], v)


def shape_of(heads: int, kv_heads: int, head_dim: int) -> AttentionShape:
    return AttentionShape(heads, kv_heads, head_dim, head_dim**-0.5)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


SMALL = shape_of(4, 2, 32)
VARIANTS = {
    "plain": SMALL,
    "window": replace(SMALL, window=70),
    "narrow window": replace(SMALL, window=5),
    "soft cap": replace(SMALL, soft_cap=8.0),
    "all": replace(SMALL, window=40, soft_cap=8.0),
}
variants = pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.0, 3.0, -2.0, 9.0])], ids=["no sinks", "sinks"])
@variants
def test_a_ragged_batch_is_attention_in_fp64(shape: AttentionShape, sinks: Tensor | None) -> None:
    lengths = [1, 16, 17, 64, 65, 190, 600]
    cache, kernels = Cache(shape, lengths), native_kernels()
    past = [0, 5, 16, 0, 64, 100, 599]
    cache.step(kernels, [Slice(i, 0, count) for i, count in enumerate(past) if count])
    slices = [Slice(i, start, length - start) for i, (start, length) in enumerate(zip(past, lengths, strict=True))]
    got = cache.step(kernels, slices, sinks).split([s.count for s in slices])
    for part, piece in zip(got, slices, strict=True):
        assert error(part, in_fp64(cache, piece.sequence, sinks)[piece.start :]) < BF16_ERROR


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("ratio", [1, 2, 4, 7, 8, 12])
def test_every_head_size_and_ratio_is_torchs_attention(head_dim: int, ratio: int) -> None:
    cache = Cache(shape_of(2 * ratio, 2, head_dim), [75], block_tokens=32)
    got = cache.step(native_kernels(), [Slice(0, 0, 75)])
    q, k, v = (part.float().transpose(0, 1)[None] for part in cache.turned(0))
    wanted = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)
    assert error(got, wanted) < BF16_ERROR


@pytest.mark.parametrize("head_dim", [16, 64, 96])
@every_isa
def test_rope_is_torchs_bit_for_bit(isa: str, head_dim: int) -> None:
    cache = Cache(shape_of(6, 2, head_dim), [100])
    kernels, context = native_kernels(isa), cache.context([Slice(0, 0, 100)])
    q = kernels.write_kv(cache.qkv[0], cache.shape, cache.rope, None, EPS, cache.layer, context)
    assert torch.equal(q.view(100, 6, head_dim), cache.turned(0)[0])


def test_keys_and_values_lie_where_the_layout_says() -> None:
    cache = Cache(shape_of(6, 2, 48), [100], block_tokens=64)
    context = cache.context([Slice(0, 0, 100)])
    native_kernels().write_kv(cache.qkv[0], cache.shape, cache.rope, None, EPS, cache.layer, context)
    _, k, v = cache.turned(0)
    # keys [block, head, tile, dim / 2, token, 2], values [block, head, tile, token / 2, dim, 2]
    keys = cache.layer.keys.view(-1, 2, 4, 24, 16, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 2, 48)
    values = cache.layer.values.view(-1, 2, 4, 8, 48, 2).permute(0, 2, 3, 5, 1, 4).reshape(-1, 2, 48)
    assert torch.equal(keys[context.slots], k)
    assert torch.equal(values[context.slots], v)
    assert keys.count_nonzero() == k.count_nonzero(), "other slots are untouched"


def test_queries_and_keys_are_normed_head_by_head() -> None:
    cache, generator = Cache(SMALL, [50]), torch.Generator().manual_seed(0)
    weights = [torch.rand(32, generator=generator).bfloat16() + 0.5 for _ in range(2)]
    context = cache.context([Slice(0, 0, 50)])
    q = native_kernels().write_kv(cache.qkv[0], SMALL, cache.rope, (weights[0], weights[1]), EPS, cache.layer, context)
    normed = rms_norm(cache.qkv[0].view(50, 8, 32)[:, :4], weights[0], EPS)
    wanted = rotate(normed, cache.rope.cos[:50], cache.rope.sin[:50])
    differs = q.view(50, 4, 32) != wanted
    assert differs.float().mean() < 0.01, "the norm's sum has another order, which moves few roundings"
    assert torch.allclose(q.view(50, 4, 32).float(), wanted.float(), rtol=2**-6)
    keys = cache.layer.keys.view(-1, 2, 1, 16, 16, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 2, 32)[context.slots]
    wanted = rotate(
        rms_norm(cache.qkv[0].view(50, 8, 32)[:, 4:6], weights[1], EPS), cache.rope.cos[:50], cache.rope.sin[:50]
    )
    assert torch.allclose(keys.float(), wanted.float(), rtol=2**-6)


@variants
def test_a_prompt_has_the_same_bits_whole_in_chunks_and_token_by_token(shape: AttentionShape) -> None:
    length, kernels = 590, native_kernels()
    whole = Cache(shape, [length]).step(kernels, [Slice(0, 0, length)])
    for cuts in ([100, 101, 128, 513], [64, 512], [1, 3, 17], list(range(500, 590)), list(range(1, 590, 37))):
        cache, bounds = Cache(shape, [length]), [0, *cuts, length]
        chunks = [cache.step(kernels, [Slice(0, first, last - first)]) for first, last in pairwise(bounds)]
        assert torch.equal(torch.cat(chunks), whole), cuts


@variants
def test_a_sequence_has_the_same_bits_in_any_batch(shape: AttentionShape) -> None:
    lengths, kernels = [70, 530, 3, 200, 1100], native_kernels()
    cache = Cache(shape, lengths)
    slices = [Slice(i, 0, length) for i, length in enumerate(lengths)]
    together = cache.step(kernels, slices).split(lengths)
    for order in ([4, 1], [2, 0, 3], [1]):
        alone = cache.step(kernels, [slices[i] for i in order]).split([lengths[i] for i in order])
        for i, part in zip(order, alone, strict=True):
            assert torch.equal(part, together[i])
    tokens = cache.step(kernels, [Slice(i, length - 1, 1) for i, length in enumerate(lengths)])
    for token, part in zip(tokens, together, strict=True):
        assert torch.equal(token, part[-1])


@pytest.mark.parametrize("block_tokens", [16, 32, 64, 256, 1024])
def test_blocks_of_any_size_in_any_order_give_the_same_bits(block_tokens: int) -> None:
    slices, kernels = [Slice(0, 0, 600), Slice(1, 0, 90)], native_kernels()
    wanted = Cache(SMALL, [600, 90]).step(kernels, slices)
    assert torch.equal(Cache(SMALL, [600, 90], block_tokens, seed=7).step(kernels, slices), wanted)


@pytest.mark.parametrize("threads", [2, 3])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    """With one KV head and one long sequence, the parts of its keys go to several threads."""
    shape, lengths = shape_of(2, 1, 64), [1900, 40]
    cache, slices = Cache(shape, lengths), [Slice(0, 0, 1900), Slice(1, 0, 40)]
    sinks = torch.tensor([1.0, -1.0])
    wanted = cache.step(native_kernels(), slices, sinks)
    kernels = native_kernels(threads=threads)
    assert torch.equal(cache.step(kernels, slices, sinks), wanted)
    assert torch.equal(cache.step(kernels, [Slice(0, 1899, 1)], sinks)[0], wanted[1899])
    assert torch.equal(cache.step(kernels, [Slice(1, 39, 1), Slice(0, 1890, 10)], sinks)[1:], wanted[1890:1900])


@pytest.mark.parametrize("isa", ISAS[1:])
@pytest.mark.parametrize("head_dim", [16, 80])
def test_every_instruction_set_gives_the_same_bits(isa: str, head_dim: int) -> None:
    library_or_skip(ISAS[0])
    shape = replace(shape_of(7, 1, head_dim), window=90, soft_cap=6.0)
    slices = [Slice(0, 0, 140), Slice(1, 0, 33)]
    sinks = torch.linspace(-2, 2, 7)
    wanted = Cache(shape, [140, 33]).step(native_kernels(ISAS[0]), slices, sinks)
    assert torch.equal(Cache(shape, [140, 33]).step(native_kernels(isa), slices, sinks), wanted)


def test_nothing_behind_a_sequences_end_is_read() -> None:
    """Slots of its last block that another request left full of NaN change nothing."""
    kernels, slices = native_kernels(), [Slice(0, 0, 53)]
    wanted = Cache(SMALL, [53]).step(kernels, slices)
    cache = Cache(SMALL, [53])
    cache.layer.keys.fill_(math.nan)
    cache.layer.values.fill_(math.nan)
    assert torch.equal(cache.step(kernels, slices), wanted)
    assert torch.equal(cache.step(kernels, [Slice(0, 52, 1)]), wanted[52:])


def test_memory_grows_linearly_up_to_32_k_tokens() -> None:
    """FlashAttention's property: no tensor of queries by keys. In bf16 that one would have 2 GiB here."""
    kernels, shape, length = native_kernels(), shape_of(1, 1, 16), 2**15
    layer = KvLayer(*(torch.zeros(length // 256, 256 * 16, dtype=torch.bfloat16) for _ in range(2)), 256, 1, 16)
    at = torch.arange(length)
    context = ForwardContext(at, at, (0, length), (length,), torch.arange(length // 256)[None].int(), at)
    q = torch.ones(length, 16, dtype=torch.bfloat16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kernels.attend(q, shape, layer, context)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown_bytes < 256 * length
