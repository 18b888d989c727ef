"""Rows 9 to 11 of the contract: writes that fail and are swallowed, and savepoints."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError, PendingRollbackError, StatementError
from sqlalchemy.orm.exc import StaleDataError

from flask_autosession import DoomedError

from .test_rows_request import answer
from .world import World, thing

Caplog = pytest.LogCaptureFixture


def warnings(caplog: Caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def swallow(function: Callable[[], Any], *errors: type[Exception]) -> None:
    with pytest.raises(errors or IntegrityError):
        function()


# Row 9


def _save(world: World) -> None:
    world.Thing(name="taken").save()


def _update(world: World) -> None:
    world.Thing.query.filter_by(name="free").one().update(name="taken")


def _delete(world: World) -> None:
    victim = world.Thing.query.filter_by(name="free").one()
    world.db.session.connection().exec_driver_sql("DELETE FROM thing WHERE name = 'free'")
    victim.delete()


@pytest.mark.parametrize("fail", [_save, _update])
def test_row_09_a_swallowed_failure_dooms_the_unit(
    world: World, fail: Callable[[World], None], caplog: Caplog
) -> None:
    """The response stays as it is, nothing is kept, and the log says what failed first, where."""
    world.database.insert("taken")
    world.database.insert("free")

    def view() -> str:
        world.Thing(name="gone").save()
        swallow(lambda: fail(world))
        return "the form, once more"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "free"]
    (told,) = warnings(caplog)
    assert "IntegrityError" in told
    assert __file__ in told
    assert "taken" not in told, "never a value of a user's data"


@pytest.mark.filterwarnings("ignore:DELETE statement on table:sqlalchemy.exc.SAWarning")
def test_row_09_what_is_no_database_error_dooms_alike(world: World, caplog: Caplog) -> None:
    """A flush that fails in SQLAlchemy itself, on a stale row, dooms the unit too."""
    world.database.insert("free")

    def view() -> str:
        changed = world.Thing.query.one()
        world.db.session.connection().exec_driver_sql("DELETE FROM thing")
        swallow(lambda: changed.update(name="new"), StaleDataError)
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["free"]
    assert "StaleDataError" in warnings(caplog)[0]


def test_row_09_the_database_is_rolled_back_at_once(world: World) -> None:
    """After a failure the unit's earlier writes are gone for its own queries as well."""
    world.database.insert("taken")
    seen: list[int] = []

    def view() -> Any:
        world.Thing(name="gone").save()
        swallow(lambda: _save(world))
        seen.append(world.Thing.query.count())
        return "no", 409

    assert answer(world, view) == 409
    assert seen == [1]


def _in_savepoint(world: World) -> None:
    with world.auto.savepoint():
        world.Thing(name="later").save()


WRITES: dict[str, Callable[[World], Any]] = {
    "save": lambda world: world.Thing(name="later").save(),
    "flush": lambda world: (
        world.db.session.add(world.Thing(name="later")),
        world.db.session.flush(),
    ),
    "core insert": lambda world: world.db.session.execute(sa.insert(thing).values(name="later")),
    "core update": lambda world: world.db.session.execute(sa.update(thing).values(name="later")),
    "core delete": lambda world: world.db.session.execute(sa.delete(thing)),
    "text": lambda world: world.db.session.execute(sa.text("DELETE FROM thing")),
    "connection": lambda world: world.db.session.connection().execute(sa.delete(thing)),
    "bulk": lambda world: world.db.session.bulk_insert_mappings(world.Thing, [{"name": "later"}]),
    "commit": lambda world: world.db.session.commit(),
    "auto.commit": lambda world: world.auto.commit(),
    "savepoint": _in_savepoint,
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_row_09_a_later_write_raises_doomed_error(
    world: World, write: Callable[[World], Any]
) -> None:
    """Whatever writes in a doomed unit is refused with an error that names the first failure."""
    world.database.insert("taken")
    errors: list[DoomedError] = []

    def view() -> str:
        swallow(lambda: _save(world))
        with pytest.raises(DoomedError) as caught:
            write(world)
        errors.append(caught.value)
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken"]
    assert isinstance(errors[0].first_failure, IntegrityError)
    assert errors[0].__cause__ is errors[0].first_failure
    assert __file__ in errors[0].where
    assert "IntegrityError" in str(errors[0])
    assert isinstance(errors[0], PendingRollbackError)


def test_row_09_reads_still_work_and_do_not_autoflush(world: World) -> None:
    """A form can be shown again: queries, get() and lazy loads work in a doomed unit."""
    world.database.insert("taken")
    seen: list[Any] = []

    def view() -> str:
        loaded = world.Thing.query.one()
        swallow(lambda: _save(world))
        world.db.session.add(world.Thing(name="pending"))
        seen.append(world.Thing.query.filter_by(name="taken").one() is loaded)
        seen.append(world.Thing.get(loaded.id) is loaded)
        seen.append(loaded.name)
        seen.append(world.db.session.scalar(sa.text("SELECT count(*) FROM thing")))
        return "told"

    assert answer(world, view) == 200
    assert seen == [True, True, "taken", 1]
    assert world.database.names == ["taken"]


def test_row_09_an_explicit_rollback_ends_the_doom(world: World, caplog: Caplog) -> None:
    """After db.session.rollback() the request starts over, and what follows is committed."""
    world.database.insert("taken")

    def view() -> str:
        swallow(lambda: _save(world))
        world.db.session.rollback()
        world.Thing(name="kept").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "kept"]
    assert warnings(caplog) == []


