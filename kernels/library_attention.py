"""Attention on GPUs by the libraries at hand, where they can compute a layer, and in Triton where they cannot.

    flash    the package flash-attn: pages of a multiple of 256 tokens
    varlen   torch.nn.attention.varlen with block tables, where this torch has them and lets this GPU use them
    triton   Rayline's own kernels: everything

What a library says of itself is not believed: before its first step it attends to a few tokens of the layer's own
shape, and the result is held against torch's. So a version that refuses block tables, or means something else by
them, is never used.
"""

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from rayline.kernels.attention import PagedKv, paged_attention
from rayline.kernels.backend import AttentionShape, KvLayer
from rayline.kernels.context import ForwardContext, StaticContext
from rayline.kernels.torch_kernels import paged
from rayline.kernels.transfer import to_device, whole_numbers

log = logging.getLogger(__name__)

FLASH_PAGE_TOKENS = 256
LARGEST_HEAD = 256
PROBED = ((300, 1), (70, 70), (40, 3))  # keys and queries of sequences: decoding, a prompt, a piece of one
TOLERANCE = 0.02  # of the largest number: some roundings to 8 bits of mantissa


class Attention(Protocol):
    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None
    ) -> Tensor:
        """`Kernels.attend`."""
        ...


@dataclass(frozen=True, slots=True)
class LibraryStep:
    """A step as libraries want it. starts, ends int32 [S + 1]: where queries, and keys, of each sequence begin, were
    they packed; lens int32 [S]: its keys; tables int32 [S, W]."""

    context: ForwardContext
    starts: Tensor
    ends: Tensor
    lens: Tensor
    tables: Tensor
    most_queries: int
    most_keys: int

    @staticmethod
    def of(context: ForwardContext, device: torch.device) -> "LibraryStep":
        if isinstance(context, StaticContext):  # bounds stay; how many keys there are is read on the device
            most = max(context.lens)
            ends = torch.arange(len(context.lens) + 1, dtype=torch.int32, device=device) * most
            starts, lens = context.device_starts, context.device_lens
            return LibraryStep(context, starts, ends, lens, context.tables, 1, most)
        count = len(context.lens)
        flat = whole_numbers([*context.starts, *accumulate(context.lens, initial=0), *context.lens]).int()
        starts, ends, lens = torch.split(to_device(flat, device), [count + 1, count + 1, count])
        queries = max(last - first for first, last in pairwise(context.starts))
        return LibraryStep(context, starts, ends, lens, context.tables.contiguous(), queries, max(context.lens))


class Library(Protocol):
    """Attention over pages [blocks, block_tokens, HK, D] by somebody else's kernels."""

    @property
    def name(self) -> str: ...

    def misfit(self, shape: AttentionShape, block_tokens: int) -> str:
        """Why it cannot compute such layers, "" when nothing is known against it."""
        ...

    def attend(self, q: Tensor, cache: PagedKv, step: LibraryStep, shape: AttentionShape) -> Tensor:
        """q [T, H, D] -> [T, H, D]."""
        ...


class FlashAttention:
    """flash-attn 2 (Dao 2023), its two functions: `with_kvcache` decodes, `varlen` takes prompts."""

    name = "flash"

    def __init__(self, with_kvcache: Callable[..., Any], varlen: Callable[..., Any]) -> None:
        self._with_kvcache = with_kvcache
        self._varlen = varlen

    def misfit(self, shape: AttentionShape, block_tokens: int) -> str:
        if block_tokens % FLASH_PAGE_TOKENS:
            return f"flash-attn needs a multiple of {FLASH_PAGE_TOKENS}: block_tokens = {block_tokens} is none"
        return _head_misfit(shape, "flash-attn")

    def attend(self, q: Tensor, cache: PagedKv, step: LibraryStep, shape: AttentionShape) -> Tensor:
        options = {
            "softmax_scale": shape.scale,
            "causal": True,
            "window_size": _window(shape),
            "softcap": shape.soft_cap or 0.0,
            "block_table": step.tables,
        }
        if step.most_queries == 1 and len(q) == len(step.lens):
            out: Tensor = self._with_kvcache(q[:, None], cache.keys, cache.values, cache_seqlens=step.lens, **options)
            return out[:, 0]
        whole: Tensor = self._varlen(
            q, cache.keys, cache.values, cu_seqlens_q=step.starts, cu_seqlens_k=step.ends,
            max_seqlen_q=step.most_queries, max_seqlen_k=step.most_keys, **options,
        )  # fmt: skip
        return whole


class VarlenAttention:
    """torch.nn.attention.varlen.varlen_attn with block tables, causal by its window."""

    name = "varlen"

    def __init__(self, varlen_attn: Callable[..., Any]) -> None:
        self._varlen_attn = varlen_attn

    def misfit(self, shape: AttentionShape, block_tokens: int) -> str:
        return "varlen_attn has no soft cap" if shape.soft_cap is not None else _head_misfit(shape, "varlen_attn")

    def attend(self, q: Tensor, cache: PagedKv, step: LibraryStep, shape: AttentionShape) -> Tensor:
        out: Tensor = self._varlen_attn(
            q, cache.keys, cache.values, step.starts, step.ends, step.most_queries, step.most_keys,
            scale=shape.scale, window_size=(_window(shape)[0], 0), enable_gqa=shape.heads != shape.kv_heads,
            seqused_k=step.lens, block_table=step.tables,
        )  # fmt: skip
        return out


