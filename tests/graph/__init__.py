"""A stateful emulator of Microsoft Graph, as far as SharePoint's files go.

    with Graph() as graph:
        drive = graph.site("/sites/lab", "Lab Data").library()
        drive.write("/Results/a.csv", "x,y\\n1,2\\n")

`foreign_clients.py` shows that rclone and Microsoft's own SDK take it for the real one.
"""

from __future__ import annotations

from tests.graph.drive import Behaviour, Drive
from tests.graph.identity import Identity
from tests.graph.resources import Site
from tests.graph.server import Graph, Received

__all__ = ["Behaviour", "Drive", "Graph", "Identity", "Received", "Site"]
