"""What has to be undone at a test's end: one thing that fails keeps no other from its turn."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from sqlalchemy.engine import Engine

from flask_autosession.exc import IsolationError


@contextmanager
def told(problems: list[str], what: str) -> Generator[None]:
    """Have an error of a block not leave it, but be told with others.

    :param problems: What to add it to.
    :param what: What to say before it, where it does not speak for itself.
    """
    try:
        yield
    except IsolationError as error:
        problems.append(str(error))
    except Exception as error:
        problems.append(f"{what}: {type(error).__name__}: {error}")


def undone_on_each(engines: dict[str | None, Engine], undo: Callable[..., object]) -> list[str]:
    """Undo something on each of an application's databases.

    :param engines: Its engines.
    :param undo: Does so for one bind key and its engine.
    :return: What could not be undone.
    """
    problems: list[str] = []
    for key, engine in engines.items():
        url = engine.url.render_as_string()
        with told(problems, f"What the test has written could not be undone on {url}"):
            undo(key, engine)
    return problems
