"""Operations of the library, run at once or recorded into a program that one call runs.

Recording is what CUDA graphs are for GPUs, for any number of rows: the same Python code runs once on meta
tensors, each operation notes its arguments, the intermediate results get places in one arena by how long
they live, and a step is then one call into the library, without Python, dispatch or allocation between.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels.context import ForwardContext
from rayline.kernels.cores import Cores
from rayline.kernels.exchange import LOST, RankLost
from rayline.kernels.library import Arguments, Library

ALIGNMENT_BYTES = 64
Value = Tensor | int | float | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """One operation with its arguments as it was recorded; meta tensors stand for places in the arena."""

    arguments: Arguments
    values: Mapping[str, Value]


class Team:
    """The compute threads of this rank; the calling thread is one of them. One call at a time.

    cores: where they run; None leaves it to the system.
    """

    def __init__(self, library: Library, threads: int, cores: Cores | None = None) -> None:
        self.library = library
        self.threads = threads
        self.cores = cores
        self.address = library.new_team(threads, None if cores is None else cores.numbers)

    def __del__(self) -> None:
        self.library.free_team(self.address)

    def run(self, step: "StepView", calls: ctypes.Array[ctypes.c_void_p], count: int) -> None:
        """Raises MemoryError when a kernel found no memory for its scratch, RankLost when a rank did not answer."""
        code = self.library.run(self.address, step.address, calls, count)
        if code in LOST:
            raise RankLost(LOST[code])
        if code:
            raise MemoryError("a kernel found no memory for its scratch")


class StepView:
    """A ForwardContext as the library reads it; holds the tensors it points into."""

    def __init__(self, library: Library, rows: int, context: ForwardContext | None) -> None:
        struct = library.arguments["Step"].struct(rows=rows)
        if context is not None:
            starts, lens = torch.tensor(context.starts), torch.tensor(context.lens)
            self._held = (context, starts, lens)
            struct.sequences = len(context.lens)
            struct.positions, struct.slots = context.positions.data_ptr(), context.slots.data_ptr()
            struct.starts, struct.lens = starts.data_ptr(), lens.data_ptr()
            struct.tables, struct.table_width = context.tables.data_ptr(), context.tables.shape[1]
        self._struct = struct
        self.address = ctypes.addressof(struct)


class Operations:
    """Calls operations by name on one team: at once, or into the recording that is going on."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.library = team.library
        self._recording: list[Recorded] | None = None

    def call(self, name: str, rows: int, context: ForwardContext | None = None, /, **values: Value) -> None:
        """Run operation `name` on `rows` rows. `values` are the fields of its struct; tensors must be contiguous."""
        arguments = self.library.arguments[name]
        if values.keys() != arguments.kinds.keys():
            raise TypeError(f"{name} takes {', '.join(arguments.kinds)}, got {', '.join(values)}")
        for field, value in values.items():
            if isinstance(value, Tensor) and not value.is_contiguous():
                raise ValueError(f"{name}.{field} must be contiguous, its strides are {value.stride()}")
        if self._recording is not None:
            self._recording.append(Recorded(arguments, values))
            return
        filled = _fill(arguments, values, Tensor.data_ptr)
        self.team.run(StepView(self.library, rows, context), self._calls([(name, filled)]), 1)

    def record(self, function: Callable[..., Tensor], *inputs: Tensor) -> "Program":
        """Record what `function` calls when it is given `inputs`, which are meta tensors."""
        recording: list[Recorded] = []
        self._recording = recording
        try:
            output = function(*inputs)
        finally:
            self._recording = None
        return Program(self, recording, inputs, output)

    def _calls(self, filled: Sequence[tuple[str, ctypes.Structure]]) -> ctypes.Array[ctypes.c_void_p]:
        flat: list[int] = []
        for name, struct in filled:
            flat += [self.library.operation(name), ctypes.addressof(struct)]
        return (ctypes.c_void_p * len(flat))(*flat)


class Program:
    """A recorded function. Its inputs are written to `inputs` and its result read from `output`, both in the arena."""

    def __init__(
        self, operations: Operations, recording: Sequence[Recorded], inputs: Sequence[Tensor], output: Tensor
    ) -> None:
        places, size_bytes = plan_arena(recording, inputs, output)
        self._arena = torch.zeros(size_bytes + ALIGNMENT_BYTES, dtype=torch.uint8)
        base = -(-self._arena.data_ptr() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        skip_bytes = base - self._arena.data_ptr()

        def address(tensor: Tensor) -> int:
            if not tensor.is_meta:
                return tensor.data_ptr()
            return base + places[_storage(tensor)] + int(tensor.storage_offset()) * tensor.element_size()

        def view(tensor: Tensor) -> Tensor:
            first = skip_bytes + places[_storage(tensor)]
            whole = self._arena[first : first + tensor.untyped_storage().nbytes()].view(tensor.dtype)
            return whole.as_strided(tensor.shape, tensor.stride(), whole.storage_offset() + tensor.storage_offset())

        self._held = [value for item in recording for value in item.values.values() if isinstance(value, Tensor)]
        self._filled = [(item.arguments.name, _fill(item.arguments, item.values, address)) for item in recording]
        self._calls = operations._calls(self._filled)
        self._team = operations.team
        self.inputs = tuple(view(tensor) for tensor in inputs)
        self.output = view(output)
        self.capacity = len(output)

    def run(self, rows: int, context: ForwardContext | None = None) -> Tensor:
        """Compute the first `rows` rows; returns a view of `output` that the next run writes over."""
        self._team.run(StepView(self._team.library, rows, context), self._calls, len(self._filled))
        return self.output[:rows]


def plan_arena(recording: Sequence[Recorded], inputs: Sequence[Tensor], output: Tensor) -> tuple[dict[int, int], int]:
    """Byte offsets of the meta storages, and the arena's size. Two that live at once do not overlap.

    A storage lives from the first operation that names it to the last; inputs from the start, the output to
    the end. First fit in order of birth.
    """
    alive: dict[int, tuple[int, int]] = {}
    sizes: dict[int, int] = {}

    def touch(tensor: Tensor, at: int) -> None:
        key = _storage(tensor)
        alive[key] = (alive.get(key, (at, at))[0], at)
        sizes[key] = -(-tensor.untyped_storage().nbytes() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    for tensor in inputs:
        touch(tensor, -1)
    for at, item in enumerate(recording):
        for value in item.values.values():
            if isinstance(value, Tensor) and value.is_meta:
                touch(value, at)
    touch(output, len(recording))
    places: dict[int, int] = {}
    for key, (born, died) in sorted(alive.items(), key=lambda entry: entry[1][0]):
        neighbours = [k for k in places if alive[k][0] <= died and born <= alive[k][1]]
        offset = 0
        for other in sorted(neighbours, key=places.__getitem__):
            if offset + sizes[key] <= places[other]:
                break
            offset = max(offset, places[other] + sizes[other])
        places[key] = offset
    return places, max(places[key] + sizes[key] for key in places)


def _storage(tensor: Tensor) -> int:
    """Identity of what a tensor is a view of; meta tensors have no address. Valid while the tensor is held."""
    return int(tensor.untyped_storage()._cdata)


def _fill(arguments: Arguments, values: Mapping[str, Value], address: Callable[[Tensor], int]) -> ctypes.Structure:
    plain = {field: address(value) if isinstance(value, Tensor) else value for field, value in values.items()}
    return arguments.struct(**plain)
