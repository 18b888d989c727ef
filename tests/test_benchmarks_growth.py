"""The benchmarks of growth and of load: that they run, and that they read their numbers right."""

from __future__ import annotations

import http.client
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.growth import pictures, report
from benchmarks.growth.__main__ import SERIES as TOPICS
from benchmarks.growth.__main__ import main as growth
from benchmarks.growth.measure import Point
from benchmarks.growth.memory import Left, Look, collect
from benchmarks.growth.series import SERIES
from benchmarks.growth.subjects import BY_HAND, KINDS, OURS, WHO
from benchmarks.load.__main__ import main as load
from benchmarks.load.app import DATABASE, POOL, SUBJECT
from benchmarks.load.client import Round
from benchmarks.load.holding import Holding
from benchmarks.load.report import percentile, row
from benchmarks.load.server import serve


def points(who: str, *costs: float) -> list[Point]:
    """Make up what 1, 10 and 100 things have cost."""
    return [Point(SERIES[0], 10**power, who, cost) for power, cost in enumerate(costs)]


def left(garbage: float = 8, kind: str = "ok", who: str = OURS, blocks: int = 0) -> Left:
    """Make up what requests have left behind; so many blocks after 100,000 of them."""
    looks = (Look(0, 1000, 2**20), Look(100_000, 1000 + blocks, 2**21))
    return Left(who, kind, garbage, looks)


def lines(table: str) -> list[list[str]]:
    """Take a table apart, without its head."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("topic", TOPICS)
def test_growth_measures_every_size_of_both(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial runs each series, and tells its costs, its costs by thing and the ratio."""
    assert growth([topic, "--quick", "--times"]) == 0
    expected = [
        [series.name, str(size)]
        for series in SERIES
        if series.topic == topic
        for size in series.quick
    ]
    found = lines(capsys.readouterr().out.partition("\n\n")[2].strip())
    assert [line[:2] for line in found] == expected
    assert all(float(cell.replace(",", "")) > 0 for line in found for cell in line[2:])


def test_growth_tells_the_memory_and_the_garbage(capfd: pytest.CaptureFixture[str]) -> None:
    """A trial looks at each kind of request, and finds no garbage that is not Flask's own."""
    assert growth(["memory", "--quick", "--check"]) == 0
    found = lines(capfd.readouterr().out.partition("## garbage\n\n")[2].strip())
    assert [line[0] for line in found] == list(KINDS)


def test_a_cost_that_grows_faster_than_its_size_is_a_problem() -> None:
    """Ten times as many things may cost ten times as much, and some more where it does by hand."""
    linear = points(BY_HAND, 10, 100, 1000)
    square = points(BY_HAND, 1, 100, 10_000)
    assert report.growth_problems([*linear, *points(OURS, 20, 200, 2000)]) == []
    assert report.growth_problems([*square, *points(OURS, 2, 200, 20_000)]) == []
    (problem,) = report.growth_problems([*linear, *points(OURS, 2, 200, 4000)])
    assert problem == (
        "endings, loaded, commit: grows 2.00 times as much as the size does, by hand 1.00 times"
    )


def test_the_table_of_growth_tells_what_one_of_many_costs() -> None:
    """A line has the costs in whole, those of one thing, and the ratio of ours."""
    table = report.growth_table([*points(BY_HAND, 1, 50), *points(OURS, 2, 60)], "instructions")
    assert lines(table)[1] == ["loaded, commit", "10", "50", "60", "5.0", "6.0", "1.20"]


def test_memory_that_grows_is_a_problem() -> None:
    """A block that each tenth request keeps is told; what is kept once is not."""
    assert report.memory_problems([left(who=BY_HAND), left(blocks=100)]) == []
    (problem,) = report.memory_problems([left(who=BY_HAND), left(blocks=10_000)])
    assert problem == "ok, ours: 0.100 blocks are kept of each request"
    assert lines(report.memory_table([left(blocks=10_000)])) == [
        ["ok", "ours", "100,000", "1.0", "2.0", "0.1000"]
    ]


