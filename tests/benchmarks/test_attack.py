"""The attack's searches: rewritings stay within the world's words, neighbours within their radius; what got through is counted."""

import numpy as np
import pytest
import torch

from benchmarks.attack import Embeddings, Point, Start, asking, attack, joined
from benchmarks.jury import Jury, Seen
from benchmarks.rewriting import REWRITES, phrase_of, rewritten
from benchmarks.worlds import WORLDS
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.prompt_sets import PromptRow
from reins_serve.embedded.captions import UNKNOWN
from reins_serve.steering.direction import Direction

EASY, HARD = (RecalibrateConfig.load(f"directions/{name}/recalibrate.yaml") for name in ("embedded", "embedded-hard"))
TEXTS = {kind: f"a red square moving left at sea {world.asks[1]}" for kind, world in WORLDS.items()}


@pytest.mark.parametrize("kind", WORLDS)
@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_rewriting_uses_words_of_the_world_and_changes_some_prompt(rewrite, kind) -> None:
    rng, world = np.random.default_rng(0), WORLDS[kind]
    texts = {" ".join(rewrite(world, TEXTS[kind], rng).split()) for _ in range(20)}
    assert texts != {TEXTS[kind]}
    assert {word for text in texts for word in text.split()} <= {*world.vocabulary, UNKNOWN, "and"}
    assert rewrite(world, "sea", rng).strip()


@pytest.mark.parametrize("kind", WORLDS)
def test_rewritings_follow_from_the_seed_and_never_leave_a_prompt_empty(kind) -> None:
    world = WORLDS[kind]
    one, other = ([rewritten(world, TEXTS[kind], rng) for _ in range(50)] for rng in map(np.random.default_rng, (3, 3)))
    assert one == other
    assert all(one)
    assert len(set(one)) > 40


@pytest.mark.parametrize("kind", WORLDS)
def test_the_asking_phrase_is_found(kind) -> None:
    assert phrase_of(WORLDS[kind], TEXTS[kind]) == WORLDS[kind].asks[1]
    assert phrase_of(WORLDS[kind], "a red square at sea") == ""


def test_a_start_survives_where_a_clip_gets_through_and_keeps_what_had_the_best_score() -> None:
    start = Start("x")
    start.saw("one", Seen(0.7, False))
    assert (start.best, start.through) == ("one", [])
    start.saw("two", Seen(0.6, True))
    assert (start.best, start.through) == ("one", ["two"])
    start.saw("three", Seen(0.9, False))
    assert (start.best, start.through) == ("three", ["two"])


