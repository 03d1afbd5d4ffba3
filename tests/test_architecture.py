"""The architecture: what may import what, what a --help loads, what is shipped."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import numpy as np
import pytest

import ckpttool

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ckpttool"

LAYERS = (
    {"__main__"},
    {"cli"},
    {"training", "api"},
    {"operations"},
    {"engine", "ema", "selection"},
    {"planning"},
    {"formats"},
    {"reading"},
    {"run_layouts", "tiling", "checksums"},
    {"tensors", "coefficients", "schedules"},
    {"errors"},
    {"text", "_version"},
)
"""From the top down: a module imports from its own layer and from those below it."""

PURE = ("coefficients", "schedules", "errors", "tensors", "text")
"""Mathematics and text: no files, no formats, no side effects."""

HEAVY = ("numpy", "torch", "ml_dtypes", "safetensors", "matplotlib")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def executed_nodes(node: ast.AST, *, in_functions: bool) -> Iterator[ast.AST]:
    """What runs: everything but ``if TYPE_CHECKING``, and but the bodies of functions unless they are asked for."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not in_functions:
            continue
        yield child
        yield from executed_nodes(child, in_functions=in_functions)


@cache
def imports(module: str, *, in_functions: bool = True) -> frozenset[str]:
    """Full names of the modules that a module of the package imports."""
    names = set()
    for node in executed_nodes(ast.parse(MODULES[module].read_text(encoding="utf-8")), in_functions=in_functions):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            assert node.module is not None
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names.update(name if name in MODULES else node.module for name in full)
    return frozenset(names)


def reached_from(module: str) -> set[str]:
    """The modules of the package that a module imports, directly or through others."""
    reached: set[str] = set()
    ahead = [module]
    while ahead:
        new = {
            name for name in imports(ahead.pop()) if name in MODULES and name not in {"ckpttool", "ckpttool._version"}
        } - reached
        reached |= new
        ahead += sorted(new)
    return reached


def top_package(module: str) -> str:
    """``cli`` for ``ckpttool.cli.average``."""
    return (module + ".").split(".")[1]


def layer(module: str) -> int:
    """0 for the uppermost."""
    return next(number for number, packages in enumerate(LAYERS) if top_package(module) in packages)


def importers(library: str, *, in_functions: bool) -> set[str]:
    return {
        top_package(module)
        for module in MODULES
        if any(name.split(".")[0] == library for name in imports(module, in_functions=in_functions))
    }


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"ckpttool"}))
def test_no_import_runs_upward(module: str) -> None:
    """The package itself only names what is public, and loads it when it is asked for."""
    own = layer(module)
    assert {name for name in imports(module) if name in MODULES and name != "ckpttool" and layer(name) < own} == set()


