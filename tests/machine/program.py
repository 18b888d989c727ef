"""What a random program can consist of, how one is drawn, and how it is run through Flask."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import sqlalchemy as sa
from flask import Flask, Response, abort, redirect
from hypothesis import strategies as st
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from werkzeug.exceptions import HTTPException

from ..world import Database, World, thing

NOWHERE = -1
"""A parent that does not exist: the deferred foreign key refuses the COMMIT."""


class Boom(Exception):
    """What the programs raise."""


# The operations. They find objects by their place in the order of the ids.


@dataclass(frozen=True)
class Save:
    """``Thing(name=name).save()``"""

    name: str | None


@dataclass(frozen=True)
class Orphan:
    """``Thing(name=name, parent=NOWHERE).save()``: the commit fails if it is still there."""

    name: str | None


@dataclass(frozen=True)
class Add:
    """``db.session.add(Thing(name=name))``"""

    name: str | None


@dataclass(frozen=True)
class Update:
    """``a_thing.update(name=name)``"""

    index: int
    name: str | None


@dataclass(frozen=True)
class Rename:
    """``a_thing.name = name``"""

    index: int
    name: str | None


@dataclass(frozen=True)
class Delete:
    """``a_thing.delete()``"""

    index: int


@dataclass(frozen=True)
class RawDelete:
    """``db.session.delete(a_thing)``"""

    index: int


@dataclass(frozen=True)
class Core:
    """``db.session.execute(insert(thing).values(name=name))``, behind a flush.

    SQLAlchemy 2.1 flushes by itself before such statements, 2.0 does not.
    """

    name: str | None


@dataclass(frozen=True)
class Flush:
    """``db.session.flush()``"""


@dataclass(frozen=True)
class Read:
    """``db.session.scalars(select(Thing.name))``"""


@dataclass(frozen=True)
class BadRead:
    """``SELECT`` from a table that does not exist, behind a flush."""


@dataclass(frozen=True)
class Commit:
    """``db.session.commit()``; left out inside of a savepoint if it would end that."""


@dataclass(frozen=True)
class AutoCommit:
    """``auto.commit()``; left out inside of a savepoint."""


@dataclass(frozen=True)
class Rollback:
    """``db.session.rollback()``; left out inside of a savepoint."""


@dataclass(frozen=True)
class Doom:
    """``auto.doom()``"""


@dataclass(frozen=True)
class Raise:
    """``raise Boom``, ``abort(404)``, or ``abort(redirect(...))``"""

    what: str


@dataclass(frozen=True)
class Try:
    """``try: ... except Exception: pass``"""

    body: tuple[Op, ...]


@dataclass(frozen=True)
class Savepoint:
    """``with auto.savepoint(): ...``"""

    body: tuple[Op, ...]


@dataclass(frozen=True)
class Nested:
    """``with db.session.begin_nested(): ...``"""

    body: tuple[Op, ...]


@dataclass(frozen=True)
class OnCommit:
    """``@auto.on_commit``"""

    body: tuple[Op, ...]


@dataclass(frozen=True)
class OnRollback:
    """``@auto.on_rollback``"""

    body: tuple[Op, ...]


Op = (
    Save
    | Orphan
    | Add
    | Update
    | Rename
    | Delete
    | RawDelete
    | Core
    | Flush
    | Read
    | BadRead
    | Commit
    | AutoCommit
    | Rollback
    | Doom
    | Raise
    | Try
    | Savepoint
    | Nested
    | OnCommit
    | OnRollback
)


class _Short:
    """Shown as the code that makes it, without what is at its default."""

    def __repr__(self) -> str:
        shown = (
            f"{field.name}={value!r}"
            for field in fields(self)  # type: ignore[arg-type]
            if (value := getattr(self, field.name)) != field.default
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # Hypothesis's own way takes minutes for a program that was not shrunk.
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class Step(_Short):
    """A function of the application: what it does, and the status it answers with, if it does."""

    ops: tuple[Op, ...] = ()
    status: int | None = None


@dataclass(frozen=True, repr=False)
class Request(_Short):
    """One request, by the functions that Flask calls for it.

    A view without a status returns None, an ``after_request`` function without one leaves the
    response's. ``handler`` is that of Boom, 404 and SQLAlchemyError, ``last`` that of 500.
    """

    view: Step
    before: Step = Step()
    after: Step = Step()
    handler: Step = Step((), 409)
    last: Step = Step((), 500)


@dataclass(frozen=True, repr=False)
class Program(_Short):
    """Requests to one application, with its configuration and the error handlers that it has."""

    requests: tuple[Request, ...]
    rows: tuple[str, ...] = ()
    """The names that are there from the beginning."""
    commits: str = "warn"
    """AUTOSESSION_EXPLICIT_COMMIT"""
    typed: bool = False
    """Whether it has handlers for Boom, 404 and SQLAlchemyError."""
    last: bool = False
    """Whether it has a handler for 500."""


@dataclass
class Told:
    """What one request looks like from outside."""

    status: int | str
    """The status, or ``raised`` if the server got the exception."""
    who: str
    """Which function answered; ``default`` for Werkzeug's own pages."""
    history: list[Any] = field(default_factory=list)
    """What was done, in order, with its outcome, and which callbacks ran."""
    rows: list[str] = field(default_factory=list)
    """The names a second connection sees afterwards."""


