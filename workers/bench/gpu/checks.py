"""What must hold before a figure means anything: results as torch gives them, and bits that are a row's own."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rayline.kernels.attention import paged_attention
from rayline.kernels.backend import AttentionShape, Kernels, KvLayer
from rayline.kernels.context import ForwardContext
from rayline.kernels.edits import Edit
from rayline.kernels.gpu import NoGpu
from rayline.kernels.native_quant import DEFAULT_GROUPS
from rayline.kernels.quantise import dequantise, quantise
from rayline.kernels.rowwise import Rowwise, pack, round_rows, values
from rayline.kernels.sampling import SamplingRows, sample
from rayline.kernels.torch_kernels import paged
from rayline.workers.bench.gpu.bench import Bench
from rayline.workers.bench.gpu.machine import Kind, Machine
from rayline.workers.bench.gpu.model_run import ModelRun, random_layer
from rayline.workers.bench.gpu.report import Check, Failure, Row
from rayline.workers.collectives import Alone
from rayline.workers.models.config import ModelConfig
from rayline.workers.token_sampler import token_sampler

EXACT_KINDS: tuple[Kind, ...] = ("exact", "exact w8a8")
TOLERANCE = 0.02  # of the largest number: some roundings to 8 bits of mantissa
DECODER_TOLERANCE = 0.06  # after layers of them
KINDS: tuple[Kind, ...] = ("ordinary", "exact")
ROUNDED: tuple[Kind, ...] = ("int4", "int8", "fp8", "w8a8")
ATTENTIONS = {
    "plain": AttentionShape(8, 2, 64, 0.125),
    "no groups, window": AttentionShape(4, 4, 128, 0.1, window=33),
    "soft cap": AttentionShape(6, 2, 80, 0.1, soft_cap=20.0),
    "wide heads, group of 7": AttentionShape(7, 1, 256, 0.06),
}


def operations(bench: Bench) -> Iterator[Row]:
    """Each operation against torch's on the same device, products of rounded weights against their values."""
    for kind in KINDS:
        try:
            kernels = bench.machine.kernels(kind)
        except NoGpu as missing:
            yield Failure(f"operations, {kind}", str(missing))
            continue
        for name, run in _operations(bench.machine).items():
            yield close(f"{name}, {kind}", run(kernels), run(bench.machine.kernels("torch")), TOLERANCE)
        for name, shape in ATTENTIONS.items():
            yield from _attention(bench.machine, kernels, f"attention, {name}, {kind}", shape)
    for kind in ROUNDED:
        yield from _quantised(bench.machine, kind)


def _operations(machine: Machine) -> dict[str, Callable[[Kernels], Tensor]]:
    """A few rows and many, sizes that fill no tile."""
    x, wide = machine.randn(7, 192), machine.randn(150, 192, seed=1)
    weight, bias, scale = machine.randn(330, 192, seed=2), machine.randn(330, seed=3), machine.randn(192, seed=4)
    ids = torch.tensor([3, 329, 0, 77], device=machine.device)
    return {
        "product of 7 rows": lambda k: k.linear(x, k.pack([weight]), bias),
        "product of 150 rows": lambda k: k.linear(wide, k.pack([weight[:100], weight[100:]]), bias),
        "product in fp32": lambda k: k.linear_fp32(x, k.head(weight)),
        "embedding": lambda k: k.embedding(ids, k.table(weight)),
        "RMS norm": lambda k: k.rms_norm(x, scale, 1e-5),
        "RMS norm of a sum": lambda k: torch.cat(k.add_rms_norm(x, wide[:7], scale, 1e-5)),
        "SiLU gate": lambda k: k.silu_gate(wide),
    }


