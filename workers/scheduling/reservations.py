"""Blocks that are promised to a request before it takes them, so that it never has to be preempted."""

from rayline.workers.scheduling.blocks import BlockPool


def most_blocks(prompt_tokens: int, limit: int, beam_width: int, block_tokens: int) -> int:
    """KV blocks that a request holds at most when it may grow to `limit` tokens. The last token is never computed.

    A beam search holds the prompt's full blocks once, all others once for each beam.
    """
    longest = -(-(limit - 1) // block_tokens)
    shared = prompt_tokens // block_tokens if beam_width else 0
    return shared + max(1, beam_width) * max(0, longest - shared)


class Reservations:
    """What is promised and not yet taken, by request. The pool counts it as not available.

    Whatever a request with a reservation takes from the pool or gives back goes to its account, so that the rest of
    the pool is the others' and its own alone.
    """

    def __init__(self, pool: BlockPool):
        self._pool = pool
        self._kept: dict[str, int] = {}

    def holds(self, request_id: str) -> bool:
        return request_id in self._kept

    def kept_for(self, request_id: str) -> int:
        return self._kept.get(request_id, 0)

    def open(self, request_id: str, blocks: int) -> None:
        """Promise `blocks`, which are available."""
        self._kept[request_id] = blocks
        self._pool.reserved += blocks

    def settle(self, request_id: str, unheld: int) -> None:
        """Book what a request did to the pool, in which `unheld` blocks were held by nobody before.

        One that started with less than it may need takes what else is available when its promise is used up.
        """
        if (kept := self._kept.get(request_id)) is not None:
            self._kept[request_id] = max(0, kept + self._pool.unheld - unheld)
            self._pool.reserved += self._kept[request_id] - kept

    def close(self, request_id: str) -> None:
        """The request has ended."""
        self._pool.reserved -= self._kept.pop(request_id, 0)
