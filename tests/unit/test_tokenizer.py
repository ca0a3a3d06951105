"""Tokenizers read from a model directory, against transformers' reading of the same directory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import KINDS, served, write
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rayline.protos.conversation import ChatMessage, Conversation
from rayline.protos.errors import InvalidRequest, ModelError
from rayline.router.tokenizer import Tokenizer

EMBEDDED = Path(__file__).parents[2] / "deploy/embedded"
TEXTS = ["", "def f(x):\n    return x\n", "naïve café 😀", "<|begin|>twice<|end|>", "  blanks  "]


def test_the_embedded_tokenizer_reads_as_transformers_does() -> None:
    tokenizer, oracle = Tokenizer.load(EMBEDDED), AutoTokenizer.from_pretrained(str(EMBEDDED))
    for text in TEXTS:
        for special in (True, False):
            token_ids = tokenizer.encode(text, add_special_tokens=special)
            assert list(token_ids) == oracle.encode(text, add_special_tokens=special)
            for skip in (True, False):
                expected = oracle.decode(list(token_ids), skip_special_tokens=skip, clean_up_tokenization_spaces=False)
                assert tokenizer.decode(token_ids, skip_special_tokens=skip) == expected
    assert (tokenizer.bos_id, tokenizer.eos_id) == (oracle.bos_token_id, oracle.eos_token_id)
    assert tokenizer.special_ids >= set(oracle.all_special_ids)
    assert tokenizer.vocab_size == len(oracle)


def test_the_ends_around_a_text_come_from_tokenizer_json_alone(tmp_path: Path) -> None:
    write(
        tmp_path,
        "byte_level",
        bos_token="<s>",
        eos_token={"content": "</s>", "__type": "AddedToken"},
        add_bos_token=True,
    )
    tokenizer, oracle = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    assert list(tokenizer.encode("the dog")) == oracle.encode("the dog")
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2) == (oracle.bos_token_id, oracle.eos_token_id)


@given(text=st.text(max_size=20))
def test_the_bytes_of_the_tokens_join_to_the_bytes_of_the_text(text: str) -> None:
    plain, marked = served("byte_level"), served("byte_fallback")
    assert b"".join(map(plain.token_bytes, plain.encode(text))) == text.encode()
    assert b"".join(map(marked.token_bytes, marked.encode(text))) == (" " + text.replace("▁", " ")).encode() * bool(
        text
    )


def test_half_a_character_shows_as_a_replacement() -> None:
    tokenizer = served("byte_level")
    first, *_ = tokenizer.encode("\u0fff")
    assert tokenizer.token_bytes(first) == b"\xe0" and tokenizer.token_text(first) == "\ufffd"


def test_an_id_outside_the_vocabulary_stands_for_nothing() -> None:
    for kind in KINDS:
        tokenizer = served(kind)
        outside = tokenizer.vocab_size
        assert tokenizer.token(outside) is None
        assert tokenizer.token_bytes(outside) == b"" and tokenizer.decode([outside]) == ""


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        served("byte_level").encode("a\ud800")


def test_truncation_and_padding_written_in_the_file_are_not_applied(tmp_path: Path) -> None:
    backend = KINDS["byte_level"]()
    backend.enable_truncation(2)
    backend.enable_padding(length=50)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).decode(Tokenizer.load(tmp_path).encode("the quick brown")) == "the quick brown"


def test_the_template_file_wins_over_the_one_in_the_config(tmp_path: Path) -> None:
    write(tmp_path, "byte_level", chat_template="config")
    messages = Conversation((ChatMessage("user", "hi"),))
    assert Tokenizer.load(tmp_path).render_chat(messages) == "config"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(tmp_path).render_chat(messages) == "file"


def test_of_several_templates_the_default_one_is_used(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    tokenizer = Tokenizer.load(write(tmp_path, "byte_level", chat_template=named))
    assert tokenizer.render_chat(Conversation((ChatMessage("user", "hi"),))) == "plain"


def test_a_model_without_template_refuses_chat_by_name(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, "byte_level"))
    with pytest.raises(InvalidRequest, match="no chat template") as caught:
        tokenizer.render_chat(Conversation((ChatMessage("user", "hi"),)))
    assert caught.value.field == "messages"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "Nonsense"}}'])
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_broken_config_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "byte_level")
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json must hold an object"):
        Tokenizer.load(tmp_path)


def test_a_directory_without_any_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_directory_without_tokenizer_json_is_converted_by_transformers(tmp_path: Path) -> None:
    backend = KINDS["byte_level"]()
    model = json.loads(backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("the quick fox") == tuple(backend.encode("the quick fox").ids)


def test_the_hot_path_imports_neither_transformers_nor_torch_ray_or_grpc() -> None:
    code = (
        "import sys; from rayline.router.text_stream import TextStream; from rayline.router.tokenizer import Tokenizer;"
        f"from pathlib import Path; Tokenizer.load(Path({str(EMBEDDED)!r}));"
        "print(sorted({'transformers', 'torch', 'ray', 'grpc'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