def test_every_package_and_module_has_its_layer() -> None:
    assert {top_package(module) for module in MODULES} - {""} == set().union(*LAYERS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_itself_through_others(module: str) -> None:
    assert module not in reached_from(module)


@pytest.mark.parametrize("module", sorted(name for name in MODULES if top_package(name) in PURE))
def test_pure_modules_know_only_each_other(module: str) -> None:
    assert {top_package(name) for name in reached_from(module)} - {"_version"} <= set(PURE)


PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_docstring_of_a_package_lists_its_modules(package: str) -> None:
    """A line for each: its name, two spaces or more, and what it is."""
    text = ast.get_docstring(ast.parse(MODULES[package].read_text(encoding="utf-8"))) or ""
    inside = {name.removeprefix(f"{package}.") for name in MODULES if name.startswith(f"{package}.")}
    there = {name for name in inside if "." not in name} - {"__main__", "_version"}
    assert sorted(re.findall(r"^(\w+) {2,}\S", text, re.MULTILINE)) == sorted(there)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_in_a_package_is_also_a_module_of_it(package: str) -> None:
    """Importing ``cli._show`` sets ``_show`` in ``cli``, over a function of that name."""
    names = set()
    for node in ast.parse(MODULES[package].read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    assert {name for name in names if f"{package}.{name}" in MODULES} == set()


def test_only_the_entry_point_imports_the_command_line() -> None:
    users = {
        top_package(module)
        for module in MODULES
        if any(top_package(name) == "cli" for name in imports(module) & set(MODULES))
    }
    assert users <= {"cli", "__main__"}


@pytest.mark.parametrize("library", ["click", "rich"])
def test_only_the_command_line_knows_the_terminal_libraries(library: str) -> None:
    assert importers(library, in_functions=True) == {"cli"}


def test_only_training_is_built_on_torch() -> None:
    assert importers("torch", in_functions=False) <= {"training"}


def run_python(code: str) -> str:
    # With -c, modules are looked for in the working directory first: this is the package of the checkout.
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_importing_the_package_costs_nothing() -> None:
    loaded = set(run_python("import ckpttool, sys; print(*sys.modules)").split())
    assert loaded & {*HEAVY, "click", "rich", "yaml"} == set()
    assert {name for name in loaded if name.startswith("ckpttool")} == {"ckpttool", "ckpttool._version"}


def test_every_public_name_is_there() -> None:
    run_python("import ckpttool; assert all(getattr(ckpttool, name) is not None for name in ckpttool.__all__)")


def test_help_loads_nothing_heavy() -> None:
    """For the group and for every command."""
    code = """
import contextlib, io, sys
from ckpttool.cli import group, main
for command in ([], *([name] for name in group.commands)):
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([*command, "--help"])
    assert "Usage: ckpttool" in shown.getvalue()
print(*sys.modules)
"""
    assert set(run_python(code).split()) & set(HEAVY) == set()


def test_the_help_of_the_group_loads_little_more_than_click() -> None:
    shown = "import contextlib, io; from ckpttool.cli import main\nwith contextlib.suppress(SystemExit), "
    shown += "contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
    loaded = set(run_python(f"{shown}import sys; print(*sys.modules)").split())
    loaded -= set(run_python("import click, sys; print(*sys.modules)").split())
    assert "ckpttool.cli" in loaded
    assert loaded & {"json", "pathlib", "dataclasses", "shlex", "rich", "yaml", "ckpttool.cli._output"} == set()


def test_an_average_loads_only_what_it_needs(tmp_path: Path) -> None:
    """No module of another operation, and no parser of files that are not there."""
    for step in (1, 2):
        np.savez(tmp_path / f"step-{step}.npz", w=np.ones(2, np.float32))
    code = f"""
import contextlib, io, sys
from ckpttool.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["average", {str(tmp_path)!r}, "--quiet"])
print(*sys.modules)
"""
    loaded = set(run_python(code).split())
    assert (tmp_path / "avg").is_dir()
    operations = {name for name in loaded if name.startswith("ckpttool.operations.")}
    assert operations == {
        f"ckpttool.operations.{name}" for name in ("averaging", "inputs", "names", "opennmt_config", "records")
    }
    assert loaded & {"yaml", "rich", "ckpttool.ema.diagnosis", "ckpttool.coefficients.posthoc"} == set()


def test_the_version_is_in_one_place_and_in_the_changelog() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in pyproject
    assert re.search(r"^version\s*=", pyproject, re.MULTILINE) is None
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == ckpttool.__version__


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").is_file()


def test_no_big_file_is_tracked() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert [file.name for file in files if file.is_file() and file.stat().st_size > 1_000_000] == []


def test_each_command_has_the_line_that_the_group_shows_for_it() -> None:
    from ckpttool.cli import COMMANDS, group

    for name, (_, line) in COMMANDS.items():
        command = group.get_command(click.Context(group), name)
        assert command is not None
        assert command.name == name
        assert command.short_help == line


def test_a_mistyped_command_is_answered_with_the_one_that_was_meant() -> None:
    ran = subprocess.run([sys.executable, "-m", "ckpttool", "averge"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "average" in ran.stderr
