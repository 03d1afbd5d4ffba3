"""Messages: parameters for Python, options for the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpttool.errors import UsageError
from ckpttool.text import Message, parameter, render


@pytest.mark.parametrize(
    ("value", "keyword"),
    [(None, "last"), (5, "last=5"), ("True", "last=True"), ("epoch-*", "last='epoch-*'"), (-0.5, "last=-0.5")],
)
def test_a_parameter_reads_as_a_keyword_of_python(value: object, keyword: str) -> None:
    assert str(Message(f"Use {parameter('last', value)}.")) == f"Use {keyword}."


def test_an_error_speaks_of_parameters_and_can_be_rendered_otherwise() -> None:
    error = UsageError(
        f"{parameter('metric')} is missing", hint=f"For example {parameter('metric', 'loss')}, {parameter('best', 3)}."
    )
    assert str(error) == "metric is missing"
    assert error.hint == "For example metric='loss', best=3."
    assert render(error.hint, lambda name, value: f"--{name} {value}") == "For example --metric loss, --best 3."


@given(st.text())
def test_text_without_parameters_is_kept(text: str) -> None:
    assert render(text, lambda *_: "!") == text
    if "\ufdd0" not in text:
        assert render(Message(text), lambda *_: "!") == str(Message(text)) == text
