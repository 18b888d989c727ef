"""The benchmark of what a request costs: its applications work, and its figures are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks import blocks, cost, counting, ratios, report
from benchmarks.contenders import CONTENDERS, with_their_bases
from benchmarks.databases import server_database
from benchmarks.workloads import WORKLOADS

from .world import Database

NAMES = ["flask_by_hand", "ours", "flask_naive"]
KEYS = [(name, workload.name) for name in NAMES for workload in WORKLOADS]


def test_each_workload_leaves_what_it_says() -> None:
    """Ours, the commit by hand and the naive one answer alike, and leave the same rows."""
    with blocks.make_blocks(NAMES, "sqlite") as made:
        assert sorted(block.key for block in made) == sorted(KEYS)
        for block in made:
            block.warm_up(times=1)


def test_rows_too_many_are_an_error() -> None:
    """A contender that keeps what it should not is told by name."""
    with blocks.make_blocks(["ours"], "sqlite") as made:
        [wrong] = [block for block in made if block.key == ("ours", "insert")]
        wrong._workload = next(workload for workload in WORKLOADS if workload.name == "read")
        with pytest.raises(RuntimeError, match=r"'ours', 'insert'\).* 1 requests .* 1 rows"):
            wrong.warm_up(times=1)


def test_a_database_is_dropped_whatever_happens(postgresql: Database) -> None:
    """A contender that fails leaves no database behind, not even one that is still in use."""
    with pytest.raises(ZeroDivisionError), server_database("postgresql") as uri:
        held = sa.create_engine(uri).connect()
        name = held.scalar(sa.text("SELECT current_database()"))
        1 / 0  # noqa: B018
    held.invalidate()
    assert name.startswith("autosession_bench_")
    assert (name,) not in postgresql.rows("SELECT datname FROM pg_database")


def test_explicit_forms_come_along() -> None:
    """Whoever asks for a contender gets what it is held against, right before it."""
    assert with_their_bases(["django_atomic", "ours"]) == [
        *("flask_by_hand", "ours"),
        *("django_by_hand", "django_atomic"),
    ]
    assert all(CONTENDERS[name].base in CONTENDERS for name in CONTENDERS if CONTENDERS[name].base)


def test_ratios_are_taken_round_by_round() -> None:
    """A round in which the machine was slow for both counts like any other."""
    samples = {("flask_by_hand", "ok"): [1.0, 10.0, 2.0], ("ours", "ok"): [2.0, 20.0, 200.0]}
    assert ratios.to_their_bases(samples) == {("ours", "ok"): 2.0}
    assert ratios.medians(samples, 10)["ours", "ok"] == 200.0


def test_exceeded_budgets_have_a_line_each() -> None:
    """What is within its budget is not mentioned."""
    found = {("ours", "ok"): 1.004, ("ours", "read"): 1.05, ("ours", "many"): 1.2}
    lines = cost.exceeded(found, {"ok": 1.0, "read": 1.05, "many": 1.01}, "instructions on SQLite")
    assert [line.partition(":")[0] for line in lines] == ["ok", "many"]
    assert "1.004 times the instructions on SQLite" in lines[0]
    assert "budget is 1.00" in lines[0]


def test_each_workload_has_a_budget() -> None:
    """None is left out of the check."""
    assert list(cost.BUDGET) == [workload.name for workload in WORKLOADS]


@pytest.mark.parametrize(("required", "code"), [("", 0), ("1", 1)])
def test_a_check_that_cannot_count_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], required: str, code: int
) -> None:
    """Without valgrind the check passes, unless all services are required."""
    monkeypatch.setattr(counting, "is_available", lambda: False)
    monkeypatch.setenv("AUTOSESSION_REQUIRE_SERVICES", required)
    assert cost.main(["--check"]) == code
    assert "valgrind is not installed" in capsys.readouterr().err


def test_tables_have_a_row_for_each_workload_and_a_column_for_each_contender() -> None:
    """The ratios stand above the figures of the explicit forms, with their units."""
    result = report.Result("SQLite", NAMES)
    result.ratios["time"] = dict.fromkeys(KEYS, 1.234)
    result.absolutes["thousand instructions"] = dict.fromkeys(KEYS, 12345.6)
    result.absolutes["microseconds"] = dict.fromkeys(KEYS, 78.9)
    first, header, rule, *rows = filter(None, result.to_markdown().splitlines())
    assert first == "**SQLite: time, by hand = 1.00**"
    assert header == "| request | Flask-AutoSession | `after_request` commit |"
    assert rule == "| --- | ---: | ---: |"
    assert rows[0] == "| `ok`: no database | 1.23 | 1.23 |"
    count = len(WORKLOADS)
    assert rows[count] == "**SQLite: a request by hand, thousand instructions / microseconds**"
    assert rows[count + 1] == "| request | Flask-SQLAlchemy |"
    assert rows[-1].endswith("| 12,346 / 79 |")
    assert len(rows) == 2 * count + 3


def test_the_report_names_where_it_comes_from() -> None:
    """The command, the machine, the servers and the libraries that are installed."""
    line = report.describe("python -m benchmarks.cost", ["PostgreSQL 15.1"])
    assert line.startswith("`python -m benchmarks.cost`, on ")
    for part in (" cores, ", "Python 3.", "PostgreSQL 15.1", "Flask-SQLAlchemy ", "SQLAlchemy 2."):
        assert part in line


def test_a_page_keeps_what_stands_around_the_markers() -> None:
    """Writing twice is like writing once."""
    page = f"# Cost\n\n{report.BEGIN}\nold\n{report.END}\n\nMore.\n"
    once = report.replace_marked(page, "new")
    assert once == f"# Cost\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n\nMore.\n"
    assert report.replace_marked(once, "new") == once


def test_what_is_printed_is_what_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The page gets the command with all its options, the versions and the tables."""

    def measure(names: list[str], database: str, rounds: int) -> report.Result:
        assert (names, database, rounds) == (["flask_by_hand", "ours"], "sqlite", 3)
        return report.Result("SQLite", names, {"time": dict.fromkeys(KEYS, 1.5)})

    monkeypatch.setattr(cost, "measure", measure)
    file = tmp_path / "page.md"
    file.write_text(f"{report.BEGIN}\n{report.END}\n")
    options = ["sqlite", "--contenders", "ours", "--rounds", "3", "--write", str(file)]
    assert cost.main(options) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"`python -m benchmarks.cost {' '.join(options)}`, on ")
    assert ", SQLite 3." in printed
    assert "| `ok`: no database | 1.50 |" in printed
    assert file.read_text() == f"{report.BEGIN}\n\n{printed.strip()}\n\n{report.END}\n"


