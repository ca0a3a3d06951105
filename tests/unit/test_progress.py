"""Long phases as bars and as lines."""

import io
import itertools

from rich.console import Console

from rayline.deploy.progress import Bars, Lines, open_progress


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_lines_mark_the_beginning_and_the_end_of_a_phase_only() -> None:
    console = Console(file=io.StringIO(), width=40)
    ticks = itertools.count(step=2.5)
    with Lines(console, lambda: float(next(ticks))) as progress:
        for done in (0, 400_000, 800_000, 2_000_000, 2_000_000):
            progress.show("group 0 rank 1", "read weights", done, 2_000_000)
    assert shown(console).splitlines() == [
        "group 0 rank 1: read weights ...",
        "group 0 rank 1: read weights done, 2.0 MB in 2.5 s",
    ]


def test_a_phase_reported_once_is_one_line() -> None:
    console = Console(file=io.StringIO(), width=200)
    with Lines(console, lambda: 1.0) as progress:
        progress.show("group 0 rank 3", "warm up", 1, 1)
    assert shown(console) == "group 0 rank 3: warm up done, 1 of 1 in 0.0 s\n"


def test_bars_show_ranks_phases_and_bytes_on_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Bars(console) as progress:
        progress.show("rank 0", "read weights", 500_000, 2_000_000)
        progress.show("rank 0", "read weights", 2_000_000, 2_000_000)
        progress.show("rank 0", "warm up", 1, 1)
    text = shown(console)
    assert "rank 0" in text
    assert "2.0 MB" in text
    assert "warm up" in text


def test_the_console_decides() -> None:
    assert isinstance(open_progress(Console(file=io.StringIO(), force_terminal=True)), Bars)
    assert isinstance(open_progress(Console(file=io.StringIO())), Lines)
