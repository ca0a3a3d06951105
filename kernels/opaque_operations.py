"""Rayline's own operations as torch operators: a compiled graph calls them, its compiler does not look into them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rayline.kernels import triton_elementwise, triton_quant, triton_rowwise
from rayline.kernels.backend import AttentionShape, Format, KvLayer, RopeTables
from rayline.kernels.context import ForwardContext
from rayline.kernels.library_attention import Attention
from rayline.kernels.rowwise import RoundedRows, RowWeight
from rayline.kernels.triton_quant import QuantisedWeight

_LAYER = "int block_tokens, int heads, int kv_heads, int head_dim"
_WEIGHT = "int columns, int depth, int segments, str format, int group"
SCHEMAS = {
    "write_kv": "(Tensor qkv, Tensor cos, Tensor sin, Tensor? q_norm, Tensor? k_norm, float eps, "
    f"Tensor(a!) keys, Tensor(b!) values, {_LAYER}) -> Tensor",
    "attend": f"(Tensor q, Tensor? sinks, Tensor keys, Tensor values, {_LAYER}, float scale, int? window, "
    "float? soft_cap) -> Tensor",
    "group_product": "(Tensor x, Tensor data, Tensor numbers, Tensor scales, Tensor zeros, Tensor? bias, bool is_wide, "
    f"{_WEIGHT}) -> Tensor",
    "group_rows": f"(Tensor ids, Tensor data, Tensor numbers, Tensor scales, Tensor zeros, {_WEIGHT}, "
    "ScalarType dtype, int first) -> Tensor",
    "row_product": "(Tensor x, Tensor steps, ScalarType dtype, Tensor data, Tensor numbers, Tensor scales, "
    f"Tensor? bias, bool is_wide, {_WEIGHT}) -> Tensor",
}


@dataclass(slots=True)
class OpenStep:
    """What a graph's operators read besides their arguments."""

    context: ForwardContext | None = None

    @property
    def known(self) -> ForwardContext:
        assert self.context is not None, "a graph is called with the step that it computes"
        return self.context


