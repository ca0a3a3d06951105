"""The README and docs/ against the code they describe: links, paths, snippets, flags, keys, errors, fields."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click
import pytest
import yaml
from annotated_types import Ge, Le

from rayline.cluster.config import ModelSection, SystemConfig, parse
from rayline.deploy import cli
from rayline.deploy.commands.flags import Key, config_keys, has_flag
from rayline.deploy.commands.lazy_group import LazyGroup
from rayline.protos import inference_pb2 as pb
from rayline.protos.errors import LEAVES
from rayline.protos.openai_chat import NEUTRAL_CHAT, NEUTRAL_MESSAGE, ChatCompletionBody
from rayline.protos.openai_completion import NEUTRAL_COMPLETION, CompletionBody
from rayline.protos.openai_sampling import SamplingBody
from rayline.protos.types import SamplingParams
from rayline.router.http.api import build_http_app
from rayline.router.service import Service
from rayline.workers.models.config import FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
CODE = ("cluster", "deploy", "kernels", "protos", "router", "workers")
OTHER_FLAGS = {"--strict", "--out", "--help"}  # mypy's, the trainer's, click's own
FLAG = r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]"


@dataclass(frozen=True, slots=True)
class Fence:
    """One block of code of a page."""

    page: str
    line: int
    language: str
    body: str


def fences(*languages: str) -> list[Fence]:
    """All blocks in these languages, of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if match[1] in languages:
                found.append(Fence(page.name, text.count("\n", 0, match.start()) + 1, match[1], match[2]))
    return found


