"""The signals that tell how a unit of work ended."""

from __future__ import annotations

from blinker import NamedSignal, Namespace

_signals = Namespace()

unit_committed: NamedSignal = _signals.signal("unit-committed")
"""Sent after a unit of work was committed. The sender is the application.

.. versionadded:: 0.1.0
"""

unit_rolled_back: NamedSignal = _signals.signal("unit-rolled-back")
"""Sent after a unit of work was rolled back. The sender is the application; ``reason``,
a string, says why.

.. versionadded:: 0.1.0
"""

unit_ended: NamedSignal = _signals.signal("unit-ended")
"""Sent when a used unit of work has ended, in front of its callbacks and of the signals above, with
``unit``, ``frame`` and ``reason``. It is there for :mod:`flask_autosession.testing`.
"""
