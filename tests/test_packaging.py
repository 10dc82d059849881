"""What is installed: the distribution as `pip` sees it, and what importing it brings along.

scripts/test-wheel runs this file against the built wheel, without extras and with one, where no
source tree is in reach; in the tree it speaks about the editable installation.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from importlib import import_module, metadata
from pathlib import Path

import pytest

import dagster_tools

FRAME_LIBRARIES = ("pandas", "geopandas", "shapely", "pyproj", "polars")
EXTRAS = ("pandas", "geopandas", "polars", "sharepoint", "embedded", "all")
PUBLIC_MODULES = (
    "dagster_tools",
    "dagster_tools.embedded",
    "dagster_tools.errors",
    "dagster_tools.postgres_io_manager",
    "dagster_tools.sql",
)
ALIASES = {"shared.db.sql": "dagster_tools.sql"}

SITE = Path(dagster_tools.__file__).parent.parent


def test_importing_works_without_any_frame_library():
    run_python(
        f"""
        import sys

        class NotInstalled:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {("numpy", *FRAME_LIBRARIES)}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, NotInstalled())
        import {", ".join(PUBLIC_MODULES)}
        """
    )


def test_importing_leaves_installed_frame_libraries_alone():
    """But for numpy: pyarrow imports it itself, wherever it is installed."""
    imported = run_python(
        f"""
        import sys
        import {", ".join(PUBLIC_MODULES)}

        print(*sorted({set(FRAME_LIBRARIES)} & set(sys.modules)))
        """
    )

    assert imported.split() == []


def test_all_that_is_public_can_be_had():
    missing = [name for name in dagster_tools.__all__ if not hasattr(dagster_tools, name)]

    assert missing == []


def test_metadata_tells_pip_who_we_are():
    about = metadata.metadata("dagster-tools")

    assert about["Name"] == "dagster-tools"
    assert about["License-Expression"] == "Apache-2.0"
    assert set(about["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    assert set(about.get_all("Provides-Extra")) == set(EXTRAS)


def test_a_plain_installation_requires_no_frame_library():
    always = [line for line in metadata.requires("dagster-tools") if "extra ==" not in line]

    required = {re.match(r"[\w-]+", line)[0] for line in always}
    assert required == {
        "adbc-driver-manager",
        "adbc-driver-postgresql",
        "dagster",
        "pgpq",
        "postgast",
        "psycopg",
        "pyarrow",
    }


def test_type_checkers_are_told_that_we_are_typed():
    assert (SITE / "dagster_tools" / "py.typed").is_file()


def test_statements_are_shipped_beside_the_code_that_runs_them():
    assert list((SITE / "dagster_tools").rglob("*.sql"))


@pytest.mark.parametrize(("alias", "canonical"), ALIASES.items())
def test_an_alias_is_the_thing_itself(alias, canonical):
    old, new = import_module(alias), import_module(canonical)

    assert old.__all__
    for name in old.__all__:
        assert getattr(old, name) is getattr(new, name)


def test_aliases_live_in_namespace_packages():
    ours = SITE / "shared"

    assert list(ours.rglob("__init__.py")) == []
    assert import_module("shared").__file__ is None


@pytest.mark.parametrize("place", ["sys.path.insert(0, {user!r})", "sys.path.append({user!r})"])
def test_a_users_own_shared_package_wins_wherever_it_stands(tmp_path, place):
    (tmp_path / "shared" / "db").mkdir(parents=True)
    (tmp_path / "shared" / "__init__.py").write_text("")
    (tmp_path / "shared" / "db" / "__init__.py").write_text("")
    (tmp_path / "shared" / "db" / "sql.py").write_text("whose = 'the user'\n")

    answer = run_python(
        f"""
        import sys
        {place.format(user=str(tmp_path))}
        import dagster_tools
        import shared.db.sql

        print(shared.db.sql.whose)
        """
    )

    assert answer.strip() == "the user"


def test_a_users_own_namespace_package_shared_is_joined_with_ours(tmp_path):
    (tmp_path / "shared" / "db").mkdir(parents=True)
    (tmp_path / "shared" / "db" / "theirs.py").write_text("whose = 'the user'\n")

    answer = run_python(
        f"""
        import sys
        sys.path.append({str(tmp_path)!r})
        import shared.db.sql
        import shared.db.theirs

        print(shared.db.theirs.whose, shared.db.sql.SQL.__module__.partition(".")[0])
        """
    )

    assert answer.strip() == "the user dagster_tools"


def run_python(code):
    """What a fresh interpreter prints that finds installed packages and nothing of this folder."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
