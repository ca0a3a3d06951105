"""How fast it is: whole decoders step by step, then the kernels that decide it one by one."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle

import torch

from rayline.kernels import library_attention
from rayline.kernels.backend import AttentionShape, Kernels
from rayline.kernels.context import ForwardContext
from rayline.kernels.gpu import NoGpu
from rayline.workers.bench.gpu.bench import Bench
from rayline.workers.bench.gpu.checks import sampling_rows
from rayline.workers.bench.gpu.engine_run import EngineRun
from rayline.workers.bench.gpu.machine import Kind
from rayline.workers.bench.gpu.model_run import ModelRun, NoRoom, Work, random_layer
from rayline.workers.bench.gpu.report import Check, Failure, Figure, Row
from rayline.workers.collectives import Alone
from rayline.workers.models.decoder import Decoder
from rayline.workers.token_sampler import token_sampler

COLD_BYTES = 2**28  # of copies that are gone through in turn, so that no cache holds what comes next
PAGE_TOKENS = library_attention.FLASH_PAGE_TOKENS
QUANTISED: tuple[Kind, ...] = ("int4", "int8", "fp8", "w8a8")


def first_model(bench: Bench) -> Iterator[Row]:
    yield from _model(bench, 0)


def second_model(bench: Bench) -> Iterator[Row]:
    yield from _model(bench, 1)


def third_model(bench: Bench) -> Iterator[Row]:
    yield from _model(bench, 2)


def _model(bench: Bench, at: int) -> Iterator[Row]:
    """Decoding with graphs and without, and a prompt."""
    name = list(bench.sizes.models)[at]
    yield from _decoder(bench, name, bench.machine.ordinary(), bench.sizes.batches)


def exact_class(bench: Bench) -> Iterator[Row]:
    """What a row's own bits cost: with 16 bits, and with whole numbers, whose sums have no order anyway."""
    name = next(iter(bench.sizes.models))
    yield from _decoder(bench, name, bench.machine.kernels("exact"), bench.sizes.batches)
    yield from _decoder(bench, name, bench.machine.kernels("exact w8a8"), bench.sizes.batches[:2])


def quantised_models(bench: Bench) -> Iterator[Row]:
    name = next(iter(bench.sizes.models))
    for kind in QUANTISED:
        try:
            yield from _decoder(bench, name, bench.machine.kernels(kind), bench.sizes.batches[:2])
        except NoGpu as missing:
            yield Failure(f"{name}, {kind}", str(missing))


def _decoder(bench: Bench, name: str, kernels: Kernels, batches: tuple[int, ...]) -> Iterator[Row]:
    """Decoding at each batch, and a prompt, over the same weights: to make them takes longer than to measure."""
    config, prompt = bench.sizes.models[name], bench.sizes.prompt_tokens
    decoder: Decoder | None = None
    for batch in batches:
        tokens, title = bench.sizes.context_tokens + 1, f"{name} {kernels.name} decode, batch {batch}"
        try:
            run = ModelRun(bench.machine, config, kernels, sequences=batch, tokens=tokens, decoder=decoder)
        except NoRoom as why:
            yield Failure(title, str(why))
            continue
        yield from _decoding(bench, run, f"{name} {kernels.name}", batch)
        decoder = run.end()
    try:
        run = ModelRun(bench.machine, config, kernels, sequences=1, tokens=prompt, decoder=decoder)
    except NoRoom as why:
        yield Failure(f"{name} {kernels.name} prefill", str(why))
        return
    took_s = bench.machine.seconds(run.stepping([(0, 0, prompt)]))
    yield bench.figure(f"{name} {kernels.name} prefill of {prompt}", took_s, run.work([(0, 0, prompt)]))


