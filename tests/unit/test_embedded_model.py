"""The embedded model is small, loads with transformers, and has learnt Python."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from rayline.workers.training.compact_llama import (
    DRAFT_SHAPE,
    TARGET_SHAPE,
    CompactLlama,
    LlamaShape,
)
from rayline.workers.training.corpus import CorpusSettings, SourceFile, is_held_out, stdlib_folder
from rayline.workers.training.pretrain import (
    TARGET_TRAINING,
    learning_rate_factor,
    sequence_tokens,
    window_starts,
)

TARGET = Path(__file__).parents[2] / "deploy" / "embedded"
DRAFT = TARGET / "draft"
HELD_OUT_MODULE = "operator.py"
MEGABYTE = 1_000_000


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(TARGET)


def model(folder: Path) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return loaded.eval()


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def held_out_tokens(count: int) -> torch.Tensor:
    text = (stdlib_folder() / HELD_OUT_MODULE).read_text(encoding="utf-8")
    return torch.tensor([tokenizer()(text).input_ids[:count]])


def test_the_model_fits_in_sixteen_megabytes() -> None:
    assert folder_bytes(TARGET) <= 16 * MEGABYTE


def test_the_draft_fits_in_two_megabytes() -> None:
    assert folder_bytes(DRAFT) <= 2 * MEGABYTE


@pytest.mark.parametrize(("folder", "layers"), [(TARGET, 6), (DRAFT, 2)])
def test_the_weights_are_bfloat16_under_their_usual_names(folder: Path, layers: int) -> None:
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
        dtypes = {weights.get_tensor(name).dtype for name in names}
    assert dtypes == {torch.bfloat16}
    assert len(names) == 2 + 9 * layers
    assert {"model.embed_tokens.weight", "model.norm.weight"} < names
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize(("folder", "shape"), [(TARGET, TARGET_SHAPE), (DRAFT, DRAFT_SHAPE)])
def test_transformers_computes_the_same_loss_as_the_training_code(folder: Path, shape: LlamaShape) -> None:
    reference = model(folder)
    tokens = held_out_tokens(100)
    compact = CompactLlama(shape)
    compact.load_state_dict(
        {
            name.removeprefix("model."): tensor
            for name, tensor in reference.state_dict().items()
            if name != "lm_head.weight"
        }
    )
    with torch.no_grad():
        ours = compact(tokens[:, :-1], tokens[:, 1:])
        theirs = reference(tokens, labels=tokens).loss
    assert float(ours) == pytest.approx(float(theirs), abs=1e-4)


@pytest.mark.parametrize(("folder", "most_perplexity"), [(TARGET, 12.0), (DRAFT, 28.0)])
def test_the_perplexity_of_a_held_out_module_is_low(folder: Path, most_perplexity: float) -> None:
    assert is_held_out(SourceFile(HELD_OUT_MODULE, ""), CorpusSettings())
    tokens = held_out_tokens(1024)
    with torch.no_grad():
        loss = float(model(folder)(tokens, labels=tokens).loss)
    assert math.exp(loss) < most_perplexity


def test_the_whole_context_can_be_used() -> None:
    tokens = torch.full((1, 2048), tokenizer().eos_token_id)
    with torch.no_grad():
        assert bool(torch.isfinite(model(TARGET)(tokens).logits).all())


def test_asking_for_a_function_yields_a_function() -> None:
    messages = [{"role": "user", "content": "Write a function add that returns the sum of a and b."}]
    prompt = tokenizer().apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model(TARGET).generate(**prompt, max_new_tokens=8, do_sample=False)
    answer = tokenizer().decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer.startswith("def add(")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_the_tokenizer_round_trips_any_text(text: str) -> None:
    tokens = tokenizer()(text, add_special_tokens=False).input_ids
    assert tokenizer().decode(tokens, clean_up_tokenization_spaces=False) == text


def test_every_token_has_a_row_in_the_embedding() -> None:
    assert len(tokenizer()) == 4096


def test_a_text_begins_with_the_begin_mark() -> None:
    tokens = tokenizer()("x = 1").input_ids
    assert tokens[0] == tokenizer().bos_token_id == tokenizer().convert_tokens_to_ids("<|begin|>")


@pytest.mark.parametrize("mark", ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"])
def test_every_special_is_a_single_token(mark: str) -> None:
    tokens = tokenizer()(mark, add_special_tokens=False).input_ids
    assert tokens == [tokenizer().convert_tokens_to_ids(mark)]
    assert tokenizer().decode(tokens, skip_special_tokens=True) == ""


def test_a_line_break_and_its_indentation_are_one_token() -> None:
    for indentation in ("    ", "        ", "            "):
        tokens = tokenizer()(f":\n{indentation}return", add_special_tokens=False).input_ids
        assert len(tokens) == 3


def test_the_chat_template_renders_every_role() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|begin|><|system|>\nBe brief.<|end|><|user|>\nHello<|end|>"
        "<|assistant|>\nHi<|end|><|user|>\nBye<|end|><|assistant|>\n"
    )


def test_the_chat_template_refuses_an_unknown_role() -> None:
    with pytest.raises(Exception, match="unknown role"):
        tokenizer().apply_chat_template([{"role": "wizard", "content": "x"}], tokenize=False)


def test_until_the_decay_a_run_does_not_depend_on_its_length() -> None:
    longer = replace(TARGET_TRAINING, steps=TARGET_TRAINING.steps + 100)
    for step in range(TARGET_TRAINING.steps - TARGET_TRAINING.decay_steps):
        assert learning_rate_factor(step, longer) == learning_rate_factor(step, TARGET_TRAINING)
        assert sequence_tokens(step, longer) == sequence_tokens(step, TARGET_TRAINING)


def test_the_decay_ends_with_the_whole_context_and_a_tiny_learning_rate() -> None:
    last = TARGET_TRAINING.steps - 1
    assert sequence_tokens(last, TARGET_TRAINING) == 2048
    assert 0.0 < learning_rate_factor(last, TARGET_TRAINING) < 0.01


def test_one_pass_over_the_text_visits_every_window_once() -> None:
    training = replace(TARGET_TRAINING, batch_tokens=2048, stable_sequence_tokens=512)
    starts = [start for step in range(5) for start in window_starts(512 * 21 + 1, step, training)]
    assert sorted(start - min(starts) for start in starts) == [512 * at for at in range(20)]
