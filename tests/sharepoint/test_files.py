from __future__ import annotations

import asyncio
import io
import logging
import sys
import tempfile
import time
import zipfile
from datetime import timezone

import pandas as pd
import pytest
from aiohttp import web

from dagster_tools.errors import ConfigurationError, FileDeleted, SharePointError
from dagster_tools.sharepoint import GraphClient, Item, Located, SharePointFile, changes, content
from tests.fix_graph import client_of, library_of
from tests.graph import Drive
from tests.graph.faults import (
    cut,
    failing,
    ignoring_range,
    meanwhile,
    outdated,
    reset,
    stalled,
    throttled,
    truncated,
)

DATA = bytes(range(256)) * 40


@pytest.fixture
def path(drive: Drive) -> str:
    drive.write("/Results/a.csv", DATA)
    return "/Results/a.csv"


async def file_at(client: GraphClient, drive: Drive, path: str, change="created") -> SharePointFile:
    """A file as a delta tells of it."""
    library = library_of(drive)
    async for page in changes(client, library):
        for item in page.items:
            if isinstance(item, Item) and item.id == drive[path].id:
                return SharePointFile.of(Located(item, path), library, change, client)
    raise AssertionError(path)


async def read(graph, drive, path, **options) -> bytes:
    async with client_of(graph, **options) as client:
        return await (await file_at(client, drive, path)).read_bytes()


# --- what is known of a file ----------------------------------------------------------------


async def test_a_file_tells_what_it_is(graph, drive, path):
    async with client_of(graph) as client:
        file = await file_at(client, drive, path, "renamed")

    node = drive[path]
    assert (file.id, file.name, file.path) == (node.id, "a.csv", "/Results/a.csv")
    assert file.url == f"{drive.url}/Results/a.csv"
    assert (file.site, file.library) == ("Lab Data", "Documents")
    assert (file.size, file.etag, file.modified_by) == (len(DATA), node.etag, "Ada Lovelace")
    assert (file.modified, file.created) == (node.modified, node.created)
    assert file.modified.tzinfo is timezone.utc
    assert (file.change, file.deleted) == ("renamed", False)


async def test_a_deleted_file_still_tells_its_name_and_says_why_it_cannot_be_read(
    graph, drive, path, tmp_path
):
    async with client_of(graph) as client:
        file = await file_at(client, drive, path, "deleted")

        for reading in (file.read_bytes(), file.read_csv(), file.download(tmp_path)):
            with pytest.raises(FileDeleted, match=r"/Results/a.csv.*was deleted.*file.deleted"):
                await reading

    assert file.deleted
    assert (file.name, file.path) == ("a.csv", "/Results/a.csv")
    assert file.url
    assert graph.count("download") == 0


async def test_a_repr_shows_no_client(graph, drive, path):
    async with client_of(graph) as client:
        shown = repr(await file_at(client, drive, path))

    assert "a.csv" in shown
    assert "client" not in shown


# --- reading --------------------------------------------------------------------------------


async def test_a_file_is_read_as_it_is(graph, drive, path):
    assert await read(graph, drive, path) == DATA


async def test_an_empty_file_is_read(graph, drive):
    drive.write("/empty.csv", b"")

    assert await read(graph, drive, "/empty.csv") == b""


async def test_text_is_read_without_its_byte_order_mark_and_in_any_encoding(graph, drive):
    drive.write("/a.txt", "\ufeffGrüße")
    drive.write("/b.txt", "Grüße".encode("latin-1"))

    async with client_of(graph) as client:
        marked = await (await file_at(client, drive, "/a.txt")).read_text()
        latin = await (await file_at(client, drive, "/b.txt")).read_text("latin-1")

    assert (marked, latin) == ("Grüße", "Grüße")


FRAME = pd.DataFrame({"x": [1, 2], "y": ["a", "b"]})


