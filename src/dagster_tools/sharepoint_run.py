"""The story of one run of a SharePoint asset: take in, claim, call, store and acknowledge."""

from __future__ import annotations

import inspect
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from dagster_tools.errors import ConfigurationError, FileDeleted, SharePointNotFound, listed
from dagster_tools.postgres.feed import FeedTables
from dagster_tools.postgres.feed_rows import Delivery, Failure
from dagster_tools.sharepoint import GraphClient, SharePointFile, Watch, find_folder
from dagster_tools.sharepoint.blocking import BlockingFile
from dagster_tools.sharepoint.feed import (
    Again,
    AssetState,
    Claim,
    Claimed,
    Watched,
    find_work,
    missing_folders,
    resolve,
    take_in,
)
from dagster_tools.sharepoint.files import blamed, is_poison
from dagster_tools.sharepoint.portal import Portal
from dagster_tools.sharepoint_resource import SharePointResource
from dagster_tools.sql import IncrementalDataFrame, Transacted

__all__ = ["Definition", "SharePointConfig", "bring_up_to_date", "confirm_handed_over", "run"]

CLAIM = "sharepoint/claim"
"""Metadata that says what was handed to another IO manager than PostgresIOManager."""

SHOWN = 100
"""Files that metadata list."""


class SharePointConfig(dg.Config):
    """Run config of a SharePoint asset: which files to deliver again, besides those that changed.

    An asset with config of its own derives it from this class, or takes it as it is.
    """

    full_refresh: bool = Field(default=False, description="Deliver every file again.")
    paths: list[str] = Field(
        default=[],
        description="Deliver files at these paths again, such as /Results/2024/*.csv; * also "
        "stands for slashes.",
    )
    ids: list[str] = Field(default=[], description="Deliver the files with these ids again.")
    since: str | None = Field(
        default=None,
        description="Deliver files again that were modified since; ISO 8601, UTC unless it says "
        "otherwise.",
    )

    def again(self) -> Again:
        """Return the same for the feed.

        Raises:
            ConfigurationError: `since` is no time.
        """
        try:
            # Python 3.10 does not read the Z.
            since = (
                datetime.fromisoformat(self.since.replace("Z", "+00:00")) if self.since else None
            )
        except ValueError:
            raise ConfigurationError(
                f"since is {self.since!r}; expected a time such as 2024-01-31T12:00:00+01:00."
            ) from None
        if since is not None and since.tzinfo is None:
            since = since.replace(tzinfo=timezone.utc)
        return Again(self.full_refresh, tuple(self.paths), tuple(self.ids), since)


@dataclass(frozen=True, slots=True)
class Definition:
    """What the decorator was told.

    Args:
        snapshot: The function gets all current files, and what it returns replaces the table.
        quarantine: A file that cannot be read is left out until it changes.
        resource_key: Of the SharePointResource.
    """

    function: Callable[..., Any]
    watches: tuple[Watch, ...]
    snapshot: bool
    quarantine: bool
    resource_key: str

    @property
    def words(self) -> str:
        """What is watched, as the shell shows it."""
        return ", ".join(map(repr, self.watches))


# --- what a run and the sensor share --------------------------------------------------------


async def bring_up_to_date(
    client: GraphClient, store: FeedTables, watches: Sequence[Watch]
) -> list[Watched]:
    """Take in what changed in the libraries that are watched.

    Raises:
        SharePointError: It could not be had; what is stored is as it was.
    """
    watched = await resolve(client, store, watches)
    try:
        await _take_in_each(client, store, watched)
    except SharePointNotFound:
        # A library that was deleted and made anew has another id under the same name.
        for watch in watches:
            store.forget(watch.site, watch.library or "")
        watched = await resolve(client, store, watches, anew=True)
        await _take_in_each(client, store, watched)
    return watched


async def _take_in_each(client: GraphClient, store: FeedTables, watched: list[Watched]) -> None:
    for library in {each.library.drive_id: each.library for each in watched}.values():
        await take_in(client, library, store)