def test_garbage_that_flask_does_not_leave_is_a_problem() -> None:
    """One object more than by hand is told, but for requests that are left as a whole anyway."""
    assert report.memory_problems([left(8, who=BY_HAND), left(8)]) == []
    assert report.memory_problems([left(68, "raised", BY_HAND), left(97, "raised")]) == []
    (problem,) = report.memory_problems([left(8, who=BY_HAND), left(9)])
    assert problem == ("ok: 9.00 objects are left to the garbage collector, by hand 8.00")


def test_garbage_is_counted_by_request() -> None:
    """A request that leaves one list which holds itself leaves one object."""

    def visit() -> None:
        circle: list[object] = []
        circle.append(circle)

    assert collect(visit, 10) == 1


def test_pictures_are_the_same_again_from_the_same_numbers(tmp_path: Path) -> None:
    """What has not changed makes no difference to a picture, and its letters are text."""
    pytest.importorskip("matplotlib")
    measured = [*points(BY_HAND, 1, 10, 100), *points(OURS, 2, 20, 200)]
    remains = [left(kind=kind, who=who) for kind in ("ok", "write") for who in WHO]
    pictures.draw_memory(remains, tmp_path / "memory.svg")
    pictures.draw_garbage(remains, tmp_path / "garbage.svg")
    for name in ("first.svg", "again.svg"):
        pictures.draw_growth(measured, "instructions", tmp_path / name)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn["first.svg"] == drawn["again.svg"]
    assert all(">ours</text>" in picture for picture in drawn.values())


def test_load_serves_both_and_tells_what_they_did(capsys: pytest.CaptureFixture[str]) -> None:
    """A trial with a real server each prints a line for each view of each application."""
    options = ["--quick", "--database", "sqlite", "--threads", "2", "--pool", "1"]
    assert load(["insert", "page", *options]) == 0
    found = lines(capsys.readouterr().out.partition("\n\n")[0])
    assert [line[:2] for line in found] == [[v, w] for v in ("insert", "page") for w in WHO]
    assert all(float(cell) > 0 for line in found for cell in line[2:])


def test_a_server_is_stopped_when_the_measurement_fails(tmp_path: Path) -> None:
    """Whatever goes wrong, nothing answers on its port any more."""
    environment = {SUBJECT: OURS, DATABASE: f"sqlite:///{tmp_path / 'load.db'}", POOL: "1"}
    with pytest.raises(ZeroDivisionError), serve(1, environment) as address:
        raise ZeroDivisionError
    connection = http.client.HTTPConnection(*address, timeout=5)
    with closing(connection), pytest.raises(ConnectionError):
        connection.connect()


def test_a_line_of_the_load_joins_the_rounds() -> None:
    """Throughput is the median of the rounds; the rest is about all of their requests."""
    slow, quick = Round(2.0, [0.002] * 100, [0.001] * 100), Round(1.0, [0.001] * 100, [0.0] * 100)
    assert row("read", OURS, [slow, quick, quick]) == [
        *("read", "ours", "100", "1.0", "2.0", "0.33", "1.00")
    ]


def test_a_percentile_is_one_of_the_values() -> None:
    """Of a hundred values the 99th is not exceeded by 99 percent of them; of one it is that one."""
    assert percentile(list(range(100, 0, -1)), 0.99) == 99
    assert percentile([7.0], 0.5) == 7.0


def test_all_that_a_request_holds_is_summed() -> None:
    """A request that takes a connection twice has held it twice; none is held, nothing counts."""
    engine = sa.create_engine("sqlite://")

    def app(environ: dict[str, int], start_response: object) -> list[bytes]:
        for _ in range(environ["times"]):
            engine.connect().close()
        return []

    holding = Holding(engine, app)
    for times in (0, 1, 200):
        assert holding({"times": times}, None) == []
    none, once, often = holding.take()
    assert none == 0 < once < often
    assert holding.take() == []
    engine.dispose()


def test_a_connection_that_a_request_keeps_is_an_error() -> None:
    """What was not given back can't be summed, and is told."""
    engine, kept = sa.create_engine("sqlite://"), list[sa.Connection]()

    def app(environ: dict[str, int], start_response: object) -> list[bytes]:
        kept.append(engine.connect())
        return []

    with pytest.raises(RuntimeError, match="was not given back"):
        Holding(engine, app)({}, None)
    kept.pop().close()
    engine.dispose()
