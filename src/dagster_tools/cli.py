"""`dagster-tools`: lineage, pruning, high watermarks, SharePoint and check-ups, from the shell."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime as dt
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from dagster_tools import json_text
from dagster_tools.errors import ConfigurationError, DagsterToolsError
from dagster_tools.postgres.connection import (
    Connection,
    ConnectionSettings,
    connect,
    url_settings,
)
from dagster_tools.postgres.doctor import examine
from dagster_tools.postgres.feed import FeedTables
from dagster_tools.postgres.lineage import fetch_lineage, fetch_prunable, prune
from dagster_tools.postgres.names import Table
from dagster_tools.postgres.tracking import Tracking
from dagster_tools.postgres.watermarks import fetch_watermarks, set_watermark

__all__ = ["main"]

WIDTH = 80
MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit code: 1 where something is wrong."""
    options = _parser().parse_args(arguments)
    code: int
    try:
        if options.asks_no_database:
            code = options.command(options)
            return code
        settings = url_settings(options.url) if options.url else ConnectionSettings()
        with closing(connect(settings)) as connection:
            code = options.command(connection, Tracking(options.tracking_schema), options)
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
    parser.set_defaults(asks_no_database=False)
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

    watermark = commands.add_parser(
        "watermark", help="how far an asset that is loaded in batches has come"
    )
    actions = watermark.add_subparsers(required=True, metavar="ACTION")
    asset = argparse.ArgumentParser(add_help=False, parents=[common])
    asset.add_argument("asset", metavar="ASSET", help="its key, as Dagster shows it: a/b")
    asset.add_argument("--partition", help="its partition key, where it has partitions")
    showing = actions.add_parser("show", parents=[asset], help="of each of its partitions")
    showing.set_defaults(command=_show_watermarks)
    setting = actions.add_parser("set", parents=[asset], help="where the next run begins")
    setting.add_argument("value", metavar="JSON", type=_json, help="such as 7 or '\"2024-01-01\"'")
    setting.set_defaults(command=_set_watermark)
    clearing = actions.add_parser("clear", parents=[asset], help="the next run begins anew")
    clearing.set_defaults(command=_set_watermark, value=None)

    doctor = commands.add_parser(
        "doctor", parents=[common], help="what works, and what to do about what does not"
    )
    doctor.add_argument("--schema", default="public", help="where assets go; default: public")
    doctor.set_defaults(command=_doctor)
    _add_sharepoint(commands, common)
    return parser


def _add_sharepoint(commands: Any, common: argparse.ArgumentParser) -> None:
    sharepoint = commands.add_parser(
        "sharepoint", help="whether SharePoint can be reached, and what its assets have"
    )
    actions = sharepoint.add_subparsers(required=True, metavar="ACTION")

    check = actions.add_parser(
        "check",
        help="sign in, find site, library and folder, ask for changes, download a file",
        description="The app signs in by azure-identity's variables: AZURE_TENANT_ID, "
        "AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or AZURE_CLIENT_CERTIFICATE_PATH (with "
        "AZURE_CLIENT_CERTIFICATE_PASSWORD). Without secret and certificate it is the machine's "
        "managed identity.",
    )
    check.add_argument("site", metavar="SITE", help="its URL, its path (/sites/lab) or its name")
    check.add_argument("--library", help="default: the site's default library")
    check.add_argument("--folder", default="/", help="default: /")
    check.add_argument("--hostname", help="the tenant's, such as contoso.sharepoint.com")
    check.add_argument("--cloud", default="public", help="public, us-government, us-dod, china")
    check.add_argument("--authority", help="where to sign in, if not at the cloud's own")
    check.add_argument("--graph", help="where Microsoft Graph is, if not at the cloud's own")
    check.add_argument("--ca-file", help="authorities to trust instead of the system's, in PEM")
    check.add_argument("--json", action="store_true", help="print JSON instead of text")
    check.set_defaults(command=_check_sharepoint, asks_no_database=True)

    status = actions.add_parser(
        "status", parents=[common], help="of each asset: pending, delivered and failed files"
    )
    status.set_defaults(command=_sharepoint_status)

    reset = actions.add_parser(
        "reset", parents=[common], help="deliver all files again, or list a library anew"
    )
    what = reset.add_mutually_exclusive_group(required=True)
    what.add_argument("--asset", metavar="KEY", help="every file is delivered to it again")
    what.add_argument("--library", metavar="URL", help="everything in it is listed anew")
    reset.set_defaults(command=_reset_sharepoint)


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


