"""Requests whose answers are known: each kind of them is asked for once undisturbed, and then again and again."""

from dataclasses import dataclass

from rayline.protos.types import SamplingParams, Spec, StructuredOutput


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of request. is_silent: nothing of it is sent before its end."""

    name: str
    prompt: str
    params: SamplingParams
    is_silent: bool = False

    def spec(self, request_id: str, model: str) -> Spec:
        """The same request under another name."""
        return Spec(request_id, model, self.params, prompt=self.prompt)


def workloads(tokens: int) -> tuple[Workload, ...]:
    """One of each kind, each of `tokens` output tokens a choice: seeds are fixed, so equal streams have equal bits."""
    greedy = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, seed=1)
    sampled = SamplingParams(
        temperature=0.9,
        top_p=0.95,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        repetition_penalty=1.1,
        logprobs=2,
        min_tokens=tokens // 2,
        max_tokens=tokens,
        ignore_eos=True,
        seed=2,
    )
    lines = StructuredOutput("regex", rf"([a-z_]{{2,9}} = [0-9]{{1,4}}\n){{{tokens}}}")
    grammar = SamplingParams(temperature=0.8, max_tokens=tokens, structured_output=lines, seed=3)
    several = SamplingParams(temperature=1.0, n=4, max_tokens=tokens, ignore_eos=True, seed=4)
    beams = SamplingParams(temperature=0.0, beam_width=4, n=2, max_tokens=tokens, ignore_eos=True, seed=5)
    return (
        Workload("greedy", "def fibonacci(n):\n", greedy),
        Workload("sampled", "class Node:\n    def __init__(self", sampled),
        Workload("grammar", "# settings\n", grammar),
        Workload("n4", "import os\nimport sys\n\n", several),
        Workload("beam", "for name in sorted(names):\n", beams, is_silent=True),
    )


def traffic(number: int, tokens: int) -> Workload:
    """Other people's requests, no two alike: prompts and outputs of many lengths."""
    prompt = f"# part {number}\n" + "value = compute(value, step)\n" * (number * 7 % 23)
    params = SamplingParams(temperature=1.0, max_tokens=1 + number * 13 % tokens, ignore_eos=True, seed=number)
    return Workload("traffic", prompt, params)
