"""Processes beside the test's own: forked from one that has the imports, so that each is there at once."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.serving.databases", "tests.serving.examples"])
PATIENCE_S = 120


@contextmanager
def running(target: Callable[..., None], *arguments: tuple[Any, ...]) -> Iterator[list[ForkServerProcess]]:
    """A process for each tuple of arguments; at the end of the block they must have ended by themselves or have been killed."""
    processes = [CONTEXT.Process(target=target, args=given) for given in arguments]
    try:
        for process in processes:
            process.start()
        yield processes
        for process in processes:
            process.join(PATIENCE_S)
            assert process.exitcode is not None, "waited in vain"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