def written(write) -> bytes:
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("reader", "data", "options"),
    [
        ("read_csv", written(lambda s: FRAME.to_csv(s, index=False, sep=";")), {"sep": ";"}),
        ("read_excel", written(lambda s: FRAME.to_excel(s, index=False)), {"sheet_name": "Sheet1"}),
        ("read_parquet", written(FRAME.to_parquet), {"columns": ["x", "y"]}),
        ("read_json", written(lambda s: FRAME.to_json(s, orient="records")), {"orient": "records"}),
    ],
)
@pytest.mark.parametrize("limit", [2**20, 10], ids=["in memory", "on disk"])
async def test_pandas_reads_a_file_with_all_its_options(graph, drive, reader, data, options, limit):
    drive.write("/frame", data)

    async with client_of(graph, spool_limit=limit) as client:
        frame = await getattr(await file_at(client, drive, "/frame"), reader)(**options)

    pd.testing.assert_frame_equal(frame, FRAME)


async def test_reading_a_csv_in_chunks_is_refused_with_how_to_do_it(graph, drive, path):
    async with client_of(graph) as client:
        file = await file_at(client, drive, path)

        with pytest.raises(ConfigurationError, match=r"async with file.open\(\) as stream"):
            await file.read_csv(chunksize=10)


async def test_without_pandas_the_error_says_how_to_install_it(graph, drive, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)

    async with client_of(graph) as client:
        file = await file_at(client, drive, path)

        with pytest.raises(ImportError, match=r"read_csv needs pandas: pip install 'dagster-tools"):
            await file.read_csv()


@pytest.mark.parametrize("limit", [2**20, 10], ids=["in memory", "on disk"])
async def test_an_open_file_is_one_for_any_library(graph, drive, limit):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("inner.txt", "inside")
    drive.write("/a.zip", archive.getvalue())

    async with client_of(graph, spool_limit=limit) as client:
        file = await file_at(client, drive, "/a.zip")
        async with file.open() as stream:
            with zipfile.ZipFile(stream) as found:
                inner = found.read("inner.txt")

    assert inner == b"inside"


async def test_chunks_are_of_the_size_asked_for(graph, drive, path):
    async with client_of(graph) as client:
        file = await file_at(client, drive, path)
        chunks = [chunk async for chunk in file.chunks(4096)]

    assert [len(chunk) for chunk in chunks] == [4096, 4096, 2048]
    assert b"".join(chunks) == DATA


async def test_what_is_beyond_the_limit_goes_to_disk(graph, drive, monkeypatch):
    made = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(
        content.tempfile, "TemporaryFile", lambda *a, **k: made.append(real(*a, **k)) or made[-1]
    )
    data = DATA * 100
    drive.write("/a.bin", data)

    small = await read(graph, drive, "/a.bin", spool_limit=len(data))
    on_disk_before = len(made)
    large = await read(graph, drive, "/a.bin", spool_limit=len(data) - 1)

    assert small == large == data
    assert (on_disk_before, len(made)) == (0, 1)
    assert made[0].closed


async def test_no_more_files_are_held_than_the_concurrency(graph, drive, path, monkeypatch):
    held = most = 0
    real = pd.read_csv

    def counting(*arguments, **options):
        nonlocal held, most
        held += 1
        most = max(most, held)
        time.sleep(0.02)
        frame = real(io.StringIO("x\n1\n"))
        held -= 1
        return frame

    monkeypatch.setattr(pd, "read_csv", counting)
    async with client_of(graph, concurrency=2) as client:
        file = await file_at(client, drive, path)
        frames = await asyncio.gather(*(file.read_csv() for _ in range(8)))

    assert (len(frames), most) == (8, 2)


async def test_files_held_open_by_the_user_hold_up_nobody(graph, drive, path):
    async with client_of(graph, concurrency=1) as client:
        file = await file_at(client, drive, path)
        async with file.open() as one, file.open() as other:
            assert one.read() == other.read() == await file.read_bytes()


# --- downloading to a path ------------------------------------------------------------------


async def test_a_download_goes_to_a_path_or_into_a_folder(graph, drive, path, tmp_path):
    async with client_of(graph) as client:
        file = await file_at(client, drive, path)
        to_path = await file.download(tmp_path / "b.csv")
        into_folder = await file.download(str(tmp_path))

    assert (to_path, into_folder) == (tmp_path / "b.csv", tmp_path / "a.csv")
    assert to_path.read_bytes() == into_folder.read_bytes() == DATA