def test_row_09_a_failing_flush_in_the_view_that_escapes_reaches_its_handler(
    world: World,
) -> None:
    """The exception itself is SQLAlchemy's own, and error handlers get it as it is."""
    world.database.insert("taken")

    @world.app.errorhandler(IntegrityError)
    def handler(error: IntegrityError) -> Any:
        return "taken", 409

    assert answer(world, lambda: _save(world)) == 409


def test_row_09_autoflush_is_on_again_in_the_next_unit(world: World) -> None:
    """Once the doom is over, queries flush what is pending, as before."""
    world.database.insert("taken")
    seen: list[int] = []

    def view() -> str:
        swallow(lambda: _save(world))
        world.db.session.rollback()
        world.db.session.add(world.Thing(name="pending"))
        seen.append(world.Thing.query.count())
        return "told"

    answer(world, view)
    assert seen == [2]


# Row 10


def test_row_10_only_the_savepoint_is_rolled_back(world: World, caplog: Caplog) -> None:
    """A write that fails in a savepoint leaves the rest of the unit to be committed."""
    world.database.insert("taken")

    def view() -> str:
        world.Thing(name="before").save()

        def guarded() -> None:
            with world.auto.savepoint():
                world.Thing(name="inside").save()
                _save(world)

        swallow(guarded)
        world.Thing(name="after").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "before", "after"]
    assert warnings(caplog) == []


def test_row_10_any_exception_rolls_the_savepoint_back(world: World) -> None:
    """It need not be a database error that leaves the block."""

    def view() -> str:
        def guarded() -> None:
            with world.auto.savepoint():
                world.Thing(name="inside").save()
                raise KeyError("mine")

        swallow(guarded, KeyError)
        world.Thing(name="after").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["after"]


def test_row_10_what_is_swallowed_inside_raises_at_the_end_of_the_block(world: World) -> None:
    """A failure that was swallowed in the block undoes the block, and says so."""
    world.database.insert("taken")
    errors: list[DoomedError] = []

    def view() -> str:
        world.Thing(name="before").save()
        with pytest.raises(DoomedError) as caught, world.auto.savepoint():
            world.Thing(name="inside").save()
            swallow(lambda: _save(world))
        errors.append(caught.value)
        world.Thing(name="after").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "before", "after"]
    assert isinstance(errors[0].first_failure, IntegrityError)


CHANGES: dict[str, Callable[[World, Any], None]] = {
    "add": lambda world, victim: world.db.session.add(world.Thing(name="refused")),
    "change": lambda world, victim: setattr(victim, "name", "refused"),
    "delete": lambda world, victim: world.db.session.delete(victim),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("raw", [False, True])
def test_row_10_what_is_pending_after_a_failure_goes_with_the_block(
    world: World, change: Callable[[World, Any], None], raw: bool
) -> None:
    """Changes made in the block after a swallowed failure are not committed with the rest."""
    world.database.insert("taken")
    world.database.insert("free")

    def view() -> str:
        world.Thing.query.all()
        block: Any = world.db.session.begin_nested() if raw else world.auto.savepoint()
        with suppress(DoomedError, PendingRollbackError), block:
            victim = world.Thing.query.filter_by(name="free").one()
            assert victim.name == "free"
            swallow(lambda: _save(world))
            change(world, victim)
        world.Thing(name="after").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "free", "after"]


