"""The store on a local folder, on memory:// and on a real S3 server: versions, the pointer's moves, history, collection."""

import pytest

from reins_serve.errors import ConflictError, DirectionError, ReinsError
from reins_serve.rollout.storage import DirectionStore
from tests.rollout.conftest import Connect, made

SAID = {"who": "ann", "why": "a test"}


def published(store: DirectionStore, *seeds: int) -> list[str]:
    """Publish directions of these seeds; their digests."""
    return [store.publish(made(seed), **SAID).sha256 for seed in seeds]


def test_a_version_is_read_back_as_it_was_published(store: DirectionStore, connect: Connect) -> None:
    version = store.publish(made(), report=b"<html>", who="ann", why="first")
    assert (version.number, version.sha256, version.model) == (1, made().sha256, "tiny")
    other = connect()
    assert other.load("tiny", version.sha256).data == made().data
    assert other.report("tiny", version.sha256) == b"<html>"
    assert other.versions("tiny") == [version]
    assert other.models() == ["tiny"]


def test_numbers_count_up_and_equal_bytes_are_one_version(store: DirectionStore) -> None:
    first, second = store.publish(made(0), **SAID), store.publish(made(1).data, **SAID)
    again = store.publish(made(0), who="bob", why="again")
    assert (first.number, second.number) == (1, 2)
    assert again == first
    assert [event.action for event in store.history("tiny")] == ["publish", "publish"]


def test_published_is_not_live(store: DirectionStore) -> None:
    published(store, 0)
    assert store.find("tiny") is None
    with pytest.raises(DirectionError, match="Publish one and promote it"):
        store.read("tiny")


def test_what_is_no_direction_or_another_models_is_not_published(local: DirectionStore) -> None:
    with pytest.raises(DirectionError, match="not a safetensors direction file"):
        local.publish(b"nothing", **SAID)
    with pytest.raises(DirectionError, match="complete safetensors file"):
        local.publish(made().data[:-1], **SAID)
    with pytest.raises(DirectionError, match="of tiny, not of embedded"):
        local.publish(made(), model="embedded", **SAID)
    with pytest.raises(ReinsError, match="cannot be a folder's name"):
        local.publish(made(model="../elsewhere"), **SAID)
    assert local.models() == []


def test_other_weights_are_refused_unless_they_are_meant(local: DirectionStore) -> None:
    published(local, 0)
    foreign = made(fingerprint="0123456789abcdef")
    with pytest.raises(DirectionError, match="another base model than version 1"):
        local.publish(foreign, **SAID)
    assert local.publish(foreign, new_base=True, **SAID).number == 2
    local.promote("tiny", "1", **SAID)
    with pytest.raises(DirectionError, match="different weights"):
        local.canary("tiny", "2", 0.1, **SAID)


def test_promote_canary_withdraw_rollback(store: DirectionStore, connect: Connect) -> None:
    a, b, c = published(store, 0, 1, 2)
    store.promote("tiny", "v1", **SAID)
    store.promote("tiny", b[:8], **SAID)
    canary = store.canary("tiny", "3", 0.25, **SAID)
    assert (canary.live, canary.candidate, canary.fraction) == (b, c, 0.25)
    assert store.withdraw("tiny", **SAID).candidate is None
    store.canary("tiny", "3", 0.1, **SAID)
    promoted = store.promote("tiny", "candidate", **SAID)
    assert (promoted.live, promoted.candidate, promoted.fraction, promoted.previous) == (c, None, 0, (b, a))
    back = store.rollback("tiny", who="bob", why="too strict")
    assert (back.live, back.previous, back.by, back.why) == (b, (a,), "bob", "too strict")
    assert connect().read("tiny") == back
    assert back.generation == 7
    store.rollback("tiny", **SAID)
    with pytest.raises(DirectionError, match="no earlier live direction"):
        store.rollback("tiny", **SAID)


