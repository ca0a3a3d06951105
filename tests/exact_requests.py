"""Random mixtures of requests, as hypothesis draws them: what a group may be asked for at once, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from rayline.cluster.config import AsyncScheduling
from rayline.protos.types import PLAIN_RULES, SamplingParams, TokenRules, choice_seed

VOCAB_SIZE = 301
FIRST_ID = 3  # ids below are special
MOST_BLOCK_TOKENS = 64
SHORT_TOKENS = 240  # prompt and output together, of requests that are not long


@dataclass(frozen=True, slots=True)
class Asked:
    """A request without its name. Equal ones must be answered with equal bits.

    prompt: (text, tokens) pairs: the prompt is the beginnings of these texts in a row.
    """

    prompt: tuple[tuple[int, int], ...]
    params: SamplingParams
    rules: TokenRules = PLAIN_RULES

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return tuple(token for number, length in self.prompt for token in text(number, length))

    @property
    def longest_tokens(self) -> int:
        """Tokens whose KV blocks are enough for it; beams may each need blocks of their own."""
        longest = len(self.prompt_ids) + (self.params.max_tokens or 0)
        return self.params.beam_width * (longest + MOST_BLOCK_TOKENS) if self.params.beam_width else longest


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a request comes and goes.

    after_steps: engine steps between the arrival before and this one.
    abort_after_steps: None to let it end. resumed_tokens: outputs that another group has already sent.
    family: of the choices of one request, which share their prompt.
    """

    asked: Asked
    after_steps: int = 0
    abort_after_steps: int | None = None
    resumed_tokens: int = 0
    priority: int = 0
    family: str = ""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine is started with. spare_blocks: KV blocks beyond those that the longest request needs.

    decode_stretch: with the default no clock decides what a step holds.
    """

    block_tokens: int = 16
    max_step_tokens: int = 2048
    max_running: int = 64
    prefix_caching: bool = True
    spare_blocks: int = 100
    threads: int = 1
    decode_stretch: float = 1000.0
    async_scheduling: AsyncScheduling = "never"


ALONE = Limits(prefix_caching=False)


def text(number: int, length: int) -> tuple[int, ...]:
    """The first tokens of one of many texts."""
    return tuple(FIRST_ID + (7919 * (i + 1) * (number + 3) + i * i) % (VOCAB_SIZE - FIRST_ID) for i in range(length))


@st.composite
def sampling(draw: st.DrawFn) -> SamplingParams:
    """Greedy or with noise, with any cut, often with logprobs."""
    params = SamplingParams(
        temperature=0.0,
        seed=draw(st.integers(0, 3)),
        max_tokens=draw(st.sampled_from([20, 45, 1, 3])),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.sampled_from([5, 5, 0, 20])),
        prompt_logprobs=draw(st.sampled_from([None, None, None, 0, 3])),
    )
    if draw(st.booleans()):
        return params
    return replace(
        params,
        temperature=draw(st.sampled_from([0.3, 1.0, 3.0])),
        top_k=draw(st.sampled_from([0, 0, 5, 40])),
        top_p=draw(st.sampled_from([1.0, 0.9, 0.5])),
        min_p=draw(st.sampled_from([0.0, 0.02])),
    )


@st.composite
def asked(draw: st.DrawFn, with_long: bool) -> Asked:
    """A prompt that begins as others do, for the prefix cache, and goes on as it likes.

    with_long: some go past the 512 keys that attention sums apart.
    """
    shared = draw(st.sampled_from([0, 1, 15, 16, 17, 33, 48, 64, 90, 130]))
    if with_long and draw(st.integers(0, 29)) == 0:
        shared = draw(st.integers(480, 640))
    own = draw(st.integers(0 if shared else 1, 40))
    prompt = ((draw(st.integers(0, 1)), shared), (draw(st.integers(10, 12)), own))
    return Asked(prompt, draw(sampling()))


@st.composite
def searched(draw: st.DrawFn) -> Asked:
    """A beam search over a short text."""
    params = SamplingParams(
        beam_width=draw(st.integers(2, 4)),
        n=2,
        seed=0,
        max_tokens=draw(st.sampled_from([3, 8, 12])),
        length_penalty=draw(st.sampled_from([1.0, 0.0, 2.0])),
        early_stopping=draw(st.sampled_from([True, False, "never"])),
        stop_token_ids=draw(st.sampled_from([(), (7, 8, 9, 10, 11, 12)])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        prompt_logprobs=draw(st.sampled_from([None, None, 2])),
    )
    return Asked(((draw(st.integers(0, 1)), draw(st.sampled_from([1, 15, 16, 17, 33]))),), params)


@st.composite
def growing(draw: st.DrawFn) -> Asked:
    """A short prompt with a long answer: many of them at once outgrow the cache and preempt each other."""
    params = replace(draw(sampling()), max_tokens=60, ignore_eos=True)
    return Asked(((draw(st.integers(0, 12)), draw(st.integers(1, 33))),), params)


@st.composite
def arrivals(draw: st.DrawFn, with_long: bool = True) -> tuple[Arrival, ...]:
    """Requests that overlap in time; some of them equal, aborted, or resumed from elsewhere."""
    if draw(st.integers(0, 2)) == 0:
        return tuple(Arrival(kind) for kind in draw(st.lists(growing(), min_size=4, max_size=8)))
    kinds = draw(st.lists(asked(with_long), min_size=3, max_size=8)) + draw(st.lists(searched(), max_size=3))
    kinds = draw(st.permutations(kinds + draw(st.lists(st.sampled_from(kinds), max_size=3))))
    found: list[Arrival] = []
    for number, kind in enumerate(kinds):
        arrival = Arrival(
            kind,
            after_steps=draw(st.sampled_from([0, 0, 0, 1, 2, 5])),
            abort_after_steps=draw(st.sampled_from([None, None, None, None, 1, 6])),
            resumed_tokens=draw(st.sampled_from([0, 0, 0, 1, 4])),
            priority=draw(st.sampled_from([0, 0, 0, -1])),
            cache_salt=draw(st.sampled_from(["", "", "salt"])),
        )
        found += choices(arrival, draw(st.sampled_from([1, 1, 2, 4])), f"family {number}")
    return tuple(found)


def choices(arrival: Arrival, count: int, family: str) -> list[Arrival]:
    """`count` choices of one request, as a router sends them; a search has one."""
    params = arrival.asked.params
    if count == 1 or params.beam_width:
        return [arrival]
    first = replace(arrival, family=family)
    others = [
        replace(params, seed=choice_seed(params.seed or 0, number), prompt_logprobs=None) for number in range(1, count)
    ]
    return [first, *(replace(first, asked=replace(first.asked, params=each), after_steps=0) for each in others)]


def fitting(arrivals: Sequence[Arrival], limits: Limits) -> tuple[Arrival, ...]:
    """Without the searches that need more places than an engine has."""
    return tuple(a for a in arrivals if a.asked.params.beam_width <= limits.max_running)


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    """Small budgets cut prompts into chunks, few blocks preempt."""
    max_step_tokens = draw(st.sampled_from([29, 7, 16, 64, 200, 1024, 3, 1]))
    return Limits(
        block_tokens=draw(st.sampled_from([16, 16, 32, 64])),
        max_step_tokens=max_step_tokens,
        max_running=min(max_step_tokens, draw(st.sampled_from([16, 8, 5, 3, 2, 1]))),
        prefix_caching=draw(st.booleans()),
        spare_blocks=draw(st.sampled_from([0, 1, 2, 5, 40])),
        threads=draw(st.sampled_from([1, 1, 1, 2])),
        decode_stretch=draw(st.sampled_from([1.0, 2.0, 1000.0])),
        async_scheduling=draw(st.sampled_from(["always", "never"])),
    )
