"""The training text of the embedded model: the Python standard library's own source.

Run `python -m rayline.workers.training.corpus` to print the sizes of both splits.
"""

import ast
import hashlib
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BEGIN = "<|begin|>"
END = "<|end|>"
SYSTEM_PROMPT = "You are a helpful Python programmer."

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
Function = tuple[FunctionNode, str]
"""A function and its source at indentation zero."""


@dataclass(frozen=True)
class CorpusSettings:
    """Which files are read and how many documents are made out of them."""

    # Code page tables and quoted help topics hold little code that is worth learning.
    skipped_folders: frozenset[str] = frozenset(
        {"site-packages", "dist-packages", "test", "tests", "idle_test"} | {"encodings", "pydoc_data", "__phello__"}
    )
    # Build-time records differ from one installation to the next.
    skipped_prefixes: tuple[str, ...] = ("_sysconfigdata", "config-")
    held_out_one_in_files: int = 20
    chat_share_of_bytes: float = 0.14
    snippet_share_of_bytes: float = 0.05
    longest_function_characters: int = 2400
    shortest_function_lines: int = 3
    shortest_sentence_characters: int = 12
    longest_sentence_characters: int = 200
    shortest_file_characters: int = 200
    least_letter_share: float = 0.4


@dataclass(frozen=True)
class SourceFile:
    """One standard library module, named by its path below the library's folder."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The documents of both splits, every one framed by its begin and end marks."""

    train_files: tuple[SourceFile, ...]
    held_out_files: tuple[SourceFile, ...]
    train_documents: tuple[str, ...]
    held_out_documents: tuple[str, ...]
    held_out_chats: tuple[str, ...]


@dataclass(frozen=True)
class DocumentedFunction:
    """A function's source, free of indentation, and the first sentence of its docstring."""

    name: str
    kind: str
    sentence: str
    source: str


def stable_hash(text: str) -> int:
    """A hash that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stdlib_folder() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def is_wanted(name: Path, settings: CorpusSettings) -> bool:
    """Whether a file, named relative to the library's folder, belongs in the corpus."""
    if settings.skipped_folders.intersection(name.parts):
        return False
    return not any(part.startswith(settings.skipped_prefixes) for part in name.parts)


def is_code(text: str, settings: CorpusSettings) -> bool:
    """Whether a file is long enough, and is no table of numbers."""
    if len(text) < settings.shortest_file_characters:
        return False
    return sum(map(str.isalpha, text)) / len(text) >= settings.least_letter_share


def read_files(settings: CorpusSettings) -> tuple[SourceFile, ...]:
    """All wanted modules in the order of their names."""
    root = stdlib_folder()
    files: list[SourceFile] = []
    names = (path.relative_to(root) for path in root.rglob("*.py"))
    for name in sorted((name for name in names if is_wanted(name, settings)), key=Path.as_posix):
        try:
            text = (root / name).read_text(encoding="utf-8").replace("\r\n", "\n")
        except UnicodeDecodeError:
            continue
        if is_code(text, settings):
            files.append(SourceFile(name.as_posix(), text))
    return tuple(files)


def is_held_out(file: SourceFile, settings: CorpusSettings) -> bool:
    """Splits by the hash of the name, so that a patch release does not move a file."""
    return stable_hash(file.name) % settings.held_out_one_in_files == 0


def first_sentence(docstring: str) -> str:
    """The docstring's first paragraph up to its first full stop, on one line."""
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    head, stop, _ = paragraph.partition(". ")
    return head + stop.strip()


def functions_of(file: SourceFile, settings: CorpusSettings) -> Iterator[Function]:
    """Every function of a file that is short enough."""
    try:
        tree = ast.parse(file.text)
    except (SyntaxError, ValueError):
        return
    lines = file.text.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, FunctionNode):
            continue
        source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
        if (
            len(source) <= settings.longest_function_characters
            and source.count("\n") + 1 >= settings.shortest_function_lines
        ):
            yield node, source


def documented(functions: Iterable[Function], settings: CorpusSettings) -> tuple[DocumentedFunction, ...]:
    """Those that a chat can ask for."""
    shortest = settings.shortest_sentence_characters
    found: list[DocumentedFunction] = []
    for node, source in functions:
        sentence = first_sentence(ast.get_docstring(node) or "")
        if shortest <= len(sentence) <= settings.longest_sentence_characters:
            first = node.args.args[0].arg if node.args.args else ""
            kind = "method" if first in ("self", "cls") else "function"
            found.append(DocumentedFunction(node.name, kind, sentence, source))
    return tuple(found)


