"""What a plain request sends to the database, seen on the wire and not in SQLAlchemy's own log."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .world import Database, World

_ANSWER = re.compile(
    r'^B\t\d+\t(?:CommandComplete\t "(?P<tag>.*)"|ErrorResponse.*|EmptyQueryResponse.*)$',
    re.MULTILINE,
)


class Wire:
    """What the server has answered on a connection, as libpq traces it.

    :ivar answers: The tag of each statement that it completed, such as ``INSERT 0 1``.
    """

    def __init__(self) -> None:
        self.answers: list[str] = []

    @contextmanager
    def listening(self, world: World, path: Path) -> Iterator[None]:
        """Trace the only connection in the application's pool."""
        with world.app.app_context():
            engine = world.db.engine
        with engine.connect() as connection:
            pgconn = connection.connection.dbapi_connection.pgconn
        with path.open("w") as file:
            pgconn.trace(file.fileno())
            pgconn.set_trace_flags(1)  # no times: each line begins with its direction
            try:
                yield
            finally:
                pgconn.untrace()
        self.answers = read_answers(path.read_text())


def read_answers(trace: str) -> list[str]:
    """Return what the server answered, from libpq's trace."""
    return [found["tag"] or found[0] for found in _ANSWER.finditer(trace)]


def test_the_trace_is_read_whole() -> None:
    """Every statement's end is seen: completed, failed or empty; what we send is left out."""
    trace = (
        'F\t10\tQuery\t "BEGIN"\nB\t10\tCommandComplete\t "BEGIN"\nB\t5\tReadyForQuery\t T\n'
        'F\t24\tQuery\t "select 2\n "x""\nB\t13\tCommandComplete\t "SELECT 1"\n'
        'B\t4\tEmptyQueryResponse\nB\t9\tErrorResponse\t S "ERROR" \\x00\n'
    )
    begin, select, empty, error = read_answers(trace)
    assert (begin, select) == ("BEGIN", "SELECT 1")
    assert "EmptyQueryResponse" in empty
    assert "ErrorResponse" in error


@pytest.fixture
def world(postgresql: Database) -> Iterator[World]:
    postgresql.insert("first")
    world = World(postgresql)
    yield world
    world.close()
    postgresql.empty()


def _nothing(world: World) -> Any:
    return ""


def _read(world: World) -> Any:
    return world.Thing.query.filter_by(name="first").one().name


def _read_twice(world: World) -> Any:
    first = world.Thing.query.filter_by(name="first").one()
    return str(world.Thing.get(first.id + 1))


def _create(world: World) -> Any:
    return {"id": world.Thing.create(name="a").id}, 201


def _save_at_the_end(world: World) -> Any:
    world.db.session.add(world.Thing(name="b"))
    return "", 201


def _update(world: World) -> Any:
    world.Thing.query.filter_by(name="first").one().update(parent=None, name="first")
    world.Thing.query.filter_by(name="first").one().update(name="other")
    return ""


def _delete(world: World) -> Any:
    world.Thing.query.filter_by(name="first").one().delete()
    return "", 204


def _refuse(world: World) -> Any:
    world.Thing.create(name="c")
    return "", 409


def _fail(world: World) -> Any:
    world.Thing.create(name="d")
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("view", "status", "statements"),
    [
        (_nothing, 200, []),
        (_read, 200, ["BEGIN", "SELECT 1", "COMMIT"]),
        (_read_twice, 200, ["BEGIN", "SELECT 1", "SELECT 0", "COMMIT"]),
        (_create, 201, ["BEGIN", "INSERT 0 1", "COMMIT"]),
        (_save_at_the_end, 201, ["BEGIN", "INSERT 0 1", "COMMIT"]),
        (_update, 200, ["BEGIN", "SELECT 1", "SELECT 1", "UPDATE 1", "COMMIT"]),
        (_delete, 204, ["BEGIN", "SELECT 1", "DELETE 1", "COMMIT"]),
        (_refuse, 409, ["BEGIN", "INSERT 0 1", "ROLLBACK"]),
        (_fail, 500, ["BEGIN", "INSERT 0 1", "ROLLBACK"]),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else None,
)
def test_a_request_sends_its_work_and_one_end(
    world: World,
    tmp_path: Path,
    view: Callable[[World], Any],
    status: int,
    statements: list[str],
) -> None:
    """One BEGIN, the work, one COMMIT or ROLLBACK, and nothing else; no work, nothing at all."""
    world.app.add_url_rule("/", view_func=lambda: view(world))
    wire = Wire()
    with wire.listening(world, tmp_path / "trace"):
        assert world.app.test_client().get("/").status_code == status
    assert wire.answers == statements
