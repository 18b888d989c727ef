"""The commands of ``flask --app shop``. Each is a unit of work; its exit code decides."""

from __future__ import annotations

import csv
from typing import TextIO

import click
from flask import Blueprint

from .extensions import auto, db
from .models import Product

bp = Blueprint("commands", __name__, cli_group=None)


@bp.cli.command()
def init_db() -> None:
    """Create the tables."""
    db.create_all()
    click.echo("The tables are there.")


@bp.cli.command()
# Escaped, a byte that is no UTF-8 fails with its line, and not with the first block of the file.
@click.argument("file", type=click.File(encoding="utf-8-sig", errors="surrogateescape"))
@click.option("--dry-run", is_flag=True, help="Do all the same, and keep nothing.")
def import_products(file: TextIO, dry_run: bool) -> None:
    """Import products from a CSV FILE: all of them, or none."""
    if dry_run:
        auto.doom()
    lines = csv.reader(file)
    count = 0
    try:
        if next(lines, []) != ["name", "price", "stock"]:
            raise ValueError("the columns have to be name,price,stock")
        for line in lines:
            name, price, stock = line
            Product.update_or_create({"price": number(price), "stock": number(stock)}, name=name)
            count += 1
    except ValueError as error:
        raise click.ClickException(f"{file.name}, line {lines.line_num}: {error}") from error
    click.echo(f"Products {'that would be ' if dry_run else ''}imported: {count}.")


def number(text: str) -> int:
    """Return a number of cents or of pieces."""
    value = int(text)
    if not 0 <= value < 2**31:
        raise ValueError(f"{value} is out of range")
    return value
