"""The ``AUTOSESSION_`` configuration keys: names, defaults, and what each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from werkzeug.exceptions import HTTPException

from .exc import ConfigError

PREFIX: str = "AUTOSESSION_"

# from_prefixed_env() parses values as JSON, so that "1" arrives as the number and
# "yes" as the string: every spelling of a truth value counts alike.
_TRUTHS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


@dataclass(frozen=True)
class Settings:
    """The configuration of one application, checked. See :func:`read_settings`."""

    enabled: bool = True
    rollback_from_status: int = 400
    explicit_commit: str = "warn"
    commit_contexts: bool = True
    sqlite_begin: str = "on_write"

    def is_control_flow(self, error: BaseException) -> bool:
        """Whether an exception stands for a response that says success: abort(redirect(...))."""
        if not isinstance(error, HTTPException):
            return False
        status = error.code if error.response is None else error.response.status_code
        return status is not None and status < self.rollback_from_status


@dataclass(frozen=True)
class _Kind:
    """What a key takes: a sentence for people, and a function that raises on anything else."""

    takes: str
    parse: Callable[[Any], Any]


def _truth(value: Any) -> bool:
    return _TRUTHS[str(value).strip().lower()]


def _status(value: Any) -> int:
    status = int(str(value))
    if not 100 <= status <= 600:
        raise ValueError(value)
    return status


def _one_of(*names: str) -> _Kind:
    def parse(value: Any) -> str:
        return names[names.index(str(value).strip().lower())]

    return _Kind("one of " + ", ".join(repr(name) for name in names), parse)


_BOOLEAN = _Kind("True or False", _truth)

_KINDS: Mapping[str, _Kind] = {
    "enabled": _BOOLEAN,
    "rollback_from_status": _Kind("a status code from 100 to 600", _status),
    "explicit_commit": _one_of("warn", "allow", "flush", "forbid"),
    "commit_contexts": _BOOLEAN,
    "sqlite_begin": _one_of("on_write", "deferred", "immediate", "off"),
}

KEYS: Mapping[str, str] = {PREFIX + field.name.upper(): field.name for field in fields(Settings)}
"""Every key of ``app.config``, and the :class:`Settings` field that it fills."""


def read_settings(config: Mapping[str, Any]) -> Settings:
    """Check the ``AUTOSESSION_`` keys of an application's configuration.

    :param config: ``app.config``.
    :return: The values, with defaults for keys that are not set.
    :raises ConfigError: If a key with the prefix is unknown, or a value is none its key takes.
    """
    values = {key: _parse(key, value) for key, value in config.items() if key.startswith(PREFIX)}
    return Settings(**{KEYS[key]: value for key, value in values.items()})


def _parse(key: str, value: Any) -> Any:
    if key not in KEYS:
        nearest = get_close_matches(key, KEYS, n=1, cutoff=0.0)[0]
        raise ConfigError(
            f"app.config has an unknown key {key!r}. Did you mean {nearest!r}? The keys are:"
            f" {', '.join(sorted(KEYS))}."
        )
    kind = _KINDS[KEYS[key]]
    try:
        return kind.parse(value)
    except (KeyError, ValueError):
        raise ConfigError(f"app.config[{key!r}] is {value!r}, but it takes {kind.takes}.") from None
