"""Flask-RESTX, which puts itself in the place of the application's error handling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, abort, redirect
from sqlalchemy.exc import IntegrityError

from tests.world import Database

from . import Site

flask_restx = pytest.importorskip("flask_restx", reason="Flask-RESTX is not installed")


class ApiFirst(Site):
    """An application whose API was there before its AutoSession."""

    def make_app(self, **config: Any) -> Flask:
        app = super().make_app(**config)
        self.api = flask_restx.Api(app)
        return app


class ApiLast(Site):
    """An application that had its AutoSession before its API."""

    def __init__(self, database: Database, **config: Any) -> None:
        super().__init__(database, **config)
        self.api = flask_restx.Api(self.app)


@pytest.fixture(params=[ApiFirst, ApiLast])
def site(request: pytest.FixtureRequest, database: Database) -> Iterator[Any]:
    site = request.param(database, RESTX_ERROR_404_HELP=False)
    add_resources(site)
    yield site
    site.close()


def add_resources(site: Any) -> None:
    api, Thing = site.api, site.Thing
    found: dict[str, Any] = {
        "created": lambda: ({"id": 1}, 201),
        "refused": lambda: ({"message": "no"}, 400),
        "missing": lambda: abort(404),
        "api-abort": lambda: api.abort(409, "no"),
        "moved": lambda: abort(redirect("/elsewhere")),
    }

    @api.route("/things/<name>/<how>")
    class Things(flask_restx.Resource):  # type: ignore[misc]
        def post(self, name: str, how: str) -> Any:
            made = Thing(name=name).save()
            if how == "pending":
                made.name = "taken"
                return {}, 201
            if how == "raised":
                raise LookupError(name)
            return found[how]()


@pytest.mark.parametrize(
    ("how", "status", "durable"),
    [
        ("created", 201, ["a"]),
        ("refused", 400, []),
        ("missing", 404, []),
        ("api-abort", 409, []),
        ("raised", 500, []),
        ("moved", 302, ["a"]),
    ],
)
def test_the_response_of_a_resource_decides(
    site: Any, how: str, status: int, durable: list[str]
) -> None:
    """A resource's work is committed below 400, and rolled back otherwise."""
    response = site.app.test_client().post(f"/things/a/{how}")
    assert response.status_code == status
    assert response.is_json
    assert site.database.names == durable


def test_row_04_work_of_a_resource_that_raised_stays_rolled_back(site: Any) -> None:
    """The API's error handler answers 200 and keeps its own row, not the resource's."""

    @site.api.errorhandler(LookupError)
    def handled(error: LookupError) -> tuple[dict[str, str], int]:
        site.Thing(name="handler").save()
        return {"message": "handled"}, 200

    response = site.app.test_client().post("/things/a/raised")
    assert (response.status_code, response.json) == (200, {"message": "handled"})
    assert site.database.names == ["handler"]


def test_row_06_the_handler_of_the_api_is_asked_once(site: Any) -> None:
    """A pending change that fails goes to the API's own error handler, which answers once."""
    asked: list[str] = []

    @site.api.errorhandler(IntegrityError)
    def handled(error: IntegrityError) -> tuple[dict[str, str], int]:
        asked.append(type(error).__name__)
        return {"message": "taken"}, 409

    site.database.insert("taken")
    response = site.app.test_client().post("/things/a/pending")
    assert (response.status_code, response.json) == (409, {"message": "taken"})
    assert asked == ["IntegrityError"]
    assert site.database.names == ["taken"]


def test_row_06_without_a_handler_the_api_answers_500(site: Any) -> None:
    """A pending change that fails is never told 201."""
    site.database.insert("taken")
    response = site.app.test_client().post("/things/a/pending")
    assert response.status_code == 500
    assert site.database.names == ["taken"]


def test_row_06_a_handler_whose_own_work_fails_is_a_500(site: Any) -> None:
    """An API's error handler that cannot keep what it wrote does not answer 200."""
    asked: list[str] = []

    @site.api.errorhandler(IntegrityError)
    def handled(error: IntegrityError) -> tuple[dict[str, str], int]:
        asked.append(type(error).__name__)
        site.db.session.add(site.Thing(name="taken"))
        return {"message": "fine"}, 200

    site.database.insert("taken")
    response = site.app.test_client().post("/things/a/pending")
    assert response.status_code == 500
    assert asked == ["IntegrityError"]
    assert site.database.names == ["taken"]


def test_row_06_a_handler_of_another_error_whose_work_fails_is_a_500(site: Any) -> None:
    """Nor does one that was asked about an exception of the resource."""
    asked: list[str] = []

    @site.api.errorhandler(LookupError)
    def handled(error: LookupError) -> tuple[dict[str, str], int]:
        asked.append(type(error).__name__)
        site.db.session.add(site.Thing(name="taken"))
        return {"message": "fine"}, 200

    site.database.insert("taken")
    response = site.app.test_client().post("/things/a/raised")
    assert response.status_code == 500
    assert asked == ["LookupError"]
    assert site.database.names == ["taken"]


def test_row_07_the_answer_to_a_failing_after_request_function_is_true(site: Any) -> None:
    """What the API's error handler writes is durable if it answers 200, whoever has raised."""

    @site.app.after_request
    def fail(response: Any) -> Any:
        raise LookupError

    @site.api.errorhandler(LookupError)
    def handled(error: LookupError) -> tuple[dict[str, str], int]:
        site.Thing(name="handler").save()
        return {"message": "handled"}, 200

    response = site.app.test_client().post("/things/a/created")
    assert (response.status_code, site.database.names) == (200, ["handler"])


def test_a_view_outside_of_the_api_keeps_its_own_error_handling(site: Any) -> None:
    """An ordinary view beside the API is handled, and rolled back, by Flask as ever."""

    @site.app.post("/plain")
    def plain() -> str:
        site.Thing(name="plain").save()
        raise LookupError

    @site.app.errorhandler(LookupError)
    def handled(error: LookupError) -> tuple[str, int]:
        return "handled", 200

    assert site.app.test_client().post("/plain").text == "handled"
    assert site.database.names == []