def test_a_rollback_ends_a_canary(local: DirectionStore) -> None:
    published(local, 0, 1, 2)
    local.promote("tiny", "1", **SAID)
    local.promote("tiny", "2", **SAID)
    local.canary("tiny", "3", 0.5, **SAID)
    assert local.rollback("tiny", **SAID).candidate is None


def test_what_is_live_already_is_not_promoted_again(local: DirectionStore) -> None:
    published(local, 0, 1)
    first = local.promote("tiny", "1", **SAID)
    assert local.promote("tiny", "1", who="bob", why="again") == first
    canary = local.canary("tiny", "2", 0.5, **SAID)
    assert local.canary("tiny", "2", 0.5, **SAID) == canary
    assert local.promote("tiny", "1", **SAID).generation == canary.generation + 1  # this one ends the canary


def test_flipping_between_two_versions_keeps_both_within_reach_of_a_rollback(local: DirectionStore) -> None:
    a, b, c = published(local, 0, 1, 2)
    for number in "12321":
        pointer = local.promote("tiny", number, **SAID)
    assert (pointer.live, pointer.previous) == (a, (b, c))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_canary_needs_a_share_between_nothing_and_all(local: DirectionStore, fraction: float) -> None:
    with pytest.raises(ReinsError, match="above 0 and below 1"):
        local.canary("tiny", "1", fraction, **SAID)


def test_a_canary_stands_beside_another_live_version(local: DirectionStore) -> None:
    published(local, 0)
    with pytest.raises(DirectionError, match="Promote one first"):
        local.canary("tiny", "1", 0.1, **SAID)
    local.promote("tiny", "1", **SAID)
    with pytest.raises(DirectionError, match="its own canary"):
        local.canary("tiny", "1", 0.1, **SAID)
    with pytest.raises(DirectionError, match="no candidate to withdraw"):
        local.withdraw("tiny", **SAID)


@pytest.mark.parametrize(("gates", "word"), [("failed", "failed utility"), ("none", "never put through")])
def test_a_failed_or_missing_gate_stops_a_version_unless_a_recorded_reason_overrides(
    local: DirectionStore, gates: str, word: str
) -> None:
    local.promote("tiny", local.publish(made(), **SAID).sha256, **SAID)
    version = str(local.publish(made(1, gates), **SAID).number)
    before = local.read("tiny")
    with pytest.raises(DirectionError, match=word):
        local.promote("tiny", version, **SAID)
    with pytest.raises(DirectionError, match=word):
        local.canary("tiny", version, 0.1, **SAID)
    with pytest.raises(ReinsError, match="`override` must be said"):
        local.promote("tiny", version, override=" ", **SAID)
    assert local.read("tiny") == before
    local.promote("tiny", version, override="signed off by the lead", **SAID)
    assert local.history("tiny")[-1].override == "signed off by the lead"


def test_a_control_never_serves(local: DirectionStore) -> None:
    local.publish(made(role="control"), **SAID)
    with pytest.raises(DirectionError, match="never serves"):
        local.promote("tiny", "1", override="please", **SAID)


def test_a_change_decided_on_an_older_generation_is_a_conflict(store: DirectionStore, connect: Connect) -> None:
    published(store, 0, 1)
    seen = store.promote("tiny", "1", generation=0, **SAID)
    connect().promote("tiny", "2", **SAID)
    for change in (store.promote, store.rollback):
        arguments = ["tiny", "1"] if change == store.promote else ["tiny"]
        with pytest.raises(ConflictError, match=r"generation 2, not 1.*Read it again") as error:
            change(*arguments, generation=seen.generation, **SAID)
        assert error.value.code == "conflict"


@pytest.mark.parametrize("name", ["7", "v7", "0123456789", "abc", "", "../1"])
def test_a_version_that_does_not_exist_is_an_error_that_lists_those_that_do(local: DirectionStore, name: str) -> None:
    published(local, 0)
    with pytest.raises(DirectionError, match=r"it has v1") as error:
        local.resolve("tiny", name)
    assert error.value.code == "direction_not_found"