def _attention(machine: Machine, kernels: Kernels, name: str, shape: AttentionShape) -> Iterator[Check]:
    """Two decode steps, one of them long, and a piece of a prompt; with sinks too."""
    slices = [(600, 1), (90, 40), (20, 1)]
    blocks, size = 64, 16
    layer = random_layer(machine, blocks, size, shape)
    tables = torch.arange(3 * 38, dtype=torch.int32).view(3, 38) * 11 % blocks
    starts = [0, 1, 41, 42]
    positions = torch.cat([torch.arange(length - count, length) for length, count in slices])
    context = ForwardContext(
        positions.to(machine.device), positions[:0], tuple(starts), tuple(length for length, _ in slices),
        tables.to(machine.device), positions[:0],
    )  # fmt: skip
    q = machine.randn(42, shape.heads * shape.head_dim, seed=7)
    wide = KvLayer(layer.keys.float(), layer.values.float(), size, shape.kv_heads, shape.head_dim)
    for sinks in (None, torch.linspace(-1, 3, shape.heads, device=machine.device)):
        theirs = paged_attention(
            q.float().view(42, shape.heads, shape.head_dim), paged(wide), context, shape, sinks
        ).flatten(1)
        title = name if sinks is None else f"{name}, sinks"
        yield close(title, kernels.attend(q, shape, layer, context, sinks), theirs, TOLERANCE)


def _quantised(machine: Machine, kind: Kind) -> Iterator[Row]:
    try:
        kernels = machine.kernels(kind)
    except NoGpu as missing:
        yield Failure(f"operations, {kind}", str(missing))
        return
    rows = machine.randn(330, 640, seed=2)
    for count in (1, 7, 150):
        x = machine.randn(count, 640)
        theirs = _rounded_product(x, rows, kind)
        yield close(f"product of {count} rows, {kind}", kernels.linear(x, kernels.pack([rows])), theirs, TOLERANCE)


def _rounded_product(x: Tensor, rows: Tensor, kind: Kind) -> Tensor:
    """In fp32, of the numbers that kernels of this kind multiply."""
    if kind == "int4" or kind == "int8":
        return x.float() @ dequantise(quantise(rows, 4 if kind == "int4" else 8, DEFAULT_GROUPS[kind])).T
    rounding: Rowwise = "fp8" if kind == "fp8" else "w8a8"
    numbers, steps = round_rows(x, rounding)
    return (numbers.float() * steps[:, None]) @ values(pack([rows], rounding)).T


def decoders(bench: Bench) -> Iterator[Row]:
    """Logits of short decoders of each shape against torch's in fp32: a prompt, decoding, both in one step."""
    steps = [[(0, 0, 19), (1, 0, 3)], [(0, 19, 1), (1, 3, 1)], [(0, 20, 1), (2, 0, 9)]]
    for name, config in bench.sizes.models.items():
        short = shortened(config, bench.sizes.check_layers)
        reference = replace(bench.machine, dtype=torch.float32)
        theirs = _logits(ModelRun(reference, short, reference.kernels("torch"), sequences=3, tokens=48), steps)
        for kind in KINDS:
            try:
                kernels = bench.machine.kernels(kind)
            except NoGpu as missing:
                yield Failure(f"decoders, {name}, {kind}", str(missing))
                continue
            ours = _logits(ModelRun(bench.machine, short, kernels, sequences=3, tokens=48), steps)
            yield close(f"logits of {name}, {kind}", ours, theirs, DECODER_TOLERANCE)


def exactness(bench: Bench) -> Iterator[Row]:
    """The exact class: a sequence alone, in pieces, and beside others gives the same bits."""
    for kind in EXACT_KINDS:
        yield from _exactness(bench, kind)


