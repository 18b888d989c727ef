"""What engines hand out in a test: connections that share one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool, PoolProxiedConnection

from flask_autosession.callsite import caller

from .held import Held, real


class Share(PoolProxiedConnection):
    """What a connection of SQLAlchemy gets instead of a driver's connection of its own.

    :param held: What is shared.
    """

    def __init__(self, held: Held) -> None:
        self.held: Held = held
        self.where: str = caller()
        """Where it was taken."""
        self.driver_connection: Any = held.driver
        self._valid = True
        self._wrote = False
        self._info: dict[str, Any] = {}
        held.shares[self] = None

    def __str__(self) -> str:
        return f"the connection taken at {self.where}"

    @property
    def info(self) -> dict[str, Any]:
        """A dictionary of this connection's own."""
        return self._info

    @property
    def record_info(self) -> dict[str, Any]:
        """A dictionary of this connection's own."""
        return self._info

    @property
    def dbapi_connection(self) -> Any:  # type: ignore[override]
        """The driver's connection, into which the next statement goes."""
        self.held.check()
        self.held.layers.turn(self)
        return self.held.driver

    @property
    def is_valid(self) -> bool:
        """Whether it was neither closed nor thrown away."""
        return self._valid

    @property
    def is_detached(self) -> bool:
        """Whether it was taken out of its pool, which it cannot be."""
        return False

    def detach(self) -> None:
        """Do nothing: the test's end takes what is left."""

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor, in a savepoint that is this connection's."""
        self.held.check()
        if self.held.speaker is not None:
            return self.held.driver.cursor(*args, **kwargs)
        if self.held.in_error():
            self.held.layers.recover(self)
        # Statements that only read are told apart later; a raw cursor's are not.
        layer = self.held.layers.turn(self)
        self._wrote, layer.wrote = layer.wrote, True
        return self.held.driver.cursor(*args, **kwargs)

    def reads(self) -> None:
        """Note that the cursor made last is for a statement that only reads."""
        self.held.layers.turn(self).wrote = self._wrote

    def commit(self) -> None:
        """Keep what this connection has done."""
        self.held.check()
        if self.held.in_error():
            self.held.layers.rollback(self)  # as PostgreSQL does then
        else:
            self.held.layers.commit(self)

    def rollback(self) -> None:
        """Undo what this connection has done."""
        self.held.check()
        self.held.layers.rollback(self)

    def close(self) -> None:
        """Give it back; what was not committed is undone."""
        if self._valid:
            self._valid = False
            self.held.shares.pop(self, None)
            self.held.layers.rollback(self)

    def _close_special(self, **_: Any) -> None:  # what SQLAlchemy's Connection.close() calls
        self.close()

    def invalidate(self, *_: Any, **__: Any) -> None:
        """Throw it away, which leaves the connection behind it alone."""
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dbapi_connection, name)


class SharedPool(Pool):
    """What takes the place of an engine's pool: every connection is a share of one.

    :param engine: The engine.
    :param pool: That engine's own pool.
    :param held: Returns what is shared.
    """

    def __init__(self, engine: Engine, pool: Pool, held: Callable[[], Held]) -> None:
        super().__init__(cast(Any, held), dialect=cast(Any, engine.dialect))
        self._pool = pool
        self._hold = held
        self.held: Held | None = None
        """What is shared, from the first use on."""
        self.disposed: bool = False
        """Whether somebody wanted the pool's connections closed."""

    def connect(self) -> PoolProxiedConnection:
        """Return a share of the connection."""
        if real.get():
            return self._pool.connect()
        self.held = self._hold()
        self.held.check()
        return Share(self.held)

    def dispose(self) -> None:
        """Remember it for the end of the test."""
        self.disposed = True

    def recreate(self) -> SharedPool:
        """Return this pool: there is nothing to be made anew."""
        return self

    def status(self) -> str:
        """Return a description for logs."""
        return "Connections of a test, which share one"
