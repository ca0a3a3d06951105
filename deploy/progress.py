"""How far the long phases of a start are: bars on a terminal, plain lines anywhere else."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

BYTE_PHASES = frozenset({"read weights"})


class PhaseProgress(Protocol):
    """Shows phases while it is entered. `where` names who works, such as "group 0 rank 1"."""

    def show(self, where: str, phase: str, done: int, total: int) -> None:
        """`done` of `total` bytes (of a phase in BYTE_PHASES) or steps; done == total ends the phase."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_progress(console: Console) -> PhaseProgress:
    """Bars when `console` is a terminal, else lines."""
    return Bars(console) if console.is_terminal else Lines(console, time.monotonic)


class Bars:
    """One bar for each rank and phase; they stay when they are full."""

    def __init__(self, console: Console):
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.fields[where]}"),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            console=console,
        )

    def show(self, where: str, phase: str, done: int, total: int) -> None:
        task = self._tasks.get((where, phase))
        if task is None:
            task = self._tasks[where, phase] = self._bars.add_task(phase, total=total, where=where, amount="")
        self._bars.update(task, completed=done, total=total, amount=_amount(phase, done, total))

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()


class Lines:
    """One line when a phase begins and one when it ends; none between, so that logs stay short."""

    def __init__(self, console: Console, clock: Callable[[], float]):
        self._console = console
        self._clock = clock
        self._begun_s: dict[tuple[str, str], float] = {}
        self._ended: set[tuple[str, str]] = set()

    def show(self, where: str, phase: str, done: int, total: int) -> None:
        if (where, phase) in self._ended:
            return
        if (where, phase) not in self._begun_s:
            self._begun_s[where, phase] = self._clock()
            if done < total:
                self._print(f"{where}: {phase} ...")
        if done >= total:
            self._ended.add((where, phase))
            took_s = self._clock() - self._begun_s[where, phase]
            self._print(f"{where}: {phase} done, {_amount(phase, done, total)} in {took_s:.1f} s")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _amount(phase: str, done: int, total: int) -> str:
    if phase in BYTE_PHASES:
        return f"{decimal(done)} of {decimal(total)}" if done < total else decimal(total)
    return f"{done} of {total}"
