"""Several streams read as one."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.router.fan_in import fan_in


class Source:
    """A stream of numbers that notes how far it was read and whether it was closed."""

    def __init__(self, length: int, error: Exception | None = None):
        self.length, self.error = length, error
        self.made, self.closed = 0, False

    async def events(self) -> AsyncGenerator[int, None]:
        try:
            for value in range(self.length):
                await asyncio.sleep(0)
                self.made += 1
                yield value
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_every_event_comes_once_and_in_its_streams_order(lengths: list[int]) -> None:
    sources = [Source(length) for length in lengths]

    async def scenario() -> list[tuple[int, int]]:
        return [pair async for pair in fan_in([source.events() for source in sources])]

    pairs = asyncio.run(scenario())
    for number, length in enumerate(lengths):
        assert [value for owner, value in pairs if owner == number] == list(range(length))


@pytest.mark.parametrize("count", [1, 3])
async def test_closing_it_closes_all_streams(count: int) -> None:
    sources = [Source(100) for _ in range(count)]
    merged = fan_in([source.events() for source in sources])
    await anext(merged)
    await merged.aclose()
    assert all(source.closed or not source.made for source in sources)


@pytest.mark.parametrize("count", [1, 3])
async def test_the_first_error_ends_all_streams(count: int) -> None:
    sources = [Source(2, ValueError("broken")), *(Source(10**6) for _ in range(count - 1))]
    with pytest.raises(ValueError, match="broken"):
        async for _ in fan_in([source.events() for source in sources]):
            pass
    assert all(source.closed for source in sources)


async def test_no_stream_crowds_out_another() -> None:
    read: Counter[int] = Counter()
    async with aclosing(fan_in([Source(10**6).events() for _ in range(3)])) as merged:
        while sum(read.values()) < 60:
            number, _ = await anext(merged)
            read[number] += 1
    assert read == {0: 20, 1: 20, 2: 20}


async def test_a_reader_that_does_not_read_holds_all_streams_back() -> None:
    sources = [Source(10**6) for _ in range(4)]
    merged = fan_in([source.events() for source in sources])
    await anext(merged)
    for _ in range(50):
        await asyncio.sleep(0)
    assert all(source.made <= 2 for source in sources)
    await merged.aclose()
