"""The library names its parameters, and the command line its options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

import ckpttool
from ckpttool.cli import COMMANDS, group
from ckpttool.cli._wording import option_of, spoken
from ckpttool.operations.records import Selection
from ckpttool.planning.request import Policy
from ckpttool.text import Message, parameter

PACKAGE = Path(ckpttool.__file__).parent
LIBRARY = sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "cli")
TREES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in LIBRARY}

OTHERS_OPTIONS = {"schedules/config.py", "schedules/peers.py"}
"""Modules whose texts are options of other frameworks."""


OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+|(?<![\w-])-[on](?![\w-])")


def options() -> set[str]:
    """Every option of every command, and the name of the argument."""
    context = click.Context(group)
    commands = [group.get_command(context, name) for name in COMMANDS]
    found = {"CHECKPOINT"}
    for command in commands:
        assert command is not None
        for each in command.params:
            found.update(each.opts if isinstance(each, click.Option) else ())
    return found


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    """The string literals of a module that are not docstrings or comments in the form of a string."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node


def named_parameters() -> dict[str, set[str]]:
    """Parameters that messages name, with the modules that do. Those chosen at run time are tested apart."""
    found: dict[str, set[str]] = {}
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "parameter":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    found.setdefault(str(first.value), set()).add(module)
    return found


@pytest.mark.parametrize("name", sorted(named_parameters()))
def test_every_parameter_that_a_message_names_is_an_option(name: str) -> None:
    assert option_of(name) in options(), named_parameters()[name]


@pytest.mark.parametrize("name", [field.name for record in (Selection, Policy) for field in fields(record)])
def test_every_field_of_a_request_is_an_option(name: str) -> None:
    assert option_of(name) in options()


@pytest.mark.parametrize("module", list(TREES))
def test_no_message_of_the_library_names_an_option(module: str) -> None:
    if module in OTHERS_OPTIONS:
        pytest.skip("about other frameworks")
    named = {f"{module}:{each.lineno}: {each.value}" for each in texts(TREES[module]) if OPTION.search(str(each.value))}
    assert named == set()


@pytest.mark.parametrize(
    ("message", "python", "typed"),
    [
        (f"{parameter('force', True)} replaces it", "force=True replaces it", "--force replaces it"),
        (f"{parameter('warmup', False)} is it", "warmup=False is it", "--no-warmup is it"),
        (f"ask for {parameter('last', 3)}", "ask for last=3", "ask for --last 3"),
        (f"{parameter('output', 'a b.pt')}", "output='a b.pt'", "-o 'a b.pt'"),
        (f"{parameter('output')} writes elsewhere", "output writes elsewhere", "-o writes elsewhere"),
        (f"{parameter('include', 'epoch-*')}", "include='epoch-*'", "--include 'epoch-*'"),
        ("plain", "plain", "plain"),
    ],
)
def test_a_message_names_parameters_in_python_and_options_on_the_command_line(
    message: str, python: str, typed: str
) -> None:
    assert str(Message(message)) == python
    assert spoken(Message(message)) == typed
