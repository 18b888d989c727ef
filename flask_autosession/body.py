"""The bodies of streamed responses, which are made behind the response."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Progress:
    """How far a body has come. It holds nothing of it: a body that nobody closes can still go."""

    def __init__(self) -> None:
        self.started: bool = False
        """Whether somebody has begun to read."""
        self.cut: BaseException | None = GeneratorExit()
        """What the body ends with if it ends now; None while an item is made, and at the end."""
        self.release: Callable[[], None] | None = None
        """Gives up what is kept for the body, when it is closed."""


class Body:
    """A body that notes how far it has come, and what ended it.

    Flask does not always tell: in a test client's ``with`` block, a request's context outlives
    its stream.

    :param items: The body as the view returned it.
    :param progress: Where to note it.
    """

    def __init__(self, items: Iterable[Any], progress: Progress) -> None:
        self._items = items
        self._progress = progress
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._items)
        self._progress.started, self._progress.cut = True, None
        try:
            item = next(self._iterator)
        except StopIteration:
            raise
        except BaseException as error:
            self._progress.cut = error
            raise
        self._progress.cut = GeneratorExit()
        return item

    def close(self) -> None:
        """Close what is left of it."""
        close = getattr(self._items, "close", None)
        try:
            if close is not None:
                close()
        finally:
            if self._progress.release is not None:
                self._progress.release()
