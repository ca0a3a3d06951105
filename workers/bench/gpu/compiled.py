"""Decode steps through torch.compile: that they compute what launched ones do, and what they gain."""

import time
from collections.abc import Iterator

from rayline.kernels.gpu import NoGpu
from rayline.workers.bench.gpu.bench import Bench
from rayline.workers.bench.gpu.checks import DECODER_TOLERANCE, close, shortened
from rayline.workers.bench.gpu.machine import Kind
from rayline.workers.bench.gpu.model_run import ModelRun, NoRoom
from rayline.workers.bench.gpu.report import Check, Failure, Figure, Row

PROMPT = [(0, 0, 19), (1, 0, 3), (2, 0, 7)]
STEPS = ([(0, 19, 1), (1, 3, 1), (2, 7, 1)], [(2, 8, 1), (0, 20, 1)], [(1, 4, 1)], [(0, 21, 1), (1, 5, 1), (2, 9, 1)])


def compiled_steps(bench: Bench) -> Iterator[Row]:
    """The last model: compiled and captured, captured, launched, in the same minutes."""
    try:
        bench.machine.kernels("compiled")
    except NoGpu as missing:
        yield Failure("compiled steps", str(missing))
        return
    yield from _logits(bench)
    name = list(bench.sizes.models)[-1]
    for batch in bench.sizes.batches[:2]:
        yield from _decoding(bench, name, batch)


def _logits(bench: Bench) -> Iterator[Check]:
    config = shortened(next(iter(bench.sizes.models.values())), bench.sizes.check_layers)
    wanted: tuple[tuple[Kind, int], ...] = (("compiled", 4), ("ordinary", 0))
    compiled, launched = (
        ModelRun(bench.machine, config, bench.machine.kernels(kind), sequences=3, tokens=48, graph_rows=rows)
        for kind, rows in wanted
    )
    for run in (compiled, launched):
        run.logits(PROMPT)
    for at, slices in enumerate(STEPS):
        ours, theirs = compiled.logits(slices), launched.logits(slices)
        yield close(f"compiled steps: logits of step {at}, {len(slices)} rows", ours, theirs, DECODER_TOLERANCE)


def _decoding(bench: Bench, name: str, batch: int) -> Iterator[Row]:
    config, context = bench.sizes.models[name], bench.sizes.context_tokens
    slices = [(sequence, context, 1) for sequence in range(batch)]
    captured_s = 0.0
    ways: list[tuple[str, Kind, int]] = [("compiled", "compiled", batch), ("launched", "ordinary", 0)]
    if bench.machine.is_cuda:
        ways.insert(0, ("graph", "ordinary", batch))
    for way, kind, rows in ways:
        title = f"{name} decode step, batch {batch}, {way}"
        try:
            run = ModelRun(
                bench.machine, config, bench.machine.kernels(kind), sequences=batch, tokens=context + 1, graph_rows=rows
            )
        except NoRoom as why:
            yield Failure(title, str(why))
            return
        step, began_s = run.stepping(slices), time.perf_counter()
        step()
        bench.machine.synchronize()
        first_s = time.perf_counter() - began_s
        took_s = bench.machine.seconds(step)
        yield bench.figure(title, took_s, run.work(slices))
        if way == "graph":
            captured_s = took_s
        if way == "compiled":
            yield Figure(f"{title}: its first step", first_s, "s")
            if captured_s:
                yield Figure(f"{name} batch {batch}: compiled graphs over graphs", took_s / captured_s, "x")
        del run, step
