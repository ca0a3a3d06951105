"""The torch kernels against their definitions, written out plainly in fp64."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import library_or_skip
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rayline.kernels import attention, onednn
from rayline.kernels import choice as choice_module
from rayline.kernels.activation import silu_gate
from rayline.kernels.attention import PagedKv, paged_attention
from rayline.kernels.backend import AttentionShape
from rayline.kernels.cache import write_cache
from rayline.kernels.choice import KernelOptions, Unfit, choose
from rayline.kernels.context import ForwardContext
from rayline.kernels.gpu import Gpu, triton_misfit
from rayline.kernels.library import Library, LibraryMissing
from rayline.kernels.norm import add_rms_norm, rms_norm
from rayline.kernels.rope import inverse_frequencies, llama3_frequencies, rope_tables, rotate
from rayline.kernels.torch_kernels import ONEDNN, PLAIN, Products, TorchKernels
from rayline.kernels.tree import join_pairwise


@dataclass(frozen=True)
class Case:
    """Slices of a step: (keys, queries) of each sequence, queries being its newest tokens."""

    slices: list[tuple[int, int]]
    kv_heads: int
    group: int
    block_tokens: int
    window: int | None
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = st.integers(1, 40)
    one_token = st.tuples(lengths, st.just(1))
    any_number = lengths.flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
    return Case(
        slices=draw(st.lists(one_token, min_size=1, max_size=6) | st.lists(one_token | any_number, min_size=1)),
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.integers(1, 3)),
        block_tokens=draw(st.sampled_from([1, 3, 8])),
        window=draw(st.none() | st.integers(1, 45)),
        seed=draw(st.integers(0, 999)),
    )


class PagedCase:
    """A case with random numbers in it: keys and values in order, and the same in scattered blocks."""

    DIM = 6

    def __init__(self, case: Case) -> None:
        self.case = case
        random = torch.Generator().manual_seed(case.seed)
        heads = case.kv_heads * case.group
        widths = [-(-length // case.block_tokens) for length, _ in case.slices]
        order = torch.randperm(sum(widths) + 3, generator=random)
        shape = (len(order), case.block_tokens, case.kv_heads, self.DIM)
        # Numbers nobody may see stand in every slot that is not written.
        self.keys, self.values = (torch.full(shape, 1e3) for _ in range(2))
        self.tables = torch.zeros((len(widths), max(widths)), dtype=torch.int32)
        self.k = [torch.randn(n, case.kv_heads, self.DIM, generator=random) for n, _ in case.slices]
        self.v = [torch.randn(n, case.kv_heads, self.DIM, generator=random) for n, _ in case.slices]
        used = 0
        for s, (length, _) in enumerate(case.slices):
            blocks = order[used : used + widths[s]]
            used += widths[s]
            self.tables[s, : widths[s]] = blocks
            places = torch.arange(length)
            slots = blocks[places // case.block_tokens] * case.block_tokens + places % case.block_tokens
            write_cache(self.keys, self.values, slots, self.k[s], self.v[s])
        counts = [count for _, count in case.slices]
        self.starts = tuple(sum(counts[:s]) for s in range(len(counts) + 1))
        self.lens = tuple(length for length, _ in case.slices)
        self.positions = torch.cat([torch.arange(length - count, length) for length, count in case.slices])
        self.q = torch.randn(sum(counts), heads, self.DIM, generator=random)
        self.soft_cap: float | None = None
        self.sinks: Tensor | None = None

    def ours(self, scale: float) -> Tensor:
        nothing = torch.empty(0, dtype=torch.int64)
        context = ForwardContext(self.positions, nothing, self.starts, self.lens, self.tables, nothing)
        kv_heads = self.case.kv_heads
        shape = AttentionShape(kv_heads * self.case.group, kv_heads, self.DIM, scale, self.case.window, self.soft_cap)
        return paged_attention(self.q, PagedKv(self.keys, self.values), context, shape, self.sinks)

    def naive(self, scale: float) -> Tensor:
        """softmax(q k^T scale) v, one query and one head at a time."""
        out = torch.empty_like(self.q, dtype=torch.float64)
        for s, (first, last) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            for t in range(first, last):
                newest = int(self.positions[t])
                oldest = max(0, newest - self.case.window + 1) if self.case.window else 0
                for head in range(self.q.shape[1]):
                    k, v = (x[s][oldest : newest + 1, head // self.case.group].double() for x in (self.k, self.v))
                    scores = k @ self.q[t, head].double() * scale
                    if self.soft_cap is not None:
                        scores = self.soft_cap * torch.tanh(scores / self.soft_cap)
                    if self.sinks is not None:
                        scores = torch.cat((scores, self.sinks[head : head + 1].double()))
                    out[t, head] = torch.softmax(scores, dim=0)[: len(v)] @ v
        return out


@given(cases())
@settings(deadline=None, max_examples=150)
def test_paged_attention_is_softmax_attention(case: Case) -> None:
    paged = PagedCase(case)
    torch.testing.assert_close(paged.ours(0.4).double(), paged.naive(0.4), rtol=0, atol=1e-5)


@given(cases(), st.sampled_from([None, 2.0]))
@settings(deadline=None, max_examples=60)
def test_attention_with_sinks_and_a_soft_cap_is_its_formula(case: Case, soft_cap: float | None) -> None:
    paged = PagedCase(case)
    paged.soft_cap = soft_cap
    paged.sinks = torch.linspace(-2, 3, paged.q.shape[1])
    torch.testing.assert_close(paged.ours(0.4).double(), paged.naive(0.4), rtol=0, atol=1e-5)


@given(cases())
@settings(deadline=None, max_examples=60)
def test_small_tiles_and_batches_change_nothing(case: Case) -> None:
    paged = PagedCase(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_TILE", 4)
        patch.setattr(attention, "GATHERED_BYTES", 30 * paged.keys[0, 0].nbytes)
        torch.testing.assert_close(paged.ours(0.4).double(), paged.naive(0.4), rtol=0, atol=1e-5)


def test_attention_reads_16_bit_caches() -> None:
    paged = PagedCase(Case([(20, 1), (33, 12)], kv_heads=2, group=2, block_tokens=8, window=None, seed=1))
    exact = paged.naive(0.4)
    paged.q, paged.keys, paged.values = (x.bfloat16() for x in (paged.q, paged.keys, paged.values))
    ours = paged.ours(0.4)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=0.05)


def test_long_prefill_never_makes_a_mask_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0

    def watched(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, scale: float) -> Tensor:
        nonlocal largest
        largest = max(largest, attn_mask.numel())
        return scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    PagedCase(Case([(4000, 4000)], kv_heads=1, group=1, block_tokens=8, window=None, seed=0)).ours(1.0)
    assert largest <= attention.QUERY_TILE * 4000
    largest = 0
    PagedCase(Case([(4000, 4000)], kv_heads=1, group=1, block_tokens=8, window=50, seed=0)).ours(1.0)
    assert largest <= attention.QUERY_TILE * (attention.QUERY_TILE + 50)


def peak_bytes(function: Callable[[], object]) -> int:
    """Most memory that torch held at once for what `function` made."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    results = profile.profiler.kineto_results  # type: ignore[union-attr]
    events = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return max(accumulate(nbytes for _, nbytes in events))


