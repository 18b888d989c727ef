"""Databases that exist for one measurement only."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

SERVERS = {
    "postgresql": os.environ.get(
        "AUTOSESSION_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
    ),
    "mariadb": os.environ.get("AUTOSESSION_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/"),
}


@contextmanager
def server_database(kind: str) -> Iterator[str]:
    """Make a database on a server, yield its URI, and drop it, whoever is still connected."""
    url, name = sa.make_url(SERVERS[kind]), f"autosession_bench_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    force = " WITH (FORCE)" if kind == "postgresql" else ""
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        # Not the connection from before: a server ends one that was idle for long.
        with admin.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name}{force}")
