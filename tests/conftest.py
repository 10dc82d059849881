from __future__ import annotations

from importlib.util import find_spec

pytest_plugins = [
    "tests.fix_servers",
    "tests.fix_proxy",
    "tests.fix_pgbouncer",
    "tests.fix_tls",
    "tests.fix_through",
    "tests.pipelines",
]
if find_spec("aiohttp") is not None:
    # Of the extra `sharepoint`, without which other parts are tested too (scripts/test-wheel).
    pytest_plugins.append("tests.fix_graph")
