"""This process's end of `supervisor_process.py`, which starts the server and ends it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import Any

from dagster_tools.embedded.binaries import Binaries
from dagster_tools.embedded.home import Home
from dagster_tools.errors import DatabaseError

__all__ = ["Supervisor"]

_PROCESS = Path(__file__).resolve().with_name("supervisor_process.py")


class Supervisor:
    """Runs one program after the other, and sees to the end of each.

    Args:
        home: Removed with the end, but for data that is to be kept.
        programs: Where they lie.
    """

    def __init__(self, home: Home, programs: Binaries) -> None:
        self.pid = 0
        self._home = home
        self._programs = programs
        self._exit_code: int | None = None
        self._pipe, theirs = Pipe()
        with theirs, home.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_PROCESS)),
                    *(str(theirs.fileno()), str(os.getpid())),
                    *("keep" if home.keep_data else "remove", str(home.folder)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the program that was started last still runs."""
        return self.pid != 0 and self.exit_code(0) is None

    @property
    def killed(self) -> bool:
        """Whether the program that ran last was ended by SIGKILL, by whomever."""
        with contextlib.suppress(DatabaseError):
            return not self.running and self._exit_code == -signal.SIGKILL
        return False

    def run(self, command: Sequence[str], log: Path) -> None:
        """Start one of the programs."""
        program, *arguments = command
        self._exit_code = None
        self._send(
            "run",
            {
                "command": [str(self._programs.folder / program), *arguments],
                "environment": self._programs.variables(),
                "log": str(log),
                "uid": self._home.account.uid,
                "gid": self._home.account.gid,
            },
        )
        answer, value = self._receive()
        if answer == "refused":
            raise DatabaseError(f"{program} could not be started: {value}", step="start the server")
        self.pid = int(value)

    def send_signal(self, number: int) -> None:
        """Send a signal to it."""
        self._send("signal", int(number))

    def exit_code(self, seconds: float) -> int | None:
        """Wait for the program's end, at most for so long; None while it runs."""
        if self._exit_code is None and self._pipe.poll(seconds):
            self._exit_code = int(self._receive()[1])
        return self._exit_code

    def close(self) -> None:
        """Have everything ended and removed; return when it is."""
        self._pipe.close()
        if self._process.wait() != 0:
            self._stand_in()

    def _stand_in(self) -> None:
        """Do the work of a supervisor that was killed, as far as a stranger can."""
        if self.pid != 0 and self._exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT if self._home.keep_data else signal.SIGQUIT)
        shutil.rmtree(self._home.folder, ignore_errors=True)

    def _send(self, verb: str, argument: object) -> None:
        with _supervisor_alive():
            self._pipe.send((verb, argument))

    def _receive(self) -> tuple[str, Any]:
        with _supervisor_alive():
            answer: tuple[str, Any] = self._pipe.recv()
            return answer


@contextlib.contextmanager
def _supervisor_alive() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError):
        raise DatabaseError(
            "The process that watches over the PostgreSQL server was ended by somebody.",
            step="talk to the server's supervisor",
        ) from None