async def test_a_download_that_fails_leaves_what_was_there_and_nothing_else(
    graph, drive, path, tmp_path
):
    (tmp_path / "a.csv").write_text("before")
    graph.faults.add("download", cut(100), times=99)
    graph.faults.add("item", failing(500), times=99, after=3)

    async with client_of(graph) as client:
        file = await file_at(client, drive, path)
        with pytest.raises(SharePointError):
            await file.download(tmp_path)

    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("a.csv", "before")]


# --- what can happen on the way -------------------------------------------------------------


async def test_the_download_host_gets_no_token(graph, drive, path):
    await read(graph, drive, path)

    assert [each.authorization for each in graph.received if each.route == "download"] == [False]


async def test_where_the_item_names_no_url_its_content_points_to_one(graph, drive, path):
    graph.offers_urls = False

    assert await read(graph, drive, path) == DATA
    assert graph.count("content") == 1


async def test_a_cut_download_goes_on_where_it_broke_off(graph, drive, path):
    graph.faults.add("download", cut(4000))
    graph.faults.add("download", cut(1000))

    assert await read(graph, drive, path) == DATA
    ranges = [each.range for each in graph.received if each.route == "download"]
    assert ranges == [None, "bytes=4000-", "bytes=5000-"]


async def test_a_download_that_makes_progress_may_be_cut_any_number_of_times(graph, drive, path):
    graph.faults.add("download", cut(600), times=15)

    assert await read(graph, drive, path) == DATA


async def test_a_download_that_makes_none_is_an_error_in_the_end(graph, drive, path):
    graph.faults.add("download", reset(), times=99)

    with pytest.raises(SharePointError, match=r"file /Results/a.csv in library 'Documents' could"):
        await read(graph, drive, path)


async def test_a_download_that_falls_silent_goes_on_where_it_broke_off(graph, drive, path):
    graph.faults.add("download", stalled(4000, 30))

    assert await read(graph, drive, path, timeout=0.2) == DATA
    assert graph.received[-2].range == "bytes=4000-"


async def test_a_range_that_is_ignored_is_read_from_the_beginning(graph, drive, path):
    graph.faults.add("download", cut(4000))
    graph.faults.add("download", ignoring_range())

    assert await read(graph, drive, path) == DATA
    assert graph.count("download") == 2


async def test_a_part_that_begins_elsewhere_is_not_put_in_its_place(graph, drive, path):
    async def misplaced(exchange):
        headers = {"Content-Range": f"bytes 3000-9239/{len(DATA)}", "ETag": drive[path].etag}
        return web.Response(status=206, body=DATA[3000:9240], headers=headers)

    graph.faults.add("download", cut(4000))
    graph.faults.add("download", misplaced)

    assert await read(graph, drive, path) == DATA


@pytest.mark.parametrize("cut_off", [0, 4000])
async def test_an_expired_url_is_replaced_by_a_fresh_one(graph, drive, path, cut_off):
    graph.faults.add("download", cut(cut_off))
    graph.faults.add("download", failing(401), times=2)

    assert await read(graph, drive, path) == DATA


async def test_a_url_is_asked_for_when_it_is_used_and_no_earlier(graph, drive, path):
    graph.download_seconds = 0.5

    async with client_of(graph) as client:
        file = await file_at(client, drive, path)
        await asyncio.sleep(0.6)

        assert await file.read_bytes() == DATA
    assert graph.count("download") == 1


async def test_a_truncated_download_is_not_taken_for_the_file(graph, drive, path):
    graph.faults.add("download", truncated(5000), times=2)

    assert await read(graph, drive, path) == DATA


async def test_a_file_that_stays_truncated_is_an_error(graph, drive, path):
    graph.faults.add("download", truncated(5000), times=99)

    with pytest.raises(SharePointError, match="5000 bytes were served of 10240"):
        await read(graph, drive, path)


