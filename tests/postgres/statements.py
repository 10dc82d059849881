"""Look at composed statements as the server would read them."""

from __future__ import annotations

import re

from psycopg.sql import Composable

CANARY = '"; DROP TABLE victim; --'
"""A name that ends an unprotected identifier and brings its own statement."""

ODD_NAMES = (CANARY, "'; DROP TABLE victim; --", "%s {} $1", "a\nb", "select")


def text_of(statement: Composable) -> str:
    """Return the statement on one line."""
    return " ".join(statement.as_string().split())


def unquoted(statement: Composable) -> str:
    """Return what is left of the statement without its quoted names and literals."""
    return re.sub(r'"(?:[^"]|"")*"|\'(?:[^\']|\'\')*\'', "?", statement.as_string())
