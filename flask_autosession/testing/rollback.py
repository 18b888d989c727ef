"""The strategy ``rollback``: one transaction for a test on each of its databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import sqlalchemy as sa
from flask import Flask
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import Pool

from flask_autosession.exc import IsolationError

from .binds import database_key
from .held import Held, Home, refused
from .layers import Mark
from .schema import ensure
from .sharing import Share, SharedPool
from .watch import watch

_DIALECTS = frozenset({"sqlite", "postgresql", "mysql", "mariadb"})
_UNDOES_DDL = frozenset({"sqlite", "postgresql"})


class Database:
    """One database in a test: the engines that use it, of all apps, and what they share."""

    def __init__(self) -> None:
        self.held: Held | None = None
        """The connection, from the first use on."""
        self.home: Home
        """The test; there since the first engine has entered."""
        self._pools: dict[Engine, list[Pool]] = {}
        self._lock = threading.RLock()
        self._unprepared: list[Callable[[], None]] = []

    def enter(self, engine: Engine, prepare: Callable[[], None]) -> None:
        """Have an engine hand out shares of one connection from now on.

        :param engine: The engine.
        :param prepare: Makes the tables; called before the connection is taken.
        """
        self._unprepared.append(prepare)
        if not self._pools:
            self.home = Home()
        if engine in self._pools:
            self._pools[engine].append(engine.pool)
        else:
            self._pools[engine] = [engine.pool]
            shared = shared_pool(engine)
            shared.enter(engine.pool, self.home, partial(self._hold, engine))
            engine.pool = shared

    def leave(self, engine: Engine, prepare: Callable[[], None]) -> None:
        """Have an engine work as it did before :meth:`enter`, whose arguments these were."""
        if prepare in self._unprepared:  # nobody has used the database
            self._unprepared.remove(prepare)
        pools = self._pools[engine]
        engine.pool = pools.pop()
        if not pools:
            del self._pools[engine]
            if shared_pool(engine).leave():
                engine.dispose()

    def _hold(self, engine: Engine) -> Held:
        with self._lock:
            while self._unprepared:
                self._prepare(self._unprepared.pop(0))
            if self.held is None:
                self.held = Held(engine, self._pools[engine][0], self.home)
                _initialised.add(engine)
            elif engine not in _initialised:
                # As SQLAlchemy does when a pool connects for the first time, which this one's own
                # does not; not by a connection of its own, which a server may not have left.
                _initialised.add(engine)
                with engine.connect() as connection:
                    engine.dialect.initialize(connection)
            return self.held

    def _prepare(self, prepare: Callable[[], None]) -> None:
        try:
            prepare()
        except DBAPIError as error:
            if self.held is None:
                raise
            raise IsolationError(
                "The test has used a database before another application on it, whose tables could"
                f" not be made then: {error.orig}.",
                "If the test itself holds that lock, use the application before, or mark the test"
                ' @pytest.mark.autosession("truncate").',
            ) from error


_initialised: WeakSet[Engine] = WeakSet()
"""The engines whose dialect knows what SQLAlchemy asks a server once."""
_shared: WeakKeyDictionary[Engine, SharedPool] = WeakKeyDictionary()
_databases: WeakValueDictionary[object, Database] = WeakValueDictionary()


def database_of(engine: Engine) -> Database:
    """Return the database of an engine. Engines with the same URL have the same."""
    key = database_key(engine)
    database = _databases.get(key)
    if database is None:
        database = _databases[key] = Database()
    return database


def shared_pool(engine: Engine) -> SharedPool:
    """Return what takes the place of an engine's pool, the same one in every test."""
    shared = _shared.get(engine)
    if shared is None:
        watch(engine)
        shared = _shared[engine] = SharedPool(engine)
    return shared


def make_in_test(engine: Engine, metadata: sa.MetaData) -> bool:
    """Make tables on the connection of the test, if it has one already.

    A real one would wait for its locks, most likely for ever. MariaDB cannot undo such a thing.

    :param engine: An engine.
    :param metadata: The tables that the application knows.
    :return: Whether that was done; at the test's end they are gone.
    """
    held = database_of(engine).held
    if held is None or engine.dialect.name not in _UNDOES_DDL:
        return False
    written = held.written
    with engine.begin() as connection:
        metadata.create_all(connection)
    held.written = written  # by the test itself
    return True


class Rollback:
    """What one test, or the tests of one class or module, do to an app's databases.

    :param app: The application.
    :param engines: Its engines.
    :param source: Where its tables come from.
    """

    def __init__(self, app: Flask, engines: list[Engine], source: str) -> None:
        self._prepare = partial(ensure, app, source, make_in_test)
        self._engines = {engine: database_of(engine) for engine in engines}
        self._databases = list(dict.fromkeys(self._engines.values()))
        self._around = [database.held for database in self._databases if database.held is not None]
        self._marks: dict[Held, Mark] = {}
        self._before: set[Share] = set()
        self._written = 0

    @property
    def nested(self) -> bool:
        """Whether somebody else undoes everything as well, later."""
        return bool(self._around)

    def begin(self, *, lazy: bool = False) -> None:
        """Begin; nothing is sent before a database is used.

        :param lazy: Changes nothing here.
        :raises IsolationError: If a database has no savepoints that we know.
        """
        for engine in self._engines:
            if engine.dialect.name not in _DIALECTS:
                raise IsolationError(
                    f"The strategy 'rollback' does not know the savepoints of"
                    f" {engine.dialect.name}.",
                    "Use the strategy 'truncate'.",
                )
        for held in self._around:
            self._before.update(held.shares)
            self._written += held.written
            self._marks[held] = held.layers.mark()
        for engine, database in self._engines.items():
            database.enter(engine, self._prepare)

    def prepare(self) -> None:
        """Do nothing: the tables are made before the connection is taken."""

    def refusals(self) -> list[str]:
        """Return which threads and processes were refused a connection."""
        found: list[str] = []
        for database in self._databases:
            found += database.home.refused
            database.home.refused = []
        return [refused(place) for place in dict.fromkeys(found)]

    def written(self) -> int:
        """Return how many statements have written since."""
        held = [database.held for database in self._databases if database.held is not None]
        return sum(one.written for one in held) - self._written

    def open_connections(self) -> list[Share]:
        """Return what was taken since, and not given back."""
        return [
            share
            for database in self._databases
            if database.held is not None
            for share in database.held.shares
            if share not in self._before
            and any(share.pool is engine.pool for engine in self._engines)
        ]

    def end(self) -> list[str]:
        """Undo everything, and return what could not be isolated."""
        problems: list[str] = []
        for database in self._databases:
            held = database.held
            if held is not None:
                mark = self._marks.get(held)
                if mark is None:
                    database.held = None
                undo = held.end if mark is None else partial(held.layers.back_to_mark, mark)
                for step in (partial(held.tell, problems), undo):
                    try:
                        step()
                    except Exception as error:
                        # Most likely the connection is lost, and what was done on it with it.
                        problems.append(f"The test's transaction could not be rolled back: {error}")
        for engine, database in self._engines.items():
            database.leave(engine, self._prepare)  # which may close connections: behind their end
        return problems