@pytest.mark.parametrize(
    "page",
    [
        "no markers",
        report.BEGIN,
        f"{report.END} {report.BEGIN}",
        f"{report.BEGIN} {report.END} {report.END}",
        f"{report.BEGIN} {report.BEGIN} {report.END}",
    ],
)
def test_a_page_without_its_markers_is_refused_before_anything_is_measured(
    tmp_path: Path, page: str
) -> None:
    """The error says which two lines are needed."""
    file = tmp_path / "page.md"
    file.write_text(page)
    with pytest.raises(ValueError, match="cost: begin"):
        cost.main(["sqlite", "--write", str(file)])
    assert file.read_text() == page


def test_an_unknown_database_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The message lists those there are."""
    with pytest.raises(SystemExit):
        cost.main(["oracle"])
    assert "'oracle': choose among sqlite, postgresql" in capsys.readouterr().err


def test_totals_are_those_of_the_blocks() -> None:
    """Callgrind writes a part at each mark: what lay before the block, and the block."""
    parts = ["events: Ir\ntotals: 7\n", "fn=x\ntotals: 100\n", "totals: 8\n", "totals: 200\n"]
    assert counting.read_totals(parts) == [100, 200]
    with pytest.raises(ValueError, match="without a total"):
        counting.read_totals(["totals: 7\n", "cut off"])
