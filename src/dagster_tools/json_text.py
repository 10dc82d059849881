"""Python objects ⇄ JSON text, by rules that never lose anything silently.

Out: keys must be text (`json.dumps` alone would turn 1, True and None into text); NaN and
Infinity, which JSON does not have, and the character NUL, which PostgreSQL does not have,
are refused. numpy's scalars and arrays become numbers and arrays, UUID, date, time and
datetime their ISO text, `pd.NA` and `NaT` null. A Decimal becomes a number if a float
shows the same digits, and is refused otherwise; trailing zeros are not kept. A float has a
point and no exponent: jsonb would make an integer of 1e+23, and one that is not equal to it.

In: what `json.loads` makes of it. Dates stay text, numbers with a point become floats.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import uuid
from decimal import Decimal
from typing import NoReturn

__all__ = ["check", "dumps", "has_nul", "loads"]

# An escaped NUL, but not an escaped backslash followed by the text "u0000".
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_STRING_OR_LARGE = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?e\+\d+')
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_SCALARS = frozenset({str, int, float, bool, type(None)})

loads = json.loads


def dumps(value: object) -> str:
    """Return the JSON text of a Python object.

    Raises:
        ValueError: It has none; the message says why, without the value.
    """
    try:
        _check_keys(value)
        text = _ENCODER.encode(value)
        return _STRING_OR_LARGE.sub(_with_point, text) if "e+" in text else text
    except TypeError as exc:
        raise ValueError(str(exc)) from None
    except RecursionError:
        raise ValueError("is nested too deeply for JSON, or contains itself") from None
    except ValueError as exc:
        # Python's own message for NaN holds the value since 3.12.
        raise ValueError(
            str(exc) if isinstance(exc, _NotJson) else "holds NaN, Infinity, or itself"
        ) from None


def check(text: str) -> None:
    """Raise ValueError, saying why but not what, unless the text is JSON for PostgreSQL."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if _SURROGATE.search(text):
            _ENCODER.encode(value).encode()
    except _NotJson:
        raise
    except UnicodeEncodeError:
        raise ValueError("is JSON with half of a surrogate pair") from None
    except (ValueError, RecursionError):
        raise ValueError(
            "text in a JSON column is taken as JSON, and this is none; "
            "store a text value as json.dumps(value)"
        ) from None


def has_nul(text: str) -> bool:
    """Tell whether the JSON text holds the character NUL, which jsonb cannot store."""
    return _NUL.search(text) is not None


class _NotJson(ValueError):
    """A reason of ours, without a value in it."""


def _check_keys(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _NotJson(f"has a key of type {type(key).__name__}; JSON keys are text")
            if type(item) not in _SCALARS:
                _check_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if type(item) not in _SCALARS:
                _check_keys(item)


def _as_json(value: object) -> object:
    """Say what JSON holds for an object that `json` does not know."""
    if type(value).__name__ in {"NAType", "NaTType"}:
        return None
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, Decimal):
        return _exact_number(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        items = value.tolist() if value.dtype.kind in "biuf" else list(value)
        _check_keys(items)
        return items
    if numpy is not None and isinstance(value, (numpy.bool_, numpy.integer, numpy.floating)):
        return value.item()
    if numpy is not None and isinstance(value, numpy.datetime64):
        return None if numpy.isnat(value) else str(value)
    raise _NotJson(f"holds a {type(value).__name__}, which JSON has no form for")


def _exact_number(value: Decimal) -> int | float:
    if value.is_finite():
        if value == value.to_integral_value():
            return int(value)
        if Decimal(repr(float(value))) == value:
            return float(value)
    raise _NotJson(
        "holds a Decimal that is no JSON number or has more digits than a float; "
        "make it text with str(), or a float"
    )


def _with_point(found: re.Match[str]) -> str:
    """Return a float from 1e16 on, which has no fraction, with all its digits."""
    text = found[0]
    return text if text.startswith('"') else f"{Decimal(text):f}.0"


def _refuse_constant(_name: str) -> NoReturn:
    raise _NotJson("is JSON with NaN or Infinity, which PostgreSQL's JSON does not have")


_ENCODER = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_as_json
)
