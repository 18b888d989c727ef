"""What only the driver of a connection knows, asked without a round trip to the database."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy.engine import Connection

_IN_ERROR = 3  # libpq's PQTRANS_INERROR, as psycopg and psycopg2 both report it


def info_of(proxy: Any) -> dict[Any, Any]:
    """Return the dictionary that a driver's connection carries with it.

    :param proxy: What a pool hands out for a connection.
    :return: A dictionary of nobody's while an engine makes its very first connection.
    """
    try:
        info: dict[Any, Any] = proxy.info
    except NotImplementedError:
        return {}
    return info


def libpq_of(driver: Any) -> Any | None:
    """Return what tells the status of a driver's transaction, where the driver stands on libpq.

    :param driver: A driver's connection.
    :return: What has an attribute ``transaction_status``, or None.
    """
    # psycopg; psycopg2, which has no `pgconn`.
    libpq = getattr(driver, "pgconn", None) or getattr(driver, "info", None)
    return libpq if hasattr(libpq, "transaction_status") else None


def is_aborted(connections: Iterable[tuple[Connection, Any]]) -> bool:
    """Tell whether a statement has failed that spoils a whole transaction.

    PostgreSQL answers COMMIT of such a transaction with a silent ROLLBACK, and errors of a raw
    cursor, or those swallowed inside ``begin_nested()``, reach no event of SQLAlchemy.

    :param connections: Connections in a transaction, each with what :func:`libpq_of` has returned
        for its driver's connection.
    """
    for connection, libpq in connections:
        if libpq.transaction_status == _IN_ERROR and _has_driver(connection):
            return True
    return False


def _has_driver(connection: Connection) -> bool:
    # Else the driver's connection may be somebody else's by now.
    return not connection.closed and not connection.invalidated


def commits_by_itself(driver: Any) -> bool:
    """Tell whether a driver commits every statement, whatever SQLAlchemy says.

    ``create_engine(isolation_level=...)`` can be read from nowhere; its effect can.

    :param driver: A driver's connection.
    """
    autocommit = getattr(driver, "autocommit", None)
    if isinstance(autocommit, bool):
        return autocommit
    ask = getattr(driver, "get_autocommit", None)  # `autocommit` is what sets it there
    return bool(ask()) if callable(ask) else False
