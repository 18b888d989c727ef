"""The strategy ``recreate``: whatever a test does to the schema, it is as before afterwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from flask_autosession.testing import IsolationError, isolate, schema
from flask_autosession.testing.binds import engines_of

from .conftest import Project
from .test_schema import (
    KINDS,
    Lab,
    laboratory,
    migrated_thing,
    on_postgresql,
    on_sqlite,
    use,
)


@pytest.fixture(params=KINDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with laboratory(request) as lab:
        yield lab


def description(lab: Lab) -> dict[str, list[str]]:
    """What is in the database, seen from outside: tables with columns, views, types, sequences."""
    inspector: Any = sa.inspect(lab.database.engine)
    found = {
        name: [column["name"] for column in inspector.get_columns(name)]
        for name in [*inspector.get_table_names(), *inspector.get_view_names()]
    }
    if lab.kind != "sqlite":
        found["sequences"] = sorted(inspector.get_sequence_names())
    if lab.kind == "postgresql":
        found["types"] = [f"{one['name']} {one['labels']}" for one in inspector.get_enums()]
    return found


@pytest.mark.parametrize("source", ["create_all", "migrate"])
def test_the_schema_is_as_before(lab: Lab, source: str, tmp_path: Path) -> None:
    """A column, a table, a view that a test makes are gone, and a table that it drops is back."""
    Thing = migrated_thing(lab, tmp_path / "migrations") if source == "migrate" else lab.thing()
    with isolate(lab.app, "recreate", schema=source):
        before = description(lab)
        lab.commit(Thing(name="own"))
        lab.execute(
            "ALTER TABLE thing ADD COLUMN more INTEGER",
            "CREATE TABLE extra (id INTEGER PRIMARY KEY, thing INTEGER,"
            " FOREIGN KEY (thing) REFERENCES thing (id))",
            "INSERT INTO extra VALUES (1, 1)",
            "CREATE VIEW named AS SELECT * FROM thing WHERE name IS NOT NULL",
        )
    with isolate(lab.app, "recreate", schema=source):
        assert description(lab) == before
        lab.execute("DROP TABLE thing")
    assert description(lab) == before
    assert lab.rows("SELECT id, name FROM thing") == [(1, "migrated")] * (source == "migrate")
    schema.forget(drop=True)
    assert lab.tables == []


def test_rows_are_gone_and_counters_start_again(lab: Lab) -> None:
    """No row of a test remains, and the first one of each test has the key 1."""
    Thing = lab.thing()
    for _ in range(2):
        with isolate(lab.app, "recreate"):
            lab.commit(Thing())
            assert lab.rows("SELECT id FROM thing") == [(1,)]
    assert lab.rows("SELECT * FROM thing") == []


def test_a_circle_of_tables(lab: Lab) -> None:
    """Tables that refer to each other are dropped with their rows, names or no names."""
    lab.enforce_foreign_keys()
    lab.circle()
    for _ in range(2):
        with isolate(lab.app, "recreate"):
            lab.fill_circle()
            assert lab.rows("SELECT id, egg FROM hen") == [(1, 1)]
    assert lab.rows("SELECT * FROM hen") == lab.rows("SELECT * FROM egg") == []
    schema.forget(drop=True)
    assert lab.tables == []


@pytest.mark.parametrize("lab", ["postgresql", "mariadb"], indirect=True)
def test_a_constraint_that_a_test_has_dropped(lab: Lab) -> None:
    """A constraint that closes a circle is there again after a test without it."""

    class Left(lab.db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        right = sa.Column(sa.ForeignKey("right.id", name="to_right", use_alter=True))

    class Right(lab.db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        left = sa.Column(sa.ForeignKey("left.id", name="to_left"), nullable=False)

    name = {"postgresql": '"left" DROP CONSTRAINT', "mariadb": "`left` DROP FOREIGN KEY"}[lab.kind]
    for _ in range(2):
        with isolate(lab.app, "recreate"):
            lab.execute(f"ALTER TABLE {name} to_right")
    found = sa.inspect(lab.database.engine).get_foreign_keys("left")
    assert [key["name"] for key in found] == ["to_right"]


def test_what_was_there_before_stays(lab: Lab) -> None:
    """Tables that the application does not know are left alone with their rows, views too."""
    lab.execute(
        "CREATE TABLE strange (id INTEGER PRIMARY KEY)",
        "INSERT INTO strange VALUES (7)",
        "CREATE VIEW stranger AS SELECT id FROM strange",
    )
    Thing = lab.thing()
    with isolate(lab.app, "recreate"):
        lab.commit(Thing())
    assert lab.tables == ["strange", "thing"]
    schema.forget(drop=True)
    assert lab.tables == ["strange"]
    assert lab.rows("SELECT id FROM stranger") == [(7,)]


@on_postgresql
def test_types_and_sequences(lab: Lab) -> None:
    """Types and sequences are as before, those of the models, of the test and of others."""
    lab.execute("CREATE TYPE mood AS ENUM ('good')", "CREATE SEQUENCE strange")

    class Coloured(lab.db.Model):
        id = sa.Column(sa.Integer, sa.Sequence("colours", start=5), primary_key=True)
        colour = sa.Column(sa.Enum("red", "blue", name="colour"))

    for _ in range(2):
        with isolate(lab.app, "recreate"):
            before = description(lab)
            lab.commit(Coloured(colour="red"))
            assert lab.rows("SELECT * FROM coloured") == [(5, "red")]
            lab.execute(
                "ALTER TYPE colour ADD VALUE 'green'",
                "CREATE TYPE own AS ENUM ('x')",
                "CREATE SEQUENCE own_numbers",
                "CREATE TABLE own_table (own own)",
            )
        assert description(lab) == before
    assert before["types"] == ["colour ['red', 'blue']", "mood ['good']"]
    schema.forget(drop=True)
    assert description(lab) == {"sequences": ["strange"], "types": ["mood ['good']"]}


def test_every_bind_is_made_again(lab: Lab, tmp_path: Path) -> None:
    """The tables of each bind are made again, also where two binds have one database."""
    binds = {"notes": f"sqlite:///{tmp_path / 'notes.db'}", "same": lab.database.uri}
    lab = lab.another(SQLALCHEMY_BINDS=binds)
    Thing = lab.thing()

    class Note(lab.db.Model):
        __bind_key__ = "notes"
        id = sa.Column(sa.Integer, primary_key=True)

    class Twin(lab.db.Model):
        __bind_key__ = "same"
        id = sa.Column(sa.Integer, primary_key=True)

    notes = engines_of(lab.app)["notes"]
    for _ in range(2):
        with isolate(lab.app, "recreate"):
            for model in (Thing, Note, Twin):
                lab.commit(model())
            with notes.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE note ADD COLUMN more INTEGER")
            lab.execute("DROP TABLE twin")
    assert lab.tables == ["thing", "twin"]
    assert [column["name"] for column in sa.inspect(notes).get_columns("note")] == ["id"]
    schema.forget(drop=True)
    assert lab.tables == sa.inspect(notes).get_table_names() == []


@on_postgresql
def test_a_table_in_another_schema(lab: Lab) -> None:
    """Tables outside of the default schema are made again, and what a test adds there goes."""
    lab.execute("CREATE SCHEMA other")

    class Thing(lab.db.Model):
        __table_args__ = ({"schema": "other"},)
        id = sa.Column(sa.Integer, primary_key=True)

    for _ in range(2):
        with isolate(lab.app, "recreate"):
            lab.commit(Thing())
            lab.execute("ALTER TABLE other.thing ADD COLUMN more INTEGER")
            lab.execute("CREATE TABLE other.extra (id INTEGER)")
    assert sa.inspect(lab.database.engine).get_table_names("other") == ["thing"]
    assert lab.rows("SELECT * FROM other.thing") == []


@on_sqlite
def test_in_memory(lab: Lab) -> None:
    """A database in memory is made again, too."""
    lab = lab.another(SQLALCHEMY_DATABASE_URI="sqlite://")
    Thing = lab.thing()
    for _ in range(2):
        with isolate(lab.app, "recreate"), lab.app.app_context():
            lab.commit(Thing(name="own"))
            assert [thing.id for thing in Thing.query] == [1]
            with lab.engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE thing ADD COLUMN more INTEGER")
    assert len(sa.inspect(lab.engine).get_columns("thing")) == 2


def test_a_database_that_was_migrated_before(lab: Lab, tmp_path: Path) -> None:
    """Where somebody has run the migrations already, the tables are made again all the same."""
    Thing = migrated_thing(lab, tmp_path / "migrations")
    with lab.app.app_context():
        pytest.importorskip("flask_migrate").upgrade()
    lab.execute("DELETE FROM thing")
    for _ in range(2):
        with isolate(lab.app, "recreate", schema="migrate"):
            lab.commit(Thing(name="own", state="new"))
            lab.execute("ALTER TABLE thing ADD COLUMN more INTEGER")
    schema.forget(drop=True)
    assert lab.tables == ["alembic_version", "thing"]
    assert len(sa.inspect(lab.database.engine).get_columns("thing")) == 3
    assert lab.rows("SELECT * FROM alembic_version") == [("1",)]


# Where it is not allowed


def test_rows_from_before_are_not_dropped(lab: Lab) -> None:
    """A database that had rows before the first look is not touched, and the table is named."""
    lab.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, name VARCHAR(20))")
    lab.execute("INSERT INTO thing VALUES (7, 'dear')")
    lab.thing()
    lab.circle()
    for _ in range(2):
        with pytest.raises(IsolationError, match=r"'recreate'.*'thing'") as caught:
            use(lab, "recreate")
        assert re.search("database of their own", str(caught.value))
    schema.forget(drop=True)
    assert lab.tables == ["thing"]
    assert lab.rows("SELECT * FROM thing") == [(7, "dear")]


def test_rows_of_a_wider_fixture_are_not_dropped(lab: Lab) -> None:
    """Rows that were committed between two tests are kept, and the second test is refused."""
    Thing = lab.thing()
    use(lab, "recreate")
    lab.commit(Thing(name="wide"))
    with pytest.raises(IsolationError, match="'thing'"):
        use(lab, "recreate")
    assert lab.rows("SELECT name FROM thing") == [("wide",)]


def test_tables_that_nobody_could_make_again(lab: Lab) -> None:
    """With schema="none" it is refused, because the tables would be gone."""
    lab.execute("CREATE TABLE thing (id INTEGER PRIMARY KEY, name VARCHAR(20))")
    lab.thing()
    with pytest.raises(IsolationError, match=r"'recreate'.*'none'"):
        use(lab, "recreate", schema="none")
    assert lab.tables == ["thing"]


# With pytest


def test_a_marked_test_may_change_the_schema(project: Project) -> None:
    """A test with the marker changes the schema, and the tests around it see nothing of it."""
    project.write(
        test_it="""
        import pytest
        import sqlalchemy as sa
        from conftest import db

        def columns():
            return [column["name"] for column in sa.inspect(db.engine).get_columns("toolkit_thing")]

        def test_rollback(app, client):
            assert client.post("/things/a").status_code == 201
            with app.app_context():
                assert columns() == ["id", "name"]

        @pytest.mark.autosession("recreate")
        def test_recreate(app, client, names):
            assert client.post("/things/a").status_code == 201
            with app.app_context(), db.engine.begin() as connection:
                connection.execute(sa.text("ALTER TABLE toolkit_thing ADD COLUMN more INTEGER"))
                connection.execute(sa.text("CREATE TABLE extra (id INTEGER)"))
            with app.app_context():
                assert columns() == ["id", "name", "more"]
            assert names() == ["a"]

        test_rollback_again = test_rollback
        """
    )
    project.run().assert_outcomes(passed=3)
    assert project.tables == ["thing"]
