"""The library's operations as torch operators that a compiled graph can call: opaque, their writes declared."""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rayline.kernels.context import ForwardContext
from rayline.kernels.library import Arguments
from rayline.kernels.program import Operations, StepView, Team, Value

Operator = Callable[..., None]
_TYPES = {"read": "Tensor?", "int": "int", "float": "float"}


class OperatorOperations(Operations):
    """Operations that become calls of torch operators while torch.compile traces them.

    An operator's first argument is the step: the library's own struct as int64 [words], at one address for ever,
    so that a graph is compiled once and reads each step's rows, positions and tables there.
    """

    def __init__(self, team: Team) -> None:
        super().__init__(team)
        words = ctypes.sizeof(self.library.arguments["Step"].struct) // 8
        self._step = torch.zeros(words, dtype=torch.int64)
        # Operators live as long as this object; the team's address keeps those of two teams apart.
        self._namespace = f"rayline_{team.address:x}"
        self._torch_library: Any = torch.library.Library(self._namespace, "DEF")  # type: ignore[no-untyped-call]
        defined = (arguments for name, arguments in self.library.arguments.items() if name != "Step")
        self._operators = {arguments.name: self._define(arguments) for arguments in defined}

    def call(self, name: str, rows: int, context: ForwardContext | None = None, /, **values: Value) -> None:
        if not torch.compiler.is_compiling():
            super().call(name, rows, context, **values)
            return
        self._operators[name](self._step, *(values[field] for field in self.library.arguments[name].kinds))

    def begin(self, rows: int, context: ForwardContext) -> None:
        """Operators called from now on compute these rows of this step."""
        self._view = StepView(self.library, rows, context)  # holds what the copy points into
        ctypes.memmove(self._step.data_ptr(), self._view.address, self._step.nbytes)

    def _define(self, arguments: Arguments) -> Operator:
        self._torch_library.define(schema(arguments))

        library, team = self.library, self.team  # not self: the operator would keep it, and it the operator

        def run(step: Tensor, *values: Value) -> None:
            addresses = (value.data_ptr() if isinstance(value, Tensor) else value for value in values)
            filled = arguments.struct(*addresses)
            calls = (ctypes.c_void_p * 2)(library.operation(arguments.name), ctypes.addressof(filled))
            if library.run(team.address, step.data_ptr(), calls, 1):
                raise MemoryError("a kernel found no memory for its scratch")

        self._torch_library.impl(arguments.name, run, "CPU")
        name = f"{self._namespace}::{arguments.name}"
        torch.library.register_fake(name, lambda *_: None, lib=self._torch_library)
        operator: Operator = getattr(getattr(torch.ops, self._namespace), arguments.name).default
        return operator


def schema(arguments: Arguments) -> str:
    """The operator of a struct in torch's words: "Add(Tensor step, Tensor? x, Tensor? y, Tensor(a!)? out, int dim)"."""
    written = (name for name, kind in arguments.kinds.items() if kind == "write")
    aliases = {name: chr(ord("a") + index) for index, name in enumerate(written)}
    types = (
        (name, f"Tensor({aliases[name]}!)?" if name in aliases else _TYPES[kind])
        for name, kind in arguments.kinds.items()
    )
    return f"{arguments.name}(Tensor step, {', '.join(f'{type} {name}' for name, type in types)}) -> ()"