def _exactness(bench: Bench, kind: Kind) -> Iterator[Row]:
    config = shortened(next(iter(bench.sizes.models.values())), bench.sizes.check_layers)
    run = ModelRun(bench.machine, config, bench.machine.kernels(kind), sequences=6, tokens=640)
    long = 600 if bench.machine.is_cuda else 40
    alone = run.logits([(0, 0, long)])
    run.logits([(1, 0, long // 3), (2, 0, 17)])
    pieces = run.logits([(2, 17, 1), (1, long // 3, long - long // 3)])
    yield Check(f"{kind} class: a prompt in pieces beside another has its bits", bool(pieces[1].equal(alone[0])))
    run.logits([(3, 0, long - 1)])
    decoded = run.logits([(3, long - 1, 1)])
    yield Check(f"{kind} class: a prompt's last token decoded has its bits", bool(decoded[0].equal(alone[0])))
    run.logits([(s, 0, long - 1) for s in (4, 5)])
    beside = run.logits([(4, long - 1, 1), (2, 18, 1), (5, long - 1, 1)])
    same = bool(beside[0].equal(alone[0]) and beside[2].equal(alone[0]))
    yield Check(f"{kind} class: decoded beside others it has its bits", same)


def graphs(bench: Bench) -> Iterator[Row]:
    """Captured decode steps give what launched ones give: the exact class its bits, the ordinary one its logits."""
    if not bench.machine.is_cuda:
        yield Failure("graphs", "CUDA graphs need a CUDA device")
        return
    config = shortened(next(iter(bench.sizes.models.values())), bench.sizes.check_layers)
    steps = [[(0, 0, 90), (1, 0, 3), (2, 0, 40)]] + [
        [(0, 90 + at, 1), (1, 3 + at, 1), (2, 40 + at, 1)][: 3 - at % 3] for at in range(3)
    ]
    for kind in KINDS:
        plain, graphed = (
            _logits(
                ModelRun(bench.machine, config, bench.machine.kernels(kind), sequences=3, tokens=128, graph_rows=rows),
                steps,
            )
            for rows in (0, 4)
        )
        if kind == "exact":
            yield Check("graphs: replayed steps of the exact class have their bits", bool(plain.equal(graphed)))
        else:
            yield close("graphs: replayed steps, ordinary", graphed, plain, TOLERANCE)


def sampling(bench: Bench) -> Iterator[Row]:
    """Tokens that the device draws are those the CPU draws of the same logits; logprobs are near, and a row's own."""
    count, vocab = 32, 8000 if bench.machine.is_cuda else 300
    logits = torch.randn(count, vocab, generator=torch.Generator().manual_seed(0)) * 4
    there = logits.to(bench.machine.device)
    sampler = token_sampler(bench.machine.ordinary(), Alone(), vocab, 0)
    none = (None,) * count
    edit = Edit(banned=(1, 2), bias=(torch.tensor([7, 9]), torch.tensor([3.0, -1.0])), repetition_penalty=1.3)
    for name, rows in {
        "greedy": sampling_rows(count, 0.0),
        "temperature": sampling_rows(count, 0.9),
        "top-k and top-p": sampling_rows(count, 1.1, top_k=40, top_p=0.9),
        "top-p": sampling_rows(count, 1.0, top_p=0.95),
        "typical-p": replace(sampling_rows(count, 1.0), typical_p=(0.9,) * count),
        "top-n-sigma": replace(sampling_rows(count, 1.5), top_n_sigma=(1.5,) * count),
        "min-p, edited": replace(sampling_rows(count, 0.7, min_p=0.02), edits=(edit, *none[1:])),
    }.items():
        ours, theirs = sampler.sample(there, rows).token_ids.cpu(), sample(logits, rows).token_ids
        wrong = int((ours != theirs).sum())
        yield Check(f"sampling, {name}: the CPU's tokens", wrong == 0, f"{wrong} of {count} differ" if wrong else "")
    tokens, tops = list(range(count)), [3] * count
    found = sampler.score(there, tokens, tops)
    alone = [sampler.score(there[at : at + 1], [at], [3]) for at in (0, count - 1)]
    bench.machine.synchronize()
    known = torch.tensor([row.logprob for row in found])
    yield close("logprobs", known, logits.log_softmax(-1)[tokens, tokens], 1e-5)
    if bench.machine.has_triton:
        yield Check("logprobs: a row's own bits", [one[0] for one in alone] == [found[0], found[-1]])


def sampling_rows(
    count: int, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> SamplingRows:
    return SamplingRows(
        temperature=(temperature,) * count,
        top_k=(top_k,) * count,
        top_p=(top_p,) * count,
        min_p=(min_p,) * count,
        typical_p=(1.0,) * count,
        top_n_sigma=(0.0,) * count,
        seed=tuple(range(count)),
        position=tuple(range(7, 7 + count)),
        edits=(None,) * count,
        logprobs=(None,) * count,
    )


def shortened(config: ModelConfig, layers: int) -> ModelConfig:
    return replace(config, layers=layers, sliding_windows=config.sliding_windows[:layers])


def _logits(run: ModelRun, steps: Sequence[Sequence[tuple[int, int, int]]]) -> Tensor:
    return torch.cat([run.logits(slices) for slices in steps])


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Check:
    """Within `tolerance` of the largest number, and no NaN."""
    largest = float(theirs.float().abs().max())
    off = float((ours.float() - theirs.float()).abs().max()) / max(largest, 1e-9)
    return Check(name, off <= tolerance, f"off by {off:.2%} of the largest number")
