"""The shape of the package: small modules, imports one way, nothing private taken."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import flask_autosession

PACKAGE = Path(flask_autosession.__file__).parent
MODULES = sorted(PACKAGE.glob("*.py"))
TESTING = sorted((PACKAGE / "testing").glob("*.py"))


def imports(module: Path) -> set[str]:
    """Return the modules of its own folder that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found.update(names)
    return found


@pytest.mark.parametrize("modules", [MODULES, TESTING], ids=["package", "testing"])
def test_imports_point_one_way(modules: list[Path]) -> None:
    """No module imports, over any number of steps, one that imports it."""
    graph = {module.stem: imports(module) for module in modules}
    done: list[str] = []
    while len(done) < len(graph):
        ready = [name for name, needs in graph.items() if name not in done and needs <= set(done)]
        assert ready, f"a circle among {sorted(set(graph) - set(done))}"
        done.extend(ready)
    # What stands on an optional package is a door of its own, and testing stands on top.
    doors = {"__init__", "celery", "plugin"}
    assert not doors & {name for needs in graph.values() for name in needs}
    if modules is MODULES:
        assert not any("testing" in needs for needs in graph.values())


@pytest.mark.parametrize("module", [*MODULES, *TESTING], ids=lambda module: module.stem)
def test_modules_and_functions_are_small(module: Path) -> None:
    """A module has at most 250 lines, a function at most 40 without its docstring."""
    text = module.read_text()
    assert len(text.splitlines()) <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            assert (body[-1].end_lineno or 0) - body[0].lineno < 40, node.name


def test_only_the_unit_of_work_commits_and_rolls_back() -> None:
    """A session is told to commit or roll back in unit.py and nowhere else."""
    calls = {
        module.stem
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"commit", "rollback"}
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "session"
    }
    assert calls == {"unit"}


def test_the_door_is_small() -> None:
    """The public names are learned from one screen, and they are all there."""
    text = (PACKAGE / "__init__.py").read_text()
    assert len(text.splitlines()) <= 40
    assert all(hasattr(flask_autosession, name) for name in flask_autosession.__all__)
