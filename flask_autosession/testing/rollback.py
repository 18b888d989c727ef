"""The strategy ``rollback``: one transaction for a test on each of its databases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from weakref import WeakValueDictionary

from flask import Flask
from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool

from flask_autosession.exc import IsolationError

from .binds import database_key
from .held import Held
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
        self._prepare: list[Callable[[], None]] = []

    def enter(self, engine: Engine, prepare: Callable[[], None]) -> None:
        """Have an engine hand out shares of one connection from now on.

        :param engine: The engine.
        :param prepare: Makes the tables; called before the connection is taken.
        :raises IsolationError: If its database has no savepoints that we know.
        """
        if engine.dialect.name not in _DIALECTS:
            raise IsolationError(
                f"The strategy 'rollback' does not know the savepoints of {engine.dialect.name}.",
                'Use "truncate".',
            )
        watch(engine)
        self._prepare.append(prepare)
        pools = self._pools.setdefault(engine, [])
        pools.append(engine.pool)
        if len(pools) == 1:
            engine.pool = SharedPool(engine, engine.pool, lambda: self._hold(engine))

    def leave(self, engine: Engine) -> None:
        """Have an engine work as it did before :meth:`enter`."""
        self._prepare.pop()
        pools = self._pools[engine]
        shared, engine.pool = engine.pool, pools.pop()
        if not pools:
            del self._pools[engine]
            if isinstance(shared, SharedPool) and shared.disposed:
                engine.dispose()

    def _hold(self, engine: Engine) -> Held:
        if self.held is None:
            for prepare in self._prepare:
                prepare()
            self.held = Held(engine, self._pools[engine][0])
        return self.held


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

    def begin(self) -> None:
        """Begin; nothing is sent before a database is used."""
        for database in self._databases:
            if database.held is not None:
                self._before.update(database.held.shares)
                self._marks[database] = database.held.layers.mark()
        for engine in self._engines:
            database_of(engine).enter(engine, self._prepare)

    def open_connections(self) -> list[Share]:
        """Return what was taken since, and not given back."""
        return [
            share
            for database in self._databases
            if database.held is not None
            for share in database.held.shares
            if share not in self._before
        ]

    def end(self) -> list[str]:
        """Undo everything, and return what could not be isolated."""
        problems: list[str] = []
        for engine in self._engines:
            database_of(engine).leave(engine)
        for database in self._databases:
            held = database.held
            if held is None:
                continue
            problems.extend(held.problems())
            if database in self._marks:
                held.layers.back_to_mark(self._marks[database])
            else:
                database.held = None
                held.end()
        return problems
