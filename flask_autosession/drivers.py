"""What only the driver of a connection knows, asked without a round trip to the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

# libpq's PQTRANS_INERROR, as psycopg and psycopg2 both report it.
_IN_ERROR = 3


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


def tells_of_aborts(connection: Connection) -> bool:
    """Tell whether the driver knows what :func:`is_aborted` asks for.

    :param connection: A connection that was just taken from its pool.
    """
    info = getattr(connection.connection.driver_connection, "info", None)
    return hasattr(info, "transaction_status")


def is_aborted(connection: Connection) -> bool:
    """Tell whether a statement has failed that spoils the whole transaction.

    PostgreSQL answers COMMIT of such a transaction with a silent ROLLBACK, and errors of a raw
    cursor, or those swallowed inside ``begin_nested()``, reach no event of SQLAlchemy.

    :param connection: A connection in a transaction.
    :return: True if the driver says so; False where it does not, or cannot.
    """
    if connection.closed or connection.invalidated:
        return False
    info = getattr(connection.connection.driver_connection, "info", None)
    return getattr(info, "transaction_status", None) == _IN_ERROR


def commits_by_itself(connection: Connection) -> bool:
    """Tell whether the driver commits every statement, whatever SQLAlchemy says.

    ``create_engine(isolation_level=...)`` can be read from nowhere; its effect can.

    :param connection: A connection that was just taken from its pool.
    """
    driver: Any = connection.connection.driver_connection
    ask = getattr(driver, "get_autocommit", None)
    return bool(ask()) if callable(ask) else getattr(driver, "autocommit", None) is True
