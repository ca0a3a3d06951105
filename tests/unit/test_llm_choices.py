"""Several choices, beams, scored and echoed prompts, forms and conversations offline, over the embedded model."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayline.deploy.llm import LLM
from rayline.protos.conversation import ChatMessage, Conversation, Tool
from rayline.protos.errors import InvalidRequest
from rayline.protos.events import ChoiceEnded, Delta, Finished, FinishReason
from rayline.protos.types import EngineRequest, SamplingParams, Spec, StructuredOutput, choice_seed

EMBEDDED = Path(__file__).parents[2] / "deploy" / "embedded"
PROMPT = "def fibonacci(n):\n"
WILD = SamplingParams(temperature=1.2, seed=11, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    threads = torch.get_num_threads()
    with LLM("embedded", dtype="float32", threads=1, max_model_len=512, kv_bytes=16 * 2**20) as llm:
        yield llm
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def oracle() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)


@pytest.fixture(autouse=True)
def idle(llm: LLM) -> Iterator[None]:
    yield
    llm.engine.scheduler.pool.check([])
    assert not llm.engine.scheduler.has_work


def test_choice_i_is_the_answer_to_its_own_seed(llm: LLM) -> None:
    (together,) = llm.generate([PROMPT], replace(WILD, n=4))
    alone = llm.generate([PROMPT] * 4, [replace(WILD, seed=choice_seed(11, i)) for i in range(4)])
    assert [choice.token_ids for choice in together.choices] == [one.choices[0].token_ids for one in alone]
    assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
    assert len({choice.token_ids for choice in together.choices}) > 1
    assert together.usage.prompt_tokens == len(together.prompt_ids) and together.usage.output_tokens == 40


def test_a_stop_string_in_one_choice_leaves_the_others_alone(llm: LLM) -> None:
    (free,) = llm.generate([PROMPT], replace(WILD, n=3))
    stop = free.choices[1].text[2:5]
    (cut,) = llm.generate([PROMPT], replace(WILD, n=3, stop=(stop,)))
    for before, after in zip(free.choices, cut.choices, strict=True):
        assert after.text == before.text.partition(stop)[0]
    assert (cut.choices[1].finish_reason, cut.choices[1].stop_reason) == (FinishReason.STOP, stop)


def test_the_best_are_those_with_the_highest_mean_logprob(llm: LLM) -> None:
    (all_of_them,) = llm.generate([PROMPT], replace(WILD, n=5, logprobs=0))
    means = {
        choice.token_ids: sum(entry.logprob or 0.0 for entry in choice.logprobs) / len(choice.logprobs)
        for choice in all_of_them.choices
    }
    (best,) = llm.generate([PROMPT], replace(WILD, n=2, best_of=5))
    expected = sorted(means, key=lambda ids: -means[ids])[:2]
    assert [choice.token_ids for choice in best.choices] == expected
    assert [choice.score for choice in best.choices] == pytest.approx([means[ids] for ids in expected])
    assert best.usage.output_tokens == 50 and best.choices[0].logprobs == ()


def test_beams_are_those_of_transformers(llm: LLM, oracle: Any) -> None:
    params = SamplingParams(beam_width=4, n=3, max_tokens=12, length_penalty=0.8)
    (found,) = llm.generate([PROMPT], params)
    with torch.inference_mode():
        expected = oracle.generate(
            torch.tensor([found.prompt_ids]),
            max_new_tokens=12,
            num_beams=4,
            num_return_sequences=3,
            length_penalty=0.8,
            do_sample=False,
        )
    pad = oracle.generation_config.pad_token_id
    for choice, row in zip(found.choices, expected[:, len(found.prompt_ids) :].tolist(), strict=True):
        while row and row[-1] == pad and len(row) > len(choice.token_ids):
            row.pop()
        assert list(choice.token_ids) == row
    scores = [choice.score for choice in found.choices]
    assert None not in scores and scores == sorted(scores, key=lambda score: -(score or 0.0))


def test_prompt_logprobs_are_those_of_transformers(llm: LLM, oracle: Any) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=2)
    prompt = PROMPT * 8  # more than one chunk of blocks
    (found,) = llm.generate([prompt], params, echo=True)
    ids = torch.tensor([found.prompt_ids])
    with torch.inference_mode():
        expected = torch.log_softmax(oracle(ids).logits[0].float(), -1)
    first, *scored = found.prompt_logprobs
    assert first.logprob is None and first.token_id == found.prompt_ids[0]
    for place, entry in enumerate(scored):
        assert entry.token_id == found.prompt_ids[place + 1]
        assert entry.logprob == pytest.approx(expected[place, entry.token_id].item(), abs=1e-4)
        best = expected[place].topk(2).values.tolist()
        assert [logprob for _, _, logprob in entry.top] == pytest.approx(best, abs=1e-4)
    (choice,) = found.choices
    assert choice.text.startswith(prompt) and choice.token_ids[: len(found.prompt_ids)] == found.prompt_ids
    assert choice.logprobs[: len(found.prompt_ids)] == found.prompt_logprobs


def test_a_prompt_is_scored_without_output(llm: LLM) -> None:
    (found,) = llm.generate([PROMPT], SamplingParams(max_tokens=0, prompt_logprobs=0), echo=True)
    assert (found.choices[0].text, found.choices[0].token_ids) == (PROMPT, found.prompt_ids)
    assert len(found.prompt_logprobs) == len(found.prompt_ids) and found.usage.output_tokens == 0


def test_a_prompt_can_be_cut_from_the_left(llm: LLM) -> None:
    (whole,) = llm.generate([PROMPT], replace(WILD, max_tokens=1))
    (cut,) = llm.generate([PROMPT], replace(WILD, max_tokens=1), truncate_prompt_tokens=3)
    assert cut.prompt_ids == whole.prompt_ids[-3:]


def test_a_suffix_needs_a_model_that_fills_gaps(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="no fill-in-the-middle tokens"):
        llm.generate(["def f("], WILD, suffixes=["x"])


def test_every_choice_keeps_to_the_form_under_penalties(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = StructuredOutput("json_schema", json.dumps(schema))
    params = replace(
        WILD, n=3, ignore_eos=False, max_tokens=60, structured_output=form, presence_penalty=0.5, repetition_penalty=1.1
    )
    (found,) = llm.generate(["Answer: "], params)
    for choice in found.choices:
        if choice.finish_reason is FinishReason.STOP:
            assert isinstance(json.loads(choice.text)["a"], int)
    with pytest.raises(InvalidRequest) as refused:
        llm.generate(["x"], replace(params, structured_output=StructuredOutput("regex", "(")))
    assert refused.value.field == "structured_output"


def test_bad_words_are_not_said(llm: LLM) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=12)
    (free,) = llm.generate([PROMPT], greedy)
    word = next(word for word in free.choices[0].text.split() if word.isalpha())
    (without,) = llm.generate([PROMPT], replace(greedy, bad_words=(word,)))
    assert without.choices[0].token_ids != free.choices[0].token_ids
    banned = llm.tokenizer.encode(" " + word, add_special_tokens=False)
    said = without.choices[0].token_ids
    assert banned not in [said[at : at + len(banned)] for at in range(len(said))]


def test_conversations_are_answered_in_one_batch(llm: LLM) -> None:
    chats = [[ChatMessage("user", "Write add.")], [ChatMessage("user", "Write sub.")]]
    params = SamplingParams(temperature=0.0, max_tokens=8)
    both = llm.chat(chats, params)
    for chat, answer in zip(chats, both, strict=True):
        laid_out = llm.tokenizer.render_chat(Conversation(tuple(chat)))
        assert answer.prompt_ids == llm.tokenizer.encode(laid_out, add_special_tokens=False)
        (alone,) = llm.chat([Conversation(tuple(chat))], params)
        assert alone == answer


def test_a_conversation_can_be_echoed_cut_and_salted(llm: LLM) -> None:
    chat, params = [ChatMessage("user", "Add two numbers. " * 8)], SamplingParams(temperature=0.0, max_tokens=4)
    (plain,) = llm.chat([chat], params)
    (echoed,) = llm.chat([chat], params, echo=True)
    assert echoed.choices[0].text == llm.tokenizer.decode(plain.prompt_ids) + plain.choices[0].text
    assert echoed.usage.cached_tokens > 0
    (cut,) = llm.chat([chat], params, truncate_prompt_tokens=5)
    assert cut.prompt_ids == plain.prompt_ids[-5:]
    (salted,) = llm.chat([chat], params, cache_salt="a")
    assert salted.usage.cached_tokens == 0 and salted.choices[0].token_ids == plain.choices[0].token_ids


def test_each_prompt_may_have_its_own_priority(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    add = llm.engine.add

    def noting(request: EngineRequest) -> None:
        asked.append(request.priority)
        add(request)

    monkeypatch.setattr(llm.engine, "add", noting)
    short, turn = SamplingParams(max_tokens=2), [ChatMessage("user", "Hi.")]
    llm.generate(["a", "b"], short, priority=[5, -3])
    llm.chat([turn, turn], short, priority=7)
    assert asked == [5, -3, 7, 7]
    with pytest.raises(InvalidRequest, match="priority has 1 entries for 2 prompts"):
        llm.generate(["a", "b"], short, priority=[1])
    with pytest.raises(InvalidRequest, match="priority = 101 is out of range"):
        llm.generate(["a"], short, priority=101)


def test_tools_a_model_cannot_call_are_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as refused:
        llm.chat([[ChatMessage("user", "hi")]], WILD, tools=[Tool("f")])
    assert refused.value.field == "tools"


def test_a_stream_of_choices_is_the_batch_piece_by_piece(llm: LLM) -> None:
    params = replace(WILD, n=3)
    (whole,) = llm.generate([PROMPT], params)
    events = list(llm.stream(Spec("s", "", params, prompt=PROMPT, echo=True)))
    for choice in whole.choices:
        mine = [event for event in events if isinstance(event, Delta) and event.choice == choice.index]
        assert mine[0].is_echo and "".join(event.text for event in mine) == PROMPT + choice.text
    assert sum(isinstance(event, ChoiceEnded) for event in events) == 3
    assert isinstance(events[-1], Finished) and events[-1].usage.output_tokens == 30
