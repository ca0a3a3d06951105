"""Which implementation of the operations runs: chosen once, when a rank starts."""

import logging
from dataclasses import dataclass

import torch

from rayline.kernels import library_attention, onednn
from rayline.kernels.backend import Kernels
from rayline.kernels.compiled_kernels import SUFFIX, CompiledNativeKernels, CompiledTorchKernels
from rayline.kernels.cores import Cores
from rayline.kernels.gpu import Gpu, NoGpu, gpu_of, triton_name
from rayline.kernels.library import LibraryMissing, load
from rayline.kernels.native_kernels import NativeKernels, native_name
from rayline.kernels.native_quant import Quantisation, Weights
from rayline.kernels.operators import OperatorOperations
from rayline.kernels.program import Operations, Team
from rayline.kernels.rowwise import LEAST_FP8_CAPABILITY, Rowwise
from rayline.kernels.torch_kernels import ONEDNN, PLAIN, RowwiseTorchKernels, TorchKernels

log = logging.getLogger(__name__)

EXACT = "triton-exact"
TRITON = ("triton", EXACT)
BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class KernelOptions:
    """What the operator wishes: the config's keys of these names."""

    kernels: str = "auto"
    quantize: str = "none"
    activations: str = "exact"
    compile: bool = False
    attention: str = "auto"
    all_reduce: str = "auto"


class Unfit(ValueError):
    """An option cannot be had here; `field` is its name."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(why)
        self.field = field


@dataclass(frozen=True, slots=True)
class Choice:
    """name: of the kernels, part of the numerics class. exact: see Kernels. why: said where it matters.

    gpu: what Triton computes on; None: the C++ kernels, oneDNN or torch compute. attention: libraries that are asked
    before Triton (kernels/library_attention.py). quantisation in groups, or rowwise in 8 bits, or neither.
    """

    name: str
    exact: bool
    why: str
    is_compiled: bool = False
    quantisation: Quantisation | None = None
    gpu: Gpu | None = None
    attention: tuple[str, ...] = ()
    rowwise: Rowwise | None = None


def choose(device: torch.device, dtype: torch.dtype, options: KernelOptions, misfit: str = "") -> Choice:
    """The implementation for a device, a dtype and a model; `misfit`: why the model is not for Rayline's own kernels.

    Raises Unfit when what is wished for cannot run.
    """
    wish = options.kernels
    if wish in TRITON or (wish == "auto" and device.type == "cuda"):
        try:
            return _choose_triton(device, dtype, options, misfit)
        except NoGpu as missing:
            if wish in TRITON:
                raise Unfit("kernels", str(missing)) from None
            misfit = str(missing)
    if options.attention != "auto":
        raise Unfit("attention", "it is of the triton kernels, and others compute here")
    if options.all_reduce != "auto":
        raise Unfit("all_reduce", "it is of the triton kernels, and others compute here")
    if rowwise := rowwise_of(options):
        return _choose_rowwise_on_cpu(device, options, rowwise, misfit)
    return _choose_without_triton(device, dtype, options, misfit)


def _choose_without_triton(device: torch.device, dtype: torch.dtype, options: KernelOptions, misfit: str) -> Choice:
    is_cpu_bf16 = device.type == "cpu" and dtype == torch.bfloat16
    wish = options.kernels
    if misfit:
        why = misfit
    elif wish in ("auto", "native") and is_cpu_bf16:
        try:
            library = load()
            quantisation = quantisation_of(options)
            name = native_name(library, quantisation)
            return Choice(name, True, f"C++ kernels for {library.isa}", options.compile, quantisation)
        except LibraryMissing as missing:
            why = str(missing)
    else:
        why = f"the C++ kernels compute bfloat16 on CPUs, not {dtype} on {device.type}"
    if wish == "native":
        raise Unfit("kernels", why)
    if options.quantize != "none":
        raise Unfit("quantize", f"it needs kernels of Rayline's own, and {why}")
    if options.compile:
        if wish == "onednn":
            raise Unfit("compile", "weights in oneDNN's layout cannot be compiled")
        return Choice("torch" + SUFFIX, False, why, is_compiled=True)
    if wish != "torch" and is_cpu_bf16 and onednn.is_available():
        return Choice("onednn", False, why)
    if wish == "onednn":
        raise Unfit("kernels", "oneDNN's products are for bfloat16 on CPUs that multiply it")
    return Choice("torch", False, why)


def _choose_rowwise_on_cpu(device: torch.device, options: KernelOptions, rowwise: Rowwise, misfit: str) -> Choice:
    """torch multiplies in 8 bits, to try a class of GPUs. Raises Unfit for all else."""
    if device.type != "cpu":
        raise Unfit("quantize", misfit or "the triton kernels compute it, or torch's on CPUs")
    if options.kernels not in ("auto", "torch") or options.compile:
        raise Unfit("quantize", "on CPUs torch's kernels compute it: kernels = auto or torch, without compile")
    return Choice(f"torch-{rowwise}", False, "torch's products of 8 bits", rowwise=rowwise)


def _choose_triton(device: torch.device, dtype: torch.dtype, options: KernelOptions, misfit: str) -> Choice:
    """Raises NoGpu where Triton cannot compute, Unfit for options that its kernels do not have."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        raise NoGpu(f"the Triton kernels compute bfloat16 and float16 on GPUs, not {dtype} on {device.type}")
    if misfit:
        raise NoGpu(misfit)
    is_exact = options.kernels == EXACT
    if options.compile and is_exact:
        raise Unfit("compile", "the exact class keeps the order of its sums, a compiler does not: kernels = triton")
    if options.activations != "exact":
        raise Unfit("activations", "the Triton kernels multiply with activations as they are")
    gpu, quantisation, rowwise = gpu_of(device), quantisation_of(options), rowwise_of(options)
    if rowwise == "fp8" and gpu.capability < LEAST_FP8_CAPABILITY:
        why = f"tensor cores multiply FP8 from sm{LEAST_FP8_CAPABILITY} on, and this GPU is {gpu.architecture}"
        raise Unfit("quantize", why)
    name, libraries = triton_name(gpu, is_exact, quantisation, rowwise), attention_of(options)
    between = ", torch.compile between them" if options.compile else ""
    why = f"Triton kernels on {gpu.architecture}{between}, attention by {' or '.join((*libraries, 'triton'))}"
    name = name + SUFFIX if options.compile else name
    return Choice(name, is_exact, why, options.compile, quantisation, gpu, libraries, rowwise)