def test_row_10_a_swallowed_core_statement_inside_raises_too(world: World) -> None:
    """On every database alike, though only PostgreSQL refuses to go on by itself."""
    world.database.insert("taken")

    def view() -> str:
        with pytest.raises(DoomedError), world.auto.savepoint():
            world.Thing(name="inside").save()
            insert = sa.insert(thing).values(name="taken")
            swallow(lambda: world.db.session.execute(insert))
        world.Thing(name="after").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "after"]


def test_row_10_savepoints_nest(world: World) -> None:
    """An inner savepoint that fails leaves the outer one, and a failing outer takes the inner."""
    world.database.insert("taken")

    def view() -> str:
        with world.auto.savepoint():
            world.Thing(name="outer").save()
            swallow(lambda: _in(world, "taken"))
            _in(world, "inner")

        def both() -> None:
            with world.auto.savepoint():
                _in(world, "gone")
                raise KeyError

        swallow(both, KeyError)
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "outer", "inner"]


def _in(world: World, name: str) -> None:
    with world.auto.savepoint():
        world.Thing(name=name).save()


def test_row_10_unsaved_changes_belong_to_the_block_they_were_made_in(world: World) -> None:
    """A pending duplicate fails at the end of its block and is undone with it."""
    world.database.insert("taken")

    def view() -> str:
        world.db.session.add(world.Thing(name="before"))

        def guarded() -> None:
            with world.auto.savepoint():
                world.db.session.add(world.Thing(name="taken"))

        swallow(guarded)
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "before"]


def test_row_10_what_fails_before_the_block_is_not_the_blocks(world: World) -> None:
    """Pending work that fails when the savepoint is set dooms the unit, not the savepoint."""
    world.database.insert("taken")

    def view() -> str:
        world.db.session.add(world.Thing(name="taken"))
        swallow(lambda: _in(world, "inside"))
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken"]


def test_row_10_savepoint_decorates_functions(world: World) -> None:
    """Each call of a decorated function is a savepoint, for async functions too."""
    world.database.insert("taken")

    @world.auto.savepoint()
    def plain(name: str) -> Any:
        return world.Thing(name=name).save()

    @world.auto.savepoint()
    async def coroutine(name: str) -> Any:
        return world.Thing(name=name).save()

    async def view() -> str:
        swallow(lambda: plain("taken"))
        plain("plain")
        await coroutine("async")
        with pytest.raises(IntegrityError):
            await coroutine("taken")
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "plain", "async"]


def test_row_10_savepoint_refuses_generator_functions(world: World) -> None:
    """A generator's body runs after the call: decorating one is a clear error, at once."""
    with pytest.raises(TypeError, match="generator function"):

        @world.auto.savepoint()
        def generator() -> Any:
            yield


def test_row_10_a_rollback_inside_the_block_drops_the_whole_unit(
    world: World, caplog: Caplog
) -> None:
    """db.session.rollback() goes to the root even in a savepoint; the block's rest is refused."""

    def view() -> str:
        world.Thing(name="gone").save()
        with pytest.raises(sa.exc.InvalidRequestError), world.auto.savepoint():
            world.db.session.rollback()
            world.Thing(name="refused").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == []
    assert "rollback()" in warnings(caplog)[0]


# Row 11


def _raw_flush(world: World) -> None:
    world.db.session.add(world.Thing(name="taken"))
    world.db.session.flush()


def _autoflush(world: World) -> None:
    world.db.session.add(world.Thing(name="taken"))
    world.Thing.query.count()


STATEMENTS: dict[str, Callable[[World], Any]] = {
    "flush": _raw_flush,
    "autoflush": _autoflush,
    "core": lambda world: world.db.session.execute(sa.insert(thing).values(name="taken")),
    "bulk": lambda world: world.db.session.bulk_insert_mappings(world.Thing, [{"name": "taken"}]),
    "bulk objects": lambda w: w.db.session.bulk_save_objects([w.Thing(name="taken")]),
    "text": lambda world: world.db.session.execute(sa.text("INSERT INTO nowhere VALUES (1)")),
    "select": lambda world: world.db.session.execute(sa.text("SELECT nothing FROM nowhere")),
    "connection": lambda w: w.db.session.connection().exec_driver_sql("SELECT x FROM nowhere"),
    "parameter": lambda w: w.db.session.execute(sa.text("SELECT :missing")),
}


