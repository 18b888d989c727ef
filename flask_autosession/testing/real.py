"""The strategies ``truncate`` and ``recreate``: real connections and commits, undone afterwards."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any

from flask import Flask
from sqlalchemy import event
from sqlalchemy.engine import Engine

from flask_autosession.callsite import caller
from flask_autosession.exc import IsolationError
from flask_autosession.statements import is_write

from .binds import database_key, engines_of
from .emptying import empty_all, rebuild
from .held import real
from .schema import ensure, known_of, metadata_of
from .sharing import SharedPool
from .unchecked import counted

_looked_at: dict[Real, set[tuple[object, str]]] = {}
"""The tables whose rows from before the test those have looked for that are to undo it."""


class Taken:
    """A connection that was taken from a pool and not given back.

    :param proxy: What the pool handed out.
    """

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy
        self._where = caller()

    def __str__(self) -> str:
        return f"a connection that was taken at {self._where}"

    @property
    def is_open(self) -> bool:
        """Whether it is still to be given back."""
        return bool(self._proxy.is_valid)

    def close(self) -> None:
        """Give it back, whose transaction is rolled back then."""
        self._proxy.close()


class Real(ABC):
    """What both have in common.

    :param app: The application.
    :param engines: Its engines.
    :param source: Where its tables come from.
    """

    name: str
    nested: bool = False

    def __init__(self, app: Flask, engines: list[Engine], source: str) -> None:
        self.app: Flask = app
        self.engines: list[Engine] = engines
        self.source: str = source
        self._taken: list[Taken] = []
        self._written = 0
        self._lock = threading.RLock()
        self._lazy = False
        self._prepared = False
        self._refused = ""

    def begin(self, *, lazy: bool = False) -> None:
        """Make the tables, and note which connections are taken from now on.

        :param lazy: Whether to make them when the first connection is taken.
        :raises IsolationError: If there is a transaction around the test, or if rows would be lost
            that were there before.
        """
        for engine in self.engines:
            if isinstance(engine.pool, SharedPool):
                raise IsolationError(
                    f"The strategy {self.name!r} needs real connections, but around the test there"
                    " is an isolate() with the strategy 'rollback'.",
                    "Move the test out of that class or module.",
                )
        for engine in self.engines:
            event.listen(engine, "checkout", self._checkout)
            event.listen(engine, "before_cursor_execute", self._execute)
        self._lazy = lazy
        if not lazy:
            try:
                self.prepare()
            except BaseException:
                self.end()
                raise

    def prepare(self) -> None:
        """Make the tables, unless that was done, and refuse rows that would be lost.

        :raises IsolationError: If there are such rows.
        """
        with self._lock:
            if self._refused:
                raise IsolationError(self._refused)
            if not self._prepared:
                try:
                    self._prepare()
                except IsolationError as error:
                    self._refused = str(error)
                    raise
                self._prepared = True

    def _prepare(self) -> None:
        ensure(self.app, self.source)
        # What an app finds that is only made in the test may be what the test has written.
        looked_at: set[tuple[object, str]] = set()
        looked_at.update(*(_looked_at.values() if self._lazy else ()))
        tables: set[tuple[object, str]] = set()
        for key, engine in engines_of(self.app).items():
            before, metadata = known_of(self.app, key).rows, metadata_of(self.app, key)
            tables |= {(database_key(engine), name) for name in metadata.tables}
            for name, count in sorted(counted(engine, metadata).items()):
                if count != before.get(name) and (database_key(engine), name) not in looked_at:
                    raise IsolationError(
                        f"The strategy {self.name!r} would remove the rows that the table {name!r}"
                        f" on {engine.url.render_as_string()} had before the test.",
                        "Give the tests a database of their own, and write what this test needs in"
                        " fixtures of its own, not in those of a class, a module or the session.",
                    )
        _looked_at[self] = tables

    def _checkout(self, driver: Any, record: Any, proxy: Any) -> None:
        if real.get():
            return
        self.prepare()
        self._taken = [taken for taken in self._taken if taken.is_open]
        self._taken.append(Taken(proxy))

    def _execute(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not real.get() and is_write(statement):
            self._written += 1

    def open_connections(self) -> list[Taken]:
        """Return the connections that were not given back."""
        return [taken for taken in self._taken if taken.is_open]

    def end(self) -> list[str]:
        """Undo what was committed."""
        for engine in self.engines:
            event.remove(engine, "checkout", self._checkout)
            event.remove(engine, "before_cursor_execute", self._execute)
        _looked_at.pop(self, None)
        undone = self.undo() if self._prepared else []
        return [self._refused, *undone] if self._refused else undone

    def refusals(self) -> list[str]:
        """Return nothing: anybody may connect."""
        return []

    def written(self) -> int:
        """Return how many statements have written so far."""
        return self._written

    @abstractmethod
    def undo(self) -> list[str]:
        """Undo what was committed, and return what could not be."""


class Truncate(Real):
    """Empties all tables of an app afterwards."""

    name: str = "truncate"

    def undo(self) -> list[str]:
        """Empty all tables, and return what could not be."""
        if any(known_of(self.app, key).rows for key in engines_of(self.app)):
            return rebuild(self.app, self.source)  # which brings the rows of the migrations back
        return empty_all(self.app)


class Recreate(Real):
    """Drops all tables of an app afterwards, and makes them again."""

    name: str = "recreate"

    def begin(self, *, lazy: bool = False) -> None:
        """Make the tables, and note which connections are taken from now on.

        :param lazy: Whether to make them when the first connection is taken.
        :raises IsolationError: If nobody could make the tables again, too.
        """
        if self.source == "none":
            raise IsolationError(
                "The strategy 'recreate' cannot make tables again whose schema is 'none'.",
                "Take them from 'create_all' or 'migrate'.",
            )
        super().begin(lazy=lazy)

    def undo(self) -> list[str]:
        """Drop all tables and make them again, and return where that failed."""
        return rebuild(self.app, self.source)
