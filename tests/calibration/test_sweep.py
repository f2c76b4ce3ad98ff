"""The selection keeps the cheapest of each round, on clips that are made up."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from reins_serve.calibration.config import Round
from reins_serve.calibration.prompt_sets import PromptRow
from reins_serve.calibration.sweep import Candidate, Measured, Trial, off_the_edge, preferred, successive_halving
from reins_serve.calibration.workers import Ask, Judged, in_calls

ROWS = [(PromptRow(text=f"clip {n}", split="select", category=c), n) for n, c in enumerate([None] * 4 + ["smoke"] * 4)]
BENIGN, UNSAFE = ROWS[:4], ROWS[4:]


def trial(unsafe: dict[float, float], lost: dict[float, float]) -> Trial:
    """Clips that are unsafe, or lose their shape, in a share of the prompts that depends on the strength alone."""

    def measure(asks: Sequence[Ask]) -> list[Judged]:
        def judged(ask: Ask) -> Judged:
            place = (ask.seed % 4) / 4
            hit = ask.prompt.category is not None and place < unsafe[ask.strength]
            return Judged(
                ask, {"a": hit, "b": False}, {}, {"shape": place >= lost[ask.strength]}, ask.strength, 20.0, None
            )

        return [judged(ask) for ask in asks]

    return Trial(UNSAFE, BENIGN, [{"shape": True}] * 4, measure)


def strengths(found: list) -> list[float]:
    return [one.candidate.strength for one in found]


def test_the_cheapest_are_kept_and_equals_are_ordered_by_the_smaller_push() -> None:
    made = trial({0.5: 0.5, 1.0: 0.0, 2.0: 0.0}, {0.5: 0.0, 1.0: 0.0, 2.0: 0.0})
    candidates = [Candidate("d", s) for s in (2.0, 1.0, 0.5)]
    rounds = successive_halving(made, candidates, [Round(prompts=4), Round(candidates=2, prompts=4)])
    assert [strengths(found) for found in rounds] == [[1.0, 2.0, 0.5], [1.0, 2.0]]
    assert rounds[0][2].unsafe == {"a": 0.5, "b": 0.0}  # the harsher judge decides
    assert rounds[0][2].cost == 0.5


def test_a_benign_loss_counts_as_much_as_an_unsafe_clip() -> None:
    made = trial({1.0: 0.25, 2.0: 0.0}, {1.0: 0.0, 2.0: 0.5})
    ((best, worst),) = successive_halving(made, [Candidate("d", s) for s in (2.0, 1.0)], [Round(prompts=4)])
    assert (best.candidate.strength, best.cost) == (1.0, 0.25)
    assert worst.cost == pytest.approx(0.5)


def measured(strength: float, unsafe: int, lost: int = 0) -> Measured:
    return Measured(Candidate("d", strength), 96, {"a": unsafe / 96, "b": 0.0}, lost / 96, strength)


def test_within_one_clip_of_the_cheapest_the_smallest_push_is_preferred() -> None:
    found = [measured(3.0, 0, 1), measured(2.0, 0, 2), measured(1.5, 1, 1), measured(1.0, 2, 1), measured(0.5, 3, 0)]
    assert preferred(found).candidate.strength == 1.5
    assert preferred(found[:1]) == found[0]


def test_clips_that_are_compared_share_a_call_and_no_call_is_too_long() -> None:
    asks = [Ask(prompt, seed, condition) for prompt, seed in ROWS for condition in ("off", "on", "third")]
    calls = in_calls(asks, 7)
    assert sum(map(len, calls)) == len(asks)
    assert max(map(len, calls)) <= 7
    for call in calls:
        for ask in call:
            assert len([other for other in call if other.pair == ask.pair]) == 3
    assert [len(call) for call in in_calls(asks, 2)] == [2, 1] * 8


def test_prompts_of_one_first_frame_share_calls_and_a_call_has_one_frame() -> None:
    frames = [Image.new("RGB", (4, 2), colour) for colour in ("red", "blue")]
    rows = [(row.model_copy(update={"image": frames[n % 2].copy()}), seed) for n, (row, seed) in enumerate(ROWS)]
    asks = [Ask(prompt, seed, condition) for prompt, seed in rows for condition in ("off", "on")]
    calls = in_calls(asks, 8)
    assert [len(call) for call in calls] == [8, 8]
    for call in calls:
        assert len({ask.prompt.image.tobytes() for ask in call}) == 1
        assert [ask.condition for ask in call] == ["off", "on"] * 4


@pytest.mark.parametrize(
    ("doses", "served"),
    [
        ([(0.75, 1), (1.0, 0), (1.5, 0)], 1.0),  # holds below itself
        ([(0.75, 9), (1.0, 0), (1.5, 0), (2.0, 0)], 1.5),
        ([(0.75, 9), (1.0, 0), (1.5, 2), (2.0, 0)], 1.0),  # worse by more than a clip, and then again at an edge
        ([(0.75, 9), (1.0, 0), (1.5, 0, 2), (2.0, 1)], 2.0),  # one dose costs two benign clips
        ([(1.0, 0), (1.5, 1), (2.0, 1)], 1.5),  # what lies below the least dose is not known
        ([(1.0, 0)], 1.0),
    ],
)
def test_the_strength_that_serves_does_not_stand_at_the_edge(doses: list[tuple[float, int]], served: float) -> None:
    assert off_the_edge([measured(*dose) for dose in reversed(doses)], 1.0) == served


def test_without_benign_prompts_nothing_is_lost() -> None:
    made = replace(trial({1.0: 0.5}, {1.0: 1.0}), benign=[], benign_off=[])
    (found,) = made.of([Candidate("d", 1.0)], 4)
    assert (found.unsafe["a"], found.loss, found.cost) == (0.5, 0.0, 0.5)
