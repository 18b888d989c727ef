"""``ActiveRecord``: what its methods write, what they refuse, and how the race for a row ends."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy.model import Model as FsaModel
from sqlalchemy import orm
from sqlalchemy.exc import (
    IntegrityError,
    InvalidRequestError,
    MultipleResultsFound,
    OperationalError,
)
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.ext.hybrid import hybrid_property

from flask_autosession.model import ActiveRecord, swap_in

SQLALCHEMY_21 = tuple(map(int, sa.__version__.split(".")[:2])) >= (2, 1)


# One application and its models ---------------------------------------------------------------


@dataclass
class Point:
    x: int
    y: int


def declare(db: SQLAlchemy) -> Any:
    """Declare the models, and give them as a namespace."""
    return type("Models", (), {**declare_people(db), **declare_others(db)})


def declare_people(db: SQLAlchemy) -> dict[str, Any]:
    """Declare models that have every kind of attribute."""

    class Team(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50), unique=True, nullable=False)
        members = orm.relationship("Member", back_populates="team")
        elders = orm.relationship("Member", viewonly=True, primaryjoin="Team.id == Member.team_id")

    class Member(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        email = sa.Column(sa.String(50), unique=True, nullable=False)
        first = sa.Column(sa.String(50))
        last = sa.Column("surname", sa.String(50))
        age = sa.Column(sa.Integer, sa.CheckConstraint("age >= 0"))
        x = sa.Column(sa.Integer)
        y = sa.Column(sa.Integer)
        team_id = sa.Column(sa.ForeignKey("team.id"))
        boss_id = sa.Column(sa.ForeignKey("member.id"))

        team = orm.relationship("Team", back_populates="members")
        boss = orm.relationship("Member", remote_side="Member.id", lazy="joined", join_depth=1)
        mail = orm.synonym("email")
        point = orm.composite(Point, x, y)
        team_name = association_proxy("team", "name", creator=lambda name: Team(name=name))
        shouted = orm.column_property(sa.func.upper(first))
        loud = orm.synonym("shouted")

        @hybrid_property
        def years(self) -> Any:
            return self.age

        @years.inplace.setter
        def _set_years(self, value: int) -> None:
            self.age = value

        @hybrid_property
        def next_age(self) -> Any:
            return self.age + 1

        @property
        def full_name(self) -> str:
            return f"{self.first} {self.last}"

        @full_name.setter
        def full_name(self, value: str) -> None:
            self.first, self.last = value.split(" ", 1)

        @property
        def initial(self) -> str:
            return self.first[0]

        @orm.synonym_for("first")
        @property
        def called(self) -> str:
            return self.first

        def greet(self) -> str:
            return f"Hello {self.first}"

    return {"Team": Team, "Member": Member}


def declare_others(db: SQLAlchemy) -> dict[str, Any]:
    """Declare models of other shapes."""

    class Seat(db.Model):
        row = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        number = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        taken = sa.Column(sa.Boolean, default=False)

    class Secret(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        hashed = sa.Column(sa.String(50))
        note = sa.Column(sa.String(50))

        def __init__(self, password: str) -> None:
            self.hashed = password[::-1]

    class Elsewhere(db.Model):
        __bind_key__ = "other"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50), unique=True)

    class Animal(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50), unique=True)
        kind = sa.Column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "animal"}  # noqa: RUF012

    class Dog(Animal):
        id = sa.Column(sa.ForeignKey("animal.id"), primary_key=True)
        tricks = sa.Column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012

    class Cat(Animal):
        lives = sa.Column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012

    return {model.__name__: model for model in (Seat, Secret, Elsewhere, Animal, Dog, Cat)}


@contextmanager
def application(db: SQLAlchemy, url: str = "sqlite://", **config: Any) -> Iterator[Flask]:
    """Give an application whose tables exist, and leave neither tables nor connections."""
    app = Flask("model_tests")
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_BINDS={"other": "sqlite://"})
    app.config.update(config)
    db.init_app(app)
    with app.app_context():
        engines = list(db.engines.values())
        db.create_all()
    try:
        yield app
    finally:
        with app.app_context():
            db.drop_all()
        for engine in engines:
            engine.dispose()


@pytest.fixture
def db() -> SQLAlchemy:
    db = SQLAlchemy()
    swap_in(db)
    return db


@pytest.fixture
def models(db: SQLAlchemy) -> Iterator[Any]:
    """The models, inside an application context."""
    models = declare(db)
    with application(db) as app, app.app_context():
        yield models


def rows(db: SQLAlchemy, sql: str) -> list[Any]:
    """What the database has, past the session's own objects."""
    with db.session.no_autoflush:
        return [tuple(row) for row in db.session.execute(sa.text(sql))]


