"""Runs the parts in a process of their own, so that one that fails, hangs or breaks the device costs only itself.

parent                          child
  |---- starts with parts ------->|
  |<--- Begun, rows, Done --------|   part by part
  |   (died, or took too long)    X   the part is a Failure; a new child goes on behind it
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from rayline.workers.bench.gpu.bench import Part, Setup
from rayline.workers.bench.gpu.report import DeviceLimits, Failure, GpuReport, Row

START_S = 240.0  # for a child to import torch and open the device
OnRow = Callable[[Row], None]


@dataclass(frozen=True, slots=True)
class Begun:
    part: str


@dataclass(frozen=True, slots=True)
class Done:
    part: str


@dataclass(frozen=True, slots=True)
class Opened:
    device: str
    versions: str


Message = Opened | Begun | Done | Row


def run_parts(
    setup: Setup,
    parts: Sequence[Part],
    limit_s: float,
    on_row: OnRow,
    clock: Callable[[], float] = time.monotonic,
    report: GpuReport | None = None,
) -> GpuReport:
    """All parts, in `limit_s` seconds at most. `on_row` is told of each row as soon as it is in `report`."""
    report, began_s = report or GpuReport(), clock()
    rest = list(parts)

    def told(row: Row) -> None:
        report.took_s = clock() - began_s
        on_row(row)

    while rest:
        before = len(rest)
        child = _Child(replace(setup, limits=report.limits), rest, report, told, clock)
        rest = child.follow(began_s + limit_s)
        if len(rest) == before:  # it did not come to its first part
            break
    report.took_s = clock() - began_s
    return report


class _Child:
    """One process and what it says."""

    def __init__(
        self, setup: Setup, parts: Sequence[Part], report: GpuReport, on_row: OnRow, clock: Callable[[], float]
    ) -> None:
        self._parts = list(parts)
        self._report = report
        self._on_row = on_row
        self._clock = clock
        spawn = get_context("spawn")  # CUDA does not survive a fork
        self._messages, theirs = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=_serve, args=(theirs, setup, tuple(parts)), daemon=True)
        self._process.start()
        theirs.close()

    def follow(self, deadline_s: float) -> list[Part]:
        """Take in what comes until all is done or something is wrong. Returns the parts that have not begun."""
        try:
            return self._follow(deadline_s)
        finally:
            self._process.kill()
            self._process.join()
            self._messages.close()

    def _follow(self, deadline_s: float) -> list[Part]:
        rest, current = list(self._parts), "start"
        until_s = self._clock() + START_S
        while True:
            end_s = min(until_s, deadline_s)
            if not self._messages.poll(max(0.0, end_s - self._clock())):
                is_all = deadline_s <= until_s
                self._take(Failure(current, "the time for all is over" if is_all else "it took too long and was ended"))
                for part in rest if is_all else ():
                    self._take(Failure(part.name, "there was no time left for it"))
                return [] if is_all else rest
            try:
                message: Message = self._messages.recv()
            except EOFError:
                if not current:
                    return rest
                self._process.join()
                self._take(Failure(current, f"its process ended with {self._process.exitcode}"))
                return rest
            match message:
                case Opened():
                    self._report.device, self._report.versions = message.device, message.versions
                case Begun():
                    current = message.part
                    until_s = self._clock() + rest.pop(0).limit_s
                case Done():
                    if not rest:
                        return []
                    current, until_s = "", self._clock() + START_S
                case _:
                    self._take(message)

    def _take(self, row: Row) -> None:
        self._report.take(row)
        self._on_row(row)


def _serve(messages: Connection, setup: Setup, parts: tuple[Part, ...]) -> None:
    """The child: run the parts in order; end early when the device is broken, for a new process may have it whole."""
    bench = setup.open()
    messages.send(Opened(bench.machine.name, versions()))
    for part in parts:
        messages.send(Begun(part.name))
        try:
            for row in part.function(bench):
                bench.machine.synchronize()
                messages.send(row)
                if isinstance(row, DeviceLimits):
                    bench = replace(bench, limits=row)
        except Exception as error:
            messages.send(Failure(part.name, f"{type(error).__name__}: {_first_line(error)}"))
        is_sane = bench.machine.is_sane()
        messages.send(Done(part.name))
        if not is_sane:
            return


def versions() -> str:
    """Of what the figures depend on."""
    try:
        from importlib.metadata import version

        triton = version("triton")
    except Exception:
        triton = "none"
    return f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, triton {triton}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