def confirm_handed_over(
    instance: dg.DagsterInstance,
    store: FeedTables,
    keys: Iterable[dg.AssetKey],
    *,
    ended: bool = False,
) -> None:
    """Take what another IO manager was handed as delivered, if Dagster knows that it was stored.

    Args:
        ended: The run it was handed over in has, so that Dagster will not hear of it any more.
    """
    with store.reading() as view:
        rows = {key: view.asset(key.to_escaped_user_string()) for key in keys}
    for key, row in rows.items():
        claim_id = AssetState(*row).claim_id if row is not None else None
        if claim_id is None:
            continue
        event = instance.get_latest_materialization_event(key)
        materialization = event.asset_materialization if event is not None else None
        claim = materialization.metadata.get(CLAIM) if materialization is not None else None
        if claim is not None and claim.value == claim_id:
            store.confirm(key.to_escaped_user_string(), claim_id)
        elif ended:
            store.doubt(key.to_escaped_user_string(), claim_id)


# --- a run ----------------------------------------------------------------------------------


def run(
    context: dg.AssetExecutionContext,
    definition: Definition,
    again: Again,
    foreign: Sequence[str],
    arguments: Mapping[str, Any],
) -> Iterator[Any]:
    """Yield what Dagster is to store for the selected outputs.

    Args:
        again: Which files besides those that changed.
        foreign: Outputs that another IO manager than PostgresIOManager stores.
        arguments: Of the user's function, but for the files.
    """
    resource: SharePointResource = getattr(context.resources, definition.resource_key)
    with Portal() as portal:
        client = resource.client()
        portal.run(client.__aenter__())
        try:
            yield from _Run(
                context, definition, portal, client, resource.feed(), foreign, arguments
            ).events(again)
        finally:
            portal.run(client.__aexit__(None, None, None))