def test_the_memory_of_a_long_prompt_grows_with_its_length_up_to_32k_tokens() -> None:
    peaks = {}
    for tokens in (8192, 16384, 32768):
        paged = PagedCase(Case([(tokens, 1024)], kv_heads=1, group=1, block_tokens=64, window=None, seed=0))
        peaks[tokens] = peak_bytes(partial(paged.ours, 1.0))
    assert peaks[16384] < 2.1 * peaks[8192] and peaks[32768] < 2.1 * peaks[16384]
    whole = PagedCase(Case([(16384, 16384)], kv_heads=1, group=1, block_tokens=64, window=None, seed=0))
    assert peak_bytes(partial(whole.ours, 1.0)) < 16384 * 16384 // 8  # a bit for each pair would take as much


def test_cache_writes_touch_only_their_slots() -> None:
    keys, values = torch.zeros(3, 4, 1, 2), torch.zeros(3, 4, 1, 2)
    k = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    write_cache(keys, values, torch.tensor([6, 1]), k, -k)
    assert keys[1, 2, 0].tolist() == [1.0, 2.0]
    assert keys[0, 1, 0].tolist() == [3.0, 4.0]
    assert values.equal(-keys)
    assert int(keys.count_nonzero()) == 4


def plain_tree(parts: list[float]) -> float:
    """The same tree on Python's floats, each level rounded to fp32."""
    while len(parts) > 1:
        pairs = [float(torch.tensor(a) + torch.tensor(b)) for a, b in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + parts[len(pairs) * 2 :]
    return parts[0]


finite = st.floats(-1e6, 1e6, width=32)


@given(st.lists(finite, min_size=1, max_size=17))
def test_join_pairwise_is_the_drawn_tree(parts: list[float]) -> None:
    assert float(join_pairwise(torch.tensor(parts))) == plain_tree(parts)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 999))