# How programs are drawn. What shrinking prefers stands first.


def _weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    # st.one_of() would drop the repetitions.
    every = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.sampled_from(every).flatmap(lambda strategy: strategy)


_good = st.sampled_from(["a", "b", "c", "d", "e"])
_names = _weighted((6, _good), (1, st.none()))
_index = st.integers(0, 2)
_leaves = _weighted(
    (6, st.builds(Save, _names)),
    (4, st.builds(Add, _names)),
    (3, st.builds(Rename, _index, _names)),
    (2, st.builds(Core, _names)),
    (2, st.builds(Update, _index, _names)),
    (1, st.builds(Delete, _index)),
    (1, st.builds(RawDelete, _index)),
    (2, st.just(Read())),
    (1, st.just(Flush())),
    (2, st.just(Commit())),
    (1, st.just(AutoCommit())),
    (2, st.just(Rollback())),
    (2, st.just(BadRead())),
    (1, st.builds(Orphan, _good)),
    (1, st.just(Doom())),
)
_raised = st.builds(Raise, st.sampled_from(["boom", "404", "redirect"]))
_attempts = _weighted((3, _leaves), (2, _leaves.map(lambda op: Try((op,)))))


def _bodies(
    inner: st.SearchStrategy[Op], least: int, most: int
) -> st.SearchStrategy[tuple[Op, ...]]:
    """Draw operations; some end in an exception, so that what was done before it is at stake."""
    ops = st.lists(inner, min_size=least, max_size=most).map(tuple)
    return _weighted((3, ops), (1, st.builds(lambda ops, last: (*ops, last), ops, _raised)))


def _blocks(inner: st.SearchStrategy[Op]) -> st.SearchStrategy[Op]:
    kinds = [Savepoint, Savepoint, Savepoint, Nested, Nested, OnCommit, OnRollback, Try]
    block = st.builds(lambda kind, body: kind(body), st.sampled_from(kinds), _bodies(inner, 1, 3))
    return st.one_of(block, block.map(lambda op: Try((op,))))


_callbacks = st.builds(
    lambda kind, op: kind((op,)), st.sampled_from([OnCommit, OnRollback]), _attempts
)
_simple = _weighted((8, _attempts), (1, _callbacks))
_op = _weighted((2, _simple), (1, _blocks(_simple)), (1, _blocks(_blocks(_simple) | _simple)))


def _steps(least: int, most: int, status: st.SearchStrategy[int | None]) -> st.SearchStrategy[Step]:
    return st.builds(Step, _bodies(_op, least, most), status)


