"""One of two writers that race for the pointer; a module of its own, so that a process that races imports little."""

from collections.abc import Callable
from typing import Any

from reins_serve.errors import ConflictError
from reins_serve.rollout.storage import DirectionStore

ROUNDS = 50
NAMES = ("ann", "bob")


def race(store: DirectionStore, who: str, meet: Callable[[], Any]) -> list[bool]:
    """In each round, promote a version that is not live, from the generation that both writers saw; which rounds were won."""
    digests = [version.sha256 for version in store.versions("tiny")]
    won = []
    for _ in range(ROUNDS):
        seen = store.read("tiny")
        others = [digest for digest in digests if digest != seen.live]
        meet()
        try:
            store.promote("tiny", others[NAMES.index(who)], who=who, why="race", generation=seen.generation)
            won.append(True)
        except ConflictError as error:
            assert "Read it again" in str(error)
            won.append(False)
        meet()
    return won


def race_in_a_process(url: str, who: str, meet: Any, results: Any) -> None:
    """Race, and send (who, rounds won) to the queue `results`."""
    results.put((who, race(DirectionStore(url), who, meet.wait)))
