"""Flask-Migrate's commands, and ``db.create_all()``, beside units of work."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import Result
from sqlalchemy.orm import Mapped, mapped_column

from tests.world import Database, World

# Flask-Migrate's own env.py asks for it first.
pytestmark = pytest.mark.filterwarnings("ignore:'get_engine' is deprecated:DeprecationWarning")


class Migrated(World):
    """An application with one model of its own, whose table migrations make."""

    def __init__(self, database: Database, directory: Path, **config: Any) -> None:
        super().__init__(database, **config)
        self.table = f"leaflet_{uuid.uuid4().hex[:8]}"
        self.directory = directory

        class Leaflet(self.db.Model):  # type: ignore[name-defined,misc]
            __tablename__ = self.table
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str] = mapped_column(sa.String(50))

        self.Leaflet = Leaflet

    def use_migrate(self) -> None:
        package = pytest.importorskip("flask_migrate", reason="Flask-Migrate is not installed")
        package.Migrate(
            self.app,
            self.db,
            directory=self.directory,
            version_table=f"{self.table}_version",
            include_object=lambda one, name, kind, *_: kind != "table" or name == self.table,
        )

    def flask(self, *args: str) -> Result:
        result = self.app.test_cli_runner().invoke(args=list(args))
        assert result.exit_code == 0, (result.output, result.exception)
        return result

    def add_column(self, name: str) -> None:
        """Change the model, as a developer does."""
        self.Leaflet.__table__.append_column(sa.Column(name, sa.String(50)))

    @property
    def columns(self) -> list[str]:
        """The columns that the table has in the database; none if it is not there."""
        inspector = sa.inspect(self.database.engine)
        if not inspector.has_table(self.table):
            return []
        return [column["name"] for column in inspector.get_columns(self.table)]

    def close(self) -> None:
        super().close()
        with self.database.engine.begin() as connection:
            for table in (self.table, f"{self.table}_version"):
                connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table}")


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Migrated]:
    """The application; on PostgreSQL a statement that waits for a lock fails instead of hanging."""
    options: dict[str, Any] = {}
    if request.param == "sqlite":
        database = Database("sqlite", f"sqlite:///{tmp_path / 'test.db'}")
        database.create()
    else:
        database = request.getfixturevalue("postgresql")
        options = {"connect_args": {"options": "-c lock_timeout=3000 -c statement_timeout=20000"}}
    site = Migrated(database, tmp_path / "migrations", SQLALCHEMY_ENGINE_OPTIONS=options)
    yield site
    site.close()
    if request.param == "postgresql":
        database.empty()


@pytest.fixture
def logging_kept() -> Iterator[None]:
    """Undo what Alembic's configuration does to logging, which silences all loggers it meets."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    loggers = {
        name: (one, one.disabled, one.level, list(one.handlers), one.propagate)
        for name, one in logging.Logger.manager.loggerDict.items()
        if isinstance(one, logging.Logger)
    }
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for one, disabled, level, handlers, propagate in loggers.values():
        one.disabled, one.propagate = disabled, propagate
        one.setLevel(level)
        one.handlers[:] = handlers


@pytest.fixture
def migrated(site: Migrated, logging_kept: None) -> Migrated:
    """The application, with its first migration made and applied."""
    site.use_migrate()
    site.flask("db", "init")
    site.flask("db", "migrate", "-m", "first")
    assert site.columns == []
    site.flask("db", "upgrade")
    return site


def test_migrations_work(migrated: Migrated) -> None:
    """``db init``, ``migrate``, ``upgrade`` and ``downgrade`` do what they do without us."""
    assert migrated.columns == ["id", "title"]
    migrated.add_column("author")
    migrated.flask("db", "migrate", "-m", "second")
    migrated.flask("db", "upgrade")
    assert migrated.columns == ["id", "title", "author"]
    migrated.flask("db", "downgrade")
    assert migrated.columns == ["id", "title"]


@pytest.mark.parametrize("writes", [False, True])
def test_row_31_an_upgrade_inside_a_context_that_is_in_a_transaction(
    migrated: Migrated, writes: bool
) -> None:
    """What the outer context holds open is ended first, or the upgrade would wait for it."""
    migrated.add_column("author")
    with migrated.app.app_context():
        session = migrated.db.session
        if writes:
            session.execute(sa.text(f"INSERT INTO {migrated.table} (title) VALUES ('kept')"))
        session.execute(sa.text(f"SELECT title FROM {migrated.table}")).all()
        assert session().in_transaction()
        migrated.flask("db", "migrate", "-m", "second")
        session.execute(sa.text(f"SELECT title FROM {migrated.table}")).all()
        migrated.flask("db", "upgrade")
        migrated.Leaflet(title="after").save()
    assert migrated.columns == ["id", "title", "author"]
    titles = [title for (title,) in migrated.database.rows(f"SELECT title FROM {migrated.table}")]
    assert titles == ["kept"] * writes + ["after"]


def test_a_migration_that_fails_is_told(migrated: Migrated) -> None:
    """A migration that raises ends in its error and a code that is not 0, inside a context too."""
    migrated.add_column("author")
    migrated.flask("db", "migrate", "-m", "second")
    (script,) = migrated.directory.glob("versions/*_second.py")
    script.write_text(script.read_text().replace("def upgrade():\n", "def upgrade():\n    1 / 0\n"))
    runner = migrated.app.test_cli_runner()
    assert isinstance(runner.invoke(args=["db", "upgrade"]).exception, ZeroDivisionError)
    with migrated.app.app_context():
        migrated.Leaflet(title="outer").save()
        assert runner.invoke(args=["db", "upgrade"]).exit_code == 1
    assert migrated.columns == ["id", "title"]
    titles = migrated.database.rows(f"SELECT title FROM {migrated.table}")
    assert titles == [("outer",)]


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_create_all_in_a_command(site: Migrated, outer: bool, fails: bool) -> None:
    """db.create_all() commits by itself; the rows that the command writes share its fate."""

    @site.app.cli.command("setup")
    def setup() -> None:
        assert site.Thing.query.count() == int(outer)
        site.db.create_all()
        site.Leaflet(title="first").save()
        if fails:
            raise ZeroDivisionError

    with site.app.app_context() if outer else nullcontext():
        if outer:
            site.Thing(name="outer").save()
        result = site.app.test_cli_runner().invoke(args=["setup"])
        assert result.exit_code == int(fails)
    assert site.columns == ["id", "title"]
    titles = site.database.rows(f"SELECT title FROM {site.table}")
    assert titles == ([] if fails else [("first",)])
    assert site.database.names == ["outer"] * outer
