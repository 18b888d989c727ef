"""Prints the table: a row for each request, of as many lines as its longest cell needs."""

from __future__ import annotations

import json
from itertools import zip_longest
from textwrap import wrap

from promises import Fact, Promise

COLUMNS = {"": 2, "request": 36, "status": 6, "unit of work": 25, "another connection sees": 23}


def header() -> str:
    """Return the names of the columns, underlined."""
    return _row(*([name] for name in COLUMNS)) + "\n" + _row(*(["-" * n] for n in COLUMNS.values()))


def row(number: int, promise: Promise, fact: Fact, reasons: list[str]) -> str:
    """Return the lines that tell what came of a request."""
    request = [f"{promise.method} {promise.path}"]
    if promise.body is not None:
        request.append(json.dumps(promise.body))
    if fact.answer is not None:
        request.append(f"> {json.dumps(fact.answer)}")
    units = [" and ".join(fact.units) or "nothing", *reasons]
    return _row([str(number)], request, [str(fact.status)], units, fact.database.split("; "))


def differences(promised: Fact, seen: Fact) -> list[str]:
    """Return what is not as promised, in words."""
    pairs = {
        "status": (str(promised.status), str(seen.status)),
        "unit of work": (" and ".join(promised.units), " and ".join(seen.units) or "nothing"),
        "another connection sees": (promised.database, seen.database),
        "answer": (json.dumps(promised.answer), json.dumps(seen.answer)),
    }
    return [f"{what}: promised {a}, but got {b}" for what, (a, b) in pairs.items() if a != b]


def _row(*cells: list[str]) -> str:
    widths = list(COLUMNS.values())
    wrapped = [
        [line for part in cell for line in wrap(part, width)]
        for cell, width in zip(cells, widths, strict=True)
    ]
    lines = (
        "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True))
        for parts in zip_longest(*wrapped, fillvalue="")
    )
    return "\n".join(line.rstrip() for line in lines)
