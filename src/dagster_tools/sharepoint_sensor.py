"""One sensor for all SharePoint assets of a code location: a run for each that has work."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from dagster_tools.errors import ConfigurationError, SharePointError, SharePointNotFound
from dagster_tools.postgres.feed import FeedTables
from dagster_tools.sharepoint import GraphClient
from dagster_tools.sharepoint.feed import (
    Claim,
    LibraryState,
    Watched,
    find_work,
    resolve,
    take_in,
)
from dagster_tools.sharepoint.portal import Portal
from dagster_tools.sharepoint_resource import SharePointResource
from dagster_tools.sharepoint_run import Definition, confirm_handed_over

__all__ = ["TAG", "sharepoint_sensor"]

TAG = "dagster_tools/sharepoint"
"""Of assets: that they are of SharePoint files. Of runs: which of them the sensor wants."""

STATE_TAG = "dagster_tools/sharepoint_state"
"""Of runs: how far libraries and asset were when the sensor asked for the run."""

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
ATTEMPTS_COUNTED = 20


def sharepoint_sensor(
    name: str = "sharepoint_sensor",
    *,
    asset_selection: Any = None,
    sharepoint_key: str = "sharepoint",
    minimum_interval_seconds: int = 60,
    seconds_per_tick: float = 30.0,
    retry_after_seconds: float = 60.0,
    longest_retry_seconds: float = 3600.0,
    **arguments: Any,
) -> dg.SensorDefinition:
    """Make a sensor that runs SharePoint assets when their files change.

    Each tick takes in what changed in the libraries, one request for each in which nothing did,
    and asks for a run of each asset that has something to do and is not being run. After a
    failed run it waits before it asks again, each time twice as long. A library that was never
    listed, is gone, or has changed more than a tick has time for, is left to the run.

    Args:
        asset_selection: Which assets; all SharePoint assets of the code location by default.
        sharepoint_key: The resource key of the `SharePointResource`.
        seconds_per_tick: How long a tick may take things in; Dagster gives it 60.
        retry_after_seconds: How long to wait after the first failed run.
        longest_retry_seconds: How long at most.
        arguments: Those of `dagster.SensorDefinition`, such as `default_status`.
    """
    selection = dg.AssetSelection.tag(TAG, "") if asset_selection is None else asset_selection

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        resource: SharePointResource = getattr(context.resources, sharepoint_key)
        groups = _groups(context, selection)
        if not groups:
            return dg.SkipReason("No asset of this code location is of SharePoint files.")
        with Portal() as portal:
            tick = _Tick(context, resource.feed(), time.monotonic() + seconds_per_tick)
            portal.run(tick.take_in(resource.client(), groups))
        requests = tick.requests(groups, retry_after_seconds, longest_retry_seconds)
        if requests:
            return dg.SensorResult(run_requests=requests)
        if tick.errors:
            raise tick.errors[0]
        return dg.SkipReason(tick.told())

    return dg.SensorDefinition(
        name=name,
        evaluation_fn=evaluate,
        asset_selection=selection,
        required_resource_keys={sharepoint_key},
        minimum_interval_seconds=minimum_interval_seconds,
        **arguments,
    )


@dataclass(frozen=True, eq=False)
class _Group:
    """The assets of one function.

    Args:
        together: A run computes all of them or none.
    """

    keys: tuple[dg.AssetKey, ...]
    definition: Definition
    together: bool

    @property
    def name(self) -> str:
        return self.keys[0].to_user_string()


def _groups(context: dg.SensorEvaluationContext, selection: Any) -> list[_Group]:
    repository = context.repository_def
    if repository is None:
        raise ConfigurationError("sharepoint_sensor is to be evaluated in a code location.")
    chosen = dg.AssetSelection.from_coercible(selection).resolve(repository.asset_graph)
    groups = []
    for assets in {id(each): each for each in repository.assets_defs_by_key.values()}.values():
        definition = _definition(assets)
        keys = tuple(key for key in sorted(assets.keys) if key in chosen)
        if definition is not None and keys:
            groups.append(_Group(keys, definition, not assets.can_subset))
    return sorted(groups, key=lambda group: group.name)


def _definition(assets: dg.AssetsDefinition) -> Definition | None:
    """Return what the decorator left on the function of an asset, if it is one of its."""
    compute = getattr(assets.node_def, "compute_fn", None) if assets.is_executable else None
    found = getattr(getattr(compute, "decorated_fn", None), "sharepoint", None)
    return found if isinstance(found, Definition) else None


@dataclass
class _Tick:
    """What one evaluation finds out.

    Args:
        deadline: When to stop taking things in, on the monotonic clock.
        unlisted: Libraries that a run is to take in.
    """

    context: dg.SensorEvaluationContext
    store: FeedTables
    deadline: float
    watched: dict[str, list[Watched]] = field(default_factory=dict)
    unlisted: set[str] = field(default_factory=set)
    errors: list[Exception] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)

    async def take_in(self, client: GraphClient, groups: Sequence[_Group]) -> None:
        """Take in what changed, as far as there is time."""
        async with client:
            for group in groups:
                try:
                    watches = group.definition.watches
                    self.watched[group.name] = await resolve(client, self.store, watches)
                except SharePointError as error:
                    self._note(error, group.name)
            libraries = {
                each.library.drive_id: each.library
                for watched in self.watched.values()
                for each in watched
            }
            with self.store.reading() as view:
                rows = view.library_states(list(libraries))
            states = {drive_id: LibraryState(*row) for drive_id, row in rows.items()}
            for drive_id, library in libraries.items():
                left = self.deadline - time.monotonic()
                if states[drive_id].listed_at is None or left <= 0:
                    self.unlisted.add(drive_id)
                    continue
                try:
                    await asyncio.wait_for(take_in(client, library, self.store), left)
                except (asyncio.TimeoutError, SharePointNotFound):
                    # A run finds out which library is there now, or that none is.
                    self.unlisted.add(drive_id)
                except SharePointError as error:
                    self._note(error, library.url)

    def requests(
        self, groups: Sequence[_Group], first_wait: float, longest_wait: float
    ) -> list[dg.RunRequest]:
        """Return the runs to ask for."""
        confirm_handed_over(
            self.context.instance, self.store, [key for group in groups for key in group.keys]
        )
        active = _active_keys(self.context)
        requests = []
        listing: set[str] = set()
        for group in groups:
            watched = self.watched.get(group.name)
            if watched is None:
                continue
            unlisted = {each.library.drive_id for each in watched} & self.unlisted
            try:
                claims = self._claims(group, watched)
            except Exception as error:  # noqa: BLE001  # a user's filter; the others go on
                self._note(error, group.name)
                continue
            keys = [key for key, claim in claims.items() if claim.pending]
            if active.intersection(group.keys):
                listing |= unlisted
                self.waiting.append(f"{group.name} is being run")
                continue
            if not keys and (not unlisted or unlisted <= listing):
                continue
            # One run lists a library for all that watch it.
            listing |= unlisted
            state = _state(claims.values(), unlisted)
            attempt = self._attempt(group, state, first_wait, longest_wait)
            if attempt is None:
                self.waiting.append(f"{group.name} waits after a failed run")
                continue
            wanted = list(group.keys) if group.together or not keys else keys
            requests.append(
                dg.RunRequest(
                    run_key=f"{group.name}:{state}:{attempt}",
                    asset_selection=wanted,
                    tags={TAG: group.name, STATE_TAG: state},
                )
            )
        return requests

    def told(self) -> str:
        """Return why no run is asked for."""
        return "; ".join(self.waiting) if self.waiting else "Nothing changed."

    def _claims(self, group: _Group, watched: Sequence[Watched]) -> dict[dg.AssetKey, Claim]:
        with self.store.reading() as view:
            claims = {
                key: find_work(
                    view,
                    key.to_escaped_user_string(),
                    watched,
                    snapshot=group.definition.snapshot,
                )
                for key in group.keys
            }
        pending = {claim.asset_key: claim.pending for claim in claims.values() if claim.pending}
        if pending:
            self.store.note_pending(pending)
        return claims

    def _attempt(
        self, group: _Group, state: str, first_wait: float, longest_wait: float
    ) -> int | None:
        """Return how often this work was tried; None while it is too early to try again."""
        tried = self.context.instance.get_run_records(
            dg.RunsFilter(tags={TAG: group.name, STATE_TAG: state}), limit=ATTEMPTS_COUNTED
        )
        if not tried:
            return 0
        ended = max(record.end_time or record.update_timestamp.timestamp() for record in tried)
        wait = min(first_wait * 2 ** (len(tried) - 1), longest_wait)
        if time.time() < ended + wait:
            return None
        # Beyond what is counted, the newest run tells one attempt from the next.
        return len(tried) if len(tried) < ATTEMPTS_COUNTED else int(ended)

    def _note(self, error: Exception, subject: str) -> None:
        self.context.log.error("%s: %s", subject, error)
        self.errors.append(error)


def _state(claims: Iterable[Claim], unlisted: Collection[str]) -> str:
    """Return a short text that is another one once what is to be done is something else."""
    parts = [
        f"{claim.signature} {claim.state.deliveries if claim.state else 0}" for claim in claims
    ]
    text = "\n".join([*parts, *sorted(unlisted)])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _active_keys(context: dg.SensorEvaluationContext) -> set[dg.AssetKey]:
    """Return the assets that a run computes now, or is about to."""
    keys: set[dg.AssetKey] = set()
    repository = context.repository_def
    for run in context.instance.get_runs(dg.RunsFilter(statuses=ACTIVE)):
        if run.asset_selection is not None:
            keys |= run.asset_selection
        elif repository is not None and repository.has_job(run.job_name):
            keys |= set(repository.get_job(run.job_name).asset_layer.executable_asset_keys)
    return keys
