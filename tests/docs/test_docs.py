"""The documentation says what is true: its code runs, and its reference leaves nothing out."""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Task
from celery import _state as celery_state
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sybil import Document, Example, Sybil
from sybil.document import PythonDocStringDocument
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser
from sybil.parsers.rest import DocTestParser
from sybil.parsers.rest import PythonCodeBlockParser as RestCodeBlockParser

import flask_autosession
from flask_autosession import ActiveRecord, AutoSession, ConfigError
from flask_autosession import celery as celery_module
from flask_autosession.config import KEYS, Settings, read_settings

from ..celery.workers import broker

ROOT = Path(__file__).parents[2]
PACKAGE = Path(flask_autosession.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted(PACKAGE.rglob("*.py"))

# What a block may import beside the package and its extras.
INTEGRATIONS = {
    "apscheduler",
    "dramatiq",
    "flask_migrate",
    "flask_socketio",
    "flask_sock",
    "huey",
    "rq",
    "simple_websocket",
}

run_python = PythonEvaluator()


def run_block(example: Example) -> None:
    """Run a block; one with a caption is a file, which the blocks after it import.

    A file of tests is run by pytest, in a process of its own, as a reader would do it.
    """
    caption = example.region.lexemes.get("options", {}).get("caption")
    if caption is None:
        run_python(example)
        return
    path = Path(caption)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(example.parsed)
    compile(example.parsed, caption, "exec")
    if path.name.startswith("test_"):
        run_tests(path)


def run_tests(path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", path]
    result = subprocess.run(
        command, check=False, env=environ, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr


PAGE_PARSER = Sybil(parsers=[CodeBlockParser("python", run_block)], pattern="*.md")
DOCSTRING_PARSER = Sybil(
    parsers=[RestCodeBlockParser(), DocTestParser()],
    pattern="*.py",
    document_types={".py": PythonDocStringDocument},
)


@pytest.fixture
def celery_globals() -> Iterator[None]:
    """Forget which Celery application is the default one, and the tasks that all of them share."""
    default, finalizers = celery_state.default_app, set(celery_state._on_app_finalizers)
    current = celery_state._tls.current_app
    yield
    celery_state.set_default_app(default)
    celery_state._tls.current_app = current
    celery_state._on_app_finalizers.intersection_update(finalizers)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, celery_globals: None) -> Iterator[Path]:
    """A directory to run a document in, and nothing of it left behind."""
    engines: set[Engine] = set()
    modules = set(sys.modules)
    # Which RQ's worker replaces.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def remember(connection: Connection) -> None:
        engines.add(connection.engine)

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    event.listen(Engine, "engine_connect", remember)
    yield tmp_path
    event.remove(Engine, "engine_connect", remember)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for engine in engines:
        engine.dispose()
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def require(code: str) -> None:
    """Skip by name what needs a package or a service that is not there."""
    for name in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        if name in INTEGRATIONS:
            pytest.importorskip(name, reason=f"{name}: in the dependency group 'integrations'")
        if name == "rq":
            broker("redis")


def run(document: Document) -> None:
    # Flask looks for the folder of an application by this name, and falls back to the current one.
    document.namespace["__name__"] = "documented"
    missing = []
    for example in document.examples():
        try:
            require(example.parsed)
        except pytest.skip.Exception as skipped:
            missing.append(f"line {example.line}: {skipped}")
        else:
            example.evaluate()
    if missing:
        pytest.skip("all blocks ran but those that need more: " + "; ".join(missing))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_runs(page: Path, place: Path) -> None:
    """Code that is copied from a page, from its top to its end, works as the page says."""
    document = PAGE_PARSER.parse(page)
    marked = re.findall(r"^ *```(?:python|\{code-block\} python)$", document.text, re.MULTILINE)
    assert len(list(document.examples())) == len(marked)
    run(document)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_every_example_of_a_docstring_runs(module: Path, place: Path) -> None:
    """An example in a docstring works as it is printed there."""
    run(DOCSTRING_PARSER.parse(module))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_names_its_language(page: Path) -> None:
    """Whether a block is run cannot be forgotten: one without a language is none we have."""
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)
    opening = fences[::2]
    known = (
        r"python|console|text|json|toml|\{(code-block\} python|toctree\}|eval-rst\}|include\} .+)"
    )
    assert [fence for fence in opening if not re.fullmatch(known, fence)] == []
    assert set(fences[1::2]) <= {""}


def table(page: str, header: str) -> list[list[str]]:
    """Return the cells of the first table whose first column is called as given."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_config_reference_lists_every_key_and_no_other() -> None:
    """The table of keys is complete, and holds nothing that does not exist."""
    assert [row[0].strip("`") for row in table("config.md", "Key")] == list(KEYS)


def test_the_config_reference_gives_the_defaults() -> None:
    """A key that is not set has the value that the table gives."""
    printed = {
        row[0].strip("`"): ast.literal_eval(row[1].strip("`")) for row in table("config.md", "Key")
    }
    assert printed == {key: getattr(Settings(), field) for key, field in KEYS.items()}


@pytest.mark.parametrize("row", table("config.md", "Key"), ids=lambda row: row[0].strip("`"))
def test_the_config_reference_gives_the_values(row: list[str]) -> None:
    """A key takes each value in its row of the table, and what it refuses it explains likewise."""
    key, values = row[0].strip("`"), row[2]
    with pytest.raises(ConfigError) as caught:
        read_settings({key: "no such value"})
    takes = str(caught.value).partition("it takes ")[2].rstrip(".")
    listed = re.findall(r"`(.+?)`", values)
    for value in map(ast.literal_eval, listed):
        assert getattr(read_settings({key: value}), KEYS[key]) == value
    words = re.findall(r"'\w+'|True|False", takes)
    assert words == listed if listed else takes == values


def test_the_config_reference_has_a_section_for_each_key() -> None:
    """Each key is explained under a heading of its own."""
    headings = re.findall(
        r"^## (AUTOSESSION_\w+)$", (ROOT / "docs/config.md").read_text(), re.MULTILINE
    )
    assert headings == list(KEYS)


API = (ROOT / "docs/api.md").read_text()
CELERY_NAMES = celery_module.__all__
ENTRIES = re.findall(r"^ *\.\. auto(\w+):: (\w+)$", API, re.MULTILINE)


def test_the_api_page_has_every_public_name() -> None:
    """Each name that can be imported from the package is on the page, and no other."""
    kinds = {"class", "exception", "data", "function"}
    top = [name for kind, name in ENTRIES if kind in kinds]
    assert sorted(top) == sorted([*flask_autosession.__all__, *CELERY_NAMES])


def test_the_api_page_names_where_each_name_is_imported_from() -> None:
    """What belongs to Celery is looked for in the module that needs it, the rest in the package."""
    pieces = re.split(r"^\.\. currentmodule:: (\S+)$", API, flags=re.MULTILINE)
    for module, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        names = re.findall(
            r"^\.\. auto(?:class|exception|data|function):: (\w+)", piece, re.MULTILINE
        )
        public = CELERY_NAMES if module == celery_module.__name__ else flask_autosession.__all__
        assert set(names) <= set(public)
        assert all(hasattr(sys.modules[module], name) for name in names)


@pytest.mark.parametrize(
    "cls", [AutoSession, ActiveRecord, celery_module.UnitTask], ids=lambda cls: cls.__name__
)
def test_the_api_page_has_every_public_method(cls: type) -> None:
    """Each public method and property is on the page, under its class."""
    section = API.partition(f"autoclass:: {cls.__name__}\n")[2].partition("\n```")[0]
    printed = re.findall(
        r"^ +\.\. auto(?:method|property):: (\w+)(?:\(\w*\))?$", section, re.MULTILINE
    )
    inherited = dir(Task) if issubclass(cls, Task) else []
    own = {name for name in dir(cls) if not name.startswith("_")} - set(inherited)
    assert sorted(printed) == sorted(own)


def test_the_api_page_says_what_to_do_for_each_error() -> None:
    """Each error has a row that tells when it comes and what to do."""
    errors = [
        name
        for name, value in vars(flask_autosession).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    ]
    rows = table("api.md", "Error")
    assert [re.sub(r"^\{exc\}`|`$", "", row[0]) for row in rows] == errors
    assert all(len(row) == 3 and all(row) for row in rows)


def test_every_page_is_in_the_index() -> None:
    """A page can be found from the front page."""
    index = (ROOT / "docs/index.md").read_text()
    listed = re.findall(r"^(\w+)$", index, re.MULTILINE)
    assert sorted(listed) == sorted(
        page.stem for page in PAGES if page.parent.name == "docs" and page.stem != "index"
    )
