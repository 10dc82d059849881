from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dagster_tools.errors import ConfigurationError
from dagster_tools.sharepoint import (
    Contains,
    Filter,
    Item,
    Library,
    Located,
    Prefix,
    SharePointFile,
    Site,
    Suffix,
)

LIBRARY = Library("drive", "Documents", "", Site("site", "Lab Data", ""))


def file(path: str, **facts) -> SharePointFile:
    item = Item(id="1", kind="file", parent_id="0", name=path.rpartition("/")[2], **facts)
    return SharePointFile.of(Located(item, path), LIBRARY)


@pytest.mark.parametrize(
    ("condition", "matching", "other"),
    [
        (Suffix(".csv"), "a.CSV", "a.csv.bak"),
        (Suffix(".csv", ".txt"), "a.txt", "a.tsv"),
        (Suffix([".csv", ".txt"]), "a.txt", "a.tsv"),
        (Prefix("Run_"), "run_1.csv", "a run_1.csv"),
        (Prefix("a", "b"), "B.csv", "c.csv"),
        (Contains("STRASSE"), "die straße.csv", "die gasse.csv"),
        (Contains("x", "y"), "by.csv", "b.csv"),
        (Filter(lambda f: f.size > 3), "size 4", "size 3"),
        (Filter(lambda f: f.size == 4, lambda f: f.size == 5), "size 5", "size 6"),
        (Suffix(".csv") & Prefix("a"), "a.csv", "b.csv"),
        (Suffix(".csv") | Prefix("a"), "a.txt", "b.txt"),
        (~Suffix(".csv"), "a.txt", "a.csv"),
        (Suffix(".csv") & ~(Prefix("a") | Contains("b")), "c.csv", "cb.csv"),
    ],
)
def test_a_filter_decides_by_what_is_known_of_a_file(condition, matching, other):
    def described(name: str) -> SharePointFile:
        return file(f"/Results/{name}", size=int(name[5:]) if name.startswith("size") else 0)

    assert condition.matches(described(matching))
    assert not condition.matches(described(other))


def test_names_are_looked_at_and_not_folders():
    assert not Contains("results").matches(file("/Results/a.csv"))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (Suffix, []),
        (Suffix, [[]]),
        (Prefix, [""]),
        (Contains, [1]),
        (Filter, []),
        (Filter, ["*.csv"]),
    ],
)
def test_a_filter_of_nothing_is_refused(kind, arguments):
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} takes"):
        kind(*arguments)


def test_a_filter_does_not_read_and_so_is_not_asynchronous():
    async def reads(file):
        return "x" in await file.read_text()

    with pytest.raises(ConfigurationError, match="cannot be asynchronous"):
        Filter(reads)


def test_a_filter_that_reads_after_all_is_told_that_it_cannot():
    def reads(file):
        return file.read_text().send(None)

    with pytest.raises(ConfigurationError, match="filter decides by what is known"):
        Filter(reads).matches(file("/a.csv"))


def test_a_filter_shows_what_it_says():
    def small(file):
        return file.size < 10

    condition = (Suffix(".csv", ".txt") & ~Contains("draft")) | Filter(small)

    assert repr(condition) == "((Suffix('.csv', '.txt') & ~Contains('draft')) | Filter(small))"


def test_the_definition_of_a_function_changes_with_its_code():
    def small(file):
        return file.size < 10

    before = Filter(small).definition

    def small(file):
        return file.size < 11

    after = Filter(small).definition

    assert before != after
    assert Filter(small).definition == after


def test_a_definition_is_the_same_in_every_process():
    code = (
        "from dagster_tools.sharepoint import Filter, Suffix\n"
        "f = lambda file: file.name in {'a', 'b', 'c'} and [x for x in 'abc' if x]\n"
        "print((Suffix('.csv') & Filter(f)).definition)"
    )

    definitions = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(definitions) == 1
