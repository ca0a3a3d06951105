"""What the choice of kernels needs to know of an NVIDIA GPU, and what the Triton kernels are called on it."""

import importlib.util
from dataclasses import dataclass

import torch

from rayline.kernels.native_quant import Quantisation
from rayline.kernels.rowwise import Rowwise

MULTIPLE = 16  # of a head and of a block, as the Triton kernels read them
LARGEST_HEAD = 256


@dataclass(frozen=True, slots=True)
class Gpu:
    """units: streaming multiprocessors. architecture: such as sm90, whose tensor cores round in their own way.

    capability: ten times the compute capability.
    """

    units: int
    architecture: str
    capability: int


class NoGpu(RuntimeError):
    """There is no GPU that Triton could compute on; the message says why."""


def gpu_of(device: torch.device) -> Gpu:
    """Raises NoGpu where CUDA or Triton is missing."""
    if not torch.cuda.is_available():
        raise NoGpu("torch finds no CUDA device")
    if importlib.util.find_spec("triton") is None:
        raise NoGpu("the package triton is not installed (pip install 'rayline[cuda]')")
    properties = torch.cuda.get_device_properties(device)
    capability = 10 * properties.major + properties.minor
    return Gpu(properties.multi_processor_count, f"sm{capability}", capability)


def triton_misfit(head_dim: int, block_tokens: int) -> str:
    """Why the Triton kernels cannot lay out such a model, "" when they can."""
    for name, value in (("head_dim", head_dim), ("block_tokens", block_tokens)):
        if value % MULTIPLE:
            return f"the Triton kernels need multiples of {MULTIPLE}: {name} = {value} is none"
    return f"the Triton kernels take heads of up to {LARGEST_HEAD}, not {head_dim}" if head_dim > LARGEST_HEAD else ""


def triton_name(gpu: Gpu, is_exact: bool, quantisation: Quantisation | None, rowwise: Rowwise | None = None) -> str:
    """The kernels' part of the numerics class: triton, triton-int4g64, exact-sm90, exact-sm90-w8a8."""
    kernels = f"exact-{gpu.architecture}" if is_exact else "triton"
    rounding = quantisation.name if quantisation else rowwise
    return f"{kernels}-{rounding}" if rounding else kernels
