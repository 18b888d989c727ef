"""What only the driver of a connection knows, asked without a round trip to the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import Connection

# libpq's PQTRANS_INERROR, as psycopg and psycopg2 both report it.
_IN_ERROR = 3


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
    :return: True if so. SQLite gets real transactions of its own, and is never counted.
    """
    if connection.dialect.name == "sqlite":
        return False
    driver: Any = connection.connection.driver_connection
    ask = getattr(driver, "get_autocommit", None)
    return bool(ask()) if callable(ask) else getattr(driver, "autocommit", None) is True
