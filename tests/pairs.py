"""Combinations of options, few of them, in which any two options of different factors meet."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product

Row = dict[str, str]


def meetings(row: Mapping[str, str], together: Sequence[str] = ()) -> set[tuple[tuple[str, str], ...]]:
    """The pairs of options that meet in a row, and the options of the factors `together` as one meeting more."""
    return {*combinations(sorted(row.items()), 2), tuple((factor, row[factor]) for factor in sorted(together))}


def covering_rows(
    factors: Mapping[str, Sequence[str]],
    fits: Callable[[Row], bool] = lambda row: True,
    together: Sequence[str] = (),
) -> list[Row]:
    """Rows of one option for each factor. Every pair that meets in some row that fits meets in one of these, and so
    does every combination of the factors `together`.

    Greedy: the next row is the first of those with the most pairs that have not met yet.
    """
    all_rows = (dict(zip(factors, options, strict=True)) for options in product(*factors.values()))
    left = [(row, meetings(row, together)) for row in all_rows if fits(row)]
    open_pairs = set().union(*(pairs for _, pairs in left))
    rows = []
    while open_pairs:
        row, pairs = max(left, key=lambda entry: len(entry[1] & open_pairs))
        rows.append(row)
        open_pairs -= pairs
    return rows
