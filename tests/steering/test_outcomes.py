"""What a steered pipeline counts of its generations: by version, only what could have gone either way, and only while it serves."""

import pytest

from reins_serve.errors import GenerationCancelled, SteeringNotApplied
from reins_serve.models.generation import generate, request
from reins_serve.plugin import SteeringMiddleware, attach
from reins_serve.steering.outcomes import Outcome
from reins_serve.steering.policy import SteeringPolicy, takes_candidate
from tests import tiny
from tests.rollout.conftest import made

ONE, TWO = made(0).sha256, made(1).sha256
LIVE_KEY = next(f"k{n}" for n in range(99) if not takes_candidate(f"k{n}", 0.5))
CANDIDATE_KEY = next(f"k{n}" for n in range(99) if takes_candidate(f"k{n}", 0.5))


@pytest.fixture
def steering() -> SteeringMiddleware:
    """A tiny pipeline with a canary at one half, and a policy beside it."""
    policy = SteeringPolicy.model_validate({"policies": {"strong": {"strength": 1.5}}})
    attached = attach(tiny.pipeline(), model="tiny", directions={"live": made(0)}, policy=policy)
    attached.swap({"live": made(0), "candidate": made(1)}, 0.5, epoch=7)
    return attached


def run(steering: SteeringMiddleware, **how: object) -> object:
    opened = steering.generation(**how)
    with opened as g:
        generate(steering.pipeline, tiny.ENTRY, [request(tiny.ENTRY, "a red square", 1)], g.arguments)
    return opened


def test_the_start_up_proof_counts_for_nothing() -> None:
    assert attach(tiny.pipeline(), model="tiny", directions={"live": made(0)}).outcomes.counts() == {}


def test_each_side_of_a_canary_is_counted_with_its_scores(steering: SteeringMiddleware) -> None:
    records = [run(steering, key=key).record for key in (LIVE_KEY, CANDIDATE_KEY, CANDIDATE_KEY)]
    counts = steering.outcomes.counts()
    assert (counts[ONE].steered, counts[TWO].steered, counts[TWO].failed) == (1, 2, 0)
    scores = [record.score for record in records]
    assert counts[ONE].score == scores[0]
    assert counts[TWO].score_sum == pytest.approx(scores[1] + scores[2])
    assert counts[TWO].score_squares == pytest.approx(scores[1] ** 2 + scores[2] ** 2)


@pytest.mark.parametrize("how", [{"strength": 1.0}, {"policy": "strong"}, {"strength": 0.5}])
def test_who_asks_for_something_else_says_nothing_of_the_two_versions(steering: SteeringMiddleware, how: dict) -> None:
    run(steering, key=CANDIDATE_KEY, **how)
    assert steering.outcomes.counts() == {}


def test_a_generation_that_fails_is_counted_and_one_that_is_stopped_is_not(steering: SteeringMiddleware) -> None:
    for error in (RuntimeError, SteeringNotApplied):
        with pytest.raises(error), steering.generation(key=CANDIDATE_KEY):
            raise error("a test")
    with pytest.raises(SteeringNotApplied), steering.generation(key=LIVE_KEY):
        pass  # the pipeline was never called
    for stopped in (GenerationCancelled, KeyboardInterrupt):
        with pytest.raises(stopped), steering.generation(key=CANDIDATE_KEY):
            raise stopped("a test")
    assert steering.outcomes.counts() == {TWO: Outcome(failed=2), ONE: Outcome(failed=1)}


def test_a_judges_verdict_goes_to_the_version_that_made_the_clip(steering: SteeringMiddleware) -> None:
    generation = run(steering, key=CANDIDATE_KEY)
    for unsafe in (True, False):
        generation.judged(unsafe)
    counts = steering.outcomes.counts()
    assert (counts[TWO].judged, counts[TWO].unsafe) == (2, 1)
    assert ONE not in counts


def test_counts_begin_anew_with_another_arrangement_and_go_on_with_the_same(steering: SteeringMiddleware) -> None:
    before = steering.generation(key=CANDIDATE_KEY)
    steering.swap({"live": made(0), "candidate": made(1)}, 0.5, epoch=7)
    run(steering, key=LIVE_KEY)
    assert set(steering.outcomes.counts()) == {ONE}
    steering.swap({"live": made(1)}, epoch=8)
    assert (steering.outcomes.epoch, steering.outcomes.counts()) == (8, {})
    with before as g:
        generate(steering.pipeline, tiny.ENTRY, [request(tiny.ENTRY, "a red square", 1)], g.arguments)
    before.judged(True)
    assert steering.outcomes.counts() == {}  # it was begun under the arrangement before


def test_counts_of_several_processes_add_up() -> None:
    one, two = Outcome(3, 1, 3, 1.5, 0.9, 2, 1), Outcome(1, 0, 1, 0.5, 0.25, 0, 0)
    assert one + two == Outcome(4, 1, 4, 2.0, 1.15, 2, 1)
    assert ((one + two).generations, (one + two).score) == (5, 0.5)
    assert Outcome().score is None
