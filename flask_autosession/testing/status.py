"""What a driver knows of the transaction on its connection, without asking the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask_autosession.drivers import libpq_of

# As libpq counts, and psycopg with it.
IDLE: int = 0
"""There is no transaction."""
OPEN: int = 2
"""A transaction goes on, or the driver cannot tell."""
ABORTED: int = 3
"""The database refuses everything but a rollback; only PostgreSQL does so."""


def status_of(driver: Any) -> Callable[[], int]:
    """Return what tells the status of one connection's transaction.

    Which driver it is need not be found out for every statement.

    :param driver: A driver's connection.
    """
    if hasattr(driver, "in_transaction"):  # sqlite3
        return lambda: OPEN if driver.in_transaction else IDLE
    if hasattr(driver, "server_status"):  # PyMySQL: SERVER_STATUS_IN_TRANS
        return lambda: OPEN if driver.server_status & 1 else IDLE
    libpq = libpq_of(driver)
    return lambda: OPEN if libpq is None else int(libpq.transaction_status)
