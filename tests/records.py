"""Hypothesis strategies for the records that cross wires: every field takes any value its wire can hold."""

import json
from typing import Any

from hypothesis import strategies as st

from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolCall, ToolChoice
from rayline.protos.events import Beam, FinishReason, Preempted, TokenLogprob, Usage
from rayline.protos.journal import Ballot, KeptAs
from rayline.protos.types import SamplingParams, Spec, StructuredOutput, Thinking, TokenRules

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
sint32 = st.integers(-(2**31), 2**31 - 1)
ids = st.lists(uint32, max_size=5).map(tuple)
text = st.text(max_size=8)
name = text.filter(bool)
real = st.floats(allow_nan=False)

structured_outputs = st.one_of(
    st.builds(StructuredOutput, st.sampled_from(["json_schema", "regex", "grammar", "structural_tag"]), text),
    st.just(StructuredOutput("json_object")),
    st.lists(text, max_size=3).map(lambda texts: StructuredOutput("choice", json.dumps(texts))),
)
PARAMS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": real,
    "top_k": uint32,
    "top_p": real,
    "min_p": real,
    "typical_p": real,
    "top_n_sigma": real,
    "presence_penalty": real,
    "frequency_penalty": real,
    "repetition_penalty": real,
    "no_repeat_ngram_size": uint32,
    "logit_bias": st.dictionaries(uint32, real, max_size=3).map(lambda bias: tuple(sorted(bias.items()))),
    "allowed_token_ids": ids,
    "bad_words": st.lists(text, max_size=3).map(tuple),
    "seed": st.none() | uint64,
    "n": uint32,
    "best_of": st.none() | uint32,
    "beam_width": uint32,
    "length_penalty": real,
    "early_stopping": st.sampled_from([True, False, "never"]),
    "max_tokens": st.none() | uint32,
    "min_tokens": uint32,
    "stop": st.lists(text, max_size=3).map(tuple),
    "include_stop_str_in_output": st.booleans(),
    "stop_token_ids": ids,
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "logprobs": st.none() | uint32,
    "prompt_logprobs": st.none() | uint32,
    "structured_output": st.none() | structured_outputs,
    "thinking_budget": st.none() | uint32,
}
params = st.builds(SamplingParams, **PARAMS)

calls = st.lists(st.builds(ToolCall, text, text, text), max_size=2).map(tuple)
messages = st.lists(st.builds(ChatMessage, text, text, text, text, calls, text), max_size=3).map(tuple)
conversations = st.builds(
    Conversation,
    messages,
    st.lists(st.builds(Tool, text, text, name, st.booleans()), max_size=2).map(tuple),
    st.builds(ToolChoice, st.sampled_from(["auto", "none", "required", "named"]), text),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    name,
)
FORMS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries({"prompt": text, "suffix": st.none() | text}),
    st.fixed_dictionaries({"prompt_ids": ids}),
    st.fixed_dictionaries({"conversation": conversations}),
)
OPTIONS = st.fixed_dictionaries(
    {
        "echo": st.booleans(),
        "truncate_prompt_tokens": st.none() | uint32,
        "priority": sint32,
        "tenant": text,
        "cache_salt": text,
        "timeout_s": st.none() | real,
        "return_prompt_ids": st.booleans(),
    }
)
specs = st.builds(lambda form, options, *rest: Spec(*rest, **form, **options), FORMS, OPTIONS, name, text, params)

thinking = st.builds(Thinking, ids, ids, st.none() | uint32, st.booleans())
rules = st.builds(TokenRules, st.lists(ids, max_size=3).map(tuple), text, st.none() | thinking)
top = st.lists(st.builds(TokenLogprob, uint32, real), max_size=3).map(tuple)
scores = st.lists(st.tuples(st.builds(TokenLogprob, uint32, real), top), max_size=3).map(tuple)
ballots = st.builds(Ballot, uint32, text)
kept = st.builds(KeptAs, text, uint32, ballots, uint64)
usages = st.builds(Usage, uint32, uint32, uint32)
preempted = st.builds(Preempted, uint32, uint32)
beams = st.lists(
    st.builds(
        Beam, ids, real, st.lists(real, max_size=3).map(tuple), st.sampled_from(FinishReason), st.none() | uint32
    ),
    max_size=2,
).map(tuple)