# save, update, delete, create, get ------------------------------------------------------------


def test_save_flushes_and_gives_the_object_its_id(models, db):
    """save() writes the row, so that the object has its id at once, and returns the object."""
    team = models.Team(name="a")
    assert team.save() is team
    assert rows(db, "select id, name from team") == [(team.id, "a")]


def test_save_commits_nothing(models, db):
    """What save() wrote is gone after a rollback."""
    models.Team(name="a").save()
    db.session.rollback()
    assert rows(db, "select * from team") == []


def test_save_flushes_the_whole_session(models, db):
    """save() also writes what is pending on other objects."""
    team = models.Team(name="a").save()
    team.name = "b"
    models.Team(name="c").save()
    assert rows(db, "select name from team order by name") == [("b",), ("c",)]


def test_update_flushes_and_returns_the_object(models, db):
    """update() sets the attributes, writes them and returns the object."""
    team = models.Team(name="a").save()
    assert team.update(name="b") is team
    assert rows(db, "select name from team") == [("b",)]


def test_update_saves_an_object_that_is_new(models, db):
    """update() on an object that was never saved saves it."""
    models.Team().update(name="a")
    assert rows(db, "select name from team") == [("a",)]


def test_update_can_change_the_primary_key(models, db):
    """update() of a primary key moves the row."""
    seat = models.Seat.create(row=1, number=2)
    seat.update(number=3)
    assert rows(db, "select row, number from seat") == [(1, 3)]


@pytest.mark.parametrize(
    ("attrs", "sql", "expected"),
    [
        ({"last": "Foo"}, "surname", "Foo"),
        ({"mail": "new@x"}, "email", "new@x"),
        ({"years": 7}, "age", 7),
        ({"full_name": "Foo Bar"}, "first || surname", "FooBar"),
        ({"point": Point(1, 2)}, "x + y", 3),
        ({"team_name": "red"}, "(select name from team where team.id = team_id)", "red"),
    ],
    ids=["column-of-another-name", "synonym", "hybrid", "property", "composite", "proxy"],
)
def test_update_sets_every_kind_of_attribute(models, db, attrs, sql, expected):
    """update() takes columns, synonyms, hybrids, properties, composites, association proxies."""
    models.Member.create(email="a@x").update(**attrs)
    assert rows(db, f"select {sql} from member") == [(expected,)]


def test_update_sets_a_relationship(models, db):
    """update() takes related objects, and saves those that are new."""
    member = models.Member.create(email="a@x")
    member.update(team=models.Team(name="red"))
    assert rows(db, "select name from team where id = (select team_id from member)") == [("red",)]


@pytest.mark.parametrize(
    "name",
    [
        "metadata",
        "registry",
        "query",
        "query_class",
        "_sa_instance_state",
        "__dict__",
        "__class__",
        "__tablename__",
        "greet",
        "save",
        "next_age",
        "initial",
        "shouted",
        "loud",
        "called",
        "surname",
        "nothing_like_it",
    ],
)
def test_update_refuses_what_is_not_the_models_to_set(models, db, name):
    """update() refuses methods, SQLAlchemy's own names, read-only and unknown names."""
    member = models.Member.create(email="a@x", first="Foo")
    with pytest.raises(TypeError, match=rf"Member.update\(\) got '{name}': Member has no such"):
        member.update(first="Bar", **{name: "x"})
    assert member.first == "Foo"


def test_update_refuses_a_viewonly_relationship(models):
    """update() refuses a relationship that SQLAlchemy would never write."""
    team = models.Team.create(name="a")
    with pytest.raises(TypeError, match="'elders'"):
        team.update(elders=[])


def test_update_names_the_bad_names_and_the_nearest_good_ones(models):
    """The error for a misspelt name names the model, every bad name and what was meant."""
    member = models.Member.create(email="a@x")
    with pytest.raises(TypeError) as caught:
        member.update(emial="b@x", age=1, tema=None, zzz=1)
    assert str(caught.value) == (
        "Member.update() got 'emial', 'tema', 'zzz': Member has no such attribute, or does not"
        " let it be set. Nothing was changed. Did you mean 'email', 'team'?"
    )


