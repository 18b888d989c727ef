"""factory_boy and pytest-factoryboy, whose factories work over ``auto.session``."""

from __future__ import annotations

from .conftest import Project

FACTORIES = """
    import factory
    import pytest
    from conftest import Thing, auto
    from factory.alchemy import SQLAlchemyModelFactory
    from pytest_factoryboy import register

    @register
    class ThingFactory(SQLAlchemyModelFactory):
        class Meta:
            model = Thing
            sqlalchemy_session = auto.session
            sqlalchemy_session_persistence = "flush"

        name = factory.Sequence(lambda number: f"made {number}")
    """


def test_what_a_factory_makes_is_seen_by_requests_and_gone_after_the_test(
    project: Project,
) -> None:
    """Requests see the objects of factories, in a unit and around it, and no later test does."""
    project.write(
        test_it=FACTORIES
        + """
    def test_in_a_unit(app, names):
        with auto.unit(app):
            things = ThingFactory.create_batch(2)
        assert names() == [thing.name for thing in things]

    def test_around_a_request_that_fails(db_session, client, names):
        thing = ThingFactory(name="around")
        assert client.post("/things/inside?status=400").status_code == 400
        assert names() == ["around"]
        db_session.refresh(thing)

    @pytest.mark.autosession("truncate")
    def test_committed_for_real(app, names):
        with auto.unit(app):
            ThingFactory(name="real")
        assert names() == ["real"]

    def test_nothing_is_left(names):
        assert names() == []
    """
    )
    project.run().assert_outcomes(passed=4)
    assert project.names == []


def test_the_fixtures_of_pytest_factoryboy_are_made_in_the_context_of_db_session(
    project: Project,
) -> None:
    """A model's fixture is flushed before the test runs, with the values of its parameters."""
    project.write(
        test_it=FACTORIES
        + """
    pytestmark = pytest.mark.usefixtures("db_session")

    @pytest.mark.parametrize("thing__name", ["first", "second"])
    def test_one(thing, client, names):
        assert thing.id is not None
        assert names() == [thing.name]
        assert client.post("/things/third").status_code == 201

    def test_several(thing_factory, names):
        thing_factory.create_batch(3)
        assert len(names()) == 3
    """
    )
    project.run().assert_outcomes(passed=3)
    assert project.names == []
