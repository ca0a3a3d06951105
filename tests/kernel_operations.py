"""All operations of the kernels' interface but attention, as calls that any two backends can be compared by."""

from collections.abc import Callable, Iterable

from torch import Tensor, cat, tensor

from rayline.kernels.backend import Kernels

ROWS, DIM, COLUMNS = 7, 96, 150

Operation = Callable[[Kernels], Tensor]


def operations(numbers: Callable[..., Tensor]) -> dict[str, Operation]:
    """By name. `numbers(*shape, seed=0)`: normal ones, in the dtype of the model."""
    return {
        "linear": lambda k: k.linear(
            numbers(ROWS, DIM), k.pack([numbers(COLUMNS, DIM, seed=1)]), numbers(COLUMNS, seed=2)
        ),
        "linear of parts": lambda k: k.linear(
            numbers(ROWS, DIM), k.pack([numbers(70, DIM, seed=1), numbers(33, DIM, seed=2)])
        ),
        "linear of 8 segments": lambda k: k.linear(numbers(ROWS, DIM), k.pack([numbers(COLUMNS, DIM, seed=1)], 8)),
        "linear_fp32": lambda k: k.linear_fp32(numbers(ROWS, DIM), k.pack([numbers(COLUMNS, DIM, seed=1)])),
        "head": lambda k: k.linear_fp32(numbers(ROWS, DIM), k.head(numbers(COLUMNS, DIM, seed=1))),
        "tied head": lambda k: k.linear_fp32(numbers(ROWS, DIM), k.tied(numbers(COLUMNS, DIM, seed=1))),
        "embedding": lambda k: k.embedding(tensor([3, 149, 0]), k.table(numbers(COLUMNS, DIM))),
        "tied embedding": lambda k: k.embedding(tensor([3, 149, 0]), k.tied(numbers(COLUMNS, DIM))),
        "embedding of a shard": lambda k: k.embedding(tensor([3, 60, 99]), k.table(numbers(40, DIM)), first=50),
        "widen": lambda k: k.widen(numbers(ROWS, DIM)),
        "rms_norm": lambda k: k.rms_norm(numbers(ROWS, 100), numbers(100, seed=1), 1e-5),
        "add_rms_norm": lambda k: cat(
            k.add_rms_norm(numbers(ROWS, DIM), numbers(ROWS, DIM, seed=1), numbers(DIM), 1e-5)
        ),
        "add": lambda k: k.add(numbers(ROWS, 37), numbers(ROWS, 37, seed=1)),
        "silu_gate": lambda k: k.silu_gate(numbers(ROWS, 2 * 37) * 4),
    }


def uncompared(names: Iterable[str]) -> set[str]:
    """Operations of the interface that none of these names: "table", "pack", "write_kv" are part of others."""
    called = " ".join(names) + " pack table write_kv attend"
    found = {name for name, value in vars(Kernels).items() if callable(value) and not name.startswith("_")}
    return found - {"replay"} - set(called.split())
