"""Huge pages at hand in the system, by what Linux says of its free memory."""

from pathlib import Path

BUDDYINFO = Path("/proc/buddyinfo")
HUGE_ORDER = 9  # 2^9 pages of 4 KiB
HUGE_PAGE_BYTES = 2 << 20


def are_at_hand(size_bytes: int) -> bool:
    """Whether so much can be had in huge pages without moving others about."""
    return free_huge_pages() * HUGE_PAGE_BYTES > size_bytes


def free_huge_pages() -> int:
    """Huge pages that need no compaction first; 0 where the system does not say.

    With little unbroken memory left a first write can take ten times as long, for the system then moves
    pages about to make room for huge ones.
    """
    try:
        return count_huge_pages(BUDDYINFO.read_text())
    except OSError:
        return 0


def count_huge_pages(buddyinfo: str) -> int:
    """Of "Node 0, zone Normal 12 7 ..." lines: the free pieces of 2^0, 2^1, ... pages in each zone."""
    counts = [[int(count) for count in line.split()[4:]] for line in buddyinfo.splitlines()]
    return sum(count << order for zone in counts for order, count in enumerate(zone[HUGE_ORDER:]))