async def test_office_files_may_be_of_another_size_than_is_reported(graph, drive, caplog):
    drive.write("/a.xlsx", DATA)
    drive.behaviour.inflated = 7

    with caplog.at_level(logging.WARNING):
        data = await read(graph, drive, "/a.xlsx")

    assert data == DATA
    assert graph.count("download") == 2
    assert "/a.xlsx in library 'Documents' has 10240 bytes, and not the 10247" in caplog.text


async def test_other_files_of_another_size_than_is_reported_are_an_error(graph, drive, path):
    drive.behaviour.inflated = 7

    with pytest.raises(SharePointError, match="10240 bytes were served of 10247"):
        await read(graph, drive, path)


@pytest.mark.parametrize("etags", [True, False])
async def test_two_versions_are_never_mixed_when_a_file_changes_between_two_parts(
    graph, drive, path, etags
):
    newer = b"y" * len(DATA)
    graph.serves_etags = etags
    graph.faults.add("download", cut(4000))
    graph.faults.add("item", meanwhile(lambda: drive.write(path, newer)), after=1)

    assert await read(graph, drive, path) == newer


async def test_two_versions_are_never_mixed_when_graph_is_late_to_know_of_the_newer(
    graph, drive, path
):
    newer = b"y" * len(DATA)
    graph.faults.add("item", outdated(), times=99)
    graph.faults.add("download", cut(4000))
    graph.faults.add("download", meanwhile(lambda: drive.write(path, newer)))

    assert await read(graph, drive, path) == newer


async def test_a_change_that_no_part_shows_is_noticed_after_a_resumed_download(
    graph, drive, path, monkeypatch
):
    """A download host without ETags: what was read is compared with Graph's version at the end."""
    newer = b"y" * len(DATA)
    graph.serves_etags = False
    graph.faults.add("download", cut(4000))
    graph.faults.add("download", meanwhile(lambda: drive.write(path, newer)))

    assert await read(graph, drive, path) == newer


async def test_a_change_of_what_is_known_about_a_file_alone_does_not_begin_it_anew(
    graph, drive, path
):
    graph.faults.add("download", cut(4000))
    graph.faults.add("item", meanwhile(lambda: drive.touch(path)), after=1)
    graph.serves_etags = False

    assert await read(graph, drive, path) == DATA
    assert graph.received[-2].range == "bytes=4000-"


async def test_a_file_that_became_shorter_is_read_from_the_beginning(graph, drive, path):
    newer = b"short"
    graph.faults.add("download", cut(4000))
    graph.faults.add("download", meanwhile(lambda: drive.write(path, newer)))

    assert await read(graph, drive, path) == newer


async def test_what_is_read_is_what_is_there_now(graph, drive, path):
    async with client_of(graph) as client:
        file = await file_at(client, drive, path)
        drive.write(path, "newer")

        assert await file.read_text() == "newer"


@pytest.mark.parametrize("route", ["item", "download"])
async def test_a_file_gone_between_listing_and_download_is_deleted(graph, drive, path, route):
    graph.faults.add(route, meanwhile(lambda: drive.delete(path)))

    with pytest.raises(FileDeleted, match=r"/Results/a.csv.*not there any longer") as caught:
        await read(graph, drive, path)

    assert caught.value.status == 404


async def test_a_throttled_download_waits(graph, drive, path):
    graph.faults.add("download", throttled(1))

    assert await read(graph, drive, path) == DATA
    first, second = (each.at for each in graph.received if each.route == "download")
    assert second - first >= 1


async def test_a_file_the_service_blocks_says_so(graph, drive, path):
    graph.offers_urls = False
    graph.faults.add("content", failing(423, "malwareDetected"), times=9)

    with pytest.raises(SharePointError, match=r"a.csv.*423 malwareDetected"):
        await read(graph, drive, path)


async def test_no_preauthenticated_url_reaches_a_log_or_an_error(graph, drive, path, caplog):
    caplog.set_level(logging.DEBUG)
    for fault in (cut(10), reset(), failing(401), failing(500), failing(418)):
        graph.faults.add("download", fault)

    with pytest.raises(SharePointError, match="418") as caught:
        await read(graph, drive, path)

    assert graph._secret not in f"{caplog.text} {caught.value!r} {caught.value.__dict__}"
    assert "tempauth" not in caplog.text
