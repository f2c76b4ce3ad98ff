"""Load for the tests of what goes wrong: generations without a pause, each of which is looked at step by step."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from reins_serve.models.generation import generate, request
from reins_serve.plugin import SteeringMiddleware
from reins_serve.steering.direction import Direction
from tests import tiny
from tests.serving.local import until


class Clip(NamedTuple):
    """What came of one generation: the version of its record, and whether every step was pushed with that file's vectors alone."""

    sha256: str | None
    proved: bool
    whole: bool


def clip(steering: SteeringMiddleware, key: str, on_step: Callable[[], None] = lambda: None) -> Clip:
    """Generate one clip of the tiny model. Another version in one of its steps, or half a vector, and it is not whole."""
    used: set[bytes] = set()

    def look(done: int, total: int) -> None:
        rows = [rows for hook in steering.hooks for rows in hook.rows.values()]
        used.update(vector.numpy().tobytes() for row in rows for vector in row.push.vector)
        on_step()

    with steering.generation(key=key, on_step=look) as g:
        (direction,) = g.directions
        generate(steering.pipeline, tiny.ENTRY, [request(tiny.ENTRY, "a red square", 1)], g.arguments)
    own = set() if direction is None else {v.numpy().tobytes() for v in Direction.parse(direction.data).vectors}
    return Clip(g.record.sha256, g.record.proved, used == own)


class Load:
    """Generations in one thread for each of `sources`, until it is left; what came of each.

    Args:
        pause_s: Between two generations, so that those in the test's own process leave it some time.
    """

    def __init__(self, sources: Sequence[Callable[[str], Clip]], pause_s: float = 0.0) -> None:
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(len(sources))]
        self._sources = sources
        self.answers: list[tuple[float, float, Clip]] = []
        self.errors: list[Exception] = []
        self.counts = [0] * len(sources)

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            began = time.time()
            try:
                self.answers.append((began, time.time(), self._sources[number](f"{random.random()}")))
            except Exception as error:
                self.errors.append(error)
            self.counts[number] += 1
            self._stop.wait(self._pause_s)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert all(clip.proved and clip.whole for _, _, clip in self.answers)

    def more(self, count: int = 3) -> None:
        """Wait until every source has answered some more times."""
        goals = [done + count for done in self.counts]
        until(lambda: all(done >= goal for done, goal in zip(self.counts, goals, strict=True)))

    def since(self, moment: float) -> set[str | None]:
        """The versions of the generations that began after a moment of Unix time."""
        return {clip.sha256 for began, _, clip in list(self.answers) if began > moment}