def test_a_refused_update_changes_nothing(models, db):
    """If one name of update() is refused, the good ones are not set either."""
    member = models.Member.create(email="a@x", age=1)
    with pytest.raises(TypeError):
        member.update(age=2, agee=3)
    assert member not in db.session.dirty
    assert member.age == 1


def test_delete_flushes(models, db):
    """delete() removes the row at once."""
    team = models.Team.create(name="a")
    assert team.delete() is None
    assert rows(db, "select * from team") == []


def test_delete_of_an_object_never_saved_says_so(models):
    """delete() of an object that has no row is SQLAlchemy's error."""
    with pytest.raises(InvalidRequestError, match="not persisted"):
        models.Team(name="a").delete()


def test_create_makes_and_saves(models, db):
    """create() gives an object whose row is written."""
    team = models.Team.create(name="a")
    assert rows(db, "select id, name from team") == [(team.id, "a")]


def test_create_refuses_an_unknown_name(models, db):
    """create() refuses what neither the model nor its __init__ knows, and writes nothing."""
    with pytest.raises(TypeError, match=r"Team.create\(\) got 'nmae'.* Did you mean 'name'\?"):
        models.Team.create(nmae="a")
    assert rows(db, "select * from team") == []


@pytest.mark.parametrize("name", ["metadata", "registry", "query", "save"])
def test_create_refuses_what_sqlalchemys_constructor_lets_pass(models, name):
    """create() refuses class attributes, which SQLAlchemy's own __init__ would overwrite."""
    with pytest.raises(TypeError, match=f"'{name}'"):
        models.Team.create(name="a", **{name: 1})


def test_create_passes_the_parameters_of_the_models_own_init(models, db):
    """create() takes the parameters of the model's __init__, and sets what that does not take."""
    models.Secret.create(password="abc", note="n")
    assert rows(db, "select hashed, note from secret") == [("cba", "n")]


def test_create_misses_what_the_models_own_init_needs(models):
    """create() without a value that __init__ needs is Python's own error."""
    with pytest.raises(TypeError, match="password"):
        models.Secret.create(note="n")


def test_create_refuses_self(models):
    """The first parameter of __init__ is no name that create() takes."""
    with pytest.raises(TypeError, match="'self'"):
        models.Secret.create(password="abc", self=1)


def test_get_finds_by_primary_key(models):
    """get() gives the object that has this primary key, or None."""
    team = models.Team.create(name="a")
    assert models.Team.get(team.id) is team
    assert models.Team.get(team.id + 1) is None


def test_get_takes_a_composite_key(models):
    """get() takes a tuple or a dict where the key has several columns."""
    seat = models.Seat.create(row=1, number=2)
    assert models.Seat.get((1, 2)) is seat
    assert models.Seat.get({"row": 1, "number": 2}) is seat


def test_joined_inheritance(models, db):
    """A subclass with a table of its own is written to both tables, inherited names included."""
    _, created = models.Dog.update_or_create({"tricks": 1}, name="rex")
    models.Dog.update_or_create({"tricks": 2}, name="rex")
    assert created
    assert rows(db, "select name, kind, tricks from dog join animal using (id)") == [
        ("rex", "dog", 2)
    ]


def test_single_inheritance(models, db):
    """A subclass in its parent's table gets its own rows only."""
    models.Animal.create(name="tom")
    cat, created = models.Cat.get_or_create({"lives": 7}, name="felix")
    assert (created, models.Cat.get_or_create(name="felix")) == (True, (cat, False))
    with pytest.raises(IntegrityError):
        models.Cat.get_or_create(name="tom")


def test_a_model_of_another_bind(models, db):
    """A model with a bind key is written to its own database."""
    _, created = models.Elsewhere.get_or_create(name="a")
    assert created
    with db.engines["other"].connect() as connection:
        assert connection.scalars(sa.text("select name from elsewhere")).all() == ["a"]


# get_or_create, update_or_create --------------------------------------------------------------


