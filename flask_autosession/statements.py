"""Telling statements that write from statements that only read, by their first word."""

from __future__ import annotations

import re

# Literals and quoted names, which may hold anything; comments first where they come first.
_QUOTED = re.compile(
    r"(?P<comment>--[^\n]*|/\*.*?\*/)"
    r"|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]",
    re.DOTALL,
)
# What begins a statement that changes something, inside of a WITH or behind it.
_CHANGES = re.compile(r"[()]\s*(?:INSERT|UPDATE|DELETE|REPLACE|MERGE)\s+\w", re.IGNORECASE)
# White space, comments and parentheses may stand before the word that says what it is.
_FIRST_WORD = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|$)|/\*.*?\*/)*(\w+)", re.DOTALL)

_SPELLED = ("SELECT ", "INSERT ", "UPDATE ", "DELETE ")
# VACUUM, ATTACH and PRAGMA change something, but must stand outside of a transaction.
_READS = frozenset(
    {
        *("SELECT", "VALUES", "TABLE", "SHOW", "EXPLAIN", "DESCRIBE", "DESC"),
        *("PRAGMA", "ATTACH", "DETACH", "VACUUM", "SET", "USE"),
        *("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"),
    }
)


def is_write(statement: str) -> bool:
    """Tell whether a statement writes, as far as its text shows it.

    :param statement: One SQL statement.
    :return: False for queries, settings and transaction control, True for all else. A SELECT
        counts as a query, though a function that it calls may write.
    """
    if statement.startswith(_SPELLED):  # as SQLAlchemy writes them
        return statement[0] != "S"
    match = _FIRST_WORD.match(statement)
    word = match[1].upper() if match else ""
    if word == "WITH":
        bare = _QUOTED.sub(lambda found: " " if found["comment"] else " name ", statement)
        return _CHANGES.search(bare) is not None
    return word not in _READS
