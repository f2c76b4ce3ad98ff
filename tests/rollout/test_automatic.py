"""An automatic canary on storage: its limits are part of the move, and last as long as what serves."""

import json
from pathlib import Path

import pytest

from reins_serve.errors import DirectionError, ReinsError
from reins_serve.rollout.document import now
from reins_serve.rollout.snapshot import read_snapshot
from reins_serve.rollout.storage import DirectionStore
from tests.rollout.conftest import made

SAID = {"who": "ann", "why": "a test"}
AUTO = {"min_generations": 50, "max_failed_rate": 0.1}


@pytest.fixture
def live(local: DirectionStore) -> DirectionStore:
    """A store whose version 1 is live, with versions 2 and 3, of which 3 failed a gate."""
    for direction in (made(0), made(1), made(2, "failed")):
        local.publish(direction, **SAID)
    local.promote("tiny", "1", **SAID)
    return local


def test_the_limits_stand_in_the_pointer_and_in_the_audit_log(live: DirectionStore) -> None:
    pointer = live.canary("tiny", "2", 0.2, auto=AUTO | {"deadline_s": 3600}, **SAID)
    assert pointer.auto is not None
    assert pointer.auto.limits.min_generations == 50
    assert 3590 < (pointer.auto.deadline - now()).total_seconds() <= 3600
    event = live.history("tiny")[-1]
    assert (event.action, event.auto) == ("canary", pointer.auto.limits)
    snapshot = read_snapshot(live, "tiny")
    assert (snapshot.auto, snapshot.epoch) == (pointer.auto, pointer.generation)


@pytest.mark.parametrize("end", ["promote", "withdraw", "rollback", "canary"])
def test_they_end_with_the_canary(live: DirectionStore, end: str) -> None:
    live.promote("tiny", "2", **SAID)
    live.promote("tiny", "1", **SAID)
    live.canary("tiny", "2", 0.2, auto=AUTO, **SAID)
    moves = {"promote": ("2",), "canary": ("2", 0.2)}
    pointer = getattr(live, end)("tiny", *moves.get(end, ()), **SAID)
    assert (pointer.auto, pointer.epoch) == (None, pointer.generation)
    assert live.history("tiny")[-1].auto is None


def test_a_collection_leaves_them_and_what_is_counted(live: DirectionStore) -> None:
    before = live.canary("tiny", "2", 0.2, auto=AUTO, **SAID)
    assert live.collect("tiny", keep=0, **SAID)
    after = live.read("tiny")
    assert after.generation == before.generation + 2
    assert (after.auto, after.epoch) == (before.auto, before.generation)
    assert read_snapshot(live, "tiny").epoch == before.generation


def test_the_same_canary_again_is_the_same_and_other_limits_are_another(live: DirectionStore) -> None:
    once = live.canary("tiny", "2", 0.2, auto=AUTO, **SAID)
    assert live.canary("tiny", "2", 0.2, auto=AUTO, **SAID) == once
    other = live.canary("tiny", "2", 0.2, auto=AUTO | {"min_generations": 60}, **SAID)
    assert (other.generation, other.epoch) == (once.generation + 1, once.generation + 1)


def test_limits_that_are_refused_move_nothing(live: DirectionStore) -> None:
    before = live.read("tiny")
    with pytest.raises(ReinsError, match="say how many may fail"):
        live.canary("tiny", "2", 0.2, auto={"min_generations": 50}, **SAID)
    with pytest.raises(ReinsError, match="`override` must be said"):
        live.canary("tiny", "2", 0.2, auto=AUTO, override=" ", **SAID)
    assert live.read("tiny") == before


def test_an_override_of_the_canary_is_kept_for_its_promotion(live: DirectionStore) -> None:
    with pytest.raises(DirectionError, match="failed utility"):
        live.canary("tiny", "3", 0.2, auto=AUTO, **SAID)
    pointer = live.canary("tiny", "3", 0.2, auto=AUTO, override="for measuring", **SAID)
    assert pointer.auto is not None and pointer.auto.override == "for measuring"


def test_a_pointer_from_before_automatic_canaries_is_read(live: DirectionStore) -> None:
    file = Path(live.url, "tiny", "pointer.json")
    document = json.loads(file.read_bytes())
    del document["auto"], document["epoch"]
    file.write_bytes(json.dumps(document).encode())
    assert read_snapshot(live, "tiny").epoch == 1
