from __future__ import annotations

pytest_plugins = ["tests.fix_servers", "tests.fix_proxy", "tests.pipelines"]
