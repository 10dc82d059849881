"""A user's SQL, taken apart by PostgreSQL's own grammar and put together with its inputs.

The grammar is a library's (libpg_query: the server's parser without the server); what it
cannot parse, because the server is newer or the text is wrong, is told apart by its lexer
alone, and the server says what is wrong.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from psycopg import sql
from psycopg.sql import Composed

from dagster_tools.errors import ConfigurationError
from dagster_tools.sql import SQL, Query, Relation

__all__ = ["Statement", "compose_relation", "split_statements"]

SELECT = "select_stmt"
TRANSACTION = "transaction_stmt"
VIEW = "view_stmt"
TABLE_AS = "create_table_as_stmt"


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, ready to run.

    Args:
        kind: The grammar's name for it; `unknown` where the grammar does not know it.
    """

    text: str
    kind: str

    @property
    def as_sql(self) -> Composed:
        """The statement as it runs: the user's own, which an SQL output runs by design."""
        return Composed([sql.SQL(self.text)])

    @property
    def returns_rows(self) -> bool:
        """Whether it is a SELECT, a VALUES or a TABLE, and makes nothing else."""
        return self.kind == SELECT


def split_statements(
    output: SQL | Query, quote: Callable[[str, Mapping[str, object]], str]
) -> list[Statement]:
    """Return the statements of a text, with values and relations in their places.

    Args:
        quote: Puts quoted values in the place of `%(name)s`; called only where there are any.

    Raises:
        ConfigurationError: A statement ends the transaction, or a view is made of rows that
            need a filter.
    """
    text, names = output.text, {}
    for name in output.relations:
        # A name that cannot occur by chance: a value may well contain the braces.
        names[name] = f"relation_{secrets.token_hex(8)}"
        text = text.replace("{" + name + "}", names[name])
    if output.values:
        text = quote(text, output.values)
    statements = _split(text)
    for number, statement in enumerate(statements, 1):
        if statement.kind == TRANSACTION:
            raise ConfigurationError(
                f"Statement {number} begins or ends a transaction. All statements run in one, "
                "together with their tracking; leave it out."
            )
    return [
        Statement(_with_relations(statement, output.relations, names, number), statement.kind)
        for number, statement in enumerate(statements, 1)
    ]


def compose_relation(relation: Relation) -> str:
    """Compose what stands in FROM for the rows of a relation, with an alias after it or not.

    A subquery would need one before PostgreSQL 16; a join in parentheses does not.
    """
    table = f"{_quoted(relation.schema)}.{_quoted(relation.table)}"
    if relation.materialization_ids is None:
        return table
    numbers = ",".join(map(str, relation.materialization_ids))
    return (
        f"({table} JOIN pg_catalog.unnest('{{{numbers}}}'::integer[]) "
        "AS materialization (materialization_id) USING (materialization_id))"
    )


def _with_relations(
    statement: Statement, relations: Mapping[str, Relation], names: Mapping[str, str], number: int
) -> str:
    text = statement.text
    for name, relation in relations.items():
        if names[name] not in text:
            continue
        if statement.kind in {VIEW, TABLE_AS} and _keeps_its_query(text):
            if relation.shared:
                raise ConfigurationError(
                    f"Statement {number} makes a view of {{{name}}}, whose table "
                    f"{relation.schema}.{relation.table} has rows of other assets or partitions: "
                    "the view would keep today's choice of them for ever. Give the asset a "
                    "table of its own, or make a table instead of a view."
                )
            rendered = f"{_quoted(relation.schema)}.{_quoted(relation.table)}"
        else:
            rendered = compose_relation(relation)
        text = text.replace(names[name], rendered)
    return text


def _keeps_its_query(text: str) -> bool:
    """Whether a statement makes a view, materialized or not, rather than a table."""
    return "view" in [word.lower() for word in text.split("(", maxsplit=1)[0].split()[:6]]


def _split(text: str) -> list[Statement]:
    # When asked for and not before: importing it takes a third of a second.
    import postgast

    try:
        texts = postgast.split(text)
        kinds = [item.stmt.WhichOneof("node") or "unknown" for item in postgast.parse(text).stmts]
    except postgast.PgQueryError:
        texts, kinds = _scan(text), []
    kinds += [_kind_by_first_word(part) for part in texts[len(kinds) :]]
    return [Statement(part.strip(), kind) for part, kind in zip(texts, kinds, strict=True)]


def _scan(text: str) -> list[str]:
    """Split at the semicolons the lexer sees; those in strings and comments are none."""
    import postgast

    try:
        tokens = postgast.scan(text).tokens
    except postgast.PgQueryError:
        return [text]
    encoded = text.encode()
    parts, start = [], 0
    for token in tokens:
        if encoded[token.start : token.end] == b";":
            parts.append(encoded[start : token.start])
            start = token.end
    parts.append(encoded[start:])
    return [part.decode() for part in parts if part.strip()]


def _kind_by_first_word(text: str) -> str:
    word = text.split(maxsplit=1)[0].lower() if text.split() else ""
    if word in {"begin", "commit", "end", "rollback", "abort", "start", "prepare"}:
        return TRANSACTION
    return SELECT if word in {"select", "values", "table", "with"} else "unknown"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