def third_person(sentence: str) -> str:
    """Turns `Return the sum.` into `returns the sum.`."""
    verb, space, rest = sentence.partition(" ")
    verb = verb.lower()
    if verb.isalpha() and not verb.endswith("s"):
        if verb.endswith(("sh", "ch", "x", "z")):
            verb += "es"
        elif verb.endswith("y") and verb[-2:-1] not in "aeiou":
            verb = verb[:-1] + "ies"
        else:
            verb += "s"
    return verb + space + rest


def request_for(function: DocumentedFunction) -> str:
    """What the user says; the wording is chosen by the function's own hash."""
    name, kind, sentence = function.name, function.kind, function.sentence
    wordings = (
        sentence,
        f"Write a {kind} {name} that {third_person(sentence)}",
        f"Write a {kind} {name} that {third_person(sentence)}",
        f"Write a Python {kind} that {third_person(sentence)}",
        f"Write a {kind} {name}. {sentence}",
        f"Write a {kind} called {name}.",
    )
    return wordings[stable_hash(function.source) % len(wordings)]


def render_chat(functions: tuple[DocumentedFunction, ...], with_system: bool) -> str:
    """One chat, in exactly the form that the chat template renders."""
    parts = [BEGIN]
    if with_system:
        parts.append(f"<|system|>\n{SYSTEM_PROMPT}{END}")
    for function in functions:
        parts.append(f"<|user|>\n{request_for(function)}{END}")
        parts.append(f"<|assistant|>\n{function.source}{END}")
    return "".join(parts)


def chats_of(functions: Iterable[Function], settings: CorpusSettings) -> tuple[str, ...]:
    """Chats of one turn, and now and then of two, about the functions of a file."""
    told = documented(functions, settings)
    chats: list[str] = []
    at = 0
    while at < len(told):
        choice = stable_hash(told[at].source)
        turns = 2 if choice % 8 == 0 else 1
        chats.append(render_chat(told[at : at + turns], with_system=choice % 5 == 0))
        at += turns
    return tuple(chats)


def pick(documents: list[str], budget_bytes: float) -> tuple[str, ...]:
    """The documents with the smallest hashes: a sample that needs no random numbers."""
    picked: list[str] = []
    for document in sorted(documents, key=stable_hash):
        budget_bytes -= len(document.encode())
        if budget_bytes < 0:
            break
        picked.append(document)
    return tuple(picked)


def framed(text: str) -> str:
    """A text between its begin and end marks."""
    return f"{BEGIN}{text}{END}"


def build_corpus(settings: CorpusSettings | None = None) -> Corpus:
    """Reads the standard library and makes the documents of both splits."""
    settings = settings or CorpusSettings()
    return corpus_of(read_files(settings), settings)


def corpus_of(files: Sequence[SourceFile], settings: CorpusSettings) -> Corpus:
    """The documents of both splits."""
    held_out = tuple(file for file in files if is_held_out(file, settings))
    train = tuple(file for file in files if not is_held_out(file, settings))
    functions = [tuple(functions_of(file, settings)) for file in train]
    chats = [chat for each in functions for chat in chats_of(each, settings)]
    snippets = [framed(source) for each in functions for _, source in each]
    whole_files = [framed(file.text) for file in train]
    whole_share = 1.0 - settings.chat_share_of_bytes - settings.snippet_share_of_bytes
    total_bytes = sum(len(text.encode()) for text in whole_files) / whole_share
    return Corpus(
        train_files=train,
        held_out_files=held_out,
        train_documents=(
            *whole_files,
            *pick(snippets, total_bytes * settings.snippet_share_of_bytes),
            *pick(chats, total_bytes * settings.chat_share_of_bytes),
        ),
        held_out_documents=tuple(framed(file.text) for file in held_out),
        held_out_chats=tuple(chat for file in held_out for chat in chats_of(functions_of(file, settings), settings)),
    )


def main() -> None:
    """Prints the sizes."""
    corpus = build_corpus()
    train_bytes = sum(len(text.encode()) for text in corpus.train_documents)
    held_out_bytes = sum(len(text.encode()) for text in corpus.held_out_documents)
    chats = [text for text in corpus.train_documents if "<|assistant|>" in text]
    print(f"training: {len(corpus.train_documents)} documents, {train_bytes} bytes")
    print(f"of these chats: {len(chats)}, {sum(len(text.encode()) for text in chats)} bytes")
    print(f"held out: {len(corpus.held_out_documents)} documents, {held_out_bytes} bytes")


if __name__ == "__main__":
    main()
