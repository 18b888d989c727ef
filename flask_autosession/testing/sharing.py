"""What engines hand out in a test: connections that share one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from sqlalchemy.engine import Engine
from sqlalchemy.pool import Pool, PoolProxiedConnection

from flask_autosession.callsite import caller

from .deferred import check_deferred
from .held import Held, Home, real
from .layers import Layer


class Share(PoolProxiedConnection):
    """What a connection of SQLAlchemy gets instead of a driver's connection of its own.

    :param held: What is shared.
    :param pool: What it comes from.
    """

    def __init__(self, held: Held, pool: SharedPool) -> None:
        self.held: Held = held
        self.pool: SharedPool = pool
        self.where: str = caller()
        """Where it was taken."""
        self.driver_connection: Any = held.driver
        self._valid = True
        self._wrote = False
        self._info: dict[str, Any] = {}
        # SQLAlchemy puts there what is to be done at the end, which is nothing.
        self._connection_record: Share | None = self
        self.finalize_callback: list[Any] = []
        held.shares[self] = None

    def __str__(self) -> str:
        return f"a connection that was taken at {self.where}"

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
        self.turn()
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

    def turn(self) -> Layer:
        """Return the savepoint that the next statement goes into."""
        held = self.held
        held.home.check()
        if held.check_lost():
            held.layers.recover(self)
        return held.layers.turn(self)

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor, in a savepoint that is this connection's."""
        if self.held.speaker is None:
            # Statements that only read are told apart later; a raw cursor's are not.
            layer = self.turn()
            self._wrote, layer.wrote = layer.wrote, True
        if self.held.engine.dialect.name in {"mysql", "mariadb"}:
            # One that fetches row by row would lose them as soon as another connection speaks.
            return self.held.driver.cursor()
        return self.held.driver.cursor(*args, **kwargs)

    def reads(self) -> None:
        """Note that the cursor made last is for a statement that only reads."""
        self.held.layers.turn(self).wrote = self._wrote

    def commit(self) -> None:
        """Keep what this connection has done."""
        held = self.held
        held.home.check()
        if held.in_error():
            held.layers.recover(self)  # of somebody else's error
            if held.in_error():
                held.layers.rollback(self)  # as PostgreSQL does then
                return
        try:
            check_deferred(held.engine, held.driver, changed=held.changed)
        except Exception:
            held.layers.rollback(self)  # as a COMMIT that fails
            raise
        held.layers.commit(self)

    def rollback(self) -> None:
        """Undo what this connection has done."""
        self.held.home.check()
        self.held.layers.rollback(self)

    def close(self) -> None:
        """Give it back; what was not committed is undone."""
        if self._valid:
            self._valid = False
            self._connection_record = None  # or nothing but the garbage collector would free it
            if self.held.home.is_here():  # a forked process closes what it has inherited
                self.held.shares.pop(self, None)
                self.held.layers.rollback(self)
                self.pool.listeners.checkin(self.held.driver, self)

    def _close_special(self, **_: Any) -> None:  # what SQLAlchemy's Connection.close() calls
        self.close()

    def invalidate(self, *_: Any, **__: Any) -> None:
        """Throw it away, which leaves the connection behind it alone."""
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.dbapi_connection, name)


class SharedPool(Pool):
    """What takes the place of an engine's pool: every connection is a share of one.

    It knows its engine only while it is in place, so that both can go.

    :param engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(cast(Any, self.connect), dialect=cast(Any, engine.dialect))
        self.held: Held | None = None
        """What is shared, from the first use on."""
        self._disposed = False

    def enter(self, pool: Pool, home: Home, hold: Callable[[], Held]) -> None:
        """Take the place of an engine's own pool.

        :param pool: That pool.
        :param home: The test.
        :param hold: Returns what is shared.
        """
        self._pool = pool
        self._home = home
        self._hold = hold
        # Whoever listens to the engine's pool listens to this one, now and in the test.
        self.listeners: Any = pool.dispatch
        cast(Any, self).dispatch = self.listeners

    def leave(self) -> bool:
        """Forget what it stood for.

        :return: Whether somebody wanted that one's connections closed.
        """
        disposed, self.held, self._disposed = self._disposed, None, False
        del self._pool, self._home, self._hold
        return disposed

    def connect(self) -> PoolProxiedConnection:
        """Return a share of the connection."""
        if real.get():
            return self._pool.connect()
        self._home.check()
        self.held = self._hold()
        share = Share(self.held, self)
        try:
            self.listeners.checkout(self.held.driver, share, share)
        except BaseException:
            share.close()
            raise
        return share

    def dispose(self) -> None:
        """Remember it for the end of the test."""
        self._disposed = True

    def recreate(self) -> SharedPool:
        """Return this pool: there is nothing to be made anew."""
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._pool, name)  # size(), checkedout()

    def status(self) -> str:
        """Return a description for logs."""
        return "Connections of a test, which share one"
