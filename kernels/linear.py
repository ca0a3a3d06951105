"""Matrix products with the weights of a layer."""

import torch
from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. x [T, K], weight [N, K], bias [N], one dtype -> [T, N] in it."""
    return functional.linear(x, weight, bias)


def linear_fp32(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T for a sum that goes on in fp32: x [T, K], weight [N, K] in one dtype -> fp32 [T, N].

    Products of 16-bit numbers are accumulated in fp32. torch gives that sum out only on CUDA; on CPU it
    is rounded to the dtype first, as one undivided product would be.
    """
    if x.dtype == torch.float32:
        return functional.linear(x, weight)
    if x.is_cuda:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return functional.linear(x, weight).float()
