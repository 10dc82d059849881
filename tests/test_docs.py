"""Every code block of the documentation does what the page says.

The rules for who writes a page:

- A ```python or ```bash block is run. The blocks of one page are run in order, the Python ones in
  one namespace, in a folder of their own, against a fresh database that libpq's environment names,
  so `PostgresIOManager()` and `psql` find it.
- A ```sql block is only shown, unless `<!-- run -->` stands on the line above it.
- A ```text block below a block that is run, with `<!-- output -->` on the line above it, is
  exactly what that block prints; `...` stands for anything. SQL prints as psql does.
- `<!-- not run: the reason -->` on the line above a block keeps it from being run.

What follows no rule fails: a mark that is misspelled or stands above nothing, an output without
its block, a language that nobody would run (`shell`, `py`), a fence without a language.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    page
    for page in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
    if page.exists()
]

RUN = {"python", "bash"}
SHOWN = {"text", "toml", "yaml", "json", "ini", "dockerfile", "diff", "mermaid"}

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[^\s`]*)[^`]*$")
COMMENT = re.compile(r"^ *<!-- *(?P<text>.*?) *--> *$")
MARK = re.compile(r"^(run|output|not[ -]run\b.*)$", re.IGNORECASE)

OUTPUT_RULES = doctest.ELLIPSIS | doctest.DONT_ACCEPT_BLANKLINE | doctest.DONT_ACCEPT_TRUE_FOR_1


def page_name(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_code_block_of_a_page_does_what_the_page_says(page, request, tmp_path, monkeypatch):
    steps = plan_steps(read_blocks(page.read_text(encoding="utf-8")))
    if not steps:
        return
    use_as_default(request.getfixturevalue("database"), monkeypatch)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path)

    run_steps(steps, page_name(page))


def test_the_readme_begins_with_code_that_runs():
    steps = plan_steps(read_blocks((ROOT / "README.md").read_text(encoding="utf-8")))

    assert "python" in {step.block.language for step in steps}


class BadPage(AssertionError):
    """A page that breaks the rules above, or promises what does not happen."""


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    code: str
    mark: str = ""


@dataclass(frozen=True)
class Step:
    block: Block
    output: str | None = None


def read_blocks(text):
    """The fenced blocks of a page, each with the comment on the line above it."""
    lines = text.splitlines()
    blocks = []
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        if opening is None:
            refuse_stray_mark(lines, number)
            number += 1
            continue
        end = find_closing(lines, number, opening["fence"])
        comment = COMMENT.match(lines[number - 1]) if number else None
        blocks.append(
            Block(
                line=number + 2,
                language=opening["language"].lower(),
                code="".join(
                    line.removeprefix(opening["indent"]) + "\n" for line in lines[number + 1 : end]
                ),
                mark=comment["text"] if comment else "",
            )
        )
        number = end + 1
    return blocks


def find_closing(lines, start, fence):
    for number in range(start + 1, len(lines)):
        line = lines[number].strip()
        if line.startswith(fence) and set(line) == {fence[0]}:
            return number
    raise BadPage(f"line {start + 1}: a code block that never ends")


def refuse_stray_mark(lines, number):
    comment = COMMENT.match(lines[number])
    if comment is None or not MARK.match(comment["text"]):
        return
    if number + 1 == len(lines) or not FENCE.match(lines[number + 1]):
        raise BadPage(f"line {number + 1}: {comment['text']!r} stands above no code block")


def plan_steps(blocks):
    """What is to be run, and what it is to print."""
    steps = []
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block.mark == "output":
            if not steps or steps[-1].block is not before:
                raise BadPage(f"line {block.line}: an output below no block that is run")
            steps[-1] = Step(before, block.code)
        elif is_run(block):
            steps.append(Step(block))
    return steps


def is_run(block):
    if block.mark.startswith("not run:"):
        if len(block.mark.removeprefix("not run:").split()) < 2:
            raise BadPage(f"line {block.line}: say why it is not run")
        return False
    if block.mark == "run" and block.language == "sql":
        return True
    if block.mark:
        raise BadPage(f"line {block.line}: {block.mark!r} means nothing above {block.language!r}")
    if block.language not in RUN | SHOWN | {"sql"}:
        raise BadPage(f"line {block.line}: {block.language!r} is none of {sorted(RUN | SHOWN)}")
    return block.language in RUN


def run_steps(steps, page):
    namespace = {"__name__": "__main__"}
    for step in steps:
        where = f"{page}:{step.block.line}"
        printed = run_block(step.block, namespace, where)
        if step.output is not None and not is_as_promised(step.output, printed):
            raise BadPage(
                f"{where} prints\n\n{printed}\nand not, as the page says,\n\n{step.output}"
            )


def is_as_promised(output, printed):
    checker = doctest.OutputChecker()
    return checker.check_output(trim_ends(output), trim_ends(printed), OUTPUT_RULES)


def trim_ends(text):
    return "".join(line.rstrip() + "\n" for line in text.rstrip().splitlines())


def run_block(block, namespace, where):
    if block.language == "python":
        return run_python(block, namespace, where)
    if block.language == "bash":
        return run_bash(block, where)
    return run_sql(block)


def run_python(block, namespace, where):
    page = where.rpartition(":")[0]
    # Blank lines in front, so that a traceback shows the line of the page.
    code = compile("\n" * (block.line - 1) + block.code, page, "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)
    return printed.getvalue()


def run_bash(block, where):
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise BadPage(f"{where} exits with {done.returncode}\n\n{done.stdout}{done.stderr}")
    return done.stdout


def run_sql(block):
    with psycopg.connect(autocommit=True) as connection:
        cursor = connection.execute(block.code)
        while cursor.nextset():
            pass
        return print_as_psql(cursor) if cursor.description else ""


def print_as_psql(cursor):
    names = [column.name for column in cursor.description]
    rows = [["" if value is None else str(value) for value in row] for row in cursor]
    widths = [max(map(len, cells)) for cells in zip(names, *rows, strict=True)]
    is_number = [
        column.type_code in {20, 21, 23, 26, 700, 701, 1700} for column in cursor.description
    ]
    lines = [
        " | ".join(
            # psql puts the odd space on the right; str.center does not always.
            (" " * ((width - len(name)) // 2) + name).ljust(width)
            for name, width in zip(names, widths, strict=True)
        ),
        "-+-".join("-" * width for width in widths),
        *(
            " | ".join(
                cell.rjust(width) if number else cell.ljust(width)
                for cell, width, number in zip(row, widths, is_number, strict=True)
            )
            for row in rows
        ),
    ]
    lines[1] = f"-{lines[1]}-"
    lines = [line if line is lines[1] else f" {line}" for line in lines]
    count = f"({len(rows)} row{'' if len(rows) == 1 else 's'})"
    return "\n".join(line.rstrip() for line in [*lines, count]) + "\n"


def use_as_default(database, monkeypatch):
    for variable, value in database.environment().items():
        monkeypatch.setenv(variable, value)


# --- the rules themselves, so that no page is green because nothing was run ----------------------


def page_of(*lines):
    return "\n".join(lines)


def steps_of(*lines):
    return plan_steps(read_blocks(page_of(*lines)))


def test_python_and_bash_are_run_and_know_their_line():
    steps = steps_of("# Title", "```python", "x = 1", "```", "", "```bash", "ls", "```")

    assert [(step.block.language, step.block.line, step.block.code) for step in steps] == [
        ("python", 3, "x = 1\n"),
        ("bash", 7, "ls\n"),
    ]


@pytest.mark.parametrize("fence", ["```", "````", "~~~"])
def test_a_fence_ends_where_markdown_ends_it(fence):
    (block,) = read_blocks(page_of(f"{fence} Python title=x", "a", "``", "b", fence, "prose"))

    assert (block.language, block.code) == ("python", "a\n``\nb\n")


def test_a_block_in_a_list_loses_the_indent_of_the_list():
    (block,) = read_blocks(page_of("1. Do", "   ```python", "   if x:", "       y", "   ```"))

    assert block.code == "if x:\n    y\n"


def test_a_block_with_a_reason_is_not_run():
    assert steps_of("<!-- not run: installs packages -->", "```bash", "make", "```") == []


def test_sql_is_run_only_when_marked():
    steps = steps_of("```sql", "SELECT 1", "```", "<!-- run -->", "```sql", "SELECT 2", "```")

    assert [step.block.code for step in steps] == ["SELECT 2\n"]


def test_an_output_belongs_to_the_block_above_it():
    (step,) = steps_of(
        "```python", "print(1)", "```", "prose", "<!-- output -->", "```text", "1", "```"
    )

    assert step.output == "1\n"


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (["```python", "x"], "never ends"),
        (["```", "x", "```"], "is none of"),
        (["```shell", "x", "```"], "is none of"),
        (["```py", "x", "```"], "is none of"),
        (["<!-- not run: -->", "```bash", "x", "```"], "say why"),
        (["<!-- not-run: because of that -->", "```bash", "x", "```"], "means nothing"),
        (["<!-- run -->", "```text", "x", "```"], "means nothing"),
        (["<!-- notrun: because of that -->", "```bash", "x", "```"], "means nothing"),
        (["<!-- not run: because of that -->", "", "```bash", "x", "```"], "above no code block"),
        (["<!-- run -->"], "above no code block"),
        (["<!-- output -->", "```text", "x", "```"], "below no block"),
        (
            ["```sql", "SELECT 1", "```", "<!-- output -->", "```text", "x", "```"],
            "below no block",
        ),
        (
            [
                "```bash",
                "x",
                "```",
                "```text",
                "y",
                "```",
                "<!-- output -->",
                "```text",
                "z",
                "```",
            ],
            "below no block",
        ),
    ],
)
def test_what_follows_no_rule_is_refused(page, complaint):
    with pytest.raises(BadPage, match=complaint):
        steps_of(*page)


def test_python_blocks_share_a_namespace_and_are_held_to_their_output():
    page = ["```python", "x = 20", "```", "```python", "print(x + 1)", "```", "<!-- output -->"]

    run_steps(steps_of(*page, "```text", "21", "```"), "page")
    with pytest.raises(BadPage, match=r"page:5 prints\n\n21"):
        run_steps(steps_of(*page, "```text", "22", "```"), "page")


def test_bash_blocks_fail_at_the_first_command_that_does():
    run_steps(
        steps_of(
            "```bash",
            "echo one; echo two",
            "```",
            "<!-- output -->",
            "```text",
            "one",
            "...",
            "```",
        ),
        "page",
    )
    with pytest.raises(BadPage, match=r"page:2 exits with 1"):
        run_steps(steps_of("```bash", "false | cat", "true", "```"), "page")


def test_a_traceback_shows_the_line_of_the_page():
    steps = steps_of("# Title", "", "```python", "x = 1", "x / 0", "```")

    with pytest.raises(ZeroDivisionError) as error:
        run_steps(steps, "docs/page.md")

    last = error.traceback[-1]
    assert (last.path, last.lineno + 1) == ("docs/page.md", 5)


@pytest.mark.parametrize(
    ("output", "printed", "agrees"),
    [
        ("a\n", "a\n", True),
        ("a\n", "a  \n\n", True),
        ("a ... c\n", "a b c\n", True),
        ("a\n", "b\n", False),
        ("a\n", "a\nb\n", False),
        ("a\n\nb\n", "a\nb\n", False),
        ("1\n", "True\n", False),
        ("", "a\n", False),
    ],
)
def test_an_output_is_compared_to_the_letter_but_for_the_ellipsis(output, printed, agrees):
    assert is_as_promised(output, printed) is agrees


def test_sql_prints_as_psql_does(database, monkeypatch):
    use_as_default(database, monkeypatch)
    steps = steps_of(
        "<!-- run -->",
        "```sql",
        "SELECT * FROM (VALUES (1, 'one'), (10, NULL)) AS numbers (number, name);",
        "```",
        "<!-- output -->",
        "```text",
        " number | name",
        "--------+------",
        "      1 | one",
        "     10 |",
        "(2 rows)",
        "```",
    )

    run_steps(steps, "page")
