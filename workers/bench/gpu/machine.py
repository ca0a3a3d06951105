"""The device that is measured: memory, time, and which kernels compute on it."""

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from rayline.kernels.backend import Kernels
from rayline.kernels.compiled_kernels import SUFFIX
from rayline.kernels.gpu import Gpu, NoGpu, gpu_of, triton_name
from rayline.kernels.library_attention import Library
from rayline.kernels.native_quant import Quantisation
from rayline.kernels.rowwise import LEAST_FP8_CAPABILITY, Rowwise
from rayline.kernels.torch_kernels import TorchKernels

Kind = Literal["torch", "ordinary", "exact", "int4", "int8", "fp8", "w8a8", "exact w8a8", "compiled"]
ROUNDS = 5
INTERPRETED = Gpu(units=8, architecture="interpreted", capability=90)


@dataclass(frozen=True, slots=True)
class Machine:
    """A CUDA device, or the CPU: with Triton's interpreter where that is on, else with torch's kernels alone.

    least_s: how long a measurement lasts at least; 0: a single call is timed.
    """

    device: torch.device
    dtype: torch.dtype
    least_s: float

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU"

    def kernels(self, kind: Kind, libraries: Sequence[Library] = ()) -> Kernels:
        """libraries: for attention, as far as they can. Raises NoGpu where kernels of this kind cannot compute."""
        if kind == "torch":
            return TorchKernels()
        gpu = gpu_of(self.device) if self.is_cuda else _interpreted()
        from rayline.kernels.triton_kernels import TritonKernels  # needs triton

        quantisation = Quantisation(kind) if kind in ("int4", "int8") else None
        rounding: Rowwise | None = "fp8" if kind == "fp8" else "w8a8" if kind in ("w8a8", "exact w8a8") else None
        if rounding == "fp8" and gpu.capability < LEAST_FP8_CAPABILITY:
            raise NoGpu(f"{gpu.architecture} does not multiply FP8")
        is_exact = kind in ("exact", "exact w8a8")
        name = triton_name(gpu, is_exact, quantisation, rounding)
        if kind == "compiled":
            from rayline.kernels.compiled_triton import CompiledTritonKernels

            recorder = None if self.is_cuda else Repeating()
            return CompiledTritonKernels(name + SUFFIX, quantisation, gpu.units, recorder, libraries, rounding)
        return TritonKernels(name, is_exact, quantisation, gpu.units, libraries=libraries, rounding=rounding)

    @property
    def has_triton(self) -> bool:
        """Whether Triton can compute here."""
        try:
            _ = gpu_of(self.device) if self.is_cuda else _interpreted()
        except NoGpu:
            return False
        return True

    def ordinary(self) -> Kernels:
        """The ordinary class; torch's kernels where Triton cannot compute."""
        return self.kernels("ordinary" if self.has_triton else "torch")

    def synchronize(self) -> None:
        """Wait until all that was launched is done. Raises what went wrong in it."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def free_bytes(self) -> int:
        if self.is_cuda:
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info(self.device)[0]
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def is_sane(self) -> bool:
        """Whether anything can still be computed here: a broken CUDA context fails whatever comes next."""
        try:
            return float(torch.ones(4, device=self.device).sum()) == 4.0
        except Exception:
            return False

    def seconds(self, run: Callable[[], object]) -> float:
        """Of one call among many in a row: the median of ROUNDS rounds, the launching of calls included. Where nothing
        is to be measured, of the one call that shows that it runs."""
        run()
        self.synchronize()
        one_s = self._round(run, 1)
        if not self.least_s:
            return one_s
        calls = max(1, int(self.least_s / ROUNDS / max(one_s, 1e-7)))
        return median(self._round(run, calls) for _ in range(ROUNDS))

    def _round(self, run: Callable[[], object], calls: int) -> float:
        began_s = time.perf_counter()
        for _ in range(calls):
            run()
        self.synchronize()
        return (time.perf_counter() - began_s) / calls

    def randn(self, *shape: int, seed: int = 0) -> Tensor:
        """The same numbers on each device of a kind."""
        source = torch.Generator(self.device).manual_seed(seed)
        return torch.empty(shape, dtype=self.dtype, device=self.device).normal_(0.0, 1.0, generator=source)


class Repeating:
    """A recorder for the CPU, where a step that was captured is called again."""

    def record(self, function: Callable[[], None]) -> Callable[[], None]:
        function()
        return function


def _interpreted() -> Gpu:
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        raise NoGpu("Triton computes on GPUs, or with TRITON_INTERPRET=1 in its interpreter")
    return INTERPRETED