def test_ranks_that_join_their_own_parts_first_give_the_same_bits(ranks: int, each: int, seed: int) -> None:
    parts = torch.randn(2**ranks * 2**each, 5, generator=torch.Generator().manual_seed(seed)) * 1e3
    by_rank = torch.stack([join_pairwise(mine) for mine in parts.chunk(2**ranks)])
    assert join_pairwise(by_rank).equal(join_pairwise(parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_is_its_formula(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 72).to(dtype), torch.randn(72).to(dtype)
    wide = x.double()
    exact = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    ours = rms_norm(x, weight, 1e-5)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=3 * torch.finfo(dtype).eps, atol=1e-6)


def test_rms_norm_of_large_16_bit_numbers_does_not_overflow() -> None:
    x = torch.full((1, 8), 6e4, dtype=torch.float16)
    assert rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6).equal(torch.ones(1, 8, dtype=torch.float16))


def test_a_norm_weight_a_head_is_the_norm_of_each_head() -> None:
    x, weight = torch.randn(5, 3, 8), torch.randn(3, 8)
    each = [rms_norm(x[:, head], weight[head], 1e-6) for head in range(3)]
    assert rms_norm(x, weight, 1e-6).equal(torch.stack(each, dim=1))


def test_add_rms_norm_is_the_sum_and_its_norm() -> None:
    x, residual, weight = torch.randn(4, 8), torch.randn(4, 8), torch.randn(8)
    normed, total = add_rms_norm(x, residual, weight, 1e-6)
    assert total.equal(x + residual)
    assert normed.equal(rms_norm(total, weight, 1e-6))