def test_get_or_create_creates_once(models, db):
    """The first get_or_create() creates the row, the next one finds it and leaves it alone."""
    first = models.Member.get_or_create({"age": 1}, email="a@x")
    second = models.Member.get_or_create({"age": 2}, email="a@x")
    assert (first[1], second[1], second[0]) == (True, False, first[0])
    assert rows(db, "select email, age from member") == [("a@x", 1)]


def test_get_or_create_finds_what_is_pending_with_autoflush_off(models, db):
    """get_or_create() finds an object that was only added so far."""
    team = models.Team(name="a")
    db.session.add(team)
    with db.session.no_autoflush:
        assert models.Team.get_or_create(name="a") == (team, False)


def test_get_or_create_by_relationship_synonym_and_hybrid(models):
    """get_or_create() looks up by relationships, synonyms, hybrids and composites too."""
    team = models.Team.create(name="red")
    by = {"team": team, "mail": "a@x", "years": 3, "point": Point(1, 2)}
    member, created = models.Member.get_or_create(**by)
    assert created
    assert (member.team, member.email, member.age, member.x) == (team, "a@x", 3, 1)
    assert models.Member.get_or_create(**by) == (member, False)


def test_update_or_create_updates_the_one_found(models, db):
    """update_or_create() creates the row, or sets the defaults on the one that is there."""
    first = models.Member.update_or_create({"age": 1}, email="a@x")
    second = models.Member.update_or_create({"age": 2}, email="a@x")
    assert (first[1], second[1], second[0]) == (True, False, first[0])
    assert rows(db, "select email, age from member") == [("a@x", 2)]


def test_update_or_create_sees_what_others_wrote(models, db):
    """update_or_create() works on the row as it is now, not as it was loaded."""
    member = models.Member.create(email="a@x", age=1)
    rows(db, "select 1")
    db.session.execute(sa.text("update member set first = 'Foo'"))
    models.Member.update_or_create({"age": 2}, email="a@x")
    assert member.first == "Foo"


@pytest.mark.parametrize("method", ["get_or_create", "update_or_create"])
def test_defaults_may_be_left_out(models, method):
    """Without defaults the object gets the values it was looked up by."""
    team, created = getattr(models.Team, method)(name="a")
    assert (team.name, created) == ("a", True)
    assert getattr(models.Team, method)(name="a") == (team, False)


@pytest.mark.parametrize("method", ["get_or_create", "update_or_create"])
def test_two_rows_that_match_are_an_error(models, method):
    """More than one row is SQLAlchemy's MultipleResultsFound."""
    models.Member.create(email="a@x", age=1)
    models.Member.create(email="b@x", age=1)
    with pytest.raises(MultipleResultsFound):
        getattr(models.Member, method)(age=1)


@pytest.mark.parametrize("method", ["get_or_create", "update_or_create"])
@pytest.mark.parametrize(
    ("defaults", "by", "bad"),
    [
        ({"agee": 1}, {"email": "a@x"}, "agee"),
        ({}, {"emial": "a@x"}, "emial"),
        ({"metadata": 1}, {"email": "a@x"}, "metadata"),
    ],
)
def test_names_are_checked_even_if_the_row_is_there(models, method, defaults, by, bad):
    """A misspelt name is refused before anything is looked up."""
    models.Member.create(email="a@x")
    with pytest.raises(TypeError, match=rf"Member.{method}\(\) got '{bad}'"):
        getattr(models.Member, method)(defaults, **by)


@pytest.mark.parametrize("method", ["get_or_create", "update_or_create"])
def test_a_plain_property_cannot_be_looked_up(models, method):
    """A Python property is refused in a look-up, where it would never match any row."""
    with pytest.raises(TypeError, match=r"'full_name'.*looked up"):
        getattr(models.Member, method)(full_name="Foo Bar")


def test_get_or_create_with_the_models_own_init(models, db):
    """What a new object's __init__ needs can stand in the defaults."""
    secret, created = models.Secret.get_or_create({"password": "abc"}, note="n")
    assert created
    assert rows(db, "select hashed, note from secret") == [("cba", "n")]
    assert models.Secret.get_or_create({"password": "abc"}, note="n") == (secret, False)


@pytest.mark.parametrize("method", ["get_or_create", "update_or_create"])
def test_another_constraints_failure_is_raised(models, db, method):
    """An IntegrityError that is no lost race is raised, and the unit's other work is kept."""
    models.Team.create(name="kept")
    with pytest.raises(IntegrityError, match="CHECK"):
        getattr(models.Member, method)({"age": -1}, email="a@x")
    assert rows(db, "select name from team") == [("kept",)]


