from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from flask import Flask
from flask.testing import FlaskClient, FlaskCliRunner
from shop.extensions import db

Stock = Callable[[], dict[str, int]]


@pytest.fixture
def import_products(runner: FlaskCliRunner, tmp_path: Path):
    """Call ``flask import-products`` for a file with these lines."""

    def run(*lines: str, dry: bool = False) -> Result:
        file = tmp_path / "products.csv"
        file.write_text("\n".join(lines), encoding="latin-1")  # as some spreadsheets do
        return runner.invoke(args=["import-products", str(file), *(["--dry-run"] if dry else [])])

    return run


def test_products_are_imported(import_products, stock: Stock) -> None:
    result = import_products("name,price,stock", "rum,1990,6", "tea,430,99")
    assert (result.exit_code, result.output) == (0, "Products imported: 2.\n")
    assert stock() == {"mate": 8, "rum": 6, "tea": 99}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("cola,90", "not enough values to unpack (expected 3, got 2)"),
        ("cola,0.90,5", "invalid literal for int() with base 10: '0.90'"),
        ("cola,90,-5", "-5 is out of range"),
        ("jalapeño,90,5", "'utf-8' codec can't encode"),
    ],
)
def test_a_bad_line_is_named_and_nothing_kept(
    import_products, stock: Stock, line: str, problem: str
) -> None:
    result = import_products("name,price,stock", "rum,1990,6", line, "gin,1790,3")
    assert result.exit_code == 1
    assert f"products.csv, line 3: {problem}" in result.output
    assert stock() == {"mate": 8, "tea": 10}


def test_other_columns_are_refused(import_products) -> None:
    result = import_products("price,name,stock", "1990,rum,6")
    assert result.exit_code == 1
    assert "line 1: the columns have to be name,price,stock" in result.output


def test_a_dry_run_keeps_nothing(import_products, stock: Stock) -> None:
    result = import_products("name,price,stock", "rum,1990,6", dry=True)
    assert (result.exit_code, result.output) == (0, "Products that would be imported: 1.\n")
    assert stock() == {"mate": 8, "tea": 10}


def test_a_dry_run_finds_the_bad_line(import_products) -> None:
    assert import_products("name,price,stock", "cola,90", dry=True).exit_code == 1


@pytest.mark.autosession("recreate")  # it changes the schema
def test_the_tables_are_made(app: Flask, runner: FlaskCliRunner, client: FlaskClient) -> None:
    with app.app_context():
        db.drop_all()
    assert runner.invoke(args=["init-db"]).output == "The tables are there.\n"
    assert client.get("/products").json == []
