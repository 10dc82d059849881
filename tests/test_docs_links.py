"""The documentation points at what exists: pages, headings, tests."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.test_docs import FENCE, PAGES, ROOT, find_closing, page_name

LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)(?:::(?P<name>test_\w+))?`")


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_of_a_page_leads_to_a_page_and_a_heading(page):
    broken = [
        target
        for target in LINK.findall(prose(page))
        if not re.match(r"https?:|mailto:", target) and not leads_somewhere(page, target)
    ]

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_test_a_page_names_exists(page):
    missing = [
        f"{file}::{name}"
        for file, name in TEST.findall(prose(page))
        if not (ROOT / file).is_file() or (name and f"def {name}(" not in read(ROOT / file))
    ]

    assert missing == []


def test_every_page_of_the_documentation_is_on_the_map():
    docs = ROOT / "docs"
    mapped = {
        (docs / target.partition("#")[0]).resolve()
        for target in LINK.findall(prose(docs / "index.md"))
    }

    pages = {*docs.glob("*.md"), *docs.glob("how-to/*.md"), *docs.glob("decisions/*.md")}
    assert {page_name(page) for page in pages - mapped} == {"docs/index.md"}


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, heading = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    return file.exists() and (not heading or heading in headings(file))


@cache
def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def prose(page: Path) -> str:
    """A page without its code blocks."""
    lines = read(page).splitlines()
    kept, number = [], 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            kept.append(lines[number])
        else:
            number = find_closing(lines, number, opening["fence"])
        number += 1
    return "\n".join(kept)


@cache
def read(file: Path) -> str:
    return file.read_text(encoding="utf-8")
