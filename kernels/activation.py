"""Gated activations."""

from torch import Tensor
from torch.nn import functional


def silu_gate(gate_up: Tensor) -> Tensor:
    """SwiGLU (Shazeer 2020): silu(gate) * up. gate_up [T, 2 I], gate first -> [T, I], same dtype."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up