@pytest.mark.parametrize("method", ["get_or_create", "update_or_create"])
def test_a_pending_objects_failure_is_no_lost_race(models, db, method):
    """If what was pending before cannot be written, that error is raised, not passed over."""
    models.Team.create(name="a")
    db.session.add(models.Team(name="a"))
    with db.session.no_autoflush, pytest.raises(IntegrityError):
        getattr(models.Team, method)(name="b")


def test_an_object_that_is_not_empty_counts_as_found(db):
    """A model whose objects are false in Python is found all the same."""

    class Basket(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))

        def __len__(self) -> int:
            return 0

    with application(db) as app, app.app_context():
        basket = Basket.create(name="a")
        for method in (Basket.get_or_create, Basket.update_or_create):
            found, created = method(name="a")
            assert found is basket
            assert not created


# The race, step by step -----------------------------------------------------------------------


@pytest.fixture
def on_file(db: SQLAlchemy, tmp_path: Path) -> Iterator[Any]:
    """The models on a database file, with another connection to write through."""
    models = declare(db)
    with application(db, f"sqlite:///{tmp_path / 'model.db'}") as app, app.app_context():
        begin_on_savepoint(db.engine)
        models.other = sa.create_engine(db.engine.url)
        yield models
        models.other.dispose()


def begin_on_savepoint(engine: sa.Engine) -> None:
    """Begin SQLite's transaction with the savepoint, as Flask-AutoSession does."""

    @sa.event.listens_for(engine, "savepoint")
    def begin(connection: sa.Connection, name: str) -> None:
        if not connection.connection.dbapi_connection.in_transaction:
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def overtake(db: SQLAlchemy, other: sa.Engine, *statements: str) -> None:
    """Let another connection write right before the next savepoint is set."""

    to_do = list(statements)

    @sa.event.listens_for(db.session, "after_transaction_create")
    def write(session: Any, transaction: Any) -> None:
        while transaction.nested and to_do:
            with other.begin() as connection:
                connection.exec_driver_sql(to_do.pop(0))


def test_the_loser_of_the_race_gets_the_winners_row(on_file, db):
    """A row that another connection commits between look-up and insert is what one gets."""
    overtake(db, on_file.other, "insert into team (id, name) values (77, 'a')")
    team, created = on_file.Team.get_or_create(name="a")
    assert (team.id, created) == (77, False)


def test_the_loser_of_the_race_updates_the_winners_row(on_file, db):
    """update_or_create() that loses the race sets its values on the winner's row."""
    overtake(db, on_file.other, "insert into member (email, age) values ('a@x', 1)")
    member, created = on_file.Member.update_or_create({"age": 2}, email="a@x")
    assert (member.age, created) == (2, False)
    assert rows(db, "select email, age from member") == [("a@x", 2)]


def test_losing_the_race_keeps_the_units_work(on_file, db):
    """What the unit wrote before a lost race is still there after it."""
    on_file.Seat.create(row=1, number=1)
    db.session.commit()
    seat = on_file.Seat.get((1, 1))
    overtake(db, on_file.other, "insert into team (id, name) values (77, 'a')")
    on_file.Team.get_or_create(name="a")
    seat.update(taken=True)
    db.session.commit()
    with on_file.other.connect() as connection:
        assert connection.scalars(sa.text("select taken from seat")).all() == [1]
        assert connection.scalars(sa.text("select id from team")).all() == [77]


def test_the_loser_leaves_no_trace_in_a_relationship(on_file, db):
    """The object that lost the race is in no collection of the objects it was related to."""
    team = on_file.Team.create(name="red")
    db.session.commit()
    assert team.members == []
    overtake(
        db,
        on_file.other,
        f"insert into member (id, email, team_id) values (77, 'a@x', {team.id})",
    )
    member, created = on_file.Member.get_or_create(email="a@x", team=team)
    assert (member.id, created) == (77, False)
    assert team.members == [member]


def test_the_winners_row_is_read_afresh(on_file, db):
    """An object that the session already holds is refreshed from the winner's row."""
    member = on_file.Member.create(email="old@x", age=1)
    db.session.commit()
    assert member.email == "old@x"
    overtake(db, on_file.other, "update member set email = 'a@x', age = 5")
    assert on_file.Member.get_or_create(email="a@x") == (member, False)
    assert (member.email, member.age) == ("a@x", 5)


