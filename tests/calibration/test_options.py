"""What a selection tries: one block or several in a row, labels in turn, the fits that vectors come from, and balanced labels."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from reins_serve.calibration.config import RecalibrateConfig, Tried
from reins_serve.calibration.fit_stage import Fitted, Labels
from reins_serve.calibration.options import Basis, Option, balanced, candidates, live_cosine, options, worth_trying
from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Direction, Guard

CONFIG = RecalibrateConfig.load(Path("directions/embedded/recalibrate.yaml"))
BASE = Direction.load("directions/embedded/setpoint.safetensors").meta.base
WIDTH = 16


def basis(axis: int, unsteady: int | None = None, live: dict[int, float] | None = None, blocks: int = 8) -> Basis:
    """A fit whose vectors lie along an axis."""
    directions = np.zeros((blocks, WIDTH))
    directions[:, axis] = 1
    model = SimpleNamespace(
        direction_=directions,
        safe_mean_=np.ones(blocks),
        unsafe_mean_=np.zeros(blocks),
        prompts_=(100, 100),
    )
    layers = [
        {
            "block": block,
            "auc": 0.9 + block / 100,
            "refit_cosine": 0.5 if block == unsteady else 0.95,
            "cosine_to_live": (live or {}).get(block),
        }
        for block in range(blocks)
    ]
    fitted = Fitted(model, tuple(range(blocks)), np.ones(blocks), layers, 200)  # type: ignore[arg-type]
    return Basis(Labels(("any",), {}, {}), fitted)


def made(
    *tried: Tried, together: Basis | None = None, each: dict[str, Basis] | None = None, experts: int = 1
) -> dict[str, Option]:
    config = CONFIG.model_copy(update={"selection": CONFIG.selection.model_copy(update={"tried": tried})})
    places = [tuple(block + 4 * expert for expert in range(experts)) for block in range(8 // experts)]
    base = BASE.model_copy(update={"width": WIDTH})
    return options(config, base, places, together or basis(0), each or {})


SINGLE = Tried(operation="setpoint", strengths=(1.0, 2.0))
ROW = Tried(operation="setpoint", in_a_row=3, strengths=(1.5,))
TURNS = ROW.model_copy(update={"turns": True})
EACH = {"explosion": basis(1), "spill": basis(2)}


def axes(option: Option) -> list[int]:
    return option.direction.vectors.argmax(dim=1).tolist()


def test_every_block_is_tried_at_every_strength() -> None:
    found = made(SINGLE)
    assert [option.direction.blocks for option in found.values()] == [(block,) for block in range(8)]
    assert [(one.direction, one.strength) for one in candidates(list(found.values())[:1])] == [
        ("setpoint-none-cond-0", 1.0),
        ("setpoint-none-cond-0", 2.0),
    ]
    assert found["setpoint-none-cond-3"].auc == pytest.approx(0.93)


def test_blocks_in_a_row_all_have_the_direction_of_all_labels_together() -> None:
    found = made(ROW)
    assert [option.direction.blocks for option in found.values()] == [(n, n + 1, n + 2) for n in range(6)]
    assert {tuple(axes(option)) for option in found.values()} == {(0, 0, 0)}
    assert len(next(iter(found.values())).direction.meta.statistics) == 3


def test_labels_take_turns_beginning_with_any() -> None:
    found = made(TURNS, each=EACH)
    assert axes(found["setpoint-none-cond-2x3-0"]) == [1, 2, 1]
    assert axes(found["setpoint-none-cond-2x3-1"]) == [2, 1, 2]
    assert [block for _, block in found["setpoint-none-cond-2x3-1"].basis] == [2, 3, 4]
    assert len(found) == 12
    assert {tuple(axes(option)) for option in made(TURNS, each={"explosion": basis(1)}).values()} == {(0, 0, 0)}


def test_a_way_may_steer_longer_than_what_is_captured() -> None:
    found = made(SINGLE, SINGLE.model_copy(update={"end": 0.625}), ROW.model_copy(update={"end": 0.75}))
    ends = {name: option.direction.meta.window.end for name, option in found.items()}
    assert (ends["setpoint-none-cond-2"], ends["setpoint-none-cond-2-to-62_5"]) == (CONFIG.window.end, 0.625)
    assert ends["setpoint-none-cond-2x3-to-75"] == 0.75
    assert {option.direction.meta.captured for option in found.values()} == {CONFIG.window}
    assert len(found) == 8 + 8 + 6
    assert {option.direction.meta.window.start for option in found.values()} == {CONFIG.window.start}


def test_a_set_point_may_aim_between_the_classes() -> None:
    found = made(SINGLE, SINGLE.model_copy(update={"margin": 0.125}))
    margins = {name: option.direction.meta.margin for name, option in found.items()}
    assert (margins["setpoint-none-cond-2"], margins["setpoint-none-cond-2-within-12_5"]) == (0.0, 0.125)
    with pytest.raises(ValidationError, match="margin is for setpoint"):
        Tried(operation="add", margin=0.5, strengths=(1.0,))


def test_the_last_blocks_of_a_row_may_be_guards_by_a_label_of_their_own() -> None:
    guarded = TURNS.model_copy(update={"guards": ("spill",), "margin": 0.5})
    found = made(guarded, each=EACH)
    assert len(found) == 12
    option = found["setpoint-none-cond-2x3-0-within-50-guarded-1"]
    assert option.direction.meta.guard == Guard(blocks=(4,), shortfall=0.25)
    assert axes(option) == [1, 2, 2]
    assert axes(found["setpoint-none-cond-2x3-1-within-50-guarded-1"]) == [2, 1, 2]
    assert axes(made(guarded)["setpoint-none-cond-2x3-within-50-guarded-1"]) == [0, 0, 0]
    with pytest.raises(ReinsError, match="no label 'fire' that could guard: name one of explosion, spill"):
        made(guarded.model_copy(update={"guards": ("fire",)}), each=EACH)
    for wrong in ({"guards": ("a", "b", "c")}, {"operation": "add", "guards": ("a",)}):
        with pytest.raises(ValidationError, match="guards are the last blocks of a setpoint in a row"):
            Tried.model_validate(TURNS.model_dump() | wrong)


def test_a_row_passes_over_no_block_and_needs_a_model_of_one_expert() -> None:
    config = CONFIG.model_copy(update={"selection": CONFIG.selection.model_copy(update={"tried": (ROW,)})})
    found = options(config, BASE.model_copy(update={"width": WIDTH}), [(0,), (1,), (3,), (4,), (5,)], basis(0), {})
    assert [option.direction.blocks for option in found.values()] == [(3, 4, 5)]
    with pytest.raises(ReinsError, match="leave `in_a_row` out"):
        made(ROW, experts=2)
    assert made(SINGLE, experts=2)["setpoint-none-cond-1"].direction.blocks == (1, 5)


def test_what_other_prompts_would_turn_is_not_tried_unless_all_is_so() -> None:
    together = basis(0, unsteady=3)
    found = made(SINGLE, ROW, together=together)
    kept = worth_trying(found)
    assert {option.direction.blocks for option in found.values() if option.direction.name not in kept} == {
        (3,), (1, 2, 3), (2, 3, 4), (3, 4, 5)
    }  # fmt: skip
    only = {name: option for name, option in found.items() if name not in kept}
    assert worth_trying(only) == only


def test_the_live_directions_block_is_compared_with_the_nearest_fit() -> None:
    bases = [basis(0, live={1: 0.2, 2: 0.9}), basis(1, live={1: 0.97, 2: 0.1}), basis(2)]
    assert live_cosine(bases) == 0.9
    assert live_cosine([basis(0)]) is None


def labels(name: str, hits: list[bool]) -> Labels:
    unsafe = {f"{number:02}": hit for number, hit in enumerate(hits)}
    return Labels((name,), {one: np.array([float(hit)]) for one, hit in unsafe.items()}, unsafe)


def test_a_label_is_fitted_on_as_many_clips_with_each_combination() -> None:
    rng = np.random.default_rng(0)
    one = labels("explosion", (rng.random(60) < 0.5).tolist())
    other = labels(
        "spill", [(hit and number % 3 > 0) or number % 4 == 0 for number, hit in enumerate(one.unsafe.values())]
    )
    kept = balanced(one, {"spill": other})
    cells = [(kept.unsafe[clip], other.unsafe[clip]) for clip in kept.unsafe]
    counts = {cell: cells.count(cell) for cell in set(cells)}
    assert len(counts) == 4
    assert len(set(counts.values())) == 1
    assert max(counts.values()) > 1
    assert kept.unsafe.keys() == kept.probability.keys()
    assert all(kept.unsafe[clip] == one.unsafe[clip] for clip in kept.unsafe)


def test_a_combination_that_no_clip_shows_is_an_error_that_says_what_to_ask_for() -> None:
    one, other = labels("explosion", [True, True, False, False]), labels("spill", [True, False, False, False])
    with pytest.raises(ReinsError, match=r"combination of explosion, spill: .* each alone"):
        balanced(one, {"spill": other})


def test_an_option_has_unit_vectors_and_its_own_basis() -> None:
    option = next(iter(made(TURNS, each=EACH).values()))
    assert torch.allclose(option.direction.vectors.norm(dim=1), torch.ones(3))
    assert option.basis[0][0] is EACH["explosion"]
