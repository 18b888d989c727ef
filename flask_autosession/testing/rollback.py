"""The strategy ``rollback``: one transaction for a test on each of its databases."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from weakref import WeakKeyDictionary, WeakValueDictionary

from flask import Flask
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from flask_autosession.exc import IsolationError

from .binds import database_key
from .held import Held, Home, refused
from .layers import Mark
from .schema import ensure
from .sharing import Share, SharedPool
from .watch import watch

_DIALECTS = frozenset({"sqlite", "postgresql", "mysql", "mariadb"})


class Database:
    """One database in a test: the engines that use it, of all apps, and what they share."""

    def __init__(self) -> None:
        self.held: Held | None = None
        """The connection, from the first use on."""
        self._pools: dict[Engine, list[Pool]] = {}
        self.home: Home = Home()
        self._lock = threading.RLock()
        self._unprepared: list[Callable[[], None]] = []

    def enter(self, engine: Engine, prepare: Callable[[], None]) -> None:
        """Have an engine hand out shares of one connection from now on.

        :param engine: The engine.
        :param prepare: Makes the tables; called before the connection is taken.
        """
        watch(engine)
        self._unprepared.append(prepare)
        if not self._pools:
            self.home = Home()
        pools = self._pools.setdefault(engine, [])
        pools.append(engine.pool)
        if len(pools) == 1:
            if engine not in _shared:
                _shared[engine] = SharedPool(engine)
            shared = _shared[engine]
            shared.enter(engine.pool, self.home, partial(self._hold, engine))
            engine.pool = shared

    def leave(self, engine: Engine) -> None:
        """Have an engine work as it did before :meth:`enter`."""
        pools = self._pools[engine]
        engine.pool = pools.pop()
        if not pools:
            del self._pools[engine]
            disposed = _shared[engine].disposed
            _shared[engine].leave()
            if disposed:
                engine.dispose()

    def _hold(self, engine: Engine) -> Held:
        with self._lock:
            while self._unprepared:
                self._unprepared.pop(0)()
            if self.held is None:
                self.held = Held(engine, self._pools[engine][0], self.home)
            return self.held


_shared: WeakKeyDictionary[Engine, SharedPool] = WeakKeyDictionary()
_databases: WeakValueDictionary[object, Database] = WeakValueDictionary()


def database_of(engine: Engine) -> Database:
    """Return the database of an engine. Engines with the same URL have the same."""
    return _databases.setdefault(database_key(engine), Database())


class Rollback:
    """What one test, or the tests of one class or module, do to an app's databases.

    :param app: The application.
    :param engines: Its engines.
    :param source: Where its tables come from.
    """

    def __init__(self, app: Flask, engines: list[Engine], source: str) -> None:
        self._prepare = partial(ensure, app, source)
        self._engines = engines
        self._databases = list(dict.fromkeys(map(database_of, engines)))
        self._marks: dict[Database, Mark] = {}
        self._before: set[Share] = set()

    @property
    def nested(self) -> bool:
        """Whether somebody else undoes everything as well, later."""
        return any(database.held is not None for database in self._databases)

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
        for database in self._databases:
            if database.held is not None:
                self._before.update(database.held.shares)
                self._marks[database] = database.held.layers.mark()
        for engine in self._engines:
            database_of(engine).enter(engine, self._prepare)

    def prepare(self) -> None:
        """Do nothing: the tables are made before the connection is taken."""

    def refusals(self) -> list[str]:
        """Return which threads and processes were refused a connection."""
        found = [place for database in self._databases for place in database.home.refused]
        for database in self._databases:
            database.home.refused.clear()
        return [refused(place) for place in dict.fromkeys(found)]

    def written(self) -> int:
        """Return how many statements have written so far."""
        return sum(database.held.written for database in self._databases if database.held)

    def open_connections(self) -> list[Share]:
        """Return what was taken since, and not given back."""
        pools = [engine.pool for engine in self._engines]
        return [
            share
            for database in self._databases
            if database.held is not None
            for share in database.held.shares
            if share not in self._before and share.pool in pools
        ]

    def end(self) -> list[str]:
        """Undo everything, and return what could not be isolated."""
        problems: list[str] = []
        for database in self._databases:
            held = database.held
            if held is not None:
                mark = self._marks.get(database)
                if mark is None:
                    database.held = None
                undo = held.end if mark is None else partial(held.layers.back_to_mark, mark)
                for step in (partial(held.tell, problems), undo):
                    try:
                        step()
                    except Exception as error:
                        # Most likely the connection is lost, and what was done on it with it.
                        problems.append(f"The test's transaction could not be rolled back: {error}")
        for engine in self._engines:
            database_of(engine).leave(engine)  # which may close connections: behind their end
        return problems
