"""Dagster's UI on the demo's assets, with a PostgreSQL that runs as long as the UI does.

`make ui` runs it; Ctrl-C stops both. The tables and Dagster's history stay for the next time, in
the folder it prints, which may be given as an argument.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dagster_tools.embedded import Server

HERE = Path(__file__).resolve().parent
USUAL_PORT = 3000

DAGSTER_YAML = """\
# Written by ui.py at every start.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 2
"""


def main(folder: str | None = None) -> int:
    # What ends a terminal, or a container, ends this in the same good order as Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return serve(Path(folder).absolute() if folder else folder_to_keep(), free_port())
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


def serve(folder: Path, port: int) -> int:
    home, log = folder / "home", folder / "dagster.log"
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(DAGSTER_YAML, encoding="utf-8")
    print("Starting PostgreSQL and Dagster ...", flush=True)
    with Server(data_dir=folder / "postgres") as server:
        environment = os.environ | server.environment() | {"DAGSTER_HOME": str(home)}
        with dagster_dev(port, environment, log) as dagster:
            if wait_until_listening(dagster, port):
                print(f"Dagster's UI    http://127.0.0.1:{port}")
                print(f"The tables      {server.url}")
                print(f"Kept in         {folder}")
                print("Ctrl-C stops all.", flush=True)
                dagster.wait()
    print(f"Dagster has ended by itself; its log is {log}.", file=sys.stderr)
    return 1


@contextmanager
def dagster_dev(
    port: int, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dagster dev` on what workspace.yaml names; end it, and all that it started."""
    command = [sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        # In a group of its own, so that Ctrl-C reaches it once, from here, and nothing is left.
        process = subprocess.Popen(
            command,
            cwd=HERE,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end_group(process)


def end_group(leader: subprocess.Popen[bytes]) -> None:
    """Send what Ctrl-C in a terminal sends; after ten seconds, or another Ctrl-C, end the rest."""
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(leader.pid, signal.SIGINT)
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                leader.poll()  # so that it is not counted once it has ended
                os.killpg(leader.pid, 0)
                time.sleep(0.1)
        finally:
            os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()


def wait_until_listening(process: subprocess.Popen[bytes], port: int) -> bool:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def free_port() -> int:
    """Dagster's usual port, or any other where that is taken."""
    for port in (USUAL_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("No free port on 127.0.0.1.")


def folder_to_keep() -> Path:
    """Beside this file, unless root keeps it where the server's user may not enter."""
    beside = HERE / ".dagster"
    closed = any(not folder.stat().st_mode & 0o001 for folder in (HERE, *HERE.parents))
    return Path("/var/cache/dagster-tools/flights") if os.geteuid() == 0 and closed else beside


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
