"""What the documentation repeats of the code is what the code says."""

from __future__ import annotations

import doctest

import pytest

import dagster_tools
from scripts.generate_docs import DOCS, REFERENCE, fill_sections, generated_pages

PAGES = generated_pages()
PUBLIC = {name: getattr(dagster_tools, name) for name in dagster_tools.__all__}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_committed_page_is_the_one_the_code_generates(page):
    assert page.read_text(encoding="utf-8") == PAGES[page], (
        "the code says otherwise now; run: python scripts/generate_docs.py"
    )


def test_the_reference_has_no_page_about_what_is_gone():
    assert set(REFERENCE.glob("*.md")) <= set(PAGES)


def test_every_public_name_is_in_the_reference():
    index = PAGES[REFERENCE / "index.md"]

    missing = [name for name in dagster_tools.__all__ if f"[`{name}`](" not in index]
    assert missing == []


def test_a_table_of_a_page_is_replaced_and_nothing_else_of_it():
    page = "above\n<!-- generated: widenings -->\nold\n<!-- end -->\nbelow\n"

    filled = fill_sections(page)

    assert filled.startswith("above\n<!-- generated: widenings -->\n\n| column |")
    assert filled.endswith("|\n\n<!-- end -->\nbelow\n")
    assert "old" not in filled


@pytest.mark.parametrize(
    "name", [name for name in dagster_tools.__all__ if ">>>" in (PUBLIC[name].__doc__ or "")]
)
def test_the_example_of_a_public_name_does_what_it_says(name):
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)

    for example in finder.find(PUBLIC[name], name, globs=dict(PUBLIC)):
        runner.run(example, out=lambda said: pytest.fail(said, pytrace=False))