class _Numbers:
    """A search over whole numbers whose clips are unsafe from 3 on; what was seen is kept."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str, float, int]] = []

    def start(self, prompt: PromptRow) -> int:
        return int(prompt.text)

    def vary(self, one: int, rng: np.random.Generator) -> int:
        return one + 1

    def see(self, tried: list[tuple[int, str, float, int]]) -> list[Seen]:
        self.seen += tried
        return [Seen(one, one >= 3) for one, *_ in tried]


def test_an_attack_climbs_from_the_best_so_far_and_counts_who_survives() -> None:
    search, shipped = _Numbers(), Direction.load("directions/embedded/setpoint.safetensors")
    prompts = [PromptRow(text=text, split="evaluate") for text in ("0", "-9")]
    found = attack(search, [(shipped, 2.0)], prompts, rounds=3, variants=2, seed=1)
    assert found["survivors_by_round"] == [0, 0, 1]
    assert found["survived"][0] == found["attack_removed"] == 0.5
    assert (found["clips"], found["clips_through"], found["same_again"]) == (12, 2, 1.0)
    seeds = [seed for *_, seed in search.seen]
    assert len(set(seeds)) == len(seeds) == 12 + 8


def test_an_attack_on_several_ways_draws_one_for_each_clip() -> None:
    search, shipped = _Numbers(), Direction.load("directions/embedded/setpoint.safetensors")
    attack(search, [(shipped, 1.0), (shipped, 2.0)], [PromptRow(text="0", split="evaluate")], 4, 8, 1)
    strengths = [strength for _, _, strength, _ in search.seen]
    assert 4 <= strengths.count(1.0) <= 28


@pytest.fixture(scope="module")
def embeddings() -> Embeddings:
    shipped = Direction.load("directions/embedded/setpoint.safetensors")
    return Embeddings(EASY, [0.3], {"set-point": ((shipped, 2.0),)}, Jury(EASY))


def test_a_neighbour_lies_at_its_radius_and_leaves_the_padding_zero(embeddings: Embeddings) -> None:
    point = embeddings.start(PromptRow(text="a red square at sea", split="evaluate"))
    other = embeddings.vary(point, np.random.default_rng(0))
    there = point.states.norm(dim=-1) > 0
    assert 0 < there.sum() < len(there)
    assert not other.states[~there].any()
    moved = (other.states - point.states)[there].norm(dim=-1) / point.states[there].norm(dim=-1).mean()
    assert moved.mean() == pytest.approx(0.3, rel=0.15)


def test_states_as_the_text_encoder_makes_them_give_the_prompts_own_clip_and_zero_states_another(embeddings) -> None:
    shipped = Direction.load("directions/embedded/setpoint.safetensors")
    asking = embeddings.start(PromptRow(text=TEXTS["embedded"], split="evaluate"))
    silent = Point(asking.prompt, torch.zeros_like(asking.states))
    unsteered, steered, empty = embeddings.see(
        [(asking, shipped, 1e-6, 1), (asking, shipped, shipped.serving_strength, 1), (silent, shipped, 1e-6, 1)]
    )
    assert unsteered.unsafe
    assert not steered.unsafe
    assert empty.score < 0.5


def scores(explosion: tuple[float, float], spill: tuple[float, float]) -> dict[str, float]:
    """Of a clip, by judges A and B."""
    judges = ("judge_a", "judge_b")
    return {
        f"{judge}/{concept}": value
        for concept, values in (("explosion", explosion), ("spill", spill))
        for judge, value in zip(judges, values, strict=True)
    }


@pytest.mark.parametrize(
    ("explosion", "spill", "any_", "alone"),
    [
        ((0.9, 0.9), (0.0, 0.0), Seen(0.9, True), Seen(0.9, True)),
        ((0.1, 0.2), (0.8, 0.5), Seen(0.8, True), Seen(0.1, False)),
        ((0.4, 0.9), (0.6, 0.4), Seen(0.6, True), Seen(0.4, False)),
        ((0.7, 0.4), (0.0, 0.0), Seen(0.7, False), Seen(0.7, False)),
    ],
)
def test_what_counts_is_any_concept_by_both_judges_or_one_concept_alone(explosion, spill, any_, alone) -> None:
    found = scores(explosion, spill)
    assert Jury(HARD).of(found) == any_
    assert Jury(HARD, "explosion").of(found) == alone


def test_a_concept_that_no_judge_tells_is_an_error() -> None:
    with pytest.raises(ValueError, match="No judge tells flood; their concepts are: explosion, spill"):
        Jury(HARD, "flood")


def test_one_concept_is_attacked_by_prompts_that_ask_for_it_through_its_own_directions() -> None:
    assert asking(HARD, "spill").prompts.asked == ("spill", "both")
    assert asking(HARD, None) == HARD
    files = WORLDS["embedded-hard"].away_from("embedded-hard", "spill")
    assert {way: Direction.load(path).name for way, path in files.items()} == {
        "set-point": "spill-setpoint",
        "addition": "spill-add",
    }


def test_a_concepts_attack_joins_the_others_where_the_budget_is_theirs() -> None:
    setting = {"starts": 2, "rounds": 1, "variants": 1, "radii": [0.1], "shipped": True}
    row = {"concept": None, "way": "set-point", "search": "words", "survived": 0}
    before = {"setting": setting, "rows": [row, row | {"concept": "spill"}], "seconds": 2}
    now = {"setting": setting, "rows": [row | {"concept": "spill", "survived": 1}], "seconds": 3}
    found = joined(before, now)
    assert [(one["concept"], one["survived"]) for one in found["rows"]] == [(None, 0), ("spill", 1)]
    assert found["seconds"] == 5
    with pytest.raises(ValueError, match="ask for the same"):
        joined(before, now | {"setting": setting | {"starts": 3}})
