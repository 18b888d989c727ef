"""The quickstart, run as its users run it: a command of its own, over HTTP."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import pytest

from tests.world import Database

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
COMMAND = [sys.executable, "-W", "error", str(QUICKSTART / "demo.py")]
# A pytest with our plugin, and of all the others the one that shuffles.
PYTEST = "pytest -q -p no:cacheprovider -p flask_autosession -p randomly"

# What neither the examples nor their tests have to call.
BY_HAND = r"\.(?:commit|rollback|close|remove|dispose|create_all|drop_all)\("


def environment(**variables: str) -> dict[str, str]:
    """Return an environment in which no FLASK_ or PYTEST_ variable but the given ones is set."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("FLASK_", "PYTEST_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**inherited, "PYTHONPATH": path, **variables}


def demo(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def rows(output: str) -> list[tuple[str, str, str, str]]:
    """Return the first line of each row: request, status, unit, what another connection sees."""
    found = re.findall(r"^\d+ +(\w+ \S+) +(\d+) +(.+?)  +(.+)$", output, re.MULTILINE)
    return [(row[0], row[1], row[2], row[3]) for row in found]


def tables(database: Database) -> set[str]:
    where = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
        "postgresql": "SELECT tablename FROM pg_tables",
        "mariadb": "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = database()",
    }[database.kind]
    return {name for (name,) in database.rows(where) if name.startswith("autosession_quickstart")}


TABLE = [
    ("POST /products", "201", "committed", "tea 10"),
    ("POST /products", "409", "rolled back", "tea 10"),
    ("POST /products/tea/orders", "201", "committed", "tea 7"),
    ("POST /products/tea/orders", "409", "rolled back", "tea 7"),
    ("POST /products/tea/orders", "500", "rolled back", "tea 7"),
    ("POST /products/batch", "200", "committed", "tea 7, coffee 5, mate 8"),
    ("PUT /products/coffee", "200", "committed", "tea 7, coffee 6, mate 8"),
    ("DELETE /products/mate", "204", "committed", "tea 7, coffee 6"),
    ("GET /products", "200", "committed", "tea 7, coffee 6"),
]


def test_without_arguments_all_is_as_promised() -> None:
    """The command needs no argument and no service, ends with 0, and fits into 100 columns."""
    done = demo()
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout) == TABLE
    assert done.stdout.endswith("\nAll 9 rows are as promised.\n")
    assert max(len(line) for line in done.stdout.splitlines()) <= 100