def test_a_row_deleted_before_it_could_be_locked_is_created(models, db):
    """update_or_create() creates the row anew if it goes between the look-up and the lock."""
    member = models.Member.create(email="a@x", age=1)
    old_id = member.id
    seen: list[str] = []

    def vanish(state: Any) -> None:
        seen.append("select")
        if len(seen) == 2:
            state.session.connection().exec_driver_sql("delete from member")

    sa.event.listen(db.session, "do_orm_execute", vanish)
    db.session.expunge_all()
    new, created = models.Member.update_or_create({"age": 2, "id": old_id + 1}, email="a@x")
    assert (created, new.id) == (True, old_id + 1)
    assert rows(db, "select email, age from member") == [("a@x", 2)]


# The race of threads --------------------------------------------------------------------------

THREADS = 8
SERVICES = {
    "postgresql": (
        "postgresql+psycopg://postgres@127.0.0.1:5432/postgres",
        "start PostgreSQL on 127.0.0.1:5432 with a role postgres that needs no password",
    ),
    "mariadb": (
        "mysql+pymysql://root@127.0.0.1:3306/mysql",
        "start MariaDB on 127.0.0.1:3306 with a user root that needs no password",
    ),
}


def answers(url: sa.URL) -> bool:
    try:
        with closing(socket.create_connection((url.host, url.port), timeout=2)):
            return True
    except OSError:
        return False


@contextmanager
def database(backend: str, directory: Path) -> Iterator[sa.URL]:
    """Give a database of one's own, which is dropped in the end."""
    if backend == "sqlite":
        yield sa.make_url(f"sqlite:///{directory / 'race.db'}?timeout=30")
        return
    address, advice = SERVICES[backend]
    url = sa.make_url(address)
    if not answers(url):
        required = os.environ.get("AUTOSESSION_REQUIRE_SERVICES") == "1"
        complain: Callable[[str], None] = pytest.fail if required else pytest.skip
        complain(f"{backend} does not answer: {advice}")
    name = f"autosession_model_{os.getpid()}"
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
        try:
            yield url.set(database=name)
        finally:
            connection.exec_driver_sql(f"drop database {name}")