def place(fence: Fence) -> str:
    return f"{fence.page}:{fence.line}"


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def page_text(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


# ---- links and paths


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    assert not [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in README]


def tree_paths() -> Iterator[str]:
    """The paths of the README's tree; two blanks of indentation are one level."""
    (tree,) = fences("tree")
    stack: list[str] = []
    for line in tree.body.splitlines():
        name = line.split()[0]
        level = (len(line) - len(line.lstrip())) // 2
        stack = [*stack[:level], name]
        yield "".join(stack)


def test_every_path_of_the_tree_exists_and_is_of_the_kind_it_says() -> None:
    paths = list(tree_paths())
    assert len(paths) > 50
    wrong = [path for path in paths if not ((ROOT / path).is_dir() if path[-1] == "/" else (ROOT / path).is_file())]
    assert not wrong


def test_the_tree_shows_every_folder_of_code() -> None:
    shown = {path.rstrip("/") for path in tree_paths()}
    folders = {
        str(file.parent.relative_to(ROOT)) for folder in CODE for file in (ROOT / folder).rglob("*") if _counts(file)
    }
    assert folders <= shown


def _counts(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_source_file_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(rf"\b((?:{'|'.join(CODE)}|tests|docs)/[\w/.-]*\w\.(?:py|proto|md|json))\b", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists() and not (ROOT / "docs" / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_machine_or_leaves_work_for_later(page: Path) -> None:
    assert not re.search(r"/(?:work|root|home)/|\bTODO\b|\bFIXME\b|\btbd\b", page.read_text(), re.IGNORECASE)


# ---- snippets


@pytest.mark.parametrize("fence", fences("python"), ids=place)
def test_python_snippets_compile_and_import_what_there_is(fence: Fence) -> None:
    for node in ast.walk(ast.parse(fence.body, fence.page)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)


@pytest.mark.parametrize("fence", fences("python"), ids=place)
def test_python_snippets_fill_fields_that_the_messages_have(fence: Fence) -> None:
    messages = (pb.GenerateRequest.DESCRIPTOR, pb.SamplingParams.DESCRIPTOR)
    known = {message.name: {f.name for f in message.fields} for message in messages}
    for node in ast.walk(ast.parse(fence.body)):
        name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        if isinstance(node, ast.Call) and name in known:
            assert {keyword.arg for keyword in node.keywords} <= known[name]


@pytest.mark.parametrize("fence", fences("yaml"), ids=place)
def test_yaml_snippets_are_configurations(fence: Fence) -> None:
    assert parse(yaml.safe_load(fence.body)) != SystemConfig()


def test_every_section_of_the_configuration_is_in_an_example() -> None:
    shown = {section for fence in fences("yaml") for section in yaml.safe_load(fence.body)}
    assert shown == {section.name for section in fields(SystemConfig)}


# ---- commands


def commands() -> dict[str, click.Command]:
    """Every command by what a user types after `rayline`."""
    found: dict[str, click.Command] = {}
    for name, entry in cli.COMMANDS.items():
        command = entry.load()
        if isinstance(command, LazyGroup):
            found |= {f"{name} {sub}": leaf.load() for sub, leaf in command.entries.items()}
        elif isinstance(command, click.Group):
            found |= {f"{name} {sub}": leaf for sub, leaf in command.commands.items()}
        else:
            found[name] = command
    return found


def flags_of(command: click.Command) -> set[str]:
    return {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}


def test_every_command_is_shown_in_the_readme() -> None:
    assert not [name for name in commands() if f"\nrayline {name} " not in README]


def test_command_lines_use_flags_of_their_command() -> None:
    names = "|".join(sorted(commands(), key=len, reverse=True))
    used = 0
    for page in PAGES:
        for name, rest in re.findall(rf"rayline ({names})\b([^\n`#]*)", page.read_text()):
            flags = set(re.findall(FLAG, rest))
            assert flags <= flags_of(commands()[name]), f"{page.name}: rayline {name}{rest}"
            used += len(flags)
    assert used > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_a_page_names_exists(page: Path) -> None:
    known = OTHER_FLAGS.union(*(flags_of(command) for command in commands().values()))
    assert not set(re.findall(FLAG, page.read_text())) - known


def test_every_target_of_make_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make (\w+)", page.read_text(), re.MULTILINE)}
    assert {"serve", "test"} <= named <= targets


# ---- configuration.md


def allowed(kind: Any) -> str:
    """The values a key of this type takes, in words."""
    if get_origin(kind) is tuple:
        return "texts"
    if words := get_args(kind) if "Literal" in str(get_origin(kind)) else ():
        return ", ".join(words)
    if kind in (bool, str):
        return {bool: "true, false", str: "text"}[kind]
    bounds = get_args(kind)[1:]
    least = next(bound.ge for bound in bounds if isinstance(bound, Ge))
    most = next((bound.le for bound in bounds if isinstance(bound, Le)), None)
    return f"{least} or more" if most is None else f"{least} to {most}"


def row(key: Key) -> str:
    section = ModelSection if key.section == "models" else type(getattr(SystemConfig(), key.section))
    kind = get_type_hints(section, include_extras=True)[key.name]
    default = "none" if key.default in ("", ()) else str(key.default).lower() if kind is bool else str(key.default)
    if not has_flag(key):
        return f"| `{key.name}` | | none | records | {key.help} |"
    flag = f"`{key.flag}`, `--no-{key.flag[2:]}`" if kind is bool else f"`{key.flag}`"
    return f"| `{key.name}` | {flag} | {default} | {allowed(kind)} | {key.help} |"


def section_table(section: str) -> str:
    """What configuration.md must say of one section. A failing test shows it whole, to be pasted."""
    head = "| key | flag | default | allowed | meaning |\n| --- | --- | --- | --- | --- |"
    return "\n".join([f"## {section}", "", head, *(row(key) for key in config_keys() if key.section == section)])


@pytest.mark.parametrize("section", [section.name for section in fields(SystemConfig)])
def test_the_configuration_page_lists_every_key_as_the_code_has_it(section: str) -> None:
    assert section_table(section) + "\n" in page_text("configuration.md"), f"it should say:\n{section_table(section)}"


def test_the_configuration_page_lists_no_other_section() -> None:
    named = re.findall(r"^## ([a-z]+)$", page_text("configuration.md"), re.MULTILINE)
    assert named == [section.name for section in fields(SystemConfig)]


# ---- api.md


def test_the_error_table_is_the_error_tree() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([A-Z_]+)` \| (\d+) \|", page_text("api.md"), re.MULTILINE)
    assert rows == [(name, leaf.grpc_code, str(leaf.http_code)) for name, leaf in LEAVES.items()]


def test_the_api_page_names_every_call_and_every_path() -> None:
    text = page_text("api.md")
    calls = [method.name for method in pb.DESCRIPTOR.services_by_name["InferenceService"].methods]
    service = Service({}, lambda: 0.0, lambda: 0)
    paths = list(build_http_app(service, SystemConfig()).openapi()["paths"])
    assert len(calls) > 4 and len(paths) > 6
    assert not [name for name in (*calls, *paths) if f"`{name}`" not in text]


def test_the_api_page_names_every_sampling_parameter_with_its_default() -> None:
    text = page_text("api.md")
    for parameter in fields(SamplingParams):
        default = "none" if parameter.default in (None, ()) else str(parameter.default).lower().removesuffix(".0")
        assert f"| `{parameter.name}` | {default} |" in text, parameter.name


@pytest.mark.parametrize("fields_of", [NEUTRAL_COMPLETION, NEUTRAL_CHAT, NEUTRAL_MESSAGE])
def test_the_api_page_names_every_field_that_is_taken_but_not_served(fields_of: dict[str, object]) -> None:
    assert not [name for name in fields_of if f"`{name}`" not in page_text("api.md")]


@pytest.mark.parametrize("body", [CompletionBody, ChatCompletionBody], ids=lambda body: body.__name__)
def test_the_api_page_names_every_field_of_a_body(body: type[SamplingBody]) -> None:
    assert not [name for name in body.model_fields if f"`{name}`" not in page_text("api.md")]


# ---- the README's promises


def test_the_readme_names_the_families_that_are_served() -> None:
    assert f"**Families**: {', '.join(f'`{family}`' for family in FAMILIES)}," in README


def test_the_readme_has_one_place_for_measured_numbers() -> None:
    assert README.count("<!-- measured -->") == 1
