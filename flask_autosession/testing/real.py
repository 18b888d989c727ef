"""The strategies ``truncate`` and ``recreate``: real connections and commits, undone afterwards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import sqlalchemy as sa
from flask import Flask
from sqlalchemy import event
from sqlalchemy.engine import Engine

from flask_autosession.callsite import caller
from flask_autosession.exc import IsolationError

from .emptying import empty, save
from .schema import ensure, rebuild, refuse_filled
from .sharing import SharedPool


class Taken:
    """A connection that was taken from a pool and not given back.

    :param proxy: What the pool handed out.
    """

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy
        self.where: str = caller()
        """Where it was taken."""

    def close(self) -> None:
        """Throw it away: its transaction may hold locks."""
        self._proxy.invalidate()


class _Real(ABC):
    name: str

    def __init__(self, app: Flask, engines: list[Engine], source: str) -> None:
        self.app: Flask = app
        self.engines: list[Engine] = engines
        self.source: str = source
        self._taken: dict[object, Taken] = {}

    nested: bool = False

    def begin(self) -> None:
        """Note which connections are taken from now on."""
        for engine in self.engines:
            if isinstance(engine.pool, SharedPool):
                raise IsolationError(
                    f"The strategy {self.name!r} needs real connections, but around the test there"
                    " is an isolate() with the strategy 'rollback'.",
                    "Move the test out of that class or module.",
                )
        ensure(self.app, self.source)
        for engine in self.engines:
            refuse_filled(engine, self.name)
        self.prepare()
        for engine in self.engines:
            event.listen(engine, "checkout", self._checkout)
            event.listen(engine, "checkin", self._checkin)

    def _checkout(self, driver: Any, record: Any, proxy: Any) -> None:
        self._taken[record] = Taken(proxy)

    def _checkin(self, driver: Any, record: Any) -> None:
        self._taken.pop(record, None)

    def open_connections(self) -> list[Taken]:
        """Return the connections that were not given back."""
        return list(self._taken.values())

    def end(self) -> list[str]:
        """Undo what was committed."""
        for engine in self.engines:
            event.remove(engine, "checkout", self._checkout)
            event.remove(engine, "checkin", self._checkin)
        self.undo()
        return []

    @abstractmethod
    def prepare(self) -> None:
        """Remember what has to be there afterwards."""

    @abstractmethod
    def undo(self) -> None:
        """Undo what was committed."""


class Truncate(_Real):
    """Empties all tables of an app afterwards."""

    name: str = "truncate"

    def prepare(self) -> None:
        """Remember the rows that fixtures of a wider scope, or migrations, have written."""
        self._saved = [(*one, save(*one)) for one in self._all()]

    def undo(self) -> None:
        """Empty all tables, and put back what was there before the test."""
        for engine, metadata, saved in self._saved:
            empty(engine, metadata, saved)

    def _all(self) -> list[tuple[Engine, sa.MetaData]]:
        db = self.app.extensions["sqlalchemy"]
        with self.app.app_context():
            engines = db.engines
        return [(engines[key], some) for key, some in db.metadatas.items() if key in engines]


class Recreate(_Real):
    """Drops all tables of an app afterwards, and makes them again."""

    name: str = "recreate"

    def prepare(self) -> None:
        """Do nothing: what is there is made anew."""

    def undo(self) -> None:
        """Drop all tables and make them again."""
        rebuild(self.app, self.source)
