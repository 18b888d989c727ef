"""The race between a request's commit and the task that it has asked for."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Response, g

from .conftest import Site


@pytest.mark.parametrize("method", ["delay", "delay_on_commit"])
def test_the_race_that_delay_on_commit_closes(prefork: Site, method: str) -> None:
    """Sent by delay(), a task does not find the row; by delay_on_commit(), the same view's does."""
    world = prefork.world
    app = world.make_app(CELERY={})
    world.auto.init_app(app)
    asked: list[Any] = []

    @app.post("/orders/<name>")
    def order(name: str) -> str:
        one = world.Thing(name=name).save()
        g.result = getattr(world.find, method)(one.id)
        asked.append(g.result)
        return "done"

    @app.after_request
    def take_time(response: Response) -> Response:
        """Hold the request up between the view and the commit, as a busy server does."""
        if method == "delay":
            prefork.worker.wait_for(f"Task world.find[{g.result.id}] succeeded")
        else:
            assert g.result.id not in prefork.worker.log
        return response

    found = []
    for number in range(5):
        assert app.test_client().post(f"/orders/order {number}").status_code == 200
        found.append(asked[-1].get(timeout=30))
    expected = [f"order {number}" for number in range(5)]
    assert world.database.names == expected
    assert found == ([None] * 5 if method == "delay" else expected)
    with app.app_context():
        world.db.engine.dispose()
