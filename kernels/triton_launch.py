"""A Triton function with every way it may be launched, so that each of them can be compiled ahead of time.

What a launch may differ in is closed: a `Variant` that is not declared is refused. Numbers that change from step to
step are `do_not_specialize`, so that no size of a batch makes a serving rank compile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

MODEL = "*T"  # pointer to numbers of the model's dtype
INDICES = ("*i32", "*i64")
ALIGNED = ":16"  # of an argument that Triton may take for a multiple of 16

Argument = Tensor | int | float | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled form of a function.

    constants: its constexpr arguments. absent: pointers that are None. warps: of a program. stages: of its loops'
    pipelines.
    """

    constants: tuple[tuple[str, int], ...]
    warps: int = 4
    stages: int = 1
    absent: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> int:
        return dict(self.constants)[name]


class Kernel:
    """A Triton function, the types of its arguments in order, and its variants.

    types: "*T" (the model's dtype), "*fp32", "*i32" ..., "i32" for a number of the step, "i32:16" for one of the model
    that Triton may specialise; constexpr arguments are left out. architecture: 10 x the compute capability that it
    needs at least.
    """

    def __init__(
        self, function: Any, types: Mapping[str, str], variants: Sequence[Variant], architecture: int = 0
    ) -> None:
        self.function = function
        self.architecture = architecture
        self.types = dict(types)
        self.variants = frozenset(variants)

    @property
    def name(self) -> str:
        return str(self.function.__name__)

    def launch(self, grid: tuple[int, ...], variant: Variant, **arguments: Argument) -> None:
        """Run `grid` programs. Raises ValueError for a variant that is not declared; nothing for an empty grid."""
        if variant not in self.variants:
            raise ValueError(f"{self.name} is not compiled for {variant}")
        if 0 in grid:
            return
        # Sums and products stay apart as they are written: what is fused differs from variant to variant.
        self.function[grid](
            **arguments,
            **dict.fromkeys(variant.absent),
            **dict(variant.constants),
            num_warps=variant.warps,
            num_stages=variant.stages,
            enable_fp_fusion=False,
        )

    def signature(self, variant: Variant, dtype: str) -> tuple[dict[str, str], dict[str, int | None]]:
        """Types and constexprs as Triton's ahead-of-time compiler takes them; `dtype`: "bf16" or "fp16"."""
        types = {name: type_.removesuffix(ALIGNED).replace(MODEL, "*" + dtype) for name, type_ in self.types.items()}
        constants: dict[str, int | None] = dict(variant.constants) | dict.fromkeys(variant.absent)
        return types | dict.fromkeys(constants, "constexpr"), constants

    def aligned(self, variant: Variant) -> list[str]:
        """Arguments that are multiples of 16: pointers, and numbers declared so."""
        there = [name for name in self.types if name not in variant.absent and name not in self.unaligned]
        return [name for name in there if self.types[name].startswith("*") or self.types[name].endswith(ALIGNED)]

    @property
    def unaligned(self) -> list[str]:
        """Pointers to indices: they lie side by side in one buffer, so where they begin changes with the batch."""
        return [name for name, type_ in self.types.items() if type_ in INDICES]