@dataclass
class Race:
    """An application on a real database, and a way to let threads run at the same time."""

    app: Flask
    db: SQLAlchemy
    models: Any

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """Call ``work`` in each thread, in a context of its own, and give what came of it."""
        barrier = threading.Barrier(THREADS)
        results: list[Any] = [None] * THREADS

        def thread(number: int) -> None:
            try:
                with self.app.app_context():
                    # A snapshot from before the race: only MariaDB's and SQLite's last.
                    self.db.session.execute(sa.text("select count(*) from team"))
                    barrier.wait(10)
                    results[number] = work(number)
                    self.db.session.commit()
            except Exception as error:
                results[number] = error

        threads = [threading.Thread(target=thread, args=(n,)) for n in range(THREADS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return results


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def race(request: pytest.FixtureRequest, db: SQLAlchemy, tmp_path: Path) -> Iterator[Race]:
    models = declare(db)
    with database(request.param, tmp_path) as url:
        options = {} if request.param == "sqlite" else {"pool_size": THREADS, "max_overflow": 0}
        with application(db, url, SQLALCHEMY_ENGINE_OPTIONS=options) as app:
            with app.app_context():
                if request.param == "sqlite":
                    begin_on_savepoint(db.engine)
            yield Race(app, db, models)


def is_deadlock(result: Any) -> bool:
    return isinstance(result, OperationalError) and any(
        word in str(result) for word in ("Deadlock found", "deadlock detected")
    )


def test_get_or_create_races_to_one_row(race):
    """Eight threads that ask for the same new row at once get one row, and one has created it."""
    for name in ("a", "b", "c", "d"):

        def work(number: int, name: str = name) -> tuple[int, bool]:
            team, created = race.models.Team.get_or_create(name=name)
            return team.id, created

        results = race.run(work)
        assert [r for r in results if isinstance(r, Exception)] == []
        assert Counter(created for _, created in results) == {True: 1, False: THREADS - 1}
        assert len({found for found, _ in results}) == 1
    with race.app.app_context():
        assert rows(race.db, "select count(*), count(distinct name) from team") == [(4, 4)]


@pytest.mark.parametrize("race", ["postgresql"], indirect=True)
def test_who_lost_the_race_can_update_the_row(race):
    """On PostgreSQL, all threads can update the row that they got, without a deadlock."""

    def work(number: int) -> None:
        race.models.Member.get_or_create(email="a")[0].update(age=number)

    assert race.run(work) == [None] * THREADS


def test_update_or_create_races_to_one_row(race):
    """Threads that update or create the same row at once leave one row; only a deadlock fails."""
    for email in ("a", "b", "c", "d"):

        def work(number: int, email: str = email) -> bool:
            return race.models.Member.update_or_create({"age": number}, email=email)[1]

        results = race.run(work)
        told = [r for r in results if not is_deadlock(r)]
        assert Counter(told)[True] == 1
        assert set(told) <= {True, False}
    with race.app.app_context():
        assert rows(race.db, "select count(*), count(distinct email) from member") == [(4, 4)]


@pytest.mark.parametrize("race", ["postgresql", "mariadb"], indirect=True)
def test_update_or_create_keeps_the_row_locked(race):
    """From update_or_create() to the end of the unit, nobody else can lock the found row."""
    with race.app.app_context():
        race.models.Dog.create(name="rex")
        race.db.session.commit()
        race.models.Dog.update_or_create(name="rex")
        with race.db.engine.connect() as connection, pytest.raises(OperationalError):
            connection.exec_driver_sql("select * from animal for update nowait")


@pytest.mark.parametrize("race", ["postgresql", "mariadb"], indirect=True)
def test_update_or_create_with_joined_eager_loading(race):
    """The lock works for a model that loads a relationship by an outer join."""
    with race.app.app_context():
        race.models.Member.create(email="a@x")
        assert not race.models.Member.update_or_create({"age": 1}, email="a@x")[1]


@pytest.mark.parametrize("race", ["postgresql"], indirect=True)
def test_update_or_create_lets_others_refer_to_the_row(race):
    """While a row is locked, others can insert rows with a foreign key to it."""
    with race.app.app_context():
        team = race.models.Team.create(name="red")
        race.db.session.commit()
        race.models.Team.update_or_create(name="red")
        with race.db.engine.begin() as connection:
            connection.exec_driver_sql("set local lock_timeout = '2s'")
            connection.exec_driver_sql(
                f"insert into member (email, team_id) values ('a@x', {team.id})"
            )
        assert [member.email for member in team.members] == ["a@x"]


# The swap -------------------------------------------------------------------------------------


class OwnModel(FsaModel):
    pass


class OwnSave(FsaModel):
    def save(self) -> str:
        return "own"


class Base(orm.DeclarativeBase):
    pass


class BaseNoMeta(orm.DeclarativeBaseNoMeta):
    pass


class TypedBase(ActiveRecord, orm.DeclarativeBase):
    pass


class TypedModel(ActiveRecord, FsaModel):
    pass


class DataclassBase(orm.MappedAsDataclass, orm.DeclarativeBase):
    pass


class DataclassBaseNoMeta(orm.MappedAsDataclass, orm.DeclarativeBaseNoMeta):
    pass


BASES: dict[str, Callable[[], Any]] = {
    "Model": lambda: FsaModel,
    "subclass of Model": lambda: OwnModel,
    "DeclarativeBase": lambda: Base,
    "DeclarativeBaseNoMeta": lambda: BaseNoMeta,
    "declarative_base()": orm.declarative_base,
    "ActiveRecord and DeclarativeBase": lambda: TypedBase,
    "ActiveRecord and Model": lambda: TypedModel,
}
if not SQLALCHEMY_21:  # There Flask-SQLAlchemy 3.1 fails with them: its issue 1420.
    BASES["MappedAsDataclass, DeclarativeBase"] = lambda: DataclassBase
    BASES["MappedAsDataclass, DeclarativeBaseNoMeta"] = lambda: DataclassBaseNoMeta


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_every_model_class_gets_the_methods(base):
    """For every model_class, models declared before and after the swap have all methods."""
    db = SQLAlchemy(model_class=base())

    class Before(db.Model):
        __tablename__ = "before"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(unique=True)

    swap_in(db)

    class After(db.Model):
        __tablename__ = "after"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
        name: orm.Mapped[str] = orm.mapped_column(unique=True)

    with application(db) as app, app.app_context():
        for model in (Before, After):
            made = model.create(id=1, name="a")
            assert made.update(name="b").save() is model.get(1) is made
            assert model.get_or_create(name="b") == (made, False)
            assert model.update_or_create({"id": 2}, name="b") == (made, False)
            made.delete()
            assert model.get(2) is None


def test_a_dataclass_model():
    """A dataclass model takes its fields, and those with init=False are set after __init__."""

    class PlainBase(orm.DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=PlainBase)
    swap_in(db)

    class User(orm.MappedAsDataclass, db.Model):
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True, init=False)
        name: orm.Mapped[str] = orm.mapped_column(unique=True)
        age: orm.Mapped[int] = orm.mapped_column(default=18)

    with application(db) as app, app.app_context():
        user = User.create(name="a")
        assert (user.id, user.age) == (1, 18)
        assert User.create(id=7, name="b").id == 7
        assert User.get_or_create({"age": 3}, name="a") == (user, False)
        with pytest.raises(TypeError, match="'agee'"):
            User.create(name="c", agee=1)


def test_the_bases_own_method_stays():
    """A method that the user's own base defines is left as it is."""
    db = SQLAlchemy(model_class=OwnSave)
    swap_in(db)

    class Thing(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)

    assert Thing().save() == "own"
    assert callable(Thing.update)


def test_the_models_own_method_stays_and_can_ask_ours(db):
    """A model's own save() is called by create() and update(), and super().save() flushes."""
    calls = []

    class Thing(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)

        def save(self) -> Any:
            calls.append(self.id)
            return super().save()

        @classmethod
        def create(cls, **attrs: Any) -> Any:
            return super().create(**attrs)

    with application(db) as app, app.app_context():
        Thing.create(id=1).update(id=2)
        Thing.get_or_create(id=3)
        assert rows(db, "select id from thing order by id") == [(2,), (3,)]
    assert calls == [1, 2, 3]


def test_a_mixins_own_method_stays_wherever_the_mixin_stands(db):
    """A mixin's save() and get() stay the model's, also if it is named after db.Model."""

    class Mixin:
        def save(self) -> str:
            return "mixin"

        @classmethod
        def get(cls, ident: Any) -> Any:
            return cls, ident

    class Left(Mixin, db.Model):
        id = sa.Column(sa.Integer, primary_key=True)

    class Right(db.Model, Mixin):
        id = sa.Column(sa.Integer, primary_key=True)

    assert (Left().save(), Right().save()) == ("mixin", "mixin")
    assert (Left.get(1), Right.get(1)) == ((Left, 1), (Right, 1))


def test_a_column_may_have_the_name_of_a_method(db):
    """A model may have columns called get, create and delete; its other methods still work."""

    class Right(db.Model):
        id = sa.Column(sa.Integer, primary_key=True)
        get = sa.Column(sa.Boolean)
        create = sa.Column(sa.Boolean)
        delete = sa.Column(sa.Boolean)

    with application(db) as app, app.app_context():
        Right(get=True).update(create=False, delete=True)
        Right.get_or_create(get=False)
        assert rows(db, 'select get, "create", "delete" from "right" order by id') == [
            (1, 0, 1),
            (0, None, None),
        ]


def test_swapping_twice_changes_nothing(db):
    """A second swap leaves the methods as they are."""
    before = dict(vars(db.Model))
    swap_in(db)
    assert dict(vars(db.Model)) == before


def test_two_databases_do_not_share_a_session(db):
    """Models of two SQLAlchemy objects write through their own session."""
    other = SQLAlchemy()
    swap_in(other)
    models, others = declare(db), declare(other)
    with application(db) as app, application(other) as second:
        with app.app_context():
            models.Team.create(name="a")
            db.session.commit()
        with second.app_context():
            others.Team.create(name="b")
            assert rows(other, "select name from team") == [("b",)]


def test_a_model_without_database_says_what_is_missing():
    """A model declared from the bare base, not from db.Model, gets an error that explains."""

    class Bare(ActiveRecord, orm.DeclarativeBase):
        pass

    class Lost(Bare):
        __tablename__ = "lost"
        id: orm.Mapped[int] = orm.mapped_column(primary_key=True)

    with pytest.raises(RuntimeError, match=r"Lost has no session: derive the model from db\.Model"):
        Lost().save()