def _show_watermarks(
    connection: Connection, tracking: Tracking, options: argparse.Namespace
) -> int:
    found = fetch_watermarks(connection, tracking, options.asset, options.partition)
    if options.json:
        return _print_json(
            [
                dataclasses.asdict(item) | {"high_watermark": _loaded_json(item.high_watermark)}
                for item in found
            ]
        )
    _print_table(
        ("partition", "high watermark", "last batch", "source"),
        [
            (
                item.partition_key or "",
                item.high_watermark or "(none)",
                f"{item.timestamp:%Y-%m-%d %H:%M}" if item.timestamp else "",
                "at its end" if item.finished else "cut off",
            )
            for item in found
        ],
    )
    return 0


def _set_watermark(connection: Connection, tracking: Tracking, options: argparse.Namespace) -> int:
    set_watermark(connection, tracking, options.asset, options.partition, options.value)
    if options.json:
        return _print_json({"high_watermark": _loaded_json(options.value)})
    begins = "anew" if options.value is None else f"at {options.value}"
    print(f"The next run of {options.asset} begins {begins}.")
    return 0


def _doctor(connection: Connection, tracking: Tracking, options: argparse.Namespace) -> int:
    return _print_findings(examine(connection, tracking, options.schema), options)


def _check_sharepoint(options: argparse.Namespace) -> int:
    from dagster_tools.sharepoint import Watch, checkup
    from dagster_tools.sharepoint_resource import SharePointResource

    secret = os.environ.get("AZURE_CLIENT_SECRET")
    certificate = os.environ.get("AZURE_CLIENT_CERTIFICATE_PATH")
    resource = SharePointResource(
        tenant=os.environ.get("AZURE_TENANT_ID"),
        client_id=os.environ.get("AZURE_CLIENT_ID"),
        client_secret=secret,
        certificate=None if secret else certificate,
        certificate_password=os.environ.get("AZURE_CLIENT_CERTIFICATE_PASSWORD"),
        managed_identity=not (secret or certificate),
        cloud=options.cloud,
        authority=options.authority,
        graph=options.graph,
        hostname=options.hostname,
        ca_file=options.ca_file,
    )
    watch = Watch(options.site, options.folder, library=options.library)
    return _print_findings(asyncio.run(checkup.examine(resource.client(), watch)), options)


def _sharepoint_status(
    _connection: Connection, tracking: Tracking, options: argparse.Namespace
) -> int:
    found = _feed(options, tracking).status()
    if options.json:
        return _print_json([dataclasses.asdict(item) for item in found])
    _print_table(
        ("asset", "pending", "delivered", "failed", "last sync", "watches"),
        [
            (
                item.asset_key,
                _shown(item.pending),
                _shown(item.delivered),
                _shown(len(item.failures)),
                f"{item.delivered_at:%Y-%m-%d %H:%M}" if item.delivered_at else "never",
                item.watch,
            )
            for item in found
        ],
    )
    for failure in (failure for item in found for failure in item.failures):
        fate = "left out until it changes" if failure.quarantined else "the run failed"
        text = f"{failure.asset_key}: {failure.path} ({fate}, attempt {failure.attempts}): "
        print(textwrap.fill(text + failure.error, WIDTH, subsequent_indent="  "))
    return 0


def _reset_sharepoint(
    _connection: Connection, tracking: Tracking, options: argparse.Namespace
) -> int:
    feed = _feed(options, tracking)
    if options.asset is not None:
        done = feed.reset_asset(options.asset)
        subject = f"The next run of {options.asset} is handed every file."
    else:
        done = feed.reset_library(options.library)
        subject = f"Everything in {options.library} is listed anew with the next run."
    if not done:
        raise ConfigurationError(
            f"The SharePoint feed knows no {'asset' if options.asset else 'library'} "
            f"{options.asset or options.library}. `dagster-tools sharepoint status` lists assets."
        )
    if options.json:
        return _print_json({"reset": True})
    print(subject)
    return 0


def _feed(options: argparse.Namespace, tracking: Tracking) -> FeedTables:
    settings = url_settings(options.url) if options.url else ConnectionSettings()
    return FeedTables(settings, tracking.schema)


def _print_findings(findings: Sequence[Any], options: argparse.Namespace) -> int:
    """Print what was found; return 1 where something is bad."""
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


def _json(text: str) -> str:
    """Check JSON; a word that is none is most likely text whose quotes the shell took."""
    try:
        return json_text.dumps(json_text.loads(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not JSON ({error}). Text has quotes of its own: '\"2024-01-01\"'"
        ) from None


def _loaded_json(text: str | None) -> object:
    return None if text is None else json_text.loads(text)


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
