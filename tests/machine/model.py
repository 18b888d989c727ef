"""A plain model of the contract: what a program must come to, worked out without a database.

It knows of SQLAlchemy only what a reader of its documentation does: a flush sends updates, inserts
and deletes in this order, and a failed flush ends its savepoint. Of the databases it knows that
PostgreSQL takes no statement after one that failed, until something is rolled back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from . import program as p


class Failed(Exception):
    """An exception, by its kind only."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(kind)


class Row(NamedTuple):
    name: str | None
    orphan: bool = False


Rows = dict[int, Row]
Callback = tuple[int, tuple[p.Op, ...]]


@dataclass
class Unit:
    """One unit of work. Keys of rows grow with time, as ids do."""

    rows: Rows
    new: list[Row] = field(default_factory=list)
    changed: dict[int, str | None] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    savepoints: list[tuple[Rows, int]] = field(default_factory=list)
    on_commit: list[Callback] = field(default_factory=list)
    on_rollback: list[Callback] = field(default_factory=list)
    wrote: bool = False
    tried: bool = False
    """Whether it has at least tried to write; a warning may come of that already."""
    failed: int | None = None
    """How many savepoints were open around the failure that dooms; 0 dooms the unit."""
    settled: bool = False
    """Whether the database has been rolled back because of that already."""
    dead: bool = False
    """Whether a flush has failed in the innermost savepoint, which takes nothing more."""
    undone: bool = False
    """Whether work that was done in that savepoint is gone with it."""
    aborted: int | None = None
    """How many savepoints were open when PostgreSQL's transaction was aborted."""

    @property
    def depth(self) -> int:
        return len(self.savepoints)

    @property
    def pending(self) -> bool:
        renamed = (self.rows[key].name != name for key, name in self.changed.items())
        return bool(self.new or self.deleted or any(renamed))

    @property
    def unsaved(self) -> bool:
        return self.wrote or self.pending

    def forget_pending(self) -> None:
        self.new, self.changed, self.deleted = [], {}, set()


@dataclass
class Frame:
    """A request, or a callback."""

    is_request: bool
    doomed: bool = False
    lost: bool = False
    """Whether work was thrown away: the log must say so if the response says success."""