class OpaqueOperations:
    """Attention, cache writes, and products with weights of 4 and 8 bits. attention: as the kernels chose it.
    units: processors of the device."""

    def __init__(self, attention: Attention, units: int) -> None:
        self.step = OpenStep()
        # Operators live as long as this object; its id keeps those of two kernels apart.
        namespace = f"rayline_{id(self):x}"
        self._torch_library: Any = torch.library.Library(namespace, "DEF")  # type: ignore[no-untyped-call]
        runs = implementations(self.step, attention, units)
        self._operators = {name: self._defined(namespace, name, run) for name, run in runs.items()}

    def _defined(self, namespace: str, name: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        self._torch_library.define(name + SCHEMAS[name])
        self._torch_library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{name}", _FAKES[name], lib=self._torch_library)
        operator: Callable[..., Tensor] = getattr(getattr(torch.ops, namespace), name).default
        return operator

    def begin(self, context: ForwardContext) -> None:
        """Operators called from now on compute this step."""
        self.step.context = context

    def write_kv(
        self,
        qkv: Tensor,
        shape: AttentionShape,
        rope: RopeTables,
        qk_norm: tuple[Tensor, Tensor] | None,
        eps: float,
        layer: KvLayer,
    ) -> Tensor:
        """`Kernels.write_kv` of the step that was begun, as `attend`."""
        q_norm, k_norm = (None, None) if qk_norm is None else qk_norm
        out: Tensor = self._operators["write_kv"](
            qkv, rope.cos, rope.sin, q_norm, k_norm, eps, layer.keys, layer.values,
            layer.block_tokens, shape.heads, shape.kv_heads, shape.head_dim,
        )  # fmt: skip
        return out

    def attend(self, q: Tensor, shape: AttentionShape, layer: KvLayer, sinks: Tensor | None) -> Tensor:
        out: Tensor = self._operators["attend"](
            q, sinks, layer.keys, layer.values, layer.block_tokens, shape.heads, shape.kv_heads, shape.head_dim,
            shape.scale, shape.window, shape.soft_cap,
        )  # fmt: skip
        return out

    def group_product(self, x: Tensor, weight: QuantisedWeight, bias: Tensor | None, is_wide: bool) -> Tensor:
        """`triton_quant.linear`."""
        out: Tensor = self._operators["group_product"](
            x, weight.data, weight.numbers, weight.scales, weight.zeros, bias, is_wide,
            weight.columns, weight.depth, weight.segments, weight.format, weight.group,
        )  # fmt: skip
        return out

    def group_rows(self, ids: Tensor, weight: QuantisedWeight, first: int) -> Tensor:
        """`triton_quant.embedding`."""
        out: Tensor = self._operators["group_rows"](
            ids, weight.data, weight.numbers, weight.scales, weight.zeros,
            weight.columns, weight.depth, weight.segments, weight.format, weight.group, weight.dtype, first,
        )  # fmt: skip
        return out

    def row_product(self, x: RoundedRows, weight: RowWeight, bias: Tensor | None, is_wide: bool) -> Tensor:
        """`triton_rowwise.linear`."""
        out: Tensor = self._operators["row_product"](
            x.numbers, x.steps, x.dtype, weight.data, weight.numbers, weight.scales, bias, is_wide,
            weight.columns, weight.depth, weight.segments, weight.format, weight.group,
        )  # fmt: skip
        return out


def implementations(step: OpenStep, attention: Attention, units: int) -> Mapping[str, Callable[..., Tensor]]:
    """What the operators run. None holds the operations: torch holds these functions, and would hold them for ever."""

    def write_kv(
        qkv: Tensor, cos: Tensor, sin: Tensor, q_norm: Tensor | None, k_norm: Tensor | None, eps: float,
        keys: Tensor, values: Tensor, block_tokens: int, heads: int, kv_heads: int, head_dim: int,
    ) -> Tensor:  # fmt: skip
        layer = KvLayer(keys, values, block_tokens, kv_heads, head_dim)
        norms = None if q_norm is None or k_norm is None else (q_norm, k_norm)
        shape = AttentionShape(heads, kv_heads, head_dim, 1.0)
        return triton_elementwise.write_kv(qkv, shape, RopeTables(cos, sin), norms, eps, layer, step.known)

    def attend(
        q: Tensor, sinks: Tensor | None, keys: Tensor, values: Tensor, block_tokens: int, heads: int, kv_heads: int,
        head_dim: int, scale: float, window: int | None, soft_cap: float | None,
    ) -> Tensor:  # fmt: skip
        layer = KvLayer(keys, values, block_tokens, kv_heads, head_dim)
        shape = AttentionShape(heads, kv_heads, head_dim, scale, window, soft_cap)
        return attention.attend(q, shape, layer, step.known, sinks).contiguous()

    def group_product(
        x: Tensor, data: Tensor, numbers: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None, is_wide: bool,
        columns: int, depth: int, segments: int, format: Format, group: int,
    ) -> Tensor:  # fmt: skip
        weight = QuantisedWeight(
            data, columns, depth, segments, format, group, numbers=numbers, scales=scales, zeros=zeros, dtype=x.dtype
        )
        return triton_quant.linear(x, weight, bias, is_wide, False, units)

    def group_rows(
        ids: Tensor, data: Tensor, numbers: Tensor, scales: Tensor, zeros: Tensor,
        columns: int, depth: int, segments: int, format: Format, group: int, dtype: torch.dtype, first: int,
    ) -> Tensor:  # fmt: skip
        weight = QuantisedWeight(
            data, columns, depth, segments, format, group, numbers=numbers, scales=scales, zeros=zeros, dtype=dtype
        )
        return triton_quant.embedding(ids, weight, first)

    def row_product(
        x: Tensor, steps: Tensor, dtype: torch.dtype, data: Tensor, numbers: Tensor, scales: Tensor,
        bias: Tensor | None, is_wide: bool, columns: int, depth: int, segments: int, format: Format, group: int,
    ) -> Tensor:  # fmt: skip
        weight = RowWeight(data, columns, depth, segments, format, group, numbers=numbers, scales=scales)
        return triton_rowwise.linear(RoundedRows(x, steps, dtype), weight, bias, is_wide, False, units)

    return {
        "write_kv": write_kv,
        "attend": attend,
        "group_product": group_product,
        "group_rows": group_rows,
        "row_product": row_product,
    }


def _fake_write_kv(qkv: Tensor, *rest: Any) -> Tensor:
    *_, heads, _, head_dim = rest
    return qkv.new_empty(qkv.shape[0], heads * head_dim)


def _fake_attend(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _fake_group_product(
    x: Tensor, data: Tensor, numbers: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None, is_wide: bool,
    columns: int, *_: Any,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], columns, dtype=torch.float32 if is_wide else x.dtype)


def _fake_group_rows(ids: Tensor, *rest: Any) -> Tensor:
    *_, depth, _, _, _, dtype, _ = rest
    return ids.new_empty(ids.shape[0], depth, dtype=dtype)


def _fake_row_product(
    x: Tensor, steps: Tensor, dtype: torch.dtype, data: Tensor, numbers: Tensor, scales: Tensor, bias: Tensor | None,
    is_wide: bool, columns: int, *_: Any,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], columns, dtype=torch.float32 if is_wide else dtype)


_FAKES: Mapping[str, Callable[..., Tensor]] = {
    "write_kv": _fake_write_kv,
    "attend": _fake_attend,
    "group_product": _fake_group_product,
    "group_rows": _fake_group_rows,
    "row_product": _fake_row_product,
}