_change = _weighted((2, st.none()), (1, st.sampled_from([200, 302, 400, 409, 500])))
_others = _weighted((3, st.just(Step())), (1, _steps(0, 2, _change)))
_requests = st.builds(
    Request,
    view=_steps(1, 5, st.sampled_from([200] * 8 + [302, 400, 409, 500, None])),
    before=_others,
    after=_others,
    handler=_steps(0, 2, st.sampled_from([200, 200, 409])),
    last=_steps(0, 2, st.sampled_from([500, 200])),
)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Draw a program."""
    return Program(
        tuple(draw(st.lists(_requests, min_size=1, max_size=4))),
        draw(st.lists(_good, max_size=3, unique=True).map(tuple)),
        draw(st.sampled_from(["warn", "allow", "flush", "forbid"])),
        draw(st.sampled_from([True, True, False])),
        draw(st.booleans()),
    )


# How they are run.


class Warnings(logging.Handler):
    """Collects what the package warns of, and keeps it from everybody else."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    @contextmanager
    def listening(self) -> Iterator[None]:
        logger = logging.getLogger("flask_autosession")
        logger.addHandler(self)
        before, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = before
            logger.removeHandler(self)


class Runner:
    """Runs programs through an application, which is made once for each configuration."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._worlds: dict[tuple[Any, ...], World] = {}
        self._outside = database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        self.warnings = Warnings()

    def close(self) -> None:
        for world in self._worlds.values():
            world.close()
        self._outside.close()

    def run(self, program: Program) -> Iterator[Told]:
        """Run each request and tell what it came to; ``warnings.texts`` are those of the last."""
        self._outside.execute(sa.delete(thing))
        for name in program.rows:
            self._outside.execute(sa.insert(thing).values(name=name))
        self._commits = program.commits
        self._world = self._find_world(program)
        for request in program.requests:
            self.warnings.texts.clear()
            told = self._ask(request)
            told.rows = list(self._outside.scalars(sa.select(thing.c.name).order_by(thing.c.id)))
            yield told

    def _ask(self, request: Request) -> Told:
        self._request = request
        self._history: list[Any] = []
        self._depth = self._callbacks = 0
        self._in_callback = False  # they are never nested
        try:
            response = self._world.app.test_client().get("/")
        except Exception:
            return Told("raised", "default", self._history)
        text = "default" if response.content_type.startswith("text/html") else response.text
        return Told(response.status_code, text, self._history)

    def _find_world(self, program: Program) -> World:
        key = program.commits, program.typed, program.last
        if key not in self._worlds:
            self._worlds[key] = self._make_world(program)
        return self._worlds[key]

    def _make_world(self, program: Program) -> World:
        fast = "-c synchronous_commit=off -c lock_timeout=5s"
        options = {} if self._database.kind == "sqlite" else {"connect_args": {"options": fast}}
        world = World(
            self._database,
            AUTOSESSION_EXPLICIT_COMMIT=program.commits,
            SQLALCHEMY_ENGINE_OPTIONS=options,
        )
        if self._database.kind == "sqlite":
            with world.app.app_context():
                sa.event.listen(world.db.engine, "connect", _set_up_sqlite)
        self._wire(world.app, program)
        return world

    def _wire(self, app: Flask, program: Program) -> None:
        app.logger.disabled = True
        app.before_request(lambda: self._step("before", self._request.before))
        app.add_url_rule("/", "view", lambda: self._step("view", self._request.view))
        app.after_request(self._after)
        if program.typed:
            for error in (Boom, SQLAlchemyError, 404):
                app.register_error_handler(error, self._handler)
        if program.last:
            app.register_error_handler(500, self._last)

    def _after(self, response: Response) -> Response:
        step = self._request.after
        self._step("after", step)
        if step.status is not None:
            response.status_code = step.status
        return response

    def _handler(self, error: Exception) -> Any:
        return self._step("handler", self._request.handler)

    def _last(self, error: Exception) -> Any:
        return self._step("last", self._request.last)

    def _step(self, who: str, step: Step) -> Response | None:
        if who != "before" or step.ops:
            self._history.append(who)
        self.do(step.ops)
        if step.status is None:
            return None
        return Response(who, step.status, content_type="text/plain")

    @property
    def _session(self) -> Session:
        return self._world.db.session()

    # The operations

    def do(self, ops: Sequence[Op]) -> None:
        for op in ops:
            name = type(op).__name__
            run: Callable[[Any], Any] = getattr(self, f"_{name.lower()}")
            try:
                result = run(op)
            except Exception as error:
                self._history.append((name, kind_of(error)))
                raise
            self._history.append(name if result is None else (name, result))

    def _things(self) -> list[Any]:
        things = self._world.Thing
        return list(self._session.scalars(sa.select(things).order_by(things.id)))

    def _pick(self, index: int) -> Any:
        things = self._things()
        return things[index % len(things)] if things else None

    def _save(self, op: Save) -> None:
        self._world.Thing(name=op.name).save()

    def _orphan(self, op: Orphan) -> None:
        self._world.Thing(name=op.name, parent=NOWHERE).save()

    def _add(self, op: Add) -> None:
        self._session.add(self._world.Thing(name=op.name))

    def _update(self, op: Update) -> str | None:
        found = self._pick(op.index)
        if found is None:
            return "nothing there"
        found.update(name=op.name)
        return None

    def _rename(self, op: Rename) -> str | None:
        found = self._pick(op.index)
        if found is None or found.name == op.name:
            return "nothing to do"
        found.name = op.name
        return None

    def _delete(self, op: Delete) -> str | None:
        found = self._pick(op.index)
        if found is None:
            return "nothing there"
        found.delete()
        return None

    def _rawdelete(self, op: RawDelete) -> str | None:
        found = self._pick(op.index)
        if found is None:
            return "nothing there"
        self._session.delete(found)
        return None

    def _core(self, op: Core) -> None:
        self._session.flush()
        self._session.execute(sa.insert(thing).values(name=op.name))

    def _flush(self, op: Flush) -> None:
        self._session.flush()

    def _read(self, op: Read) -> list[str]:
        things = self._world.Thing
        return list(self._session.scalars(sa.select(things.name).order_by(things.id)))

    def _badread(self, op: BadRead) -> None:
        self._session.flush()
        self._session.execute(sa.text("SELECT * FROM no_such_table"))

    def _commit(self, op: Commit) -> str | None:
        if self._depth and (self._in_callback or self._commits in ("warn", "allow")):
            return "left out"
        self._session.commit()
        return None

    def _autocommit(self, op: AutoCommit) -> str | None:
        if self._depth:
            return "left out"
        self._world.auto.commit()
        return None

    def _rollback(self, op: Rollback) -> str | None:
        if self._depth:
            return "left out"
        self._session.rollback()
        return None

    def _doom(self, op: Doom) -> None:
        self._world.auto.doom()

    def _raise(self, op: Raise) -> None:
        if op.what == "boom":
            raise Boom
        abort(404 if op.what == "404" else redirect("/elsewhere"))

    def _try(self, op: Try) -> None:
        try:
            self.do(op.body)
        except Exception:
            pass

    def _savepoint(self, op: Savepoint) -> None:
        with self._deeper(), self._world.auto.savepoint():
            self.do(op.body)

    def _nested(self, op: Nested) -> None:
        with self._deeper(), self._session.begin_nested():
            self.do(op.body)

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def _oncommit(self, op: OnCommit) -> None:
        self._world.auto.on_commit(self._callback(op.body))

    def _onrollback(self, op: OnRollback) -> None:
        self._world.auto.on_rollback(self._callback(op.body))

    def _callback(self, body: tuple[Op, ...]) -> Callable[[], None]:
        self._callbacks += 1
        number = self._callbacks

        def callback() -> None:
            self._history.append(("callback", number))
            self._in_callback = True
            try:
                self.do(body)
            finally:
                self._in_callback = False

        return callback


def kind_of(error: Exception) -> str:
    """Tell how the model calls this exception."""
    if isinstance(error, Boom):
        return "boom"
    if isinstance(error, HTTPException):
        return "404" if error.code == 404 else "redirect"
    # Whether it is the database that refuses or the package (DoomedError) is not told apart:
    # in a broken savepoint that is a matter of who is asked first.
    return "refused" if isinstance(error, SQLAlchemyError) else type(error).__name__


def _set_up_sqlite(connection: Any, record: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = OFF")