class ChosenAttention:
    """Each kind of layer by the first library that can, all else by `own`. A choice is made once and logged."""

    def __init__(self, libraries: Sequence[Library], own: Attention) -> None:
        self._libraries = tuple(libraries)
        self._own = own
        self._chosen: dict[tuple[AttentionShape, int, torch.dtype], Library | None] = {}
        self._step: LibraryStep | None = None
        self._static: dict[int, LibraryStep] = {}

    def attend(
        self, q: Tensor, shape: AttentionShape, layer: KvLayer, context: ForwardContext, sinks: Tensor | None
    ) -> Tensor:
        """`Kernels.attend`. No library takes sinks."""
        library = None if sinks is not None else self._library(q, shape, layer)
        if library is None or not len(q):
            return self._own.attend(q, shape, layer, context, sinks)
        heads = q.view(len(q), shape.heads, shape.head_dim)
        return library.attend(heads, paged(layer), self._step_of(context, q.device), shape).reshape(q.shape)

    def _library(self, q: Tensor, shape: AttentionShape, layer: KvLayer) -> Library | None:
        key = (shape, layer.block_tokens, q.dtype)
        if key not in self._chosen:
            self._chosen[key] = self._first_fit(shape, layer.block_tokens, q)
        return self._chosen[key]

    def _first_fit(self, shape: AttentionShape, block_tokens: int, q: Tensor) -> Library | None:
        for library in self._libraries:
            why = library.misfit(shape, block_tokens) or probed(library, shape, block_tokens, q.dtype, q.device)
            if not why:
                log.info("attention of %s: %s", shape, library.name)
                return library
            log.info("attention of %s: not %s, for %s", shape, library.name, why)
        log.info("attention of %s: triton", shape)
        return None

    def _step_of(self, context: ForwardContext, device: torch.device) -> LibraryStep:
        """All layers of a step share it."""
        if isinstance(context, StaticContext):  # a graph's: in memory that stays
            if id(context) not in self._static:
                self._static[id(context)] = LibraryStep.of(context, device)
            return self._static[id(context)]
        if self._step is None or self._step.context is not context:
            self._step = LibraryStep.of(context, device)
        return self._step


def probed(library: Library, shape: AttentionShape, block_tokens: int, dtype: torch.dtype, device: torch.device) -> str:
    """Why a library's attention to such layers is not to be used, "" when it gave what torch gives."""
    for slices in (PROBED, tuple((keys, 1) for keys, _ in PROBED)):
        q, cache, context = _probe_step(slices, shape, block_tokens, dtype, device)
        try:
            ours = library.attend(q, cache, LibraryStep.of(context, device), shape).float()
            wide = PagedKv(cache.keys.float(), cache.values.float())
            theirs = paged_attention(q.float(), wide, context, shape)
            off = float((ours - theirs).abs().max()) / float(theirs.abs().max())
        except Exception as error:  # whatever a library raises for what it cannot do
            return f"it failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if not off <= TOLERANCE:
            return f"it gave other results: off by {off:.1%} of the largest number"
    return ""


def _probe_step(
    slices: Sequence[tuple[int, int]],
    shape: AttentionShape,
    block_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, PagedKv, ForwardContext]:
    """A few sequences in blocks that lie apart; numbers behind a sequence's end are large."""
    random = torch.Generator().manual_seed(0)
    widths = [-(-keys // block_tokens) for keys, _ in slices]
    order = torch.randperm(sum(widths), generator=random).to(torch.int32)
    tables = torch.zeros((len(slices), max(widths)), dtype=torch.int32)
    cache = torch.full((2, sum(widths), block_tokens, shape.kv_heads, shape.head_dim), 50.0)
    first = 0
    for row, ((keys, _), width) in enumerate(zip(slices, widths, strict=True)):
        tables[row, :width] = order[first : first + width]
        at = torch.arange(keys)
        places = (tables[row, at // block_tokens].long(), at % block_tokens)
        for part in cache:
            part[places] = torch.randn(keys, shape.kv_heads, shape.head_dim, generator=random)
        first += width
    starts = tuple(accumulate((count for _, count in slices), initial=0))
    positions = torch.cat([torch.arange(keys - count, keys) for keys, count in slices]).to(device)
    q = torch.randn(starts[-1], shape.heads, shape.head_dim, generator=random).to(device, dtype)
    lens = tuple(keys for keys, _ in slices)
    context = ForwardContext(positions, positions[:0], starts, lens, tables.to(device), positions[:0])
    keys, values = cache.to(device, dtype)
    return q, PagedKv(keys, values), context


def _window(shape: AttentionShape) -> tuple[int, int]:
    """Keys to the left of a query that it sees, and to the right; -1: all."""
    return (-1, -1) if shape.window is None else (shape.window - 1, 0)


def _head_misfit(shape: AttentionShape, name: str) -> str:
    if shape.head_dim > LARGEST_HEAD or shape.head_dim % 8:
        return f"{name} takes heads of up to {LARGEST_HEAD} in multiples of 8, not {shape.head_dim}"
    return ""


# ---- what is installed


def at_hand() -> tuple[str, ...]:
    """Names of the libraries that could be asked, best first."""
    found = ["flash"] if importlib.util.find_spec("flash_attn") is not None else []
    return (*found, "varlen") if _varlen_attn() is not None else tuple(found)


def library_of(name: str) -> Library:
    """Raises ImportError when it is not there after all."""
    if name == "flash":
        package = importlib.import_module("flash_attn")
        return FlashAttention(package.flash_attn_with_kvcache, package.flash_attn_varlen_func)
    function = _varlen_attn()
    if function is None:
        raise ImportError("this torch's varlen_attn has no block tables")
    return VarlenAttention(function)


def _varlen_attn() -> Callable[..., Any] | None:
    """torch's function, if it has the arguments for pages: they came after 2.9."""
    try:
        function: Callable[..., Any] = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    names = inspect.signature(function).parameters
    return function if {"block_table", "seqused_k", "window_size", "scale"} <= names.keys() else None
