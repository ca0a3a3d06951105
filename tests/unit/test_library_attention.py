"""Attention by libraries: stand-ins that do what the libraries' documentation says of the same arguments, on a CPU."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rayline.kernels import choice, library_attention
from rayline.kernels.attention import paged_attention
from rayline.kernels.backend import AttentionShape, KvLayer
from rayline.kernels.choice import KernelOptions, Unfit, choose, default_block_tokens
from rayline.kernels.context import ForwardContext, StaticContext
from rayline.kernels.gpu import Gpu
from rayline.kernels.library_attention import ChosenAttention, FlashAttention, Library, VarlenAttention, probed
from rayline.kernels.torch_kernels import paged

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = AttentionShape(heads=6, kv_heads=2, head_dim=32, scale=0.2)
PAGE = 256


def attended(q: Tensor, k: Tensor, v: Tensor, scale: float, left: int, soft_cap: float = 0.0) -> Tensor:
    """Causal from the lower right corner, as flash-attn 2.1 and later: q [n, H, D], k and v [m, HK, D]."""
    n, m, group = len(q), len(k), q.shape[1] // k.shape[1]
    at, last = torch.arange(m), torch.arange(n)[:, None] + m - n
    seen = (at <= last) & ((at >= last - left) if left >= 0 else torch.ones(1, dtype=torch.bool))
    q, k, v = (x.transpose(0, 1) for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
    if not soft_cap:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(0, 1)
    scores = soft_cap * torch.tanh(q @ k.transpose(1, 2) * scale / soft_cap)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(0, 1)


def gathered(cache: Tensor, table: Tensor, length: int) -> Tensor:
    return cache[table.long()].flatten(0, 1)[:length]


def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, *, cache_seqlens: Tensor, softmax_scale: float, causal: bool,
    window_size: tuple[int, int], softcap: float, block_table: Tensor,
) -> Tensor:  # fmt: skip
    assert causal and k_cache.shape[1] % 256 == 0 and block_table.dtype == cache_seqlens.dtype == torch.int32
    rows = [
        attended(x, *(gathered(c, table, int(n)) for c in (k_cache, v_cache)), softmax_scale, window_size[0], softcap)
        for x, table, n in zip(q, block_table, cache_seqlens, strict=True)
    ]
    return torch.stack(rows)


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, softmax_scale: float, causal: bool, window_size: tuple[int, int], softcap: float,
    block_table: Tensor,
) -> Tensor:  # fmt: skip
    lens = cu_seqlens_k.diff()
    assert causal and int(lens.max()) <= max_seqlen_k and int(cu_seqlens_q.diff().max()) <= max_seqlen_q
    rows = [
        attended(q[first:last], *(gathered(c, table, int(n)) for c in (k, v)), softmax_scale, window_size[0], softcap)
        for (first, last), table, n in zip(pairwise(cu_seqlens_q.tolist()), block_table, lens, strict=True)
    ]
    return torch.cat(rows)


def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    seqused_k: Tensor | None = None, block_table: Tensor | None = None, num_splits: int | None = None,
) -> Tensor:  # fmt: skip
    assert seqused_k is not None and block_table is not None and scale is not None
    assert window_size[1] == 0 and enable_gqa == (query.shape[1] != key.shape[2])
    rows = [
        attended(query[first:last], *(gathered(c, t, int(n)) for c in (key, value)), scale, window_size[0])
        for (first, last), t, n in zip(pairwise(cu_seq_q.tolist()), block_table, seqused_k, strict=True)
    ]
    return torch.cat(rows)


FLASH = FlashAttention(flash_attn_with_kvcache, flash_attn_varlen_func)
VARLEN = VarlenAttention(varlen_attn)


@dataclass
class Own:
    """Torch in the place of Triton, counting what falls to it."""

    calls: int = 0

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None
    ) -> Tensor:
        self.calls += 1
        heads = q.view(len(q), shape.heads, shape.head_dim)
        return paged_attention(heads, paged(layer), context, shape, sinks).flatten(1)


def step(shape: AttentionShape, block_tokens: int, slices: list[tuple[int, int]]) -> tuple[Tensor, KvLayer, Any]:
    q, cache, context = library_attention._probe_step(slices, shape, block_tokens, torch.float32, CPU)
    keys, values = (part.flatten(1) for part in (cache.keys, cache.values))
    return q.flatten(1), KvLayer(keys, values, block_tokens, shape.kv_heads, shape.head_dim), context


SHAPES = {
    "plain": SHAPE,
    "no groups": replace(SHAPE, kv_heads=6),
    "window": replace(SHAPE, window=37),
    "window of one key": replace(SHAPE, window=1),
}
STEPS = {"decode": [(300, 1), (2, 1), (257, 1)], "mixed": [(40, 1), (290, 33), (5, 5)], "prompt": [(70, 70)]}


@pytest.mark.parametrize("slices", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("library", "page"), [(FLASH, PAGE), (VARLEN, PAGE), (VARLEN, 16)])
def test_a_library_is_given_what_makes_it_give_our_attention(
    library: Library, page: int, shape: AttentionShape, slices: list[tuple[int, int]]
) -> None:
    own = Own()
    q, layer, context = step(shape, page, slices)
    ours = ChosenAttention([library], own).attend(q, shape, layer, context, None)
    assert own.calls == 0, "the library computed it"
    torch.testing.assert_close(ours, Own().attend(q, shape, layer, context, None), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("library", "shape", "page", "has_sinks"),
    [
        (FLASH, SHAPE, 16, False),
        (VARLEN, replace(SHAPE, soft_cap=5.0), 16, False),
        (FLASH, SHAPE, PAGE, True),
        (VARLEN, SHAPE, 16, True),
        (VARLEN, replace(SHAPE, head_dim=320), 16, False),
        (FLASH, replace(SHAPE, head_dim=20), PAGE, False),
    ],
    ids=["small pages", "soft cap", "sinks", "sinks of torch", "wide heads", "odd heads"],
)
def test_what_a_library_cannot_do_falls_to_triton(
    library: Library, shape: AttentionShape, page: int, has_sinks: bool
) -> None:
    own = Own()
    q, layer, context = step(shape, page, STEPS["mixed"])
    sinks = torch.linspace(-1, 2, shape.heads) if has_sinks else None
    ChosenAttention([library], own).attend(q, shape, layer, context, sinks)
    assert own.calls == 1


def test_flash_takes_soft_caps() -> None:
    shape, own = replace(SHAPE, soft_cap=5.0), Own()
    q, layer, context = step(shape, PAGE, STEPS["decode"])
    ours = ChosenAttention([VARLEN, FLASH], own).attend(q, shape, layer, context, None)
    torch.testing.assert_close(ours, Own().attend(q, shape, layer, context, None), rtol=0, atol=1e-5)
    assert own.calls == 0


def refuses(*_: Any, **__: Any) -> Tensor:
    raise RuntimeError("paged KV is only supported by FlashAttention 3\nand more")


def ignores_the_table(*arguments: Any, block_table: Tensor, **options: Any) -> Tensor:
    return varlen_attn(*arguments, block_table=torch.zeros_like(block_table), **options)


def not_causal(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Any:
    return varlen_attn(query.flip(0), key, value, *args, **options)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (refuses, "it failed: RuntimeError: paged KV is only supported by FlashAttention 3"),
        (ignores_the_table, "it gave other results"),
        (not_causal, "it gave other results"),
        (lambda *_, **__: torch.full((2, 2), torch.nan), "it failed"),
        (lambda query, *_, **__: torch.full_like(query, torch.nan), "it gave other results"),
    ],
)
def test_a_library_that_refuses_or_means_something_else_is_never_used(function: Callable[..., Any], why: str) -> None:
    library, own = VarlenAttention(function), Own()
    assert probed(library, SHAPE, 16, torch.float32, CPU).startswith(why)
    q, layer, context = step(SHAPE, 16, STEPS["mixed"])
    chosen = ChosenAttention([library, VARLEN], own)
    torch.testing.assert_close(
        chosen.attend(q, SHAPE, layer, context, None), own.attend(q, SHAPE, layer, context, None), rtol=0, atol=1e-5
    )
    assert own.calls == 1


def test_a_choice_is_made_once_for_each_kind_of_layer_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    attention, wide = ChosenAttention([FLASH, VARLEN], Own()), replace(SHAPE, window=9)
    for shape in (SHAPE, wide, SHAPE, wide):
        q, layer, context = step(shape, 16, STEPS["mixed"])
        attention.attend(q, shape, layer, context, None)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert said[0].endswith("not flash, for flash-attn needs a multiple of 256: block_tokens = 16 is none")
    assert said[1].endswith(": varlen")


@pytest.mark.parametrize("library", [FLASH, VARLEN])
def test_a_captured_step_reads_its_lengths_on_the_device(library: Library) -> None:
    """The bounds on the host stay those of the longest context; the numbers change under them."""
    q, layer, context = step(SHAPE, PAGE, STEPS["decode"])
    lens = torch.ones(3, dtype=torch.int32)
    static = StaticContext(
        context.positions, context.slots, (0, 1, 2, 3), (2 * PAGE,) * 3, context.tables, context.wanted,
        device_starts=torch.arange(4, dtype=torch.int32), device_lens=lens,
    )  # fmt: skip
    attention = ChosenAttention([library], Own())
    attention.attend(q, SHAPE, layer, static, None)
    lens.copy_(torch.tensor(context.lens))
    ours = attention.attend(q, SHAPE, layer, static, None)
    torch.testing.assert_close(ours, Own().attend(q, SHAPE, layer, context, None), rtol=0, atol=1e-5)


# ---- what is chosen where


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "gpu_of", lambda device: Gpu(132, "sm90", 90))
    monkeypatch.setattr(library_attention, "at_hand", lambda: ("flash", "varlen"))


def chosen(attention: str, kernels: str = "auto") -> tuple[str, ...]:
    return choose(CUDA, torch.bfloat16, KernelOptions(kernels, attention=attention)).attention


@pytest.mark.usefixtures("gpu")
def test_the_wish_for_attention_is_followed() -> None:
    assert chosen("auto") == ("flash", "varlen")
    assert chosen("varlen") == ("varlen",)
    assert chosen("triton") == chosen("auto", "triton-exact") == chosen("triton", "triton-exact") == ()
    with pytest.raises(Unfit, match="exact class computes attention in Triton alone"):
        chosen("flash", "triton-exact")


@pytest.mark.usefixtures("gpu")
def test_attention_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_attention, "at_hand", lambda: ())
    assert chosen("auto") == ()
    for wish, why in (("flash", "not installed"), ("varlen", "no block tables")):
        with pytest.raises(Unfit, match=why):
            chosen(wish)
    with pytest.raises(Unfit, match="others compute here"):
        choose(CPU, torch.bfloat16, KernelOptions(attention="varlen"))


@pytest.mark.usefixtures("gpu")
def test_blocks_are_as_large_as_the_first_attention_wants() -> None:
    def tokens(device: torch.device = CUDA, **options: Any) -> int:
        return default_block_tokens(device, KernelOptions(**options))

    assert tokens() == tokens(attention="flash") == 256
    assert tokens(attention="varlen") == tokens(attention="triton") == tokens(kernels="triton-exact") == 16
    assert tokens(CPU) == tokens(kernels="torch") == 16


def test_libraries_are_found_by_what_they_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    flash = SimpleNamespace(
        flash_attn_with_kvcache=flash_attn_with_kvcache, flash_attn_varlen_func=flash_attn_varlen_func
    )
    old = SimpleNamespace(varlen_attn=lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal: None)
    modules = {"flash_attn": flash, "torch.nn.attention.varlen": SimpleNamespace(varlen_attn=varlen_attn)}
    monkeypatch.setattr(library_attention.importlib, "import_module", lambda name: modules[name])
    monkeypatch.setattr(library_attention.importlib.util, "find_spec", modules.get)
    assert library_attention.at_hand() == ("flash", "varlen")
    assert [library_attention.library_of(name).name for name in ("flash", "varlen")] == ["flash", "varlen"]
    modules["torch.nn.attention.varlen"] = old
    del modules["flash_attn"]
    assert library_attention.at_hand() == ()
    with pytest.raises(ImportError, match="no block tables"):
        library_attention.library_of("varlen")


def test_this_torch_is_asked_for_its_varlen_attention() -> None:
    """2.13 has block tables; on a CPU the function refuses, which the probe finds out."""
    if "varlen" not in library_attention.at_hand():
        pytest.skip("this torch has no block tables")
    assert probed(library_attention.library_of("varlen"), SHAPE, 16, torch.float16, CPU).startswith("it failed")
