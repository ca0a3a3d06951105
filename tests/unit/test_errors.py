"""The error tree: every leaf has codes that exist, is rebuilt from its name, and is drawn in the docstring."""

import re
from collections.abc import Iterator
from http import HTTPStatus

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.protos import errors
from rayline.protos.errors import LEAVES, ConfigError, InternalError, RaylineError, error_of, out_of_range


def descendants(cls: type[RaylineError]) -> Iterator[type[RaylineError]]:
    for child in cls.__subclasses__():
        yield child
        yield from descendants(child)


def test_every_error_of_the_tree_can_cross_a_process_boundary() -> None:
    tree = {cls for cls in descendants(RaylineError) if cls.__module__ == errors.__name__}
    assert set(LEAVES.values()) == tree
    assert all(LEAVES[leaf.__name__] is leaf for leaf in tree)


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_every_leaf_has_codes_that_exist(leaf: type[RaylineError]) -> None:
    assert leaf.grpc_code in grpc.StatusCode.__members__
    assert leaf.http_code >= 400 and leaf.http_code in {499, *HTTPStatus}


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_the_tree_in_the_docstring_shows_every_leaf_with_its_codes(leaf: type[RaylineError]) -> None:
    drawn = re.search(rf"── {leaf.__name__} +([A-Z_]+) +(\d+)", errors.__doc__ or "")
    assert drawn is not None
    assert (drawn[1], int(drawn[2])) == (leaf.grpc_code, leaf.http_code)


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_every_leaf_says_what_it_means(leaf: type[RaylineError]) -> None:
    assert leaf.__doc__ and leaf.__doc__ != RaylineError.__doc__


@given(st.sampled_from(sorted(LEAVES)), st.text(), st.none() | st.text(), st.none() | st.floats(0, 100))
def test_an_error_is_rebuilt_from_its_kind(kind: str, message: str, field: str | None, retry: float | None) -> None:
    error = error_of(kind, message, field=field, retry_after_s=retry)
    assert type(error) is LEAVES[kind]
    assert error.kind == kind
    assert (error.message, error.field, error.retry_after_s, str(error)) == (message, field, retry, message)


@given(st.text().filter(lambda kind: kind not in LEAVES))
def test_an_unknown_kind_is_an_internal_error(kind: str) -> None:
    assert type(error_of(kind, "m")) is InternalError


def test_start_up_errors_are_config_errors_so_that_one_handler_ends_the_command() -> None:
    assert {leaf for leaf in LEAVES.values() if issubclass(leaf, ConfigError)} == {
        ConfigError,
        errors.ModelError,
        errors.PortInUse,
        errors.NotEnoughMemory,
    }


def test_out_of_range_names_field_value_and_range() -> None:
    error = out_of_range("top_p", 1.5, "above 0, up to 1")
    assert error.message == "top_p = 1.5 is out of range: allowed is above 0, up to 1"
    assert error.field == "top_p"
