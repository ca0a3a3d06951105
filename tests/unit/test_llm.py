"""`LLM` offline with the embedded model: options, batches, stop strings, logprobs, streams left early."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayline.deploy.llm import LLM, Completion
from rayline.protos.conversation import ChatMessage, Conversation
from rayline.protos.errors import ConfigError, InvalidRequest, ModelError, PromptTooLong
from rayline.protos.events import ChoiceEnded, Delta, Failed, Finished, FinishReason, Started, StreamEvent
from rayline.protos.types import SamplingParams, Spec

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "deploy" / "embedded"
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
PROMPTS = ["def add(a, b):", "import os\n", "class Node:", "for i in range(10):", "x = [1, 2,", "return None"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    threads = torch.get_num_threads()
    with LLM("embedded", dtype="float32", threads=1, max_model_len=256, kv_bytes=16 * 2**20) as llm:
        yield llm
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def idle(llm: LLM) -> Iterator[None]:
    """Whatever a test did, nothing is left running and no block is held."""
    yield
    llm.engine.scheduler.pool.check([])
    assert not llm.engine.scheduler.has_work


def spec(prompt: str = "def add(a, b):", request_id: str = "s", **params: Any) -> Spec:
    return Spec(request_id, "", SamplingParams(**({"temperature": 0.0, "max_tokens": 12} | params)), prompt=prompt)


def text(completion: Completion) -> str:
    return completion.choices[0].text


def test_greedy_tokens_are_those_of_transformers(llm: LLM) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    (completion,) = llm.generate(["def fibonacci(n):\n"], SamplingParams(temperature=0.0, max_tokens=24))
    with torch.inference_mode():
        whole = model.generate(torch.tensor([completion.prompt_ids]), max_new_tokens=24, do_sample=False)
    assert list(completion.choices[0].token_ids) == whole[0, len(completion.prompt_ids) :].tolist()


def test_completions_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    together = llm.generate(PROMPTS, GREEDY)
    alone = [llm.generate([prompt], GREEDY)[0] for prompt in PROMPTS]
    assert [each.choices for each in together] == [each.choices for each in alone]
    assert [each.prompt_ids for each in together] == [llm.tokenizer.encode(prompt) for prompt in PROMPTS]


def test_a_completion_says_what_it_took_and_who_computed_it(llm: LLM) -> None:
    (completion,) = llm.generate(["def add(a, b):"], GREEDY)
    (choice,) = completion.choices
    assert completion.usage.prompt_tokens == len(completion.prompt_ids)
    assert completion.usage.output_tokens == len(choice.token_ids)
    assert (choice.index, choice.logprobs) == (0, ())
    assert (completion.numerics, completion.exact) == (llm.info.numerics, llm.info.exact)
    assert llm.tokenizer.decode(choice.token_ids) == choice.text


def test_a_completion_says_how_often_it_was_preempted() -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    with LLM("embedded", dtype="float32", threads=1, max_model_len=128, kv_bytes=2**20) as tight:
        found = tight.generate(["a", "b", "c"], greedy)
    assert found[0].preempted.times == 0 and found[0].preempted.recomputed_tokens == 0
    assert found[2].preempted.times > 0 and found[2].preempted.recomputed_tokens > 0


def test_token_ids_are_taken_as_they_are(llm: LLM) -> None:
    ids = llm.tokenizer.encode("def add(a, b):")
    (by_ids,), (by_text,) = llm.generate([ids], GREEDY), llm.generate(["def add(a, b):"], GREEDY)
    assert by_ids.prompt_ids == ids
    assert by_ids.choices == by_text.choices


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0.0, max_tokens=n + 1, ignore_eos=True) for n in range(len(PROMPTS))]
    lengths = [len(each.choices[0].token_ids) for each in llm.generate(PROMPTS, params)]
    assert lengths == [1, 2, 3, 4, 5, 6]


def test_a_seed_fixes_the_text_whatever_runs_beside_it(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=7, max_tokens=12, ignore_eos=True)
    (alone,) = llm.generate(["def add("], params)
    first, *_ = llm.generate(["def add(", *PROMPTS], params)
    assert first.choices == alone.choices


def test_without_a_seed_two_texts_differ(llm: LLM) -> None:
    params = SamplingParams(temperature=2.0, max_tokens=16, ignore_eos=True)
    texts = {text(each) for each in llm.generate(["def add("] * 4, params)}
    assert len(texts) > 1


def test_no_prompts_give_no_completions(llm: LLM) -> None:
    assert llm.generate([]) == []


def test_more_prompts_than_may_wait_are_fed_as_there_is_room(llm: LLM) -> None:
    count = llm.info.max_waiting + 20
    params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    completions = llm.generate([(5 + n % 7,) for n in range(count)], params)
    assert [each.prompt_ids for each in completions] == [(5 + n % 7,) for n in range(count)]
    assert all(len(each.choices[0].token_ids) == 1 for each in completions)


def test_a_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    (free,) = llm.generate(["def add(a, b):"], params)
    stop = text(free)[6:9]
    before = llm.engine.scheduler.stats.output_tokens
    (stopped,) = llm.generate(["def add(a, b):"], replace(params, stop=(stop,)))
    assert llm.engine.scheduler.stats.output_tokens - before == stopped.usage.output_tokens
    assert text(stopped) == text(free)[: text(free).index(stop)]
    assert stopped.choices[0].finish_reason is FinishReason.STOP
    assert stopped.usage.output_tokens < free.usage.output_tokens


def test_a_text_cut_by_a_stop_string_still_tells_what_was_cached(llm: LLM) -> None:
    prompt = "import collections\nimport itertools\nimport functools\nimport contextlib\n" * 3
    free = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    (whole,) = llm.generate([prompt], free)
    (cut,) = llm.generate([prompt], replace(free, stop=(whole.choices[0].text[4:6],)))
    assert cut.choices[0].finish_reason is FinishReason.STOP
    assert cut.usage.cached_tokens >= 16


def test_a_stop_token_ends_the_text(llm: LLM) -> None:
    params = replace(GREEDY, ignore_eos=True)
    (free,) = llm.generate(["def add(a, b):"], params)
    stop = free.choices[0].token_ids[3]
    (stopped,) = llm.generate(["def add(a, b):"], replace(params, stop_token_ids=(stop,)))
    assert stopped.choices[0].finish_reason is FinishReason.STOP
    assert len(stopped.choices[0].token_ids) <= 4


def test_logprobs_are_those_of_the_chosen_and_the_best_tokens(llm: LLM) -> None:
    (completion,) = llm.generate(["import "], SamplingParams(temperature=0.0, max_tokens=5, logprobs=3))
    (choice,) = completion.choices
    assert [entry.token_id for entry in choice.logprobs] == list(choice.token_ids)
    for entry in choice.logprobs:
        assert len(entry.top) == 3
        assert entry.top[0][0] == entry.token_id, "greedy takes the best"
        assert entry.logprob == pytest.approx(entry.top[0][2])
        assert [logprob for _, _, logprob in entry.top] == sorted((t[2] for t in entry.top), reverse=True)
        assert entry.logprob <= 0.0


def test_a_stream_starts_adds_deltas_and_finishes(llm: LLM) -> None:
    started, *deltas, ended, finished = llm.stream(spec())
    (completion,) = llm.generate(["def add(a, b):"], GREEDY)
    assert isinstance(started, Started) and started.prompt_tokens == len(completion.prompt_ids)
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.text for delta in deltas if isinstance(delta, Delta)) == text(completion)
    assert ended == ChoiceEnded(0, completion.choices[0].finish_reason)
    assert isinstance(finished, Finished) and finished.usage.output_tokens == completion.usage.output_tokens


def test_a_conversation_is_laid_out_by_the_chat_template(llm: LLM) -> None:
    messages = (ChatMessage("user", "Write a function add that returns the sum of a and b."),)
    params = SamplingParams(temperature=0.0, max_tokens=12)
    laid_out = llm.tokenizer.render_chat(Conversation((ChatMessage("user", messages[0].content),)))
    (expected,) = llm.generate([llm.tokenizer.encode(laid_out, add_special_tokens=False)], params)
    started, *events = llm.stream(Spec("s", "", params, conversation=Conversation(messages)))
    assert isinstance(started, Started) and started.prompt_tokens == len(expected.prompt_ids)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == text(expected)


def test_leaving_a_stream_early_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream(spec(max_tokens=100, ignore_eos=True))
    while not isinstance(next(stream), Delta):
        pass
    assert llm.engine.load().free_blocks < llm.engine.load().total_blocks
    stream.close()  # type: ignore[attr-defined]
    assert llm.engine.load().free_blocks == llm.engine.load().total_blocks


def test_a_stream_that_stops_at_a_string_frees_its_blocks(llm: LLM) -> None:
    (free,) = llm.generate(["def add(a, b):"], replace(GREEDY, ignore_eos=True))
    *_, finished = llm.stream(spec(stop=(text(free)[4:7],), ignore_eos=True))
    assert isinstance(finished, Finished) and finished.stop_reason == text(free)[4:7]
    assert not llm.engine.scheduler.has_work


def test_an_interrupted_batch_leaves_nothing_running(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    step, steps = llm.engine.step, iter(range(3))

    def interrupted() -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=50, ignore_eos=True))
    assert not llm.engine.scheduler.has_work


def test_a_second_caller_is_refused_while_a_stream_is_open(llm: LLM) -> None:
    first = llm.stream(spec(request_id="same", ignore_eos=True))
    events: list[StreamEvent] = [next(first), next(first)]
    with pytest.raises(InvalidRequest, match="another generate or stream of this LLM is still running"):
        llm.generate(PROMPTS, GREEDY)
    with pytest.raises(InvalidRequest, match="still running"):
        next(iter(llm.stream(spec(request_id="same"))))
    events += first
    assert isinstance(events[-1], Finished)
    assert not any(isinstance(event, Failed) for event in events)
    assert len([token for event in events if isinstance(event, Delta) for token in event.token_ids]) == 12


@pytest.mark.parametrize(
    ("prompts", "params", "field"),
    [
        ("def add(", None, "prompts"),
        ([3, 4], None, "prompts"),
        (["x"], [GREEDY, GREEDY], "params"),
        (["x", "y"], [GREEDY], "params"),
        ([[99_999]], None, "prompt"),
        ([[-1]], None, "prompt"),
        (["x"], SamplingParams(top_p=2.0), "top_p"),
        (["x"], SamplingParams(stop_token_ids=(99_999,)), "stop_token_ids"),
    ],
)
def test_bad_input_is_refused_by_field_before_anything_runs(llm: LLM, prompts: Any, params: Any, field: str) -> None:
    steps = llm.engine.scheduler.stats.steps
    with pytest.raises(InvalidRequest) as refused:
        llm.generate(prompts, params)
    assert refused.value.field == field
    assert llm.engine.scheduler.stats.steps == steps


def test_too_long_a_prompt_is_refused_with_the_numbers(llm: LLM) -> None:
    with pytest.raises(PromptTooLong, match=r"prompt = 300 tokens .* the model's context is 256 tokens"):
        llm.generate([[5] * 300])
    with pytest.raises(PromptTooLong, match=r"prompt = 250 tokens \+ max_tokens = 7 does not fit"):
        llm.generate([[5] * 250], SamplingParams(max_tokens=7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tensor_parallel": 2},
            "tensor_parallel is not an option of LLM: there are activations, all_reduce, async_scheduling, attention, ",
        ),
        ({"block_tokens": -1}, r"engine\.block_tokens = -1"),
        ({"tp": 0}, r"parallel\.tp = 0"),
        ({"dtype": "int3"}, "dtype = 'int3'"),
        ({"kv_bytes": "1 GB"}, "kv_bytes = '1 GB'"),
        ({"max_model_len": 4096}, "max_model_len = 4096 is out of range: the model allows 2 to 2048"),
        ({"max_model_len": 1}, "max_model_len = 1 is out of range"),
        ({"max_running": 600}, "max_running = 600 is out of range: allowed is up to max_step_tokens = 512"),
        ({"launcher": "slurm"}, "launcher = 'slurm' is out of range"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM("embedded", **options)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="model = '/no/such/model' is not a directory"):
        LLM("/no/such/model")


def test_neither_ray_nor_grpc_is_imported() -> None:
    program = (
        "import sys\n"
        "from rayline.deploy.llm import LLM\n"
        "from rayline.protos.types import SamplingParams\n"
        "with LLM('embedded', threads=1, max_model_len=64, kv_bytes=2**21) as llm:\n"
        "    assert llm.generate(['def'], SamplingParams(max_tokens=2, ignore_eos=True))[0].choices[0].text\n"
        "print(sorted({'ray', 'grpc', 'fastapi', 'uvicorn', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "tests" / "typing"), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
