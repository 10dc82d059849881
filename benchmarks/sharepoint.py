"""Follow a library of 10,000 files in 1,000 folders: the first sync, ticks, a folder that moves.

The library is the tests' emulator of Microsoft Graph, in this process: what it needs to answer is
in the seconds, what a network needs is not. Requests are counted by it.

    python benchmarks/sharepoint.py            # a minute
    python benchmarks/sharepoint.py --files 1000 --folders 100
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_tools.embedded import Server
from dagster_tools.postgres.connection import connect, transaction, url_settings
from dagster_tools.postgres.feed import FeedTables
from dagster_tools.postgres.feed_rows import Delivery
from dagster_tools.sharepoint import ClientSecret, Cloud, GraphClient, Suffix, Watch
from dagster_tools.sharepoint.feed import AssetState, Claim, Watched, find_work, resolve, take_in

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the emulator is the tests'

from tests.graph import Drive, Graph

WATCH = Watch("https://contoso.sharepoint.com/sites/lab", "/Results", filters=[Suffix(".csv")])
ASSET = "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--folders", type=int, default=1_000)
    sizes = parser.parse_args()
    with Server() as server, Graph() as graph:
        drive = graph.site("/sites/lab", "Lab Data").library()
        for number in range(sizes.files):
            drive.write(f"/Results/{number % sizes.folders}/{number}.csv", b"x\n1\n")
        store = FeedTables(url_settings(server.url), "meta")
        asyncio.run(follow(graph, drive, store))


async def follow(graph: Graph, drive: Drive, store: FeedTables) -> None:
    identity = graph.identity
    client = GraphClient(
        ClientSecret(identity.tenant, identity.client_id, identity.secret),
        cloud=Cloud(graph.url, graph.url),
        ca_file=str(graph.ca_file),
    )
    async with client:
        watched = await resolve(client, store, [WATCH])
        library = watched[0].library
        with measured("first listing", graph):
            await take_in(client, library, store)
        with measured("first claim", graph):
            claim = claimed(store, watched)
        print(f"  {len(claim.files)} files")
        with measured("acknowledging them", graph):
            deliver(store, claim)
        with measured("tick, nothing changed", graph):
            await take_in(client, library, store)
            claimed(store, watched)
        drive.write("/Results/0/0.csv", b"x\n2\n")
        with measured("tick, one file changed", graph):
            await take_in(client, library, store)
            claim = claimed(store, watched)
        deliver(store, claim)
        drive.rename("/Results", "Old results")
        with measured("tick, the folder above all files was renamed", graph):
            await take_in(client, library, store)
            claim = claimed(store, watched)
        print(f"  {len(claim.files)} files")
        tracemalloc.start()
        await take_in(client, library, store, full=True)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        print(f"peak of Python's memory in a full listing: {peak:.0f} MB")


def claimed(store: FeedTables, watched: list[Watched]) -> Claim:
    store.begin(ASSET, "")
    with store.reading() as view:
        return find_work(view, ASSET, watched)


def deliver(store: FeedTables, claim: Claim) -> None:
    state = claim.state or AssetState("", 0, None, None, None)
    delivery = Delivery(
        asset_key=ASSET,
        run_id="",
        token=state.token,
        deliveries=state.deliveries,
        watch="",
        files=[each.now for each in claim.files if each.now is not None],
        gone=[(each.file.drive_id, each.file.id) for each in claim.files if each.now is None],
        clean=claim.signature,
    )
    connection = connect(store.settings)
    with connection, transaction(connection):
        store.deliver(connection, delivery)


@contextmanager
def measured(what: str, graph: Graph) -> Iterator[None]:
    asked, started = graph.count(), time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    print(f"{what:48} {seconds:7.2f} s  {graph.count() - asked:4} requests")


if __name__ == "__main__":
    main()
