"""The training corpus is deterministic, split without overlap, and teaches chats."""

import ast
import os
import subprocess
import sys

import pytest

from rayline.workers.training.corpus import (
    Corpus,
    CorpusSettings,
    SourceFile,
    build_corpus,
    chats_of,
    corpus_of,
    first_sentence,
    functions_of,
    is_held_out,
    stable_hash,
    third_person,
)

MODULE = '''
class Stack:
    def push(self, item):
        """Put an item on top. The stack grows."""
        self.items.append(item)
        return self


def double(number):
    """Return twice the number."""
    result = number * 2
    return result
'''


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus()


def name_of_some(corpus: Corpus) -> int:
    """A number that is the same for equal documents, of a share of the files."""
    files = sorted((*corpus.train_files, *corpus.held_out_files), key=lambda file: file.name)
    return stable_hash(repr(corpus_of(files[::15], CorpusSettings())))


ANOTHER = """
from rayline.workers.training.corpus import CorpusSettings, corpus_of, read_files, stable_hash

settings = CorpusSettings()
print(stable_hash(repr(corpus_of(read_files(settings)[::15], settings))))
"""


def test_another_process_makes_the_same_documents(corpus: Corpus) -> None:
    """Whose sets and dictionaries of words have another order."""
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", ANOTHER], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == name_of_some(corpus)


def test_the_splits_share_no_file(corpus: Corpus) -> None:
    train = {file.name for file in corpus.train_files}
    held_out = {file.name for file in corpus.held_out_files}
    assert train
    assert held_out
    assert not train & held_out


def test_no_held_out_file_is_a_training_document(corpus: Corpus) -> None:
    assert not set(corpus.held_out_documents) & set(corpus.train_documents)


def test_the_split_depends_on_the_name_alone() -> None:
    settings = CorpusSettings()
    for name in ("operator.py", "heapq.py", "asyncio/locks.py"):
        short, long = SourceFile(name, "a = 1"), SourceFile(name, "b = 2" * 100)
        assert is_held_out(short, settings) == is_held_out(long, settings)


def test_installed_packages_and_test_folders_are_left_out(corpus: Corpus) -> None:
    folders = {part for file in (*corpus.train_files, *corpus.held_out_files) for part in file.name.split("/")[:-1]}
    assert not folders & {"site-packages", "dist-packages", "test", "tests", "idle_test"}


def test_build_records_of_the_installation_are_left_out(corpus: Corpus) -> None:
    names = [file.name for file in (*corpus.train_files, *corpus.held_out_files)]
    assert not [name for name in names if name.startswith(("_sysconfigdata", "config-"))]


def test_every_document_is_framed_by_begin_and_end(corpus: Corpus) -> None:
    for document in (*corpus.train_documents, *corpus.held_out_documents, *corpus.held_out_chats):
        assert document.startswith("<|begin|>")
        assert document.endswith("<|end|>")


def test_chats_are_between_ten_and_fifteen_percent_of_the_training_text(corpus: Corpus) -> None:
    chats = sum(len(text) for text in corpus.train_documents if "<|assistant|>" in text)
    assert 0.10 <= chats / sum(map(len, corpus.train_documents)) <= 0.15


def test_a_chat_answers_with_the_functions_source() -> None:
    settings = CorpusSettings()
    chats = chats_of(functions_of(SourceFile("stack.py", MODULE), settings), settings)
    answers = [turn.split("<|end|>")[0] for chat in chats for turn in chat.split("<|assistant|>\n")[1:]]
    assert sorted(ast.parse(answer).body[0].name for answer in answers) == [  # type: ignore[attr-defined]
        "double",
        "push",
    ]


def test_a_file_that_does_not_parse_has_no_functions() -> None:
    assert not list(functions_of(SourceFile("old.py", "print 'hello'\n"), CorpusSettings()))


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum. More follows.", "Return the sum."),
        ("Spread over\n    two lines\n\n    and a body", "Spread over two lines"),
        ("", ""),
    ],
)
def test_the_first_sentence_ends_at_the_first_full_stop(docstring: str, sentence: str) -> None:
    assert first_sentence(docstring) == sentence


@pytest.mark.parametrize(
    ("imperative", "described"),
    [
        ("Return x.", "returns x."),
        ("Push x.", "pushes x."),
        ("Copy x.", "copies x."),
        ("Display x.", "displays x."),
        ("Returns x.", "returns x."),
    ],
)
def test_a_request_speaks_of_the_function_in_the_third_person(imperative: str, described: str) -> None:
    assert third_person(imperative) == described
