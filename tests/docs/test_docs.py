"""The documentation says what is true: its code runs, and its reference leaves nothing out."""

from __future__ import annotations

import ast
import inspect
import io
import re
import signal
import sys
import unittest
from collections.abc import Callable, Iterator
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
from flask_autosession import ActiveRecord, AutoSession, ConfigError, testing
from flask_autosession import celery as celery_module
from flask_autosession.config import KEYS, Settings, read_settings
from flask_autosession.testing.isolation import STRATEGIES
from flask_autosession.testing.schema import SOURCES

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


class Suites:
    """Runs the files of tests of a page, as a reader would: all of them, by pytest or unittest.

    :param run_pytest: Runs files by a pytest of its own.
    """

    def __init__(self, run_pytest: Callable[[list[Path]], None]) -> None:
        self._run_pytest = run_pytest
        self._waiting: list[Path] = []

    def block(self, example: Example) -> None:
        """Run a block; one with a caption is a file, which the blocks after it import."""
        caption = example.region.lexemes.get("options", {}).get("caption")
        if caption is None and re.search(r"^def test_\w+\(", example.parsed, re.MULTILINE):
            caption = "test_without_caption.py"  # in the README: GitHub does not know them
        if caption is None:
            run_python(example)
        else:
            self._write(Path(caption), example.parsed)

    def _write(self, path: Path, code: str) -> None:
        if path.exists():
            self.run()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
        compile(code, path, "exec")
        if path.name.startswith("test_"):
            self._waiting.append(path)

    def run(self) -> None:
        """Run those that were written, and not run yet."""
        if self._waiting:
            self._run_pytest(self._waiting)
        for path in self._waiting:
            if re.search(r"^import unittest$", path.read_text(), re.MULTILINE):
                run_unittest(path)
        self._waiting.clear()


def run_unittest(path: Path) -> None:
    suite = unittest.defaultTestLoader.loadTestsFromName(path.stem)
    outcome = unittest.TextTestRunner(io.StringIO()).run(suite)
    assert outcome.errors + outcome.failures == []
    assert outcome.testsRun


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


@pytest.fixture
def suites(place: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Suites:
    """What runs a document's files of tests, in this process, with our plugin."""
    # Other plugins: in the way (pytest-flask pushes contexts, the order is the page's), or slow.
    off = ("cacheprovider", "flask", "hypothesispytest", "randomly")
    options = ["-q", "-W", "error", *(f"-pno:{name}" for name in off)]

    def run(paths: list[Path]) -> None:
        # Not before it is needed: it has modules forgotten that were imported since.
        pytester: pytest.Pytester = request.getfixturevalue("pytester")
        monkeypatch.chdir(place)
        # What would make it a worker of pytest-xdist.
        for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_TESTRUNUID", "PYTEST_ADDOPTS"):
            monkeypatch.delenv(name, raising=False)
        assert pytester.runpytest_inprocess(*options, *paths).ret == 0

    return Suites(run)


def require(code: str) -> None:
    """Skip by name what needs a package or a service that is not there."""
    for name in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        if name in INTEGRATIONS:
            pytest.importorskip(name, reason=f"{name}: in the dependency group 'integrations'")
        if name == "rq":
            broker("redis")


def run(document: Document, suites: Suites | None = None) -> None:
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
    if suites is not None:
        suites.run()
    if missing:
        pytest.skip("all blocks ran but those that need more: " + "; ".join(missing))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_runs(page: Path, suites: Suites) -> None:
    """Code that is copied from a page, from its top to its end, works as the page says."""
    parser = CodeBlockParser("python", suites.block)
    document = Sybil(parsers=[parser], pattern="*.md").parse(page)
    marked = re.findall(r"^ *```(?:python|\{code-block\} python)$", document.text, re.MULTILINE)
    assert len(list(document.examples())) == len(marked)
    run(document, suites)


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
PUBLIC = {module.__name__: module.__all__ for module in (flask_autosession, celery_module, testing)}
ENTRIES = re.findall(r"^ *\.\. auto(\w+):: (\w+)(?:\(\))?$", API, re.MULTILINE)


def test_the_api_page_has_every_public_name() -> None:
    """Each name that can be imported from the package is on the page, and no other."""
    kinds = {"class", "exception", "data", "function"}
    top = [name for kind, name in ENTRIES if kind in kinds]
    assert sorted(top) == sorted(name for names in PUBLIC.values() for name in names)


def test_the_api_page_names_where_each_name_is_imported_from() -> None:
    """What belongs to Celery or to tests is in a module of its own, the rest in the package."""
    pieces = re.split(r"^\.\. (?:current)?module:: (\S+)$", API, flags=re.MULTILINE)
    for module, piece in zip(pieces[1::2], pieces[2::2], strict=True):
        names = re.findall(
            r"^\.\. auto(?:class|exception|data|function):: (\w+)", piece, re.MULTILINE
        )
        assert set(names) <= set(PUBLIC[module])
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
    printed = [re.sub(r"^\{exc\}`(~[\w.]+\.)?|`$", "", row[0]) for row in rows]
    assert printed == [*errors, testing.IsolationError.__name__]
    assert all(len(row) == 3 and all(row) for row in rows)


PLUGIN = ast.parse((PACKAGE / "testing" / "plugin.py").read_text())


def test_the_api_page_has_every_fixture_of_the_plugin() -> None:
    """Each fixture that the plugin brings is in the table of the reference, and no other."""
    fixtures = [
        node.name
        for node in PLUGIN.body
        if isinstance(node, ast.FunctionDef)
        and "pytest.fixture" in map(ast.unparse, node.decorator_list)
    ]
    for page in ("api.md", "testing.md"):
        assert [row[0].strip("`") for row in table(page, "Fixture")] == fixtures


def test_the_api_page_has_every_option_of_the_plugin(pytestconfig: pytest.Config) -> None:
    """Each option, its default and its values are those that pytest would take."""
    options: dict[str, str] = {}
    for node in ast.walk(PLUGIN):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.addini":
            default = next(keyword.value for keyword in node.keywords if keyword.arg == "default")
            options[ast.literal_eval(node.args[0])] = ast.literal_eval(default)
    values = {"autosession_strategy": STRATEGIES, "autosession_schema": SOURCES}
    for page, header in (("api.md", "Option of pytest"), ("testing.md", "Option")):
        rows = table(page, header)
        assert {row[0].strip("`"): row[1].strip("`") for row in rows} == options
        for row in rows:
            assert re.findall(r"`(\w+)`", row[2]) == list(values[row[0].strip("`")])


def said(node: ast.AST) -> str:
    """Return what a literal says, with "…" for what differs from case to case."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(said, node.values))
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "…" if isinstance(node, ast.FormattedValue) else ""


def test_the_guide_explains_every_failure() -> None:
    """What an IsolationError says can be looked up in the guide, which has no other messages."""
    nodes = [
        node
        for module in (PACKAGE / "testing").glob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
    ]
    raised = [
        said(node.args[0])
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "IsolationError"
    ]
    explained = tuple(row[0].strip("`").rstrip("…") for row in table("testing.md", "Message"))
    assert [message for message in raised if message and not message.startswith(explained)] == []
    everything = [said(node) for node in nodes]
    assert [row for row in explained if not any(one.startswith(row) for one in everything)] == []


def test_every_page_is_in_the_index() -> None:
    """A page can be found from the front page."""
    index = (ROOT / "docs/index.md").read_text()
    listed = re.findall(r"^([\w-]+)$", index, re.MULTILINE)
    assert sorted(listed) == sorted(
        page.stem for page in PAGES if page.parent.name == "docs" and page.stem != "index"
    )