def test_history_says_who_did_what_and_why_from_which_to_which(store: DirectionStore, connect: Connect) -> None:
    a, b = published(store, 0, 1)
    store.promote("tiny", "1", who="ann", why="first")
    store.promote("tiny", "2", who="bob", why="better")
    store.rollback("tiny", who="eve", why="worse")
    events = connect().history("tiny")
    told = [(event.action, event.by, event.why, event.before, event.after, event.generation) for event in events[2:]]
    assert told == [
        ("promote", "ann", "first", None, a, 1),
        ("promote", "bob", "better", a, b, 2),
        ("rollback", "eve", "worse", b, a, 3),
    ]
    assert [event.at for event in events] == sorted(event.at for event in events)


@pytest.mark.parametrize("said", [{"who": "", "why": "x"}, {"who": "x", "why": "  "}, {"who": "x", "why": "x" * 2001}])
def test_nothing_changes_without_a_name_and_a_reason(local: DirectionStore, said: dict[str, str]) -> None:
    with pytest.raises(ReinsError, match="must be said"):
        local.publish(made(), **said)
    published(local, 0)
    with pytest.raises(ReinsError, match="must be said"):
        local.promote("tiny", "1", **said)
    assert local.find("tiny") is None


class TestCollect:
    def test_only_what_nothing_needs_is_removed(self, store: DirectionStore) -> None:
        digests = published(store, *range(6))
        store.promote("tiny", "2", **SAID)
        store.promote("tiny", "3", **SAID)
        store.canary("tiny", "4", 0.1, **SAID)
        removed = store.collect("tiny", keep=1, **SAID)
        assert [version.number for version in removed] == [1, 5]  # 2: rollback; 3: live; 4: candidate; 6: the last
        for number in (2, 3, 4, 6):
            assert store.load("tiny", digests[number - 1])
        assert store.read("tiny").condemned == ()
        assert set(store.history("tiny")[-2].removed) == {digests[0], digests[4]}
        assert [event.action for event in store.history("tiny")[-2:]] == ["collect", "collected"]
        assert len(store.versions("tiny")) == 6
        with pytest.raises(ReinsError, match=r"is missing.*publish the same direction again"):
            store.promote("tiny", "1", **SAID)
        assert store.publish(made(0), **SAID).number == 1
        assert store.promote("tiny", "1", **SAID).live == digests[0]

    def test_versions_that_the_last_events_speak_of_are_kept(self, local: DirectionStore) -> None:
        published(local, 0, 1, 2)
        local.promote("tiny", "1", **SAID)
        local.promote("tiny", "2", **SAID)
        local.rollback("tiny", **SAID)
        assert local.collect("tiny", keep=2, **SAID) == []  # 2 and 3 are the last; 1 is live
        assert [version.number for version in local.collect("tiny", keep=0, **SAID)] == [2, 3]

    def test_nothing_may_point_at_what_is_being_removed(
        self, store: DirectionStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        published(store, 0, 1)
        store.promote("tiny", "2", **SAID)
        with monkeypatch.context() as patch:
            patch.setattr(store._versions, "remove", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.collect("tiny", keep=0, **SAID)
        with pytest.raises(ConflictError, match="is being removed"):
            store.promote("tiny", "1", **SAID)
        store.collect("tiny", keep=0, **SAID)
        assert store.read("tiny").condemned == ()
        assert store._versions.stored("tiny") == {made(1).sha256}

    def test_a_collection_that_loses_to_a_promotion_removes_nothing(
        self, store: DirectionStore, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = published(store, 0, 1)
        store.promote("tiny", "2", **SAID)
        move = store._pointers.move

        def move_late(*arguments: object, **changes: object) -> object:
            connect().promote("tiny", "1", **SAID)
            return move(*arguments, **changes)

        monkeypatch.setattr(store._pointers, "move", move_late)
        with pytest.raises(ConflictError):
            store.collect("tiny", keep=0, **SAID)
        assert store._versions.stored("tiny") == {a, b}
