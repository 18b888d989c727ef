"""Several transactions on one connection: which savepoint belongs to whom, and what may go.

A test's connections take turns on one connection to the database, in one transaction that is
rolled back at the test's end. Each turn is a savepoint. Savepoints are a stack, transactions are
not: what one transaction has committed while another one was open lies inside of that one's
savepoint, and cannot stay when that is rolled back. No database is touched here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Layer:
    """One savepoint, from the bottom of the stack to the top."""

    name: str
    owner: object = None
    """Whose transaction it belongs to; nobody's once it is rolled back and can be used again."""
    wrote: bool = False
    inside: list[object] = field(default_factory=list[object])
    """Other owners that have committed something inside of it."""
    open: bool = True
    """Whether its owner's transaction goes on."""
    failed: bool = False
    """Whether a statement failed that, on PostgreSQL, leaves nothing but a rollback."""
    label: str | None = None
    """What the owner itself calls it, where the owner has asked for a savepoint."""


class Mark:
    """Stands for a fixture of a wider scope, which comes back to where it was."""

    def __str__(self) -> str:
        return "the fixture around the test"


class Layers:
    """The savepoints that are set on one connection.

    :param execute: Runs a statement on that connection.
    """

    def __init__(self, execute: Callable[[str], None]) -> None:
        self._execute = execute
        self._layers: list[Layer] = []
        self._numbers = itertools.count(1)
        self.conflicts: list[tuple[object, list[object]]] = []
        """Each owner that rolled back what others had committed, and those others."""
        self._unseen: list[tuple[object, list[object]]] = []
        self._robbed: dict[object, object] = {}
        """Those whose work was taken before they have committed it, and by whom."""

    def turn(self, owner: object) -> Layer:
        """Return the layer that an owner works in now; make it, if the last one is not that.

        :param owner: The connection that is about to send a statement.
        """
        if self._unseen:
            # It matters once somebody looks again; at the test's end nobody does.
            self.conflicts.extend(self._unseen)
            self._unseen.clear()
        if owner in self._robbed:
            self._tell_robbed(owner)
        return self._turn(owner)

    def _tell_robbed(self, owner: object) -> None:
        # It goes on, or commits, as if its work were there; a rollback would be fine.
        self.conflicts.append((self._robbed.pop(owner), [owner]))

    def _turn(self, owner: object) -> Layer:
        top = self._layers[-1] if self._layers else None
        if top is not None and top.owner is owner and top.open and not top.inside:
            return top
        if top is not None and top.owner is None:
            top.owner = owner
            return top
        return self._push(owner)

    def _push(self, owner: object, label: str | None = None) -> Layer:
        layer = Layer(f"autosession_{next(self._numbers)}", owner, label=label)
        self._execute(f"SAVEPOINT {layer.name}")
        self._layers.append(layer)
        return layer

    def commit(self, owner: object) -> None:
        """End an owner's transaction, and keep its work in what lies below."""
        if owner in self._robbed:
            self._tell_robbed(owner)
        for layer in self._layers:
            if layer.failed and layer.owner is owner:
                self.rollback(owner)
                return
        self._end(owner, 0)

    def recover(self, owner: object) -> None:
        """Let an owner go on after another one's statement has failed, and that one's work with it.

        PostgreSQL refuses every statement then, but each connection would do so only for itself.
        """
        top = self._layers[-1] if self._layers else None
        if top is not None and top.owner is not owner:
            self._execute(f"ROLLBACK TO SAVEPOINT {top.name}")
            if top.inside:
                self._unseen.append((top.owner, top.inside))
            # Nothing is in it now.
            top.failed, top.wrote, top.inside = True, False, []

    def rollback(self, owner: object) -> None:
        """End an owner's transaction, and undo its work, as far as it lies on top of the others'.

        What has only read need not be undone: others may have committed on top of it.
        """
        self._robbed.pop(owner, None)
        if not self._layers:
            return
        own = [at for at, layer in enumerate(self._layers) if layer.owner is owner and layer.open]
        wrote = [at for at in own if self._layers[at].wrote]
        clean = [at for at in own if not self._others(at, owner)]
        if wrote or clean:
            self._undo(min(wrote + clean), owner)
        self._end(owner, 0)

    # Savepoints of the owners' own

    def savepoint(self, owner: object, label: str) -> None:
        """Set a savepoint inside of an owner's transaction."""
        self.turn(owner)
        self._push(owner, label)

    def release(self, owner: object, label: str) -> None:
        """Release a savepoint, and keep its work in what lies below."""
        at = self._find(owner, label)
        if at is None:
            return
        if all(one.owner in (owner, None) or not one.open for one in self._layers[at:]):
            self._end(owner, at)
            return
        for one in self._layers[at:]:  # it lies below somebody else's: a part of the whole now
            if one.owner is owner:
                one.label = None

    def rollback_to(self, owner: object, label: str) -> None:
        """Undo what an owner has done since it has set a savepoint, which is gone then."""
        at = self._find(owner, label)
        if at is not None:
            self._undo(at, owner)

    def _find(self, owner: object, label: str) -> int | None:
        for at, layer in reversed(list(enumerate(self._layers))):
            if layer.owner is owner and layer.label == label and layer.open:
                return at
        return None

    # Marks, between the tests of a class or a module

    def mark(self) -> Mark:
        """Set a mark that :meth:`back_to_mark` comes back to."""
        mark = Mark()
        self._push(mark).wrote = True  # others must not take it away
        return mark

    def back_to_mark(self, mark: Mark) -> None:
        """Undo everything since a mark was set, whoever did it."""
        for at, layer in enumerate(self._layers):
            if layer.owner is mark:  # not there any more if the whole transaction was lost
                self._undo(at, None)
                return

    # What all of them come down to

    def _others(self, at: int, owner: object) -> list[object]:
        """Return the others whose work lies at or above a layer."""
        found: list[object] = []
        for layer in self._layers[at:]:
            if layer.owner is not owner and layer.owner is not None and layer.wrote:
                found.append(layer.owner)
            found.extend(other for other in layer.inside if other is not owner)
        return found

    def _note_loss(self, at: int, owner: object) -> None:
        committed: list[object] = []
        for layer in self._layers[at:]:
            if layer.owner not in (owner, None) and layer.wrote:
                if layer.open and not isinstance(layer.owner, Mark):
                    self._robbed[layer.owner] = owner
                else:
                    committed.append(layer.owner)
            committed.extend(other for other in layer.inside if other is not owner)
        if committed:
            self._unseen.append((owner, committed))

    def _undo(self, at: int, owner: object) -> None:
        if owner is not None:
            self._note_loss(at, owner)
        layer, gone = self._layers[at], self._layers[at:]
        self._execute(f"ROLLBACK TO SAVEPOINT {layer.name}")
        # Nothing is in it now: the next one to come can have it.
        self._layers[at:] = [Layer(layer.name)]
        for one in gone:
            if owner is not None and isinstance(one.owner, Mark):
                self._push(one.owner).wrote = True  # the test's end will come back to it
            # Somebody else's savepoint, which its owner will come back to: set it again.
            if owner not in (None, one.owner) and one.open and one.label is not None:
                self._turn(one.owner)
                self._push(one.owner, one.label)

    def _end(self, owner: object, start: int) -> None:
        for layer in self._layers[start:]:
            if layer.owner is owner:
                layer.open = False
        at, used = len(self._layers), False
        while at and (self._layers[at - 1].owner is None or not self._layers[at - 1].open):
            at -= 1
            used = used or self._layers[at].owner is not None
        if used:
            ended = self._layers[at:]
            self._execute(f"RELEASE SAVEPOINT {ended[0].name}")
            del self._layers[at:]
            if self._layers:
                _hand_down(ended, self._layers[-1])


def _hand_down(ended: list[Layer], below: Layer) -> None:
    for layer in ended:
        if layer.owner is below.owner:
            below.wrote = below.wrote or layer.wrote
        elif layer.owner is not None and layer.wrote:
            below.inside.append(layer.owner)
        below.inside.extend(layer.inside)