@dataclass(frozen=True)
class _Run:
    context: dg.AssetExecutionContext
    definition: Definition
    portal: Portal
    client: GraphClient
    store: FeedTables
    foreign: Sequence[str]
    arguments: Mapping[str, Any]

    def events(self, again: Again) -> Iterator[Any]:
        """Yield what Dagster is to store."""
        claims = self._claims(again)
        files = _union(claims)
        failed: list[SharePointFile] = []
        result = None
        if files:
            result, files = self._result(claims, files, failed)
        if not files:
            for name in claims:
                yield self._nothing_to_do(name, claims[name], failed)
            yield from self._checks_as_before()
            return
        for event in _events(self.context, result):
            yield self._acknowledging(event, claims, files, failed)

    def _claims(self, again: Again) -> dict[str, Claim]:
        """Return what is to be done for each selected output."""
        names = sorted(_selected(self.context), key=self._position)
        keys = {name: self._key(name) for name in names}
        for key in keys.values():
            self.store.begin(key.to_escaped_user_string(), self.definition.words)
        if self.foreign:
            confirm_handed_over(self.context.instance, self.store, keys.values(), ended=True)
        watched = self.portal.run(
            bring_up_to_date(self.client, self.store, self.definition.watches)
        )
        with self.store.reading() as view:
            claims = {
                name: find_work(
                    view,
                    key.to_escaped_user_string(),
                    watched,
                    self.client,
                    again=again,
                    snapshot=self.definition.snapshot,
                )
                for name, key in keys.items()
            }
            new = not any(claim.files or claim.delivered_before for claim in claims.values())
            missing = missing_folders(view, watched) if new else []
        for watch, library in missing:
            self.portal.run(find_folder(self.client, library, watch.folder))
        return claims

    def _result(
        self, claims: Mapping[str, Claim], files: list[Claimed], failed: list[SharePointFile]
    ) -> tuple[Any, list[Claimed]]:
        """Return what the function returns, and the files it did so for.

        It is called once more where a file is gone that was to be read, and, if such files are
        quarantined, where one could not be read.
        """
        while files:
            try:
                return self._call(files), files
            except Exception as error:
                file = blamed(error)
                if file is None:
                    raise
                if isinstance(error, FileDeleted):
                    self.context.log.info("File %s was deleted after it was listed.", file.path)
                    files = [each for each in map(partial(_gone, file), files) if each]
                    continue
                self._note_failure(claims, file, error)
                if not (self.definition.quarantine and is_poison(error)):
                    raise
                self.context.log.warning(
                    "File %s could not be read and is left out until it changes: %s",
                    file.path,
                    _reason(error),
                )
                failed.append(file)
                files = [each for each in files if each.file.id != file.id]
        return None, []

    def _call(self, claimed: Sequence[Claimed]) -> Any:
        files = [each.file for each in claimed]
        if self.definition.snapshot:
            files = [file for file in files if not file.deleted]
        function = self.definition.function
        if inspect.isasyncgenfunction(function):
            return self.portal.run(_collected(function(files=files, **self.arguments)))
        if inspect.iscoroutinefunction(function):
            return self.portal.run(function(files=files, **self.arguments))
        blocking = [BlockingFile(file, self.portal) for file in files]
        result = function(files=blocking, **self.arguments)
        if inspect.isgeneratorfunction(function):
            return _Yielded(list(result))
        return result

    def _note_failure(
        self, claims: Mapping[str, Claim], file: SharePointFile, error: Exception
    ) -> None:
        self.store.fail(
            [
                Failure(
                    claim.asset_key,
                    file.drive_id,
                    file.id,
                    file.etag,
                    file.path,
                    file.url,
                    attempts=1,
                    error=_reason(error),
                    failed_at=None,
                    quarantined=self.definition.quarantine and is_poison(error),
                )
                for claim in claims.values()
            ]
        )

    # --- what comes of it -------------------------------------------------------------------

    def _nothing_to_do(
        self, name: str, claim: Claim, failed: Sequence[SharePointFile] = ()
    ) -> dg.MaterializeResult[Any]:
        state = claim.state
        if state is not None and state.clean != claim.signature:
            self.store.settle(self._delivery(claim, []))
        metadata = _metadata([], failed, claim.held_back)
        if state is not None and state.run_id is not None and self._lost(name, state.run_id):
            metadata["sharepoint/recovered_from_run_id"] = state.run_id
            self.store.recover(claim.asset_key, self.context.run.run_id)
        self.context.log.info("Nothing to do for %s.", claim.asset_key)
        return dg.MaterializeResult(asset_key=self._key(name), metadata=metadata)

    def _checks_as_before(self) -> Iterator[dg.AssetCheckResult | dg.Output[None]]:
        """Yield what the function's checks found when it was last called.

        What they were made of did not change since, so that holds: a bad file stays one, also
        in a run that has nothing to do. Where that is not known, as in the run that speaks for one
        which was lost, a check has an output and no result, which Dagster shows as skipped.
        """
        specs = self.context.assets_def.check_specs_by_output_name
        outputs = {spec.key: name for name, spec in specs.items()}
        keys = sorted(self.context.op_execution_context.selected_asset_check_keys)
        with self.store.reading() as view:
            rows = [view.asset(key.asset_key.to_escaped_user_string()) for key in keys]
        for key, row in zip(keys, rows, strict=True):
            run_id = AssetState(*row).run_id if row is not None else None
            found = self._found_by(key, run_id) if run_id is not None else None
            if found is None:
                yield dg.Output(None, output_name=outputs[key])
                continue
            yield dg.AssetCheckResult(
                asset_key=key.asset_key,
                check_name=key.name,
                passed=found.passed,
                severity=found.severity,
                description=found.description,
                metadata={**found.metadata, "sharepoint/as_in_run_id": str(run_id)},
            )

    def _found_by(self, key: dg.AssetCheckKey, run_id: str) -> dg.AssetCheckEvaluation | None:
        """Return what a check found in a run; None where it was not made or nobody knows."""
        records = self.context.instance.get_records_for_run(
            run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION
        ).records
        events = [record.event_log_entry.dagster_event for record in records]
        found = [event.asset_check_evaluation_data for event in events if event is not None]
        return next((each for each in reversed(found) if each.asset_check_key == key), None)

    def _lost(self, name: str, run_id: str) -> bool:
        """Tell whether a run stored the asset, and ended before Dagster was told."""
        instance = self.context.instance
        if not instance.has_run(run_id):
            return False
        key = self._key(name)
        events = instance.get_records_for_run(
            run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION
        ).records
        return all(record.asset_key != key for record in events)

    def _acknowledging(
        self,
        event: Any,
        claims: Mapping[str, Claim],
        files: Sequence[Claimed],
        failed: Sequence[SharePointFile],
    ) -> Any:
        """Return the event with its value acknowledging the files as it is stored."""
        name = self._output_name(event)
        claim = claims.get(name) if name is not None else None
        if claim is None:
            return event
        delivery = self._delivery(claim, files)
        value = getattr(event, "value", None)
        metadata = _metadata([each.file for each in files], failed, claim.held_back)
        metadata |= _rows_by_file(value, files)
        if not self._is_to_be_stored(event, name):
            # The function stored it itself; Dagster calls no IO manager.
            self.store.deliver_alone(delivery)
        elif name in self.foreign:
            claim_id = str(uuid.uuid4())
            self.store.hand_over(claim_id, delivery)
            metadata[CLAIM] = claim_id
        else:
            acknowledge = partial(self.store.deliver, delivery=delivery)
            partial_files = None if self.definition.snapshot else PARTIAL
            value = Transacted(value, acknowledge, partial_files)
        if isinstance(event, dg.Output):
            return dg.Output(
                value,
                output_name=event.output_name,
                metadata=dict(event.metadata) | metadata,
                data_version=event.data_version,
                tags=event.tags,
            )
        changes = {"metadata": dict(event.metadata or {}) | metadata}
        return event._replace(**changes, **({"value": value} if _has_value(event) else {}))

    def _is_to_be_stored(self, event: Any, name: str | None) -> bool:
        """Tell whether Dagster gives the value of an event to an IO manager."""
        has_value = isinstance(event, dg.Output) or _has_value(event)
        return has_value and not self.context.op_def.output_def_named(name).dagster_type.is_nothing

    def _delivery(self, claim: Claim, files: Sequence[Claimed]) -> Delivery:
        state = claim.state
        if state is None:
            raise ConfigurationError(
                f"Asset {claim.asset_key} vanished from the SharePoint feed while it ran."
            )
        return Delivery(
            asset_key=claim.asset_key,
            run_id=self.context.run.run_id,
            token=state.token,
            deliveries=state.deliveries,
            watch=self.definition.words,
            files=[each.now for each in files if each.now is not None],
            gone=[(each.file.drive_id, each.file.id) for each in files if each.now is None],
            clean=claim.signature,
        )

    # --- outputs and keys -------------------------------------------------------------------

    def _key(self, name: str) -> dg.AssetKey:
        keys: Mapping[str, dg.AssetKey] = self.context.assets_def.keys_by_output_name
        return keys[name]

    def _position(self, name: str) -> int:
        return [each.name for each in self.context.op_def.output_defs].index(name)

    def _output_name(self, event: Any) -> str | None:
        if isinstance(event, dg.Output):
            return event.output_name
        if not isinstance(event, dg.MaterializeResult):
            return None
        keys: Mapping[str, dg.AssetKey] = self.context.assets_def.keys_by_output_name
        names = {key: name for name, key in keys.items()}
        if event.asset_key is None and len(names) == 1:
            return next(iter(names.values()))
        return names.get(event.asset_key) if event.asset_key is not None else None


