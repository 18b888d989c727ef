from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from werkzeug.test import TestResponse


@pytest.mark.autosession("truncate")  # each customer has a real connection, and really commits
def test_orders_at_the_same_moment_never_sell_more_than_there_is(
    order: Callable[..., TestResponse], stock: Callable[[], dict[str, int]]
) -> None:
    with ThreadPoolExecutor(max_workers=5) as customers:
        responses = customers.map(lambda _: order(tea=3), range(5))
    assert sorted(response.status_code for response in responses) == [201, 201, 201, 409, 409]
    assert stock() == {"mate": 8, "tea": 1}