@pytest.mark.parametrize("fail", STATEMENTS.values(), ids=STATEMENTS)
def test_row_11_any_swallowed_statement_error_dooms_the_unit(
    world: World, fail: Callable[[World], Any], caplog: Caplog
) -> None:
    """Nothing is kept, reads work, writes are refused: the same on every database."""
    world.database.insert("taken")
    seen: list[int] = []

    def view() -> str:
        world.Thing(name="gone").save()
        swallow(lambda: fail(world), DBAPIError, StatementError)
        seen.append(world.Thing.query.count())
        with pytest.raises(DoomedError):
            world.Thing(name="later").save()
        return "told"

    assert answer(world, view) == 200
    assert seen == [1]
    assert world.database.names == ["taken"]
    (told,) = warnings(caplog)
    assert __file__ in told


def test_row_11_reads_work_after_a_second_failure_too(world: World) -> None:
    """However often something fails, what is read next is read in a transaction that works."""
    seen: list[int] = []

    def view() -> str:
        for _ in range(3):
            swallow(lambda: STATEMENTS["select"](world), DBAPIError)
        seen.append(world.Thing.query.count())
        return "told"

    assert answer(world, view) == 200
    assert seen == [0]


@pytest.mark.parametrize("fail", STATEMENTS.values(), ids=STATEMENTS)
def test_row_11_a_statement_error_as_the_last_thing_dooms_too(
    world: World, fail: Callable[[World], Any]
) -> None:
    """Nothing need come after the failure for the unit to be rolled back."""
    world.database.insert("taken")

    def view() -> str:
        world.Thing(name="gone").save()
        swallow(lambda: fail(world), DBAPIError, StatementError)
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken"]


@pytest.mark.parametrize("fail", STATEMENTS.values(), ids=STATEMENTS)
def test_row_11_a_raw_begin_nested_around_it_lifts_the_doom(
    world: World, fail: Callable[[World], Any], caplog: Caplog
) -> None:
    """What SQLAlchemy's own savepoint rolls back does not harm the rest."""
    world.database.insert("taken")

    def view() -> str:
        world.Thing(name="before").save()

        def guarded() -> None:
            with world.db.session.begin_nested():
                world.Thing(name="inside").save()
                fail(world)

        swallow(guarded, DBAPIError, StatementError)
        world.Thing(name="after").save()
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken", "before", "after"]
    assert warnings(caplog) == []


@pytest.mark.parametrize("how", ["core", "text", "select", "connection"])
def test_row_11_an_error_swallowed_inside_a_raw_begin_nested_dooms(
    world: World, how: str, caplog: Caplog
) -> None:
    """A savepoint that is released over an error hands the doom on to what is around it."""
    world.database.insert("taken")

    def view() -> str:
        world.Thing(name="before").save()
        try:
            with world.db.session.begin_nested():
                world.Thing(name="inside").save()
                swallow(lambda: STATEMENTS[how](world), DBAPIError)
        except DBAPIError:
            assert world.database.kind == "postgresql", "only it refuses to release"
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["taken"]
    assert warnings(caplog)


@pytest.mark.parametrize("handling", [False, True])
def test_row_11_a_raw_begin_nested_that_closes_in_silence_is_told_of(
    world: World, handling: bool, caplog: Caplog
) -> None:
    """SQLAlchemy rolls it back and raises nothing: what was thrown away is in the log."""
    world.database.insert("taken")

    def work() -> str:
        with world.db.session.begin_nested():
            world.Thing(name="gone").save()
            swallow(lambda: _save(world))
        return "told"

    @world.app.errorhandler(LookupError)
    def handler(error: LookupError) -> str:
        return work()

    def view() -> str:
        if handling:
            raise LookupError
        return work()

    assert answer(world, view) == 200
    assert world.database.names == ["taken"]
    (told,) = warnings(caplog)
    assert "IntegrityError" in told


def test_row_11_an_error_of_a_raw_cursor_is_found_on_postgresql(
    world: World, caplog: Caplog
) -> None:
    """PostgreSQL would answer COMMIT with a silent ROLLBACK; its driver is asked before."""
    if world.database.kind != "postgresql":
        pytest.skip("only PostgreSQL aborts the transaction")

    def view() -> str:
        world.Thing(name="gone").save()
        cursor = world.db.session.connection().connection.cursor()
        swallow(lambda: cursor.execute("SELECT x FROM nowhere"), Exception)
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == []
    assert "a place that only the database has seen" in warnings(caplog)[0]


def test_row_11_another_connection_may_fail_without_harm(world: World) -> None:
    """What goes wrong on a connection of the application's own dooms nothing."""

    def view() -> str:
        world.Thing(name="kept").save()
        with world.db.engine.connect() as connection:
            swallow(lambda: connection.exec_driver_sql("SELECT x FROM nowhere"), DBAPIError)
        return "told"

    assert answer(world, view) == 200
    assert world.database.names == ["kept"]
