"""`rayline bench gpu` from its limits to its report, which is on disk after every row.

python -m rayline.workers.bench.gpu.main OUT    all of it, where there is not even click
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rayline.workers.bench.gpu.bench import Part, Setup
from rayline.workers.bench.gpu.parts import PARTS
from rayline.workers.bench.gpu.report import GpuReport, Row, line
from rayline.workers.bench.gpu.runner import run_parts

LIMIT_S = 480.0
LEAST_S = 0.5  # of a measurement


def measure(
    setup: Setup, parts: Sequence[Part], limit_s: float, out: Path | None, say: Callable[[str], None]
) -> GpuReport:
    """Run the parts in `limit_s` seconds at most. out: has all rows so far at any time, as JSON."""
    report = GpuReport()

    def on_row(row: Row) -> None:
        say(line(row))
        write(report, out)

    run_parts(setup, parts, limit_s, on_row, report=report)
    write(report, out)
    say(f"{report.device}, {report.versions}: {report.took_s:.0f} s, {'all well' if report.ok else 'NOT WELL'}")
    return report


def write(report: GpuReport, out: Path | None) -> None:
    """In one go, so that whoever ends this process in the middle leaves the rows before."""
    if out is None:
        return
    whole = out.with_name(f"{out.name}.new")
    whole.write_text(json.dumps(report.as_json(), indent=1))
    os.replace(whole, out)


def main(out: Path) -> int:
    report = measure(Setup("cuda", "full", LEAST_S), PARTS, LIMIT_S, out, lambda text: print(text, flush=True))
    return 0 if report.ok else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rayline.workers.bench.gpu.main OUT")
    sys.exit(main(Path(sys.argv[1])))
