"""The shop, used as its README says: its commands, a server, a worker, its own tests."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
import sqlalchemy as sa

from tests.celery.workers import REDIS, broker, clean, new_queue, until
from tests.examples.test_quickstart import BY_HAND, PYTEST, environment
from tests.world import Database

SHOP = Path(__file__).parents[2] / "examples" / "shop"
# What a reader does to his own machine. The rest is done here.
NOT_RUN = {"python3", ".", "pip", "createdb", "mariadb", "export", "pytest"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """Give the commands in the README, each with the lines that it is said to print."""
    blocks = re.findall(r"(?ms)^```console\n(.*?)^```$", (SHOP / "README.md").read_text())
    for line in "".join(blocks).split("$ ")[1:]:
        command, *printed = line.splitlines()
        yield command, printed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example, as if from a fresh clone."""
    no = shutil.ignore_patterns("__pycache__", ".*", "instance", "*.egg-info")
    return Path(shutil.copytree(SHOP, tmp_path / "shop", ignore=no))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, folder: Path) -> Iterator[Database]:
    """The shop's default database, or an empty schema on PostgreSQL."""
    if request.param == "sqlite":
        yield Database("sqlite", f"sqlite:///{folder / 'instance' / 'shop.db'}")
        return
    server: Database = request.getfixturevalue("postgresql")
    schema = f"shop_{uuid.uuid4().hex[:8]}"
    url = sa.make_url(server.uri).update_query_dict({"options": f"-csearch_path={schema}"})
    with server.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    try:
        yield Database("postgresql", url.render_as_string(hide_password=False))
    finally:
        with server.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")


class Reader:
    """Somebody who follows the README in a folder, with several terminals."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        inherited = {k: v for k, v in environment().items() if not k.startswith("CELERY_")}
        self.environment = {**inherited, "FLASK_RUN_PORT": "0", **variables}
        # Straight to the loopback address, whatever http_proxy says.
        self._opener = build_opener(ProxyHandler({}))

    def run(self, command: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and all that it printed."""
        done = subprocess.run(
            self._python(command),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    @contextmanager
    def running(self, command: str, ready: str) -> Iterator[Path]:
        """Run a command in another terminal, and give the file that it prints to."""
        log = self.folder / f"{command.split(maxsplit=1)[0]}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                self._python(command),
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            told(log, ready, process)
            yield log
        finally:
            print(log.read_text())  # pytest shows it with a failed test
            with suppress(ProcessLookupError):  # it did not start
                os.killpg(process.pid, signal.SIGKILL)  # a worker's children too
            process.wait(timeout=30)

    def curl(self, command: str) -> str:
        """Do what curl does, which not every machine has."""
        [url] = re.findall(r"Running on (\S+)", (self.folder / "flask.log").read_text())
        words = shlex.split(command.replace("http://127.0.0.1:5000", url))
        request = Request(words[-1])
        if words[1] == "--json":
            request.data = words[2].encode()
            request.add_header("Content-Type", "application/json")
        try:
            response = self._opener.open(request, timeout=30)
        except HTTPError as error:
            response = error
        with response:
            return response.read().decode()

    def _python(self, command: str) -> list[str]:
        return [sys.executable, "-m", *shlex.split(command)]


def told(log: Path, text: str, process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until a log has a text."""
    until(lambda: text in log.read_text() or (process and process.poll() is not None), seconds=60)
    assert text in log.read_text()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "mariadb"])
def test_its_own_tests_pass(folder: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """The example's tests pass in any order on each database, and leave it and the shop's alone."""
    reader = Reader(folder, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    # What the README has its reader export for the shop itself.
    reader.environment["FLASK_SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{folder / 'orders.db'}"
    database = None if kind == "sqlite" else request.getfixturevalue(kind)
    if database is not None:
        reader.environment["TEST_DATABASE_URI"] = database.uri
    code, printed = reader.run(PYTEST)
    assert code == 0, printed
    assert re.search(r"^29 passed in ", printed, re.MULTILINE), printed
    assert not list(folder.rglob("*.db"))
    assert database is None or sa.inspect(database.engine).get_table_names() == ["thing"]


def test_nothing_in_it_ends_a_unit_by_hand() -> None:
    """Neither the shop nor its tests commit, roll back, or clean up behind themselves."""
    schema = {"shop/commands.py": [".create_all("], "tests/test_commands.py": [".drop_all("]}
    for path in SHOP.rglob("*.py"):
        name = path.relative_to(SHOP).as_posix()
        assert re.findall(BY_HAND, path.read_text()) == schema.get(name, []), name


@pytest.mark.timeout(240)
def test_its_readme_is_followed_to_the_end(folder: Path, database: Database) -> None:
    """Each command of the README prints what stands there, and the database holds what it says."""
    queue = new_queue()
    reader = Reader(
        folder,
        FLASK_CELERY__broker_url=REDIS,
        FLASK_CELERY__task_default_queue=queue,
        FLASK_CELERY__broker_transport_options__global_keyprefix=f"{queue}.",
    )
    if database.kind != "sqlite":  # which is the default
        reader.environment["FLASK_SQLALCHEMY_DATABASE_URI"] = database.uri
    with ExitStack() as terminals:
        for command, expected in commands():
            follow(reader, command, expected, queue, terminals)
        assert database.rows('SELECT id, state FROM "order" ORDER BY id') == [
            (1, "packed"),
            (2, "placed"),
        ]
        assert database.rows("SELECT name, stock FROM product ORDER BY name") == [
            ("coffee", 24),
            ("mate", 7),
            ("tea", 8),
        ]
        assert database.rows("SELECT count(*) FROM order_line") == [(3,)]
    mails = re.findall(r"Mail to \S+ thank you for order \d+\.", (folder / "flask.log").read_text())
    assert mails == [
        "Mail to ada@example.org: thank you for order 1.",
        "Mail to ben@down.example: thank you for order 2.",
    ]


def follow(
    reader: Reader, command: str, expected: list[str], queue: str, terminals: ExitStack
) -> None:
    program = command.split(maxsplit=1)[0]
    if program in NOT_RUN or program.startswith("TEST_DATABASE_URI="):
        return
    if program == "celery":
        url = broker("redis")  # or the test ends here, skipped
        terminals.callback(clean, url, queue)
        log = terminals.enter_context(reader.running(command, " ready."))
        told(log, " succeeded in ")
        told(log, "retry: Retry in ")
    elif command == "flask --app shop run":
        terminals.enter_context(reader.running(command, "Running on "))
    elif program == "curl":
        assert reader.curl(command).splitlines() == expected
    elif program == "printf":
        subprocess.run(command, shell=True, cwd=reader.folder, check=True)
    else:
        code, printed = reader.run(command)
        assert printed.splitlines() == expected
        assert code == expected[0].startswith("Error: ")
