"""Dagster's UI on an example: what `make ui` and `make ui-sharepoint` share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

USUAL_PORT = 3000

DAGSTER_YAML = """\
# Written by dagster_ui.py at every start.
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  runs:
    max_concurrent_runs: 2
"""


def until_stopped(serve: Callable[[], int]) -> int:
    """Run until Ctrl-C; what ends a terminal, or a container, ends it in the same good order."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return serve()
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0


def serve(
    definitions: Path, folder: Path, environment: Mapping[str, str], notes: Mapping[str, object]
) -> int:
    """Serve a folder's workspace.yaml until Dagster ends, which it should not do by itself.

    Args:
        definitions: The folder of workspace.yaml.
        folder: Where Dagster keeps its history and its log.
        environment: What the definitions read.
        notes: What is printed below the UI's address.
    """
    home, log, port = folder / "home", folder / "dagster.log", free_port()
    home.mkdir(parents=True, exist_ok=True)
    (home / "dagster.yaml").write_text(DAGSTER_YAML, encoding="utf-8")
    everything = os.environ | dict(environment) | {"DAGSTER_HOME": str(home)}
    with dagster_dev(definitions, port, everything, log) as dagster:
        if wait_until_listening(dagster, port):
            for name, note in {"Dagster's UI": f"http://127.0.0.1:{port}", **notes}.items():
                print(f"{name:16}{note}")
            print("Ctrl-C stops all.", flush=True)
            dagster.wait()
    said = "".join(log.read_text(encoding="utf-8", errors="replace").splitlines(True)[-20:])
    print(f"{said}Dagster has ended by itself; its log is {log}.", file=sys.stderr)
    return 1


@contextmanager
def dagster_dev(
    definitions: Path, port: int, environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `dagster dev` on what workspace.yaml names; end it, and all that it started."""
    command = [sys.executable, "-m", "dagster", "dev", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        # In a group of its own, so that Ctrl-C reaches it once, from here, and nothing is left.
        process = subprocess.Popen(
            command,
            cwd=definitions,
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
    """Return Dagster's usual port, or any other where that is taken."""
    for port in (USUAL_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("No free port on 127.0.0.1.")