class Model:
    """Works out what each request of a program must come to.

    :param postgresql: Whether the database is PostgreSQL.
    """

    def __init__(self, program: p.Program, *, postgresql: bool) -> None:
        self._program = program
        self._postgresql = postgresql
        self._durable: Rows = {key: Row(name) for key, name in enumerate(program.rows)}
        self._keys = len(self._durable)

    def run(self) -> Iterator[p.Told]:
        """Work out each request; ``must_warn`` and ``may_warn`` are about the last one."""
        for request in self._program.requests:
            self._request = request
            self._history: list[Any] = []
            self._frames = [Frame(is_request=True)]
            self._queue: deque[Callback] = deque()
            self._draining = self._callback_lost = self.may_warn = False
            self._registered = 0
            self._begin()
            status, who = self._serve()
            success = isinstance(status, int) and status < 400
            self.must_warn = self._callback_lost or (self._frame.lost and success)
            names = [str(row.name) for _, row in sorted(self._durable.items())]
            yield p.Told(status, who, self._history, names)

    @property
    def _frame(self) -> Frame:
        return self._frames[-1]

    def _begin(self) -> None:
        self._unit = Unit(dict(self._durable))

    # The request

    def _serve(self) -> tuple[int | str, str]:
        try:
            return self._dispatch()
        except Failed:
            self._raised()
        try:
            answer = self._last()
        except Failed:
            self._raised()
            return "raised", "default"
        return self._conclude_of_handler(answer)

    def _dispatch(self) -> tuple[int, str]:
        try:
            answer = self._view()
        except Failed as error:
            if error.kind != "redirect":
                self._raised()
                return self._conclude_of_handler(self._finalize(self._handle(error)))
            answer = self._handle(error)
        answer = self._finalize(answer)
        try:
            return self._conclude(answer)
        except Failed as error:
            return self._conclude_of_handler(self._finalize(self._handle(error)))

    def _conclude_of_handler(self, answer: tuple[int, str]) -> tuple[int, str]:
        try:
            return self._conclude(answer)
        except Failed:
            self.may_warn = True
            return 500, "default"

    def _view(self) -> tuple[int | None, str]:
        request = self._request
        status, who = request.before.status, "before"
        try:
            if request.before.ops:
                self._step(who, request.before)
            if status is None:
                status, who = request.view.status, "view"
                self._step(who, request.view)
        except Failed as error:
            if error.kind == "redirect":
                self._flush_at_the_end()
            raise
        if status is not None and status < 400:
            self._flush_at_the_end()
        return status, who

    def _flush_at_the_end(self) -> None:
        # Row 1: what fails in the flush at the end of dispatch fails as in the view.
        if not self._doomed:
            self._flush()

    def _step(self, who: str, step: p.Step) -> None:
        self._history.append(who)
        self.do(step.ops)

    def _handle(self, error: Failed) -> tuple[int, str]:
        if error.kind == "redirect":
            return 302, "default"
        if self._program.typed and error.kind in ("boom", "404", "refused"):
            step = self._request.handler
            self._step("handler", step)
            return step.status or 0, "handler"
        if error.kind == "404":
            return 404, "default"
        raise error

    def _finalize(self, answer: tuple[int | None, str]) -> tuple[int, str]:
        status, who = answer
        if status is None:
            raise Failed("TypeError")
        after = self._request.after
        self._step("after", after)
        return after.status or status, who

    def _last(self) -> tuple[int, str]:
        answer = 500, "default"
        if self._program.last:
            step = self._request.last
            self._step("last", step)
            answer = step.status or 0, "last"
        try:
            return self._finalize(answer)
        except Failed:
            return answer  # Flask logs it, and sends the response that it has.

    def _raised(self) -> None:
        self._lose(self._unit.unsaved)
        self._end_by_rollback()

    def _conclude(self, answer: tuple[int, str]) -> tuple[int, str]:
        unit, success = self._unit, answer[0] < 400
        if success and not self._doomed:
            try:
                self._end_by_commit()
            except Failed:
                self._raised()
                raise
        else:
            if self._doomed:
                self._lose(unit.unsaved or not self._frame.doomed)
            self._end_by_rollback()
        return answer

    def _lose(self, lost: bool) -> None:
        self._frame.lost |= lost
        self.may_warn |= lost

    # The unit's end

    @property
    def _doomed(self) -> bool:
        return self._frame.doomed or self._unit.failed is not None

    def _end_by_commit(self) -> None:
        if self._doomed:
            raise Failed("refused")
        self._flush()
        if any(row.orphan for row in self._unit.rows.values()):
            self._flush_failed()
            raise Failed("refused")
        self._durable = self._unit.rows
        self._end(self._unit.on_commit)

    def _end_by_rollback(self) -> None:
        self.may_warn |= self._unit.tried or self._unit.pending
        self._end(self._unit.on_rollback)

    def _end(self, callbacks: list[Callback]) -> None:
        self._queue.extend(callbacks)
        self._begin()
        if not self._draining:
            self._draining = True
            while self._queue:
                self._call(*self._queue.popleft())
            self._draining = False

    def _call(self, number: int, body: tuple[p.Op, ...]) -> None:
        self._history.append(("callback", number))
        self._frames.append(Frame(is_request=False))
        try:
            self.do(body)
            if self._frame.doomed:
                self._end_by_rollback()
            else:
                self._end_by_commit()
        except Failed:
            self.may_warn = True
            self._frame.lost = True
            self._end_by_rollback()
        frame = self._frames.pop()
        # No response tells of a callback: its losses are to be found in the log in any case,
        # but for those that auto.doom() asked for.
        self._callback_lost |= frame.lost and not frame.doomed

    # Writing and reading

    def _flush(self) -> None:
        unit = self._unit
        if not unit.pending:
            return
        unit.tried = True
        if unit.failed is not None:
            raise Failed("refused")
        rows = dict(unit.rows)
        try:
            for key in sorted(unit.changed.keys() - unit.deleted):
                row = rows.pop(key)
                self._check(rows, unit.changed[key])
                rows[key] = Row(unit.changed[key], row.orphan)
            for row in unit.new:
                self._insert(rows, row)
            for key in unit.deleted:
                del rows[key]
        except Failed:
            self._flush_failed()
            raise
        unit.rows = rows
        unit.wrote = True
        unit.forget_pending()

    def _insert(self, rows: Rows, row: Row) -> None:
        self._check(rows, row.name)
        self._keys += 1
        rows[self._keys] = row

    def _check(self, rows: Rows, name: str | None) -> None:
        if name is None or any(row.name == name for row in rows.values()):
            raise Failed("refused")

    def _flush_failed(self) -> None:
        unit = self._unit
        unit.failed = unit.depth
        unit.forget_pending()
        unit.dead = unit.depth > 0
        before = unit.savepoints[-1][0] if unit.dead else self._durable
        unit.undone = unit.rows != before
        unit.rows = dict(before)
        unit.settled = not unit.dead

    def _statement(self, *, flush: bool = False, write: bool = False) -> None:
        """Do what comes before a statement, or raise if it cannot be sent."""
        unit = self._unit
        self._settle()
        if flush and unit.failed is None:
            self._flush()
        refused = write and unit.failed is not None
        if unit.dead or unit.aborted is not None or refused:
            raise Failed("refused")

    def _statement_failed(self) -> None:
        unit = self._unit
        unit.failed = unit.depth if unit.failed is None else min(unit.failed, unit.depth)
        if not unit.depth:
            unit.settled = False
        if self._postgresql:
            unit.aborted = unit.depth
        raise Failed("refused")

    def _settle(self) -> None:
        unit = self._unit
        if unit.failed == 0 and not unit.settled:
            unit.rows = dict(self._durable)
            unit.forget_pending()
            unit.settled = True
            unit.aborted = None

    # The operations

    def do(self, ops: Sequence[p.Op]) -> None:
        for op in ops:
            name = type(op).__name__
            run: Callable[[Any], Any] = getattr(self, f"_do_{name.lower()}")
            try:
                result = run(op)
            except Failed as error:
                self._history.append((name, error.kind))
                raise
            self._history.append(name if result is None else (name, result))

    def _do_save(self, op: p.Save) -> None:
        self._unit.new.append(Row(op.name))
        self._flush()

    def _do_orphan(self, op: p.Orphan) -> None:
        self._unit.new.append(Row(op.name, orphan=True))
        self._flush()

    def _do_add(self, op: p.Add) -> None:
        self._unit.new.append(Row(op.name))

    def _pick(self, index: int) -> int | None:
        self._statement(flush=True)
        keys = sorted(self._unit.rows)
        return keys[index % len(keys)] if keys else None

    def _do_update(self, op: p.Update) -> str | None:
        key = self._pick(op.index)
        if key is None:
            return "nothing there"
        self._unit.changed[key] = op.name
        self._unit.deleted.discard(key)
        self._flush()
        return None

    def _do_rename(self, op: p.Rename) -> str | None:
        key = self._pick(op.index)
        unit = self._unit
        if key is None or unit.changed.get(key, unit.rows[key].name) == op.name:
            return "nothing to do"
        unit.changed[key] = op.name
        return None

    def _do_delete(self, op: p.Delete) -> str | None:
        result = self._do_rawdelete(op)
        if result is None:
            self._flush()
        return result

    def _do_rawdelete(self, op: p.RawDelete | p.Delete) -> str | None:
        key = self._pick(op.index)
        if key is None:
            return "nothing there"
        self._unit.deleted.add(key)
        return None

    def _do_core(self, op: p.Core) -> None:
        self._flush()
        self._statement(write=True)
        self._unit.tried = True
        try:
            self._insert(self._unit.rows, Row(op.name))
        except Failed:
            self._statement_failed()
        self._unit.wrote = True

    def _do_flush(self, op: p.Flush) -> None:
        self._flush()

    def _do_read(self, op: p.Read) -> list[str | None]:
        self._statement(flush=True)
        return [row.name for _, row in sorted(self._unit.rows.items())]

    def _do_badread(self, op: p.BadRead) -> None:
        self._flush()
        self._statement()
        self._statement_failed()

    def _do_commit(self, op: p.Commit) -> str | None:
        policy = self._program.commits if self._frame.is_request else "allow"
        if self._unit.depth and policy in ("warn", "allow"):
            return "left out"
        if policy == "forbid":
            raise Failed("ExplicitCommitError")
        if policy == "flush" or self._frame.doomed:
            if self._unit.failed is not None:
                raise Failed("refused")
            self._flush()
        else:
            self.may_warn |= policy == "warn"
            self._end_by_commit()
        return None

    def _do_autocommit(self, op: p.AutoCommit) -> str | None:
        if self._unit.depth:
            return "left out"
        self._end_by_commit()
        return None

    def _do_rollback(self, op: p.Rollback) -> str | None:
        if self._unit.depth:
            return "left out"
        # Only a response can say success over what was dropped by choice.
        self._lose(self._frame.is_request and self._unit.unsaved)
        self._end_by_rollback()
        return None

    def _do_doom(self, op: p.Doom) -> None:
        self._frame.doomed = True

    def _do_raise(self, op: p.Raise) -> None:
        raise Failed(op.what)

    def _do_try(self, op: p.Try) -> None:
        try:
            self.do(op.body)
        except Failed:
            pass

    def _do_oncommit(self, op: p.OnCommit) -> None:
        self._registered += 1
        self._unit.on_commit.append((self._registered, op.body))

    def _do_onrollback(self, op: p.OnRollback) -> None:
        self._registered += 1
        self._unit.on_rollback.append((self._registered, op.body))

    # Savepoints

    def _enter_savepoint(self) -> None:
        self._settle()
        self._flush()
        if self._unit.dead:
            raise Failed("refused")
        self._unit.savepoints.append((dict(self._unit.rows), len(self._unit.on_commit)))

    def _do_savepoint(self, op: p.Savepoint) -> None:
        self._enter_savepoint()
        unit = self._unit
        leaving: Failed | None = None
        try:
            try:
                self.do(op.body)
            except Failed as error:
                if error.kind != "redirect":
                    raise
                leaving = error  # control flow, as for the request (row 5)
            self._flush()
            if unit.failed is not None and unit.failed >= unit.depth:
                raise Failed("refused")
        except Failed:
            self._roll_back_savepoint()
            raise
        self._release_savepoint()
        if leaving is not None:
            raise leaving

    def _do_nested(self, op: p.Nested) -> None:
        self._enter_savepoint()
        try:
            self.do(op.body)
            if not self._unit.dead:
                self._flush()
        except Failed:
            self._roll_back_savepoint()
            raise
        if self._unit.dead:
            # SQLAlchemy has rolled it back when the flush failed, and says nothing.
            self._lose(self._unit.undone)
            self.may_warn = True
            self._roll_back_savepoint()
        else:
            self._release_savepoint()

    def _roll_back_savepoint(self) -> None:
        unit = self._unit
        depth = unit.depth
        unit.rows, callbacks = unit.savepoints.pop()
        del unit.on_commit[callbacks:]
        unit.dead = False
        unit.forget_pending()
        if unit.failed is not None and unit.failed >= depth:
            unit.failed = None
        if unit.aborted is not None and unit.aborted >= depth:
            unit.aborted = None

    def _release_savepoint(self) -> None:
        unit = self._unit
        depth = unit.depth
        unit.savepoints.pop()
        if unit.failed is not None:
            unit.failed = min(unit.failed, depth - 1)
        if unit.aborted == depth:
            # PostgreSQL does not release it, and what is around it cannot be used either.
            unit.aborted = depth - 1
            unit.settled = False
            raise Failed("refused")
