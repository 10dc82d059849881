from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import dagster_tools.sharepoint
import shared.sharepoint.client_v2


def printed(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("missing", ["aiohttp", "azure"])
def test_without_the_extra_importing_says_how_to_install_it(missing):
    said = printed(
        f"""
        import sys

        class NotInstalled:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

        sys.meta_path.insert(0, NotInstalled())
        try:
            import dagster_tools.sharepoint
        except ModuleNotFoundError as error:
            print(error)
        """
    )

    assert said.startswith(f"SharePoint needs {missing}")
    assert said.endswith("pip install 'dagster-tools[sharepoint]'")


def test_importing_brings_neither_pandas_nor_dagster_nor_a_database():
    imported = printed(
        """
        import sys
        import dagster_tools.sharepoint

        print(*sorted({"pandas", "psycopg", "openpyxl", "dagster"} & set(sys.modules)))
        """
    )

    assert imported == ""


def test_the_guides_name_is_the_thing_itself():
    assert shared.sharepoint.client_v2.SharePointFile is dagster_tools.sharepoint.SharePointFile


def test_all_that_is_public_can_be_had():
    names = dagster_tools.sharepoint.__all__

    assert [name for name in names if not hasattr(dagster_tools.sharepoint, name)] == []
