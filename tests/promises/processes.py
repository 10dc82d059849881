"""Writers in processes of their own: those a test can kill, and those that start at once.

The processes are forked from a server that has imported everything already, so that one costs
milliseconds and many reach a barrier together.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

__all__ = ["CONTEXT", "all_at_once", "running"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.promises.writing", "tests.pipelines", "tests.test_sharepoint_asset"]
)

SECONDS = 120.0


@contextmanager
def running(target: Callable[..., None], *arguments: Any) -> Iterator[BaseProcess]:
    """Run a function in a process, which does not outlive the block."""
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def all_at_once(
    act: Callable[..., None], processes: Sequence[tuple[Any, ...]], rounds: int
) -> list[str]:
    """Call `act(*arguments, round)` in as many processes, at the same moment in each round.

    Return what failed.
    """
    barrier, failures = CONTEXT.Barrier(len(processes)), CONTEXT.SimpleQueue()
    started = [
        CONTEXT.Process(target=_take_part, args=(act, arguments, rounds, barrier, failures))
        for arguments in processes
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
    stuck = [process for process in started if process.is_alive()]
    for process in stuck:
        process.kill()
        process.join()
    said = ["a process hangs"] * len(stuck)
    while not failures.empty():
        said.append(failures.get())
    return said


def _take_part(
    act: Callable[..., None], arguments: tuple[Any, ...], rounds: int, barrier: Any, failures: Any
) -> None:
    for number in range(rounds):
        barrier.wait(SECONDS)
        try:
            act(*arguments, number)
        except Exception as error:  # noqa: BLE001  # each is one too many, and the test's to say
            failures.put(f"round {number}: {error!r}")
