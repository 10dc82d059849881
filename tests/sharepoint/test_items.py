from __future__ import annotations

from datetime import datetime, timezone

import pytest

from dagster_tools.errors import SharePointError
from dagster_tools.sharepoint import Tombstone
from dagster_tools.sharepoint.items import parse_item, parse_listed

FILE = {"id": "1", "name": "a.csv", "parentReference": {"id": "0"}, "file": {}}


@pytest.mark.parametrize(
    ("facets", "kind"),
    [
        ({"file": {}}, "file"),
        ({"folder": {"childCount": 2}}, "folder"),
        ({"root": {}}, "folder"),
        ({"package": {"type": "oneNote"}}, "opaque"),
        ({"package": {"type": "oneNote"}, "folder": {}}, "opaque"),
        ({"remoteItem": {}, "file": {}}, "opaque"),
        ({}, "opaque"),
    ],
)
def test_an_item_is_a_file_a_folder_or_what_cannot_be_read(facets, kind):
    resource = {"id": "1", "name": "x", "parentReference": {"id": "0"}, **facets}

    assert parse_item(resource).kind == kind


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2026-01-05T08:00:00Z", 0),
        ("2026-01-05T08:00:00.5Z", 500_000),
        ("2026-01-05T08:00:00.123Z", 123_000),
        ("2026-01-05T08:00:00.1234567Z", 123_456),
    ],
)
def test_a_time_is_in_utc_with_whatever_fraction(text, microsecond):
    item = parse_item(FILE | {"lastModifiedDateTime": text})

    assert item.modified == datetime(2026, 1, 5, 8, 0, 0, microsecond, timezone.utc)


@pytest.mark.parametrize("text", [None, "", "yesterday"])
def test_a_time_that_is_none_is_not_known(text):
    assert parse_item(FILE | {"lastModifiedDateTime": text}).modified is None


@pytest.mark.parametrize(
    ("identities", "name"),
    [
        ({"user": {"displayName": "Ada", "email": "ada@contoso.example"}}, "Ada"),
        ({"user": {"email": "ada@contoso.example"}}, "ada@contoso.example"),
        ({"application": {"displayName": "Loader"}}, "Loader"),
        ({"user": {}, "application": {"displayName": "Loader"}}, "Loader"),
        ({}, None),
        (None, None),
    ],
)
def test_who_changed_a_file_is_a_person_or_an_app(identities, name):
    assert parse_item(FILE | {"lastModifiedBy": identities}).modified_by == name


def test_a_deleted_item_is_a_tombstone_without_a_name():
    assert parse_listed({"id": "1", "deleted": {"state": "deleted"}, "file": {}}) == Tombstone("1")


@pytest.mark.parametrize("missing", ["id", "name", "parentReference"])
def test_an_item_without_what_it_must_have_is_an_error(missing):
    resource = {key: value for key, value in FILE.items() if key != missing}

    with pytest.raises(SharePointError, match="without"):
        parse_item(resource)