def attention_of(options: KernelOptions) -> tuple[str, ...]:
    """Libraries to ask for attention, best first. Raises Unfit for one that is not there or not exact."""
    wish, is_exact = options.attention, options.kernels == EXACT
    if wish == "triton" or (is_exact and wish == "auto"):
        return ()
    if is_exact:
        raise Unfit("attention", "the exact class computes attention in Triton alone")
    known = library_attention.at_hand()
    if wish == "auto":
        return known
    if wish not in known:
        there = {"flash": "the package flash-attn is not installed", "varlen": "this torch has no block tables"}
        raise Unfit("attention", there[wish])
    return (wish,)


def default_block_tokens(device: torch.device, options: KernelOptions) -> int:
    """Tokens of a block where nobody says: what the attention that comes first wants."""
    if device.type != "cuda" or options.kernels not in ("auto", "triton"):
        return BLOCK_TOKENS  # nobody asks libraries, whose import takes seconds
    first = options.attention if options.attention != "auto" else next(iter(library_attention.at_hand()), "")
    return library_attention.FLASH_PAGE_TOKENS if first == "flash" else BLOCK_TOKENS


def rowwise_of(options: KernelOptions) -> Rowwise | None:
    """What rounds weights and activations to 8 bits with a scale a row."""
    if options.quantize not in ("fp8", "w8a8"):
        return None
    return "fp8" if options.quantize == "fp8" else "w8a8"


def quantisation_of(options: KernelOptions) -> Quantisation | None:
    """Of weights in groups. Raises Unfit for activations that nothing quantised is multiplied with."""
    if options.quantize == "none" or rowwise_of(options):
        if options.activations != "exact":
            raise Unfit("activations", "it needs quantize = int8 or int4")
        return None
    weights: Weights = "int4" if options.quantize == "int4" else "int8"
    return Quantisation(weights, "int8" if options.activations == "int8" else "exact")


def build(choice: Choice, threads: int, cores: Cores | None) -> Kernels:
    """The chosen kernels with this many compute threads, on `cores` if there are such."""
    log.info("kernels: %s (%s)", choice.name, choice.why)
    if choice.gpu is not None:
        from rayline.kernels.compiled_triton import CompiledTritonKernels  # needs triton, which only GPUs do
        from rayline.kernels.triton_kernels import TritonKernels

        libraries = [library_attention.library_of(name) for name in choice.attention]
        if choice.is_compiled:
            return CompiledTritonKernels(
                choice.name, choice.quantisation, choice.gpu.units, libraries=libraries, rounding=choice.rowwise
            )
        return TritonKernels(
            choice.name, choice.exact, choice.quantisation, choice.gpu.units, libraries=libraries,
            rounding=choice.rowwise,
        )  # fmt: skip
    if choice.exact:
        # The team computes; a second pool of spinning threads would only take cores from it.
        torch.set_num_threads(1)
        team = Team(load(), threads, cores)
        return (
            CompiledNativeKernels(OperatorOperations(team), choice.quantisation)
            if choice.is_compiled
            else NativeKernels(Operations(team), choice.quantisation)
        )
    torch.set_num_threads(threads)
    if choice.rowwise:
        return RowwiseTorchKernels(choice.rowwise)
    if choice.is_compiled:
        return CompiledTorchKernels()
    return TorchKernels(ONEDNN if choice.name == "onednn" else PLAIN)