def test_silu_gate_takes_the_gate_first() -> None:
    gate_up = torch.randn(5, 12)
    gate, up = gate_up[:, :6].double(), gate_up[:, 6:].double()
    torch.testing.assert_close(silu_gate(gate_up).double(), gate / (1 + (-gate).exp()) * up, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("products", "dtype"),
    [(PLAIN, torch.float32), (PLAIN, torch.bfloat16), (PLAIN, torch.float16), (ONEDNN, torch.bfloat16)],
    ids=lambda value: value.name if isinstance(value, Products) else str(value),
)
@pytest.mark.parametrize(("rows", "columns", "k"), [(1, 7, 33), (2, 64, 96), (5, 100, 72), (70, 1003, 200), (0, 8, 16)])
def test_products_are_rounded_once(products: Products, dtype: torch.dtype, rows: int, columns: int, k: int) -> None:
    if products is ONEDNN and not onednn.is_available():
        pytest.skip("this CPU or this torch has no bf16 oneDNN")
    random, kernels = torch.Generator().manual_seed(k), TorchKernels(products)
    x, weight, bias = (torch.randn(*n, generator=random).to(dtype) for n in ((rows, k), (columns, k), (columns,)))
    exact, packed, eps = x.double() @ weight.double().T, kernels.pack([weight]), torch.finfo(dtype).eps
    ours, partial = kernels.linear(x, packed, bias), kernels.linear_fp32(x, packed)
    assert (ours.dtype, partial.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(ours.double(), exact + bias.double(), rtol=eps, atol=1e-4)
    torch.testing.assert_close(partial.double(), exact, rtol=eps, atol=1e-4)


def test_blocks_packed_together_are_one_weight() -> None:
    kernels, blocks = TorchKernels(), [torch.randn(3, 8), torch.randn(5, 8)]
    packed, x = kernels.pack(blocks), torch.randn(4, 8)
    assert (packed.columns, packed.depth) == (8, 8)
    assert kernels.linear(x, packed).equal(kernels.linear(x, kernels.pack([torch.cat(blocks)])))


def test_an_embedding_of_a_shard_is_zero_outside() -> None:
    kernels, rows = TorchKernels(), torch.randn(4, 6)
    out = kernels.embedding(torch.tensor([9, 10, 13, 14]), kernels.table(rows), first=10)
    assert out.equal(torch.stack((torch.zeros(6), rows[0], rows[3], torch.zeros(6))))


BF16 = (torch.device("cpu"), torch.bfloat16)


def test_the_native_kernels_compute_bf16_on_cpus_exactly() -> None:
    library = library_or_skip()
    for wish in ("auto", "native"):
        choice = choose(*BF16, KernelOptions(wish))
        assert (choice.name, choice.exact) == (library.numerics, True)


def test_torch_computes_what_the_native_kernels_do_not() -> None:
    for device, dtype in (("cpu", torch.float32), ("cpu", torch.float16), ("cuda", torch.bfloat16)):
        choice = choose(torch.device(device), dtype, KernelOptions())
        assert (choice.name, choice.exact) == ("torch", False)
        with pytest.raises(ValueError, match="bfloat16 on CPUs"):
            choose(torch.device(device), dtype, KernelOptions("native"))


GPU = (torch.device("cuda"), torch.bfloat16)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as the choice of kernels sees it."""
    monkeypatch.setattr(choice_module, "gpu_of", lambda device: Gpu(132, "sm90", 90))


@pytest.mark.usefixtures("gpu")
def test_triton_computes_on_gpus_and_is_exact_where_that_is_wished_for() -> None:
    for wish, quantize, name in (
        ("auto", "none", "triton"),
        ("triton", "int4", "triton-int4g64"),
        ("triton-exact", "none", "exact-sm90"),
        ("triton-exact", "int8", "exact-sm90-int8g128"),
        ("auto", "fp8", "triton-fp8"),
        ("triton-exact", "w8a8", "exact-sm90-w8a8"),
    ):
        choice = choose(*GPU, KernelOptions(wish, quantize))
        assert (choice.name, choice.exact, choice.gpu) == (name, wish == "triton-exact", Gpu(132, "sm90", 90))
    assert choose(*GPU, KernelOptions("torch")).name == "torch"
    assert choose(*GPU, KernelOptions(), misfit="a head is too wide").why == "a head is too wide"
    assert choose(*GPU, KernelOptions("torch", compile=True)).name == "torch-compiled"


@pytest.mark.usefixtures("gpu")
def test_what_is_compiled_between_tritons_operations_is_a_class_of_its_own() -> None:
    for options, name in (
        (KernelOptions(compile=True), "triton-compiled"),
        (KernelOptions("triton", "int4", compile=True), "triton-int4g64-compiled"),
        (KernelOptions("triton", "w8a8", compile=True), "triton-w8a8-compiled"),
    ):
        choice = choose(*GPU, options)
        assert (choice.name, choice.exact, choice.is_compiled) == (name, False, True)
        assert "torch.compile" in choice.why


@pytest.mark.usefixtures("gpu")
def test_the_chosen_triton_kernels_carry_the_name_of_their_class() -> None:
    pytest.importorskip("triton")
    for wish, is_compiled in (("triton", False), ("triton", True), ("triton-exact", False)):
        choice = choose(*GPU, KernelOptions(wish, "int4", compile=is_compiled))
        kernels = choice_module.build(choice, 1, None)
        assert (kernels.name, kernels.exact) == (choice.name, choice.exact)


def test_fp8_is_refused_on_gpus_that_do_not_multiply_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice_module, "gpu_of", lambda device: Gpu(108, "sm80", 80))
    with pytest.raises(Unfit, match="from sm89 on, and this GPU is sm80"):
        choose(*GPU, KernelOptions("auto", "fp8"))
    assert choose(*GPU, KernelOptions("auto", "w8a8")).name == "triton-w8a8"


def test_on_cpus_torch_multiplies_in_8_bits() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for quantize in ("fp8", "w8a8"):
            choice = choose(torch.device("cpu"), dtype, KernelOptions("auto", quantize))
            assert (choice.name, choice.exact) == (f"torch-{quantize}", False)
            assert choice_module.build(choice, 1, None).name == choice.name


@pytest.mark.usefixtures("gpu")
def test_what_the_triton_kernels_do_not_compute_is_refused_by_its_field() -> None:
    for device, dtype, options, misfit, field in (
        (*BF16, KernelOptions("triton"), "", "kernels"),
        (torch.device("cuda"), torch.float32, KernelOptions("triton-exact"), "", "kernels"),
        (*GPU, KernelOptions("triton"), "a head is too wide", "kernels"),
        (*GPU, KernelOptions("triton-exact", compile=True), "", "compile"),
        (*GPU, KernelOptions("auto", "int4", "int8"), "", "activations"),
        (*GPU, KernelOptions("auto", "fp8", "int8"), "", "activations"),
        (*GPU, KernelOptions("auto", "int4"), "a head is too wide", "quantize"),
        (*GPU, KernelOptions("auto", "w8a8"), "a head is too wide", "quantize"),
        (*BF16, KernelOptions("native", "fp8"), "", "quantize"),
        (*BF16, KernelOptions("auto", "w8a8", compile=True), "", "quantize"),
    ):
        with pytest.raises(Unfit) as refused:
            choose(device, dtype, options, misfit)
        assert refused.value.field == field


def test_without_a_gpu_triton_is_refused_and_the_reason_given() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(Unfit, match="no CUDA device"):
        choose(*GPU, KernelOptions("triton"))
    assert choose(*GPU, KernelOptions()).why == "torch finds no CUDA device"


def test_a_model_that_the_triton_kernels_cannot_lay_out_is_named() -> None:
    assert triton_misfit(128, 16) == ""
    assert "head_dim = 72" in triton_misfit(72, 16)
    assert "block_tokens = 8" in triton_misfit(64, 8)
    assert "up to 256, not 512" in triton_misfit(512, 16)


def test_without_the_library_the_fastest_of_torch_computes_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Library:
        raise LibraryMissing("no compiler")

    monkeypatch.setattr(choice_module, "load", missing)
    choice = choose(*BF16, KernelOptions())
    assert (choice.name, choice.exact) == ("onednn" if onednn.is_available() else "torch", False)
    assert choice.why == "no compiler"
    with pytest.raises(ValueError, match="no compiler"):
        choose(*BF16, KernelOptions("native"))


def test_kernels_can_be_wished_for() -> None:
    assert choose(*BF16, KernelOptions("torch")).name == "torch"
    if onednn.is_available():
        assert choose(*BF16, KernelOptions("onednn")).name == "onednn"
    with pytest.raises(ValueError, match="bfloat16"):
        choose(torch.device("cpu"), torch.float32, KernelOptions("onednn"))


def test_rope_turns_pairs_by_position_times_frequency() -> None:
    cos, sin = rope_tables(inverse_frequencies(8, 100.0), 50)
    x = torch.randn(50, 2, 8)
    ours = rotate(x, cos, sin)
    for position, pair in ((0, 0), (7, 1), (49, 3)):
        turn = complex(math.cos(a := position * 100.0 ** (-2 * pair / 8)), math.sin(a))
        wanted = complex(float(x[position, 1, pair]), float(x[position, 1, pair + 4])) * turn
        assert abs(complex(float(ours[position, 1, pair]), float(ours[position, 1, pair + 4])) - wanted) < 1e-5


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60))
def test_rope_scores_depend_on_the_distance_only(query: int, key: int, shift: int) -> None:
    cos, sin = rope_tables(inverse_frequencies(16, 10000.0), 128)
    random = torch.Generator().manual_seed(query)
    q, k = torch.randn(2, 1, 1, 16, generator=random)

    def score(m: int, n: int) -> Tensor:
        return (rotate(q, cos[m : m + 1], sin[m : m + 1]) * rotate(k, cos[n : n + 1], sin[n : n + 1])).sum()

    torch.testing.assert_close(score(query, key), score(query + shift, key + shift), rtol=0, atol=1e-4)


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    plain = inverse_frequencies(128, 500000.0)
    scaled = llama3_frequencies(plain, 8.0, 1.0, 4.0, 8192)
    waves = 2 * math.pi / plain
    assert scaled[waves < 8192 / 4].equal(plain[waves < 8192 / 4])
    assert scaled[waves > 8192].equal(plain[waves > 8192] / 8)
    between = (waves >= 8192 / 4) & (waves <= 8192)
    assert bool(between.any())
    assert bool(((scaled < plain) & (scaled > plain / 8))[between].all())
