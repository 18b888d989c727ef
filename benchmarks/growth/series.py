"""What is measured at growing sizes: each size opens a context, and gives the block to measure."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from benchmarks.growth.subjects import Subject

Block = Callable[[], None]
Opened = Callable[[Subject, int], AbstractContextManager[Block]]


@dataclass(frozen=True)
class Series:
    """One line in a picture, for each of the subjects.

    :param topic: The picture that it is in.
    :param name: What is done.
    :param things: What there are so many of.
    :param sizes: How many of them.
    :param quick: The sizes of a trial.
    :param opened: Makes all that comes before the block that is measured.
    """

    topic: str
    name: str
    things: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    opened: Opened


def load(subject: Subject, size: int) -> list[Any]:
    """Have objects in the session that were loaded and are unchanged."""
    query = sa.select(subject.item).order_by(subject.item.id).limit(size)
    return list(subject.db.session.scalars(query))


def flush(subject: Subject, size: int) -> list[Any]:
    """Have objects in the session that were just inserted."""
    items = [subject.item(name="new") for _ in range(size)]
    subject.db.session.add_all(items)
    subject.db.session.flush()
    return items


def end(subject: Subject, context: Any, *, commit: bool) -> None:
    """End the unit of work and its context: by hand and by Flask-SQLAlchemy, or by ours."""
    if subject.auto is None:
        (subject.db.session.commit if commit else subject.db.session.rollback)()
    elif not commit:
        subject.auto.doom()
    context.pop(None)


def ending(fill: Callable[[Subject, int], list[Any]], *, commit: bool) -> Opened:
    """Measure the end of a unit of work that has so many objects in its session."""

    @contextmanager
    def opened(subject: Subject, size: int) -> Iterator[Block]:
        context = subject.app.app_context()
        context.push()
        # Held by the application past the end, so that it is not the freeing that is measured.
        kept = fill(subject, size)
        yield functools.partial(end, subject, context, commit=commit)
        if len(kept) != size:
            raise RuntimeError(f"{len(kept)} objects instead of {size}")
        subject.empty()

    return opened


def _after_commit(subject: Subject, callbacks: list[Block]) -> None:
    # By hand, one calls what is to follow the commit behind it.
    if subject.auto is None:
        subject.db.session.commit()
        for callback in callbacks:
            callback()
    else:
        for callback in callbacks:
            subject.auto.on_commit(callback)


def callbacks(*, write: bool) -> Opened:
    """Measure a unit of work with so many callbacks: their registration, its end, their work."""

    @contextmanager
    def opened(subject: Subject, size: int) -> Iterator[Block]:
        session, done = subject.db.session, []

        def callback() -> None:
            done.append(1)
            if write:
                session.add(subject.item(name="told"))
                subject.commit()

        def block() -> None:
            _after_commit(subject, [callback] * size)
            end(subject, context, commit=True)

        context = subject.app.app_context()
        context.push()
        yield block
        if len(done) != size:
            raise RuntimeError(f"{len(done)} of {size} callbacks have run")
        subject.empty()

    return opened


def savepoints(*, nested: bool) -> Opened:
    """Measure so many savepoints, each with a row, inside of each other or one after the other."""

    @contextmanager
    def opened(subject: Subject, size: int) -> Iterator[Block]:
        def one(stack: ExitStack) -> None:
            stack.enter_context(subject.savepoint())
            subject.db.session.add(subject.item(name="saved"))

        def inside() -> None:
            with ExitStack() as stack:
                for _ in range(size):
                    one(stack)

        def in_a_row() -> None:
            for _ in range(size):
                with ExitStack() as stack:
                    one(stack)

        before = subject.count()
        context = subject.app.app_context()
        context.push()
        yield inside if nested else in_a_row
        end(subject, context, commit=True)
        if subject.count() != before + size:
            raise RuntimeError(f"{subject.count() - before} rows instead of {size}")
        subject.empty()

    return opened


_OBJECTS = ("objects", (1, 100, 10_000, 100_000), (1, 50, 200))
_CALLBACKS = ("callbacks", (1, 10, 100, 1000), (1, 5, 20))
_SAVEPOINTS = ("savepoints", (1, 10, 30, 100), (1, 3, 9))
SERIES = (
    Series("endings", "loaded, commit", *_OBJECTS, ending(load, commit=True)),
    Series("endings", "loaded, rollback", *_OBJECTS, ending(load, commit=False)),
    Series("endings", "flushed, commit", *_OBJECTS, ending(flush, commit=True)),
    Series("endings", "flushed, rollback", *_OBJECTS, ending(flush, commit=False)),
    Series("callbacks", "that do nothing", *_CALLBACKS, callbacks(write=False)),
    Series("callbacks", "that write a row", *_CALLBACKS, callbacks(write=True)),
    Series("savepoints", "nested", *_SAVEPOINTS, savepoints(nested=True)),
    Series("savepoints", "in a row", *_SAVEPOINTS, savepoints(nested=False)),
)
