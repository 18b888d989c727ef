"""The requests that are sent, and what is promised for each: the script of the demonstration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fact:
    """What came of a request: as promised, or as observed."""

    status: int
    """What the client was told."""
    units: tuple[str, ...]
    """How the request's units of work ended, told by the extension's signals."""
    database: str
    """What another connection sees afterwards."""
    answer: Any
    """The JSON that the client got."""


@dataclass(frozen=True)
class Promise:
    """A request, and what has to come of it."""

    method: str
    path: str
    body: dict[str, Any] | None
    fact: Fact


def _promise(
    request: str, body: dict[str, Any] | None, status: int, unit: str, database: str, answer: Any
) -> Promise:
    method, path = request.split()
    return Promise(method, path, body, Fact(status, (unit,), database, answer))


PROMISES = (
    # Said "done": committed.
    _promise("POST /products", {"name": "tea", "stock": 10}, 201, "committed", "tea 10", {"id": 1}),
    # A duplicate: the database raises, a handler makes it a 409, the unit is gone.
    _promise(
        "POST /products",
        {"name": "tea", "stock": 99},
        409,
        "rolled back",
        "tea 10",
        {"error": "Conflict"},
    ),
    # Two tables, one unit.
    _promise(
        "POST /products/tea/orders",
        {"quantity": 3},
        201,
        "committed",
        "tea 7; order: 3 tea",
        {"left": 7},
    ),
    # The view has written both when it finds that it cannot be, and returns 409.
    _promise(
        "POST /products/tea/orders",
        {"quantity": 9},
        409,
        "rolled back",
        "tea 7; order: 3 tea",
        {"error": "only 7 left"},
    ),
    # The view has written both when something else breaks.
    _promise(
        "POST /products/tea/orders",
        {"quantity": 2, "voucher": "XMAS"},
        500,
        "rolled back",
        "tea 7; order: 3 tea",
        {"error": "Internal Server Error"},
    ),
    # One of three fails, behind its savepoint; two are kept.
    _promise(
        "POST /products/batch",
        {"coffee": 5, "tea": 1, "mate": 8},
        200,
        "committed",
        "tea 7, coffee 5, mate 8; order: 3 tea",
        {"refused": ["tea"]},
    ),
    # An attribute is assigned; nobody calls save().
    _promise(
        "PUT /products/coffee",
        {"stock": 6},
        200,
        "committed",
        "tea 7, coffee 6, mate 8; order: 3 tea",
        {"coffee": 6},
    ),
    _promise(
        "DELETE /products/mate",
        None,
        204,
        "committed",
        "tea 7, coffee 6; order: 3 tea",
        None,
    ),
    # Reading takes no ceremony either.
    _promise(
        "GET /products",
        None,
        200,
        "committed",
        "tea 7, coffee 6; order: 3 tea",
        {"coffee": 6, "tea": 7},
    ),
)