PARTIAL = (
    "A frame replaces the table, and this asset was given the files that changed: the rows of "
    "all others would be gone. Return IncrementalDataFrame(frame, delete=Eq('file_id', ids)), or "
    "make the asset incremental with a primary_key; or ask for all current files each time "
    "with mode='snapshot'."
)


class _Yielded(list[Any]):
    """What a generator function yielded."""


async def _collected(generator: Any) -> _Yielded:
    return _Yielded([event async for event in generator])


def _events(context: dg.AssetExecutionContext, result: Any) -> list[Any]:
    """Return what a function returned or yielded as Dagster's events, as Dagster itself would.

    Raises:
        ConfigurationError: It is not what the outputs and checks ask for.
    """
    events = result if isinstance(result, _Yielded) else list(_returned(context, result))
    # Dagster would find that out when the rows are stored, and the next run has nothing to check.
    checks = [each for each in events if isinstance(each, dg.AssetCheckResult)]
    for event in events:
        if isinstance(event, dg.MaterializeResult):
            checks += event.check_results or ()
    wanted = context.op_execution_context.selected_asset_check_keys
    if len(checks) < len(wanted) and not context.assets_def.can_subset:
        names = listed(sorted(key.name for key in wanted))
        raise ConfigurationError(
            f"The function has the checks {names}, and told {len(checks)} results. Return or "
            "yield a dagster.AssetCheckResult for each."
        )
    return events


