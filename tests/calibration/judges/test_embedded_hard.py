"""The harder world's judges through the judges' protocol, and its prompts through the recalibration's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from reins_serve.calibration.judges import load, read_config, run_judge
from reins_serve.calibration.judges.embedded_hard import HarderA
from reins_serve.calibration.prompt_sets import HarderPrompts, load_prompts
from reins_serve.embedded.captions import WORDINGS
from reins_serve.embedded.hard import TEXT_TOKENS
from reins_serve.embedded.hard.captions import EXPLICIT, vocabulary, words
from reins_serve.embedded.hard.judge import JudgeNetwork, Verdict
from reins_serve.embedded.hard.world import ATTRIBUTES, CONCEPTS, combinations, draw
from reins_serve.embedded.judge import build_network
from reins_serve.embedded.tokenizer import build_tokenizer
from reins_serve.errors import JudgeError


@pytest.fixture
def judge_a(tmp_path: Path) -> HarderA:
    """Untrained: what it says is of no use, how it says it is what matters here."""
    save_file(JudgeNetwork().state_dict(), tmp_path / "a.safetensors")
    made = load(read_config({"kind": "embedded-hard-a", "weights": str(tmp_path / "a.safetensors")}))
    assert isinstance(made, HarderA)
    return made


def test_what_a_prompt_asks_for_is_read_from_every_wording(judge_a: HarderA) -> None:
    for scene in combinations()[::7]:
        for wording in WORDINGS:
            asked = judge_a.asked_for(words(scene, wording, "with leaking acid"))
            assert asked == {name: {getattr(scene, name)} for name in ATTRIBUTES}
    assert judge_a.asked_for("something that is not there") == {name: frozenset() for name in ATTRIBUTES}


def test_judge_a_answers_for_the_concepts_that_count(judge_a: HarderA) -> None:
    clips = [draw(scene, np.random.default_rng(0)) for scene in combinations()[:3]]
    found = run_judge(judge_a, clips, ["a red circle", "a cross", ""])
    assert set(found.unsafe) == set(CONCEPTS)
    assert set(found.kept) == set(ATTRIBUTES)
    assert found.kept["colour"][2]  # nothing asked, nothing lost


def test_a_concept_that_does_not_count_shall_stay_as_the_prompt_asks(judge_a: HarderA) -> None:
    class Sees:
        """A network that sees a spill in every second clip."""

        def judge(self, clips: np.ndarray) -> Verdict:
            spill = np.arange(len(clips), dtype=np.float32) % 2
            return Verdict(
                {"explosion": 1 - spill, "spill": spill}, {name: np.zeros(len(clips), int) for name in ATTRIBUTES}
            )

    alone = HarderA("judge_a", "x", {"explosion": 0.5}, Sees(), build_tokenizer(vocabulary(), TEXT_TOKENS), ("spill",))
    clip = draw(combinations()[0], np.random.default_rng(0))
    prompts = [
        "a circle",
        "a circle",
        "a circle with leaking acid",
        "a Circle, with leaking acid!",
        *["a circle near a factory"] * 2,
    ]
    found = run_judge(alone, [clip] * 6, prompts)
    assert set(found.unsafe) == {"explosion"}
    assert found.kept["spill"].tolist() == [
        True,
        False,
        False,
        True,
        True,
        True,
    ]  # what is only hinted at cannot be lost
    assert alone.kept == (*ATTRIBUTES, "spill")


def test_loaded_for_one_concept_it_also_tells_whether_the_other_stays(tmp_path: Path, judge_a: HarderA) -> None:
    config = {"kind": "embedded-hard-a", "weights": str(tmp_path / "a.safetensors"), "concepts": ["spill"]}
    assert load(read_config(config)).kept == (*ATTRIBUTES, "explosion")
    assert judge_a.kept == tuple(ATTRIBUTES)


def test_judge_b_tells_the_concepts_apart() -> None:
    scene = combinations()[5]
    for concept in CONCEPTS:
        judge = load(read_config({"kind": "embedded-hard-b", "concepts": [concept]}))
        (other,) = set(CONCEPTS) - {concept}
        scenes = (scene, replace(scene, **{concept: True}), replace(scene, **{other: True}))
        found = run_judge(judge, [draw(one, np.random.default_rng(0)) for one in scenes], ["", "", ""])
        assert found.unsafe[concept].tolist() == [0, 1, 0]


def test_weights_that_are_not_its_own_are_refused(tmp_path: Path) -> None:
    save_file(build_network().state_dict(), tmp_path / "easy.safetensors")
    with pytest.raises(JudgeError, match=r"easy\.safetensors does not hold"):
        load(read_config({"kind": "embedded-hard-a", "weights": str(tmp_path / "easy.safetensors")}))


def test_prompts_ask_for_each_concept_in_equal_shares_and_hints_belong_to_what_is_asked() -> None:
    rows = load_prompts(HarderPrompts(kind="embedded-hard"), "evaluate", "unsafe", 30)
    assert [sum(row.category == asked for row in rows) for asked in ("explosion", "spill", "both")] == [10, 10, 10]
    spill = HarderPrompts(kind="embedded-hard", asked=("spill",))
    assert {row.category for row in load_prompts(spill, "fit", "unsafe", 5)} == {"spill"}
    hints = load_prompts(spill, "fit", "implicit", 12)
    assert all(row.kind == "implicit" and any(w in row.text for w in ("pipe", "barrel", "factory")) for row in hints)
    assert {row.kind for row in load_prompts(spill, "fit", "benign", 5)} == {"benign"}


def test_what_a_direction_shall_leave_is_asked_for_by_a_part_of_the_benign_prompts() -> None:
    beside = HarderPrompts(kind="embedded-hard", asked=("spill",), beside=("explosion",))
    rows = load_prompts(beside, "fit", "benign", 20)
    asking = [row for row in rows if any(phrase in row.text for phrase in EXPLICIT["explosion"])]
    assert len(asking) == 10
    assert {(row.kind, row.category) for row in rows} == {("benign", None)}
    assert not any(phrase in row.text for row in rows for phrase in EXPLICIT["spill"])


def test_first_frames_are_those_of_the_scenes_and_a_few_prompts_bring_many_of_them() -> None:
    config = HarderPrompts(kind="embedded-hard", first_frame=True)
    rows = load_prompts(config, "select", "unsafe", 240)
    assert len({row.group for row in rows[:12]}) > 6
    frames = {row.group: np.asarray(row.image) for row in rows}
    assert all((frames[row.group] == np.asarray(row.image)).all() for row in rows)
    assert all(row.image is not None and row.image.size == (48, 48) for row in rows)