def _decoding(bench: Bench, run: ModelRun, name: str, batch: int) -> Iterator[Row]:
    """The same steps captured and launched."""
    slices = [(sequence, bench.sizes.context_tokens, 1) for sequence in range(batch)]
    captured_s = 0.0
    for rows in (batch, 0) if bench.machine.is_cuda else (0,):
        run.capture(rows)
        took_s = bench.machine.seconds(run.stepping(slices))
        yield bench.figure(f"{name} decode, batch {batch}, {'graph' if rows else 'launched'}", took_s, run.work(slices))
        if rows:
            captured_s = took_s
        elif captured_s:
            yield Figure(f"{name} batch {batch}: graphs over launches", took_s / captured_s, "x")


def engine_steps(bench: Bench) -> Iterator[Row]:
    """Whole engine steps, planned and launched ahead and not: what the device does not compute meanwhile is the gap."""
    for name in list(bench.sizes.models)[:2]:
        for batch in bench.sizes.batches[:2]:
            for window, kind in ((2, "launched ahead"), (1, "one at a time")):
                yield from _engine(bench, name, batch, window, f"{name} engine, batch {batch}, {kind}")


def _engine(bench: Bench, name: str, batch: int, window: int, title: str) -> Iterator[Row]:
    context, outputs = bench.sizes.context_tokens, bench.sizes.engine_steps + 2
    try:
        run = EngineRun(
            bench.machine, bench.sizes.models[name], bench.machine.ordinary(), sequences=batch, context=context,
            outputs=outputs, launch_window=window,
        )  # fmt: skip
    except NoRoom as why:
        yield Failure(title, str(why))
        return
    found = run.decode()
    steps = max(1, found.clock.steps)
    middle = [(sequence, context + outputs // 2, 1) for sequence in range(batch)]
    yield bench.figure(f"{title}: step", found.wall_s / steps, run.model.work(middle))
    gap_us = 1e6 * found.clock.gap_s / steps
    yield Figure(f"{title}: gap between steps", gap_us, "us", found.gap_share, "the step")
    if window > 1 and bench.machine.is_cuda:
        yield _unhindered(run, f"{title}: the host waits for the ends of steps alone")


def _unhindered(run: EngineRun, name: str) -> Check:
    try:
        run.decode(forbids_waits=True)
    except RuntimeError as error:
        return Check(name, False, str(error).splitlines()[0])
    return Check(name, True)


def products(bench: Bench) -> Iterator[Row]:
    """The widest matrix of the first model's layers, with weights that no cache holds, beside the plain product."""
    config = next(iter(bench.sizes.models.values()))
    columns, depth = 2 * config.intermediate_size, config.hidden_size
    plain = bench.machine.randn(columns, depth)
    for kind in ("torch", "exact", *QUANTISED):
        try:
            kernels = bench.machine.kernels(kind)
        except NoGpu as missing:
            yield Failure(f"products, {kind}", str(missing))
            continue
        first = kernels.pack([plain])
        copies = [first] + [kernels.pack([plain.clone()]) for _ in range(_copies(bench, first.bytes) - 1)]
        for rows in bench.sizes.product_rows:
            x, turn = bench.machine.randn(rows, depth, seed=1), cycle(copies)
            took_s = bench.machine.seconds(lambda x=x, turn=turn, k=kernels: k.linear(x, next(turn)))  # type: ignore[misc]
            moved = first.bytes + bench.machine.dtype.itemsize * rows * (columns + depth)
            title = f"product {rows} x {depth} x {columns}, {'cuBLAS' if kind == 'torch' else kernels.name}"
            yield bench.figure(title, took_s, Work(moved, 2.0 * rows * columns * depth), 1e6, "us")


def attention(bench: Bench) -> Iterator[Row]:
    """Decoding over long and many contexts, and a prompt, of the first model's heads."""
    config = next(iter(bench.sizes.models.values()))
    shape = AttentionShape(config.heads, config.kv_heads, config.head_dim, config.head_dim**-0.5)
    cases = [(sequences, length, 1) for sequences, length in bench.sizes.attended]
    cases.append((1, bench.sizes.prompt_tokens, bench.sizes.prompt_tokens))
    for kind in ("ordinary", "exact"):
        try:
            kernels = bench.machine.kernels(kind)
        except NoGpu as missing:
            yield Failure(f"attention, {kind}", str(missing))
            continue
        for case in cases:
            yield _attended(bench, kernels, shape, *case, kernels.name)
    for name in library_attention.at_hand() if bench.machine.is_cuda else ():
        library = library_attention.library_of(name)
        why = library_attention.probed(library, shape, PAGE_TOKENS, bench.machine.dtype, bench.machine.device)
        yield Check(f"attention by {name}: right, or not used", True, f"not used: {why}" if why else "used")
        for case in () if why else cases:
            yield _attended(bench, bench.machine.kernels("ordinary", [library]), shape, *case, name, PAGE_TOKENS)


def sampling(bench: Bench) -> Iterator[Row]:
    """From logits to tokens that the host knows: greedy, noisy and cut rows, and rows whose logprobs are wanted.

    Logits as wide as a language model's leave top-p some tokens; flat ones leave it most of them, the worst case.
    """
    config = next(iter(bench.sizes.models.values()))
    sampler = token_sampler(bench.machine.ordinary(), Alone(), config.vocab_size, 0)
    for count in bench.sizes.batches:
        flat = bench.machine.randn(count, config.vocab_size).float()
        noisy = sampling_rows(count, 0.8)
        cases = {
            "greedy": (flat, sampling_rows(count, 0.0)),
            "noisy": (flat, noisy),
            "cut by top-k and top-p": (4 * flat, sampling_rows(count, 0.8, top_k=50, top_p=0.9)),
            "cut by top-p": (4 * flat, sampling_rows(count, 0.8, top_p=0.9)),
            "flat, cut by top-p": (flat, sampling_rows(count, 0.8, top_p=0.9)),
            "noisy, with 5 logprobs": (flat, replace(noisy, logprobs=(5,) * count)),
        }
        for name, (logits, rows) in cases.items():
            took_s = bench.machine.seconds(lambda x=logits, r=rows: sampler.sample(x, r))  # type: ignore[misc]
            yield bench.figure(f"sampling {count} rows, {name}", took_s, Work(logits.nbytes, 0.0), 1e6, "us")


def _attended(
    bench: Bench,
    kernels: Kernels,
    shape: AttentionShape,
    sequences: int,
    length: int,
    count: int,
    by: str,
    size: int = 16,
) -> Figure:
    """by: what computes it. size: tokens of a block."""
    machine = bench.machine
    width = -(-length // size)
    row = shape.kv_heads * shape.head_dim
    cached = 2 * sequences * length * row * machine.dtype.itemsize
    layers = [random_layer(machine, sequences * width, size, shape) for _ in range(_copies(bench, cached))]
    order = torch.randperm(sequences * width, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    positions = torch.arange(length - count, length).repeat(sequences).to(machine.device)
    context = ForwardContext(
        positions, positions[:0], tuple(range(0, sequences * count + 1, count)), (length,) * sequences,
        order.view(sequences, width).to(machine.device), positions[:0],
    )  # fmt: skip
    q, turn = machine.randn(sequences * count, shape.heads * shape.head_dim, seed=3), cycle(layers)
    took_s = machine.seconds(lambda: kernels.attend(q, shape, next(turn), context))
    scores = sequences * (count * length - count * (count - 1) // 2)
    work = Work(cached + 2 * q.nbytes, 4.0 * scores * shape.heads * shape.head_dim)
    title = f"attention {sequences} x {length}{', prompt' if count > 1 else ''}, {by}"
    return bench.figure(title, took_s, work, 1e6, "us")


def _copies(bench: Bench, size_bytes: int) -> int:
    return max(1, min(8, COLD_BYTES // max(1, size_bytes))) if bench.machine.is_cuda else 1
