"""The process that stands between `dagster_tools.embedded` and its server.

Run by path in a fresh interpreter with nothing but the standard library, so that it starts in a
few hundredths of a second and holds nothing of its owner's but one end of a pipe. It starts the
server as its own child, hence always learns of its end and never meets a zombie; and it ends the
server once the pipe, or its owner, is gone. Nothing else works after `kill -9` of the owner: no
exit handler runs, and a pid file cannot be believed.

The pipe carries plain tuples. Down come `("run", {"command": ..., ...})` and `("signal", number)`;
up go `("started", pid)`, `("refused", reason)` and `("ended", exit_code)`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any


class Supervisor:
    """Obey the owner as long as there is one; then leave nothing behind.

    Args:
        pipe: To the owner.
        owner: The owner's process id.
        keep_data: Whether the server's data outlives it, so that it deserves an orderly end.
        folder: Removed at the end.
    """

    def __init__(self, pipe: Connection, *, owner: int, keep_data: bool, folder: str) -> None:
        self._pipe = pipe
        self._owner = _watch_process(owner)
        self._keep_data = keep_data
        self._folder = folder
        self._signals = _catch_signals()
        self._child: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Return when the owner has closed the pipe or is gone."""
        watched: list[Connection | int] = [self._pipe, self._signals]
        # A forked child of the owner may hold the pipe open: so the owner is watched as well.
        watched += [] if self._owner is None else [self._owner]
        try:
            while self._owner not in (ready := wait(watched)):
                if self._signals in ready:
                    os.read(self._signals, 1024)
                    self._report_end()
                if self._pipe in ready:
                    self._obey(*self._pipe.recv())
        except (EOFError, OSError):
            pass
        finally:
            self._end_child()
            _remove(self._folder)

    def _obey(self, verb: str, argument: Any) -> None:
        if verb == "run":
            self._run(**argument)
        elif self._child is not None:
            self._child.send_signal(argument)

    def _run(
        self,
        command: list[str],
        environment: dict[str, str],
        log: str,
        uid: int | None,
        gid: int | None,
    ) -> None:
        try:
            with Path(log).open("ab") as output:
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env=environment,
                    user=uid,
                    group=gid,
                    extra_groups=None if uid is None else [],
                    start_new_session=True,
                )
        except (OSError, subprocess.SubprocessError) as exc:
            self._pipe.send(("refused", str(exc)))
        else:
            self._pipe.send(("started", self._child.pid))

    def _report_end(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            code, self._child = self._child.returncode, None
            self._pipe.send(("ended", code))

    def _end_child(self) -> None:
        """Fast shutdown, or an immediate one (no checkpoint) where the data goes anyway.

        To the group, since initdb has a child; a server's own processes have left it.
        """
        if self._child is None:
            return
        orderly = [signal.SIGINT] if self._keep_data else []
        for number in [*orderly, signal.SIGQUIT, signal.SIGKILL]:
            if self._child.poll() is None:
                os.killpg(self._child.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=10)
                return


def _watch_process(pid: int) -> int | None:
    """Open a descriptor that becomes readable when the process ends; Linux only."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _catch_signals() -> int:
    """Survive what is meant for the owner, and get a descriptor that tells of SIGCHLD.

    Handlers rather than SIG_IGN: the server would inherit that.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return reader


def _remove(folder: str) -> None:
    """Try for a few seconds: processes of a server that was killed may still write."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.1)


def main(descriptor: str, owner: str, keep_data: str, folder: str) -> None:
    """Serve the owner at the other end of the pipe."""
    pipe = Connection(int(descriptor))
    Supervisor(pipe, owner=int(owner), keep_data=keep_data == "keep", folder=folder).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