def _returned(context: dg.AssetExecutionContext, result: Any) -> Iterator[Any]:
    keys = context.assets_def.keys_by_output_name
    names = [each.name for each in context.op_def.output_defs if each.name in keys]
    # Dagster's own results are tuples, too.
    one = isinstance(result, (dg.MaterializeResult, dg.AssetCheckResult))
    several = isinstance(result, tuple) and not one and len(context.op_def.output_defs) > 1
    given = result if several else (result,)
    checks = [value for value in given if isinstance(value, dg.AssetCheckResult)]
    values = [value for value in given if not isinstance(value, dg.AssetCheckResult)]
    if all(isinstance(value, dg.MaterializeResult) for value in values):
        yield from given
        return
    if len(values) != len(names):
        what = f"{len(values)} values" if several else f"a {type(result).__name__}"
        raise ConfigurationError(
            f"The function has {len(names)} outputs ({listed(names)}), and returned {what}. "
            "Return a tuple of as many values, or yield a dagster.Output for each."
        )
    for name, value in zip(names, values, strict=True):
        if name in _selected(context):
            output = value if isinstance(value, dg.Output) else dg.Output(value)
            yield dg.Output(
                output.value,
                output_name=name,
                metadata=output.metadata,
                data_version=output.data_version,
                tags=output.tags,
            )
    yield from checks


def _selected(context: dg.AssetExecutionContext) -> set[str]:
    """Return the outputs that are assets; checks are outputs, too."""
    names = context.op_execution_context.selected_output_names
    return {name for name in names if name in context.assets_def.keys_by_output_name}


def _has_value(event: Any) -> bool:
    value = getattr(event, "value", None)
    return not inspect.isclass(value) or value.__name__ != "NoValueSentinel"


def _union(claims: Mapping[str, Claim]) -> list[Claimed]:
    """Return the files of several outputs, each once: as it is to the first it is new to."""
    found: dict[tuple[str, str], Claimed] = {}
    for claim in claims.values():
        for each in claim.files:
            key = (each.file.drive_id, each.file.id)
            if key not in found or found[key].file.change == "unchanged":
                found[key] = each
    return sorted(found.values(), key=lambda each: each.file.path)


def _gone(file: SharePointFile, claimed: Claimed) -> Claimed | None:
    """Return what is claimed, of one file as deleted; None if it was never delivered."""
    if (claimed.file.drive_id, claimed.file.id) != (file.drive_id, file.id):
        return claimed
    return Claimed(replace(claimed.file, change="deleted", client=None), None)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


# --- metadata -------------------------------------------------------------------------------


def _metadata(
    files: Sequence[SharePointFile], failed: Sequence[SharePointFile], held_back: int
) -> dict[str, Any]:
    """Return how many files what happened to, and links to some of them."""
    counts = Counter(file.change for file in files)
    metadata: dict[str, Any] = {
        f"sharepoint/{change}": counts[change]
        for change in ("created", "changed", "moved", "renamed", "deleted", "unchanged")
        if counts[change] or change in {"created", "changed", "deleted"}
    }
    if failed or held_back:
        metadata["sharepoint/quarantined"] = len(failed) + held_back
    if files or failed:
        rows = [_row(file, file.change) for file in files] + [
            _row(f, "quarantined") for f in failed
        ]
        more = ["", f"and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
        table = ["| change | file | modified | by |", "|---|---|---|---|", *rows[:SHOWN], *more]
        metadata["sharepoint/files"] = dg.MetadataValue.md("\n".join(table))
    return metadata


def _row(file: SharePointFile, change: str) -> str:
    name = _escaped(file.path)
    link = f"[{name}](<{file.url}>)" if file.url and not file.deleted else name
    modified = f"{file.modified:%Y-%m-%d %H:%M}" if file.modified is not None else ""
    return f"| {change} | {link} | {modified} | {_escaped(file.modified_by or '')} |"


def _escaped(text: str) -> str:
    for character in "\\|[]`*_<>":
        text = text.replace(character, f"\\{character}")
    return text


def _rows_by_file(value: Any, files: Sequence[Claimed]) -> dict[str, Any]:
    """Return how many rows came of each file, where a frame of pandas has a column of their ids."""
    frame: Any = value.frame if isinstance(value, IncrementalDataFrame) else value
    if not files or len(files) > SHOWN or not hasattr(frame, "iloc"):
        return {}
    if "file_id" not in list(frame.columns):
        return {}
    by_id = {str(key): int(number) for key, number in frame["file_id"].value_counts().items()}
    rows = {each.file.path: by_id.get(each.file.id, 0) for each in files if each.now is not None}
    return {"sharepoint/rows": dg.MetadataValue.json(rows)}
