"""`rayline bench gpu`: the CUDA kernels checked and measured on the GPU at hand, in one command."""

import time
from pathlib import Path

import click


@click.command("gpu")
@click.option(
    "--json",
    "out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for results, as they come.",
)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, help="What computes.")
@click.option(
    "--size",
    type=click.Choice(["full", "tiny"]),
    default="full",
    show_default=True,
    help="full: Llama 8B and 1B, Qwen3 0.6B. tiny: what a CPU computes in seconds, to see that all parts run.",
)
@click.option("--part", "wanted", multiple=True, help="Only the parts whose names contain this (may be repeated).")
@click.option("--limit-s", type=click.IntRange(min=10), default=480, show_default=True, help="Seconds for all of it.")
def command(out: Path | None, device: str, size: str, wanted: tuple[str, ...], limit_s: int) -> int:
    """Check the kernels against torch, then measure: decoding, prompts, attention, products, graphs, exactness.

    Needs torch, Triton, transformers, safetensors and numpy, and no network. A part that fails is reported and the
    others go on. The exit status is 1 when something failed or does not hold.
    """
    began_s = time.monotonic()
    from rayline.workers.bench.gpu.bench import Setup  # torch takes seconds to import: not for `--help`
    from rayline.workers.bench.gpu.main import LEAST_S, measure
    from rayline.workers.bench.gpu.parts import PARTS

    parts = [part for part in PARTS if not wanted or part.name == "limits" or any(w in part.name for w in wanted)]
    if len(parts) == 1 and wanted and not any(w in "limits" for w in wanted):
        raise click.UsageError(f"no part contains {' or '.join(wanted)}: there are {', '.join(p.name for p in PARTS)}")
    setup = Setup(device, size, least_s=LEAST_S if size == "full" else 0.0)
    report = measure(setup, parts, limit_s - (time.monotonic() - began_s), out, click.echo)
    return 0 if report.ok else 1