def test_every_database_gives_the_same_table(database: Database) -> None:
    """What is promised holds on each supported database, and nothing is left behind in it."""
    done = demo("--database-uri", database.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(done.stdout) == TABLE
    assert tables(database) == set()


def test_a_debug_mode_in_the_environment_changes_nothing() -> None:
    """A FLASK_DEBUG that a developer has exported does not spoil the demonstration."""
    done = demo(FLASK_DEBUG="1")
    assert (done.returncode, rows(done.stdout)) == (0, TABLE)


def test_without_the_extension_it_fails_and_says_so() -> None:
    """With AutoSession switched off nothing is committed, and the command says it and ends in 1."""
    done = demo(FLASK_AUTOSESSION_ENABLED="0")
    assert done.returncode == 1
    assert "Row 1 is not as promised." in done.stderr
    assert "another connection sees: promised tea 10, but got nothing" in done.stderr
    assert "as promised" not in done.stdout


def test_a_single_broken_promise_is_named() -> None:
    """If an error's work were kept, the command names the first row that shows it, and what."""
    done = demo(FLASK_AUTOSESSION_ROLLBACK_FROM_STATUS="600")
    assert done.returncode == 1
    problems = done.stderr.splitlines()
    assert problems[:2] == [
        "Row 4 is not as promised.",
        "unit of work: promised rolled back, but got committed",
    ]
    assert problems[-1] == "Not as promised: row 4, 5, 6, 7, 8, 9."


def test_tables_that_exist_are_left_alone(database: Database) -> None:
    """A table of the same name, whoever made it, is a reason to stop, and stays as it was."""
    name = "autosession_quickstart_product"
    with database.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {name} (id INTEGER)")
    try:
        done = demo("--database-uri", database.uri)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"has {name} already" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert tables(database) == {name}
    finally:
        with database.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP TABLE {name}")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nonsense", "Could not parse"),
        ("sqlite://", "no second connection can look into SQLite in memory"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("postgresql+pg8000://host/name", "driver is not installed (No module named 'pg8000')"),
        ("mysql+pymysql://root@127.0.0.1", "the URI names no database"),
    ],
)
def test_an_impossible_database_is_one_line(uri: str, message: str) -> None:
    """A database that cannot be used is told in one line on stderr, with exit code 2."""
    done = demo("--database-uri", uri)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_password_is_not_printed() -> None:
    """Not even an error shows the password of the database."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    done = demo("--database-uri", f"mysql+pymysql://root:hush@127.0.0.1:{port}/name")
    assert done.returncode == 2
    assert f"mysql+pymysql://root:***@127.0.0.1:{port}/name: " in done.stderr
    assert "hush" not in done.stderr


def test_a_port_in_use_is_one_line() -> None:
    """A port that is taken is told in one line on stderr, with exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = demo("--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (f"demo.py: cannot listen on 127.0.0.1:{port}: Address already in use.\n")


def test_a_misspelt_configuration_key_is_one_line() -> None:
    """A configuration key that does not exist stops the command before it serves anything."""
    done = demo(FLASK_AUTOSESSION_ENABELD="0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean 'AUTOSESSION_ENABLED'?" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_stays_until_it_is_told_to_end(number: signal.Signals, tmp_path: Path) -> None:
    """--serve answers requests made by hand, until Ctrl-C or SIGTERM ends it with exit code 0."""
    database = Database("sqlite", f"sqlite:///{tmp_path / 'shop.db'}")
    with subprocess.Popen(
        [*COMMAND, "--serve", "--database-uri", database.uri],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            told = list(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
            url = told[0].split()[-1]
            opener = build_opener(ProxyHandler({}))
            with opener.open(f"{url}/products", b'{"name": "tea", "stock": 1}', 30) as response:
                assert (response.status, json.load(response)) == (201, {"id": 1})
            assert database.rows("SELECT name FROM autosession_quickstart_product") == [("tea",)]
            process.send_signal(number)
            log = process.communicate(timeout=30)[1]
        finally:
            process.kill()
    assert process.returncode == 0
    assert f"curl -d '{{\"quantity\": 3}}' {url}/products/tea/orders\n" in told
    assert log.startswith("POST /products 201: committed")
    assert tables(database) == set()
    database.engine.dispose()


def test_help_names_every_option_and_exit_code() -> None:
    """--help tells all that one needs to use the command."""
    done = demo("--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--serve", "--database-uri", "--port"))
    assert "0 if all is as promised, 1 if a row differs, 2 if" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("command", "passed"),
    [(PYTEST, r"^10 passed in "), ("unittest discover tests", r"^Ran 3 tests in .*\n\nOK$")],
    ids=["pytest", "unittest"],
)
def test_its_own_tests_pass(command: str, passed: str) -> None:
    """The example's tests pass with pytest, in any order, and with unittest, without a warning."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", *command.split()],
        cwd=QUICKSTART,
        env=environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(passed, done.stdout, re.MULTILINE), done.stdout
    assert "Warning" not in done.stdout


def test_nothing_in_it_ends_a_unit_by_hand() -> None:
    """Neither the application nor its tests commit, roll back, or clean up behind themselves."""
    files = [path for name in ("quickstart", "tests") for path in QUICKSTART.glob(f"{name}/*.py")]
    code = "".join(path.read_text() for path in files)
    assert "isolate(" in code
    assert re.findall(BY_HAND, code) == []
