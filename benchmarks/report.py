"""Writes what was measured as Markdown, and puts it into a page of the documentation."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.ratios import Key
from benchmarks.workloads import WORKLOADS

BEGIN, END = "<!-- cost: begin -->", "<!-- cost: end -->"
PACKAGES = (
    *("Flask", "Werkzeug", "Flask-SQLAlchemy", "SQLAlchemy", "psycopg"),
    *("advanced-alchemy", "pyramid", "pyramid_tm", "zope.sqlalchemy", "Django"),
)


@dataclass
class Result:
    """What was measured on one database.

    :param database: Its name, for people.
    :param names: The contenders, explicit forms included.
    :param ratios: What was measured, and for each contender and workload how many times as much as
        in its explicit form.
    :param absolutes: The unit, and for each explicit form and workload how many of it.
    """

    database: str
    names: Sequence[str]
    ratios: dict[str, Mapping[Key, float]] = field(default_factory=dict)
    absolutes: dict[str, Mapping[Key, float]] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return one table for each measure, and one of the explicit forms."""
        automatic = [name for name in self.names if CONTENDERS[name].base]
        parts = [
            f"**{self.database}: {measure}, by hand = 1.00**\n\n"
            + _table(automatic, lambda key, of=ratios: f"{of[key]:.2f}")  # type: ignore[misc]
            for measure, ratios in self.ratios.items()
        ]
        by_hand = [name for name in self.names if not CONTENDERS[name].base]

        def cell(key: Key) -> str:
            return " / ".join(f"{numbers[key]:,.0f}" for numbers in self.absolutes.values())

        units = " / ".join(self.absolutes)
        parts.append(f"**{self.database}: a request by hand, {units}**\n\n{_table(by_hand, cell)}")
        return "\n\n".join(parts)


def _table(names: Sequence[str], cell: Callable[[Key], str]) -> str:
    """Return a table with a row for each workload, and a column for each contender."""
    rows = [
        ["request", *(CONTENDERS[name].title for name in names)],
        ["---", *("---:" for _ in names)],
        *(
            [f"`{work.name}`: {work.what}", *(cell((name, work.name)) for name in names)]
            for work in WORKLOADS
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def describe(command: str, servers: Sequence[str] = ()) -> str:
    """Say where, and with what, it was measured.

    :param command: What was run.
    :param servers: The database servers, with their versions.
    """
    made = (f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    return (
        f"`{command}`, on {_processor()}, {os.cpu_count()} cores, {platform.system()}; "
        + ", ".join([f"Python {platform.python_version()}", *servers, *made])
        + ". Instructions and CPU time are those of the application's own process: what a server"
        " does shows in the time only."
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    """Return the processor's name, which Python knows on few systems."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def replace_marked(page: str, content: str) -> str:
    """Return the page with the content between its two markers.

    :raises ValueError: If it does not have each of them once, in this order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in before + after:
        raise ValueError(f"the page needs one line {BEGIN!r} and, below it, one line {END!r}")
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"
