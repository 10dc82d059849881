"""`dagster-tools`: lineage, pruning and a check-up, from the shell."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing

from dagster_tools.errors import ConfigurationError, DagsterToolsError
from dagster_tools.postgres.connection import (
    Connection,
    ConnectionSettings,
    connect,
    url_settings,
)
from dagster_tools.postgres.doctor import examine
from dagster_tools.postgres.lineage import fetch_lineage, fetch_prunable, prune
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.tracking import Tracking

__all__ = ["main"]

WIDTH = 80
MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit code: 1 where something is wrong."""
    options = _parser().parse_args(arguments)
    try:
        settings = url_settings(options.url) if options.url else ConnectionSettings()
        with closing(connect(settings)) as connection:
            code: int = options.command(connection, Tracking(options.tracking_schema), options)
            return code
    except DagsterToolsError as error:
        print(textwrap.fill(f"dagster-tools: {error}", WIDTH), file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--url", help="postgresql:// URL; without it libpq's environment decides")
    common.add_argument("--tracking-schema", default="meta", help="default: meta")
    common.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser = argparse.ArgumentParser(
        prog="dagster-tools", description="Look after Dagster assets that PostgreSQL keeps."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    lineage = commands.add_parser(
        "lineage", parents=[common], help="which run wrote which rows of a table"
    )
    lineage.add_argument("table", metavar="SCHEMA.TABLE", type=_table)
    lineage.add_argument("--where", metavar="CONDITION", help='only rows that meet it: "id = 7"')
    lineage.set_defaults(command=_lineage)

    pruning = commands.add_parser(
        "prune", parents=[common], help="forget materializations that no row refers to"
    )
    pruning.add_argument("--yes", action="store_true", help="do it; without it only show")
    pruning.set_defaults(command=_prune)

    doctor = commands.add_parser(
        "doctor", parents=[common], help="what works, and what to do about what does not"
    )
    doctor.add_argument("--schema", default="public", help="where assets go; default: public")
    doctor.set_defaults(command=_doctor)
    return parser


def _lineage(connection: Connection, tracking: Tracking, options: argparse.Namespace) -> int:
    writings = fetch_lineage(connection, tracking, options.table, options.where)
    if options.json:
        return _print_json([dataclasses.asdict(item) for item in writings])
    _print_table(
        ("id", "asset", "partition", "run", "when", "rows", "+", "~", "-"),
        [
            (
                _shown(item.materialization_id),
                item.asset_key or "(not from here)",
                item.partition_key or "",
                (item.run_id or "")[:8],
                f"{item.timestamp:%Y-%m-%d %H:%M}" if item.timestamp else "",
                _shown(item.rows),
                _shown(item.inserted),
                _shown(item.updated),
                _shown(item.deleted),
            )
            for item in writings
        ],
    )
    return 0


def _prune(connection: Connection, tracking: Tracking, options: argparse.Namespace) -> int:
    found = fetch_prunable(connection, tracking)
    forgotten = prune(connection, tracking, found) if options.yes else 0
    total = sum(len(item.materialization_ids) for item in found)
    if options.json:
        tables = [
            {"table": str(item.table), "materialization_ids": list(item.materialization_ids)}
            for item in found
        ]
        return _print_json({"tables": tables, "forgotten": forgotten})
    _print_table(
        ("table", "materializations without rows"),
        [(str(item.table), _shown(len(item.materialization_ids))) for item in found],
    )
    if options.yes:
        print(f"{forgotten} forgotten.")
    elif total:
        print(f"Nothing done. `dagster-tools prune --yes` forgets these {total}.")
    else:
        print("Nothing to forget.")
    return 0


def _doctor(connection: Connection, tracking: Tracking, options: argparse.Namespace) -> int:
    findings = examine(connection, tracking, options.schema)
    bad = any(finding.state == "bad" for finding in findings)
    if options.json:
        _print_json([dataclasses.asdict(finding) for finding in findings])
        return int(bad)
    for finding in findings:
        line = f"{MARKS[finding.state]}  {finding.subject}: {finding.found}"
        print(textwrap.fill(line, WIDTH, subsequent_indent=" " * 6))
        if finding.remedy:
            print(textwrap.indent(finding.remedy, " " * 6 + "→ "))
    return int(bad)


def _table(text: str) -> Table:
    """Read SCHEMA.TABLE; quoted as in SQL where a name has a dot of its own."""
    parts: list[str] = []
    rest = text
    while rest:
        if rest.startswith('"'):
            end = 1
            while (end := rest.find('"', end)) >= 0 and rest[end : end + 2] == '""':
                end += 2
            name, rest = rest[1:end].replace('""', '"'), rest[end + 1 :]
            rest = rest.removeprefix(".")
        else:
            name, _dot, rest = rest.partition(".")
        parts.append(name)
    if len(parts) not in {1, 2}:
        raise argparse.ArgumentTypeError(f"{text!r} is not SCHEMA.TABLE")
    try:
        return Table(*parts) if len(parts) == 2 else Table("public", parts[0])
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns that fit 80 characters: the widest give way first."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widest = max(range(len(widths)), key=widths.__getitem__)
        widths[widest] -= 1
    for row in (header, *rows):
        cells = (_cell(text, width) for text, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _cell(text: str, width: int) -> str:
    if len(text) > width:
        return text[: width - 1] + "…"
    return text.rjust(width) if text.isdigit() else text.ljust(width)


def _shown(number: int | None) -> str:
    return "" if number is None else str(number)


def _print_json(value: object) -> int:
    def plain(item: object) -> str:
        return item.isoformat() if isinstance(item, dt.datetime) else str(item)

    print(json.dumps(value, default=plain, ensure_ascii=False, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
