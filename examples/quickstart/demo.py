"""Serve the quickstart over HTTP, send it requests, and check what each of them leaves behind.

Exit code: 0 if all is as promised, 1 if a row differs, 2 if something is in the way.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
import table
from flask import Flask
from observer import Observer
from promises import PROMISES
from quickstart import create_app
from quickstart.models import db
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from werkzeug.serving import make_server

from flask_autosession import AutoSessionError

HOST = "127.0.0.1"
EXAMPLES = "postgresql+psycopg://USER@HOST/NAME, mysql+pymysql://USER@HOST/NAME or sqlite:///FILE"
TAKES = f"--database-uri takes {EXAMPLES}."


class CannotStartError(Exception):
    """Something outside of the demonstration is in its way; the message is for the user."""


def main() -> int:
    """Run the command and return its exit code."""
    arguments = parse_arguments()
    # A shell that starts a job in the background has it ignore Ctrl-C; we mean it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (
            database(arguments.database_uri) as engine,
            application(engine.url) as app,
            serving(app, arguments.port) as url,
        ):
            # One line for each unit of work; werkzeug's own would tell the same requests again.
            logging.getLogger("flask_autosession").setLevel(logging.DEBUG)
            logging.getLogger("werkzeug").setLevel(logging.WARNING)
            print(f"The shop is open at {url}\non {engine.url}\n", flush=True)
            return serve(url) if arguments.serve else demonstrate(Observer(app, url, engine))
    except CannotStartError as problem:
        print(f"demo.py: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0 if arguments.serve else 130


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Serve a small shop over HTTP, send it requests that succeed and fail, and show"
        " after each what became of its unit of work and what another connection now sees in the"
        " database.",
        epilog="Exit code: 0 if all is as promised, 1 if a row differs, 2 if something is in the"
        " way.",
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help="send nothing: keep the shop open, to be tried by hand; Ctrl-C ends it",
    )
    parser.add_argument(
        "--database-uri",
        metavar="URI",
        help=f"a database: {EXAMPLES}; two tables,"
        " autosession_quickstart_product and _order, are made in it and dropped at the end"
        " (default: SQLite in a temporary directory)",
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=0,
        help=f"the port on {HOST} (default: one that is free)",
    )
    return parser.parse_args()


def port_number(text: str) -> int:
    """Return a port's number, for argparse."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: 0 to 65535")
    return int(text)


@contextmanager
def database(uri: str | None) -> Iterator[sa.Engine]:
    """Make the tables, with an engine that is not the application's; drop them at the end."""
    with tempfile.TemporaryDirectory(prefix="autosession-") as directory:
        engine = connect(uri or f"sqlite:///{Path(directory, 'shop.db')}")
        tables = [table.name for table in db.metadata.sorted_tables]
        try:
            existing = set(sa.inspect(engine).get_table_names()).intersection(tables)
            if existing:
                raise CannotStartError(
                    f"{engine.url} has {' and '.join(sorted(existing))} already. Is another"
                    " demonstration running there? Else drop what it has left behind."
                )
            try:
                db.metadata.create_all(engine)
                yield engine
            finally:
                db.metadata.drop_all(engine)
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip()
            raise CannotStartError(f"{engine.url}: {' '.join(reason.split())}") from error
        finally:
            engine.dispose()


def connect(uri: str) -> sa.Engine:
    """Make an engine that keeps no connection open, or say what is wrong with the URI."""
    try:
        engine = sa.create_engine(checked(uri), poolclass=sa.pool.NullPool)
    except (ArgumentError, ValueError) as error:
        raise CannotStartError(f"{error}. {TAKES}") from None
    except ModuleNotFoundError as error:
        raise CannotStartError(
            f"the database's driver is not installed ({error}). Install it or take another. {TAKES}"
        ) from None
    if engine.dialect.is_async:
        raise CannotStartError(f"{engine.driver} is for asyncio. {TAKES}")
    return engine


def checked(uri: str) -> sa.URL:
    """Return a URI as a URL that means the same database to the application and to us."""
    url = sa.make_url(uri)
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql", "mysql", "mariadb"):
        raise ValueError(f"Flask-AutoSession is not tested on {backend}")
    if backend != "sqlite":
        if not url.database:
            raise ValueError("the URI names no database")
        return url
    if url.database in (None, "", ":memory:") or "mode=memory" in uri:
        raise ValueError("no second connection can look into SQLite in memory")
    # Flask-SQLAlchemy would take a relative path from the application's folder.
    return url.set(database=str(Path(url.database).absolute()))


@contextmanager
def application(url: sa.URL) -> Iterator[Flask]:
    """Make the application, and close its connections at the end."""
    try:
        app = create_app(url.render_as_string(hide_password=False))
    except AutoSessionError as error:
        raise CannotStartError(str(error)) from error
    # A FLASK_DEBUG in the environment would have errors leave the application.
    app.config.update(DEBUG=False, TESTING=False, PROPAGATE_EXCEPTIONS=False)
    try:
        yield app
    finally:
        with app.app_context():
            db.engine.dispose()


@contextmanager
def serving(app: Flask, port: int) -> Iterator[str]:
    """Serve the application from threads of this process; give its address."""
    # make_server() would end the whole process itself if the port were taken.
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise CannotStartError(f"cannot listen on {HOST}:{port}: {reason}.") from error
    with listener:
        server = make_server(HOST, port, app, threaded=True, fd=listener.fileno())
        thread = threading.Thread(target=server.serve_forever, name="server")
        thread.start()
        try:
            yield f"http://{HOST}:{server.port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def demonstrate(observer: Observer) -> int:
    """Send the requests, print the table, and return 0 or 1."""
    logging.basicConfig(handlers=[observer], format="%(levelname)s %(name)s: %(message)s")
    print(table.header())
    different = []
    for number, promise in enumerate(PROMISES, start=1):
        fact = observer.observe(promise)
        print(table.row(number, promise, fact, observer.reasons), flush=True)
        if fact != promise.fact:
            different.append(str(number))
            problems = "\n".join(table.differences(promise.fact, fact))
            log = "".join(f"\n| {line}" for text in observer.log for line in text.splitlines())
            print(f"Row {number} is not as promised.\n{problems}{log}", file=sys.stderr, flush=True)
    if different:
        print(f"\nNot as promised: row {', '.join(different)}.", file=sys.stderr)
        return 1
    print(f"\nAll {len(PROMISES)} rows are as promised.")
    return 0


def serve(url: str) -> int:
    """Print what to type elsewhere, and wait for Ctrl-C."""
    logging.basicConfig(format="%(message)s")
    print("Try it from another terminal; what becomes of each request is logged here.\n")
    for promise in PROMISES:
        method = "" if promise.method in ("GET", "POST") else f"-X {promise.method} "
        body = "" if promise.body is None else f"-d '{json.dumps(promise.body)}' "
        print(f"curl {method}{body}{url}{promise.path}")
    print("\nCtrl-C ends it.\n", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    sys.exit(main())
