"""pandas' readers, imported when a file is first read with one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["reader"]


def reader(name: str) -> Callable[..., Any]:
    """Return a function of pandas, such as `read_csv`.

    Raises:
        ImportError: pandas is not installed; says how to install it.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ImportError(
            f"{name} needs pandas: pip install 'dagster-tools[pandas]'", name="pandas"
        ) from None
    function: Callable[..., Any] = getattr(pd, name)
    return function
