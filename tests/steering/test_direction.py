"""Direction files: what is refused, and that the refusal says what to do."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from reins_serve.errors import DirectionError
from reins_serve.plugin import attach
from reins_serve.steering.direction import METADATA_KEY, Direction, Window
from tests import tiny

PIPELINE = tiny.pipeline()
GOOD = tiny.direction(PIPELINE)


def refused(data: bytes) -> str:
    with pytest.raises(DirectionError) as error:
        Direction.parse(data)
    return str(error.value)


def rebuilt(change: dict | None = None, vectors: torch.Tensor | None = None, drop: str | None = None) -> bytes:
    described = json.loads(GOOD.meta.model_dump_json()) | (change or {})
    described.pop(drop, None)
    tensors = {"vectors": GOOD.vectors if vectors is None else vectors}
    return save(tensors, metadata={METADATA_KEY: json.dumps(described)})


def test_a_saved_direction_is_read_back_with_the_same_digest(tmp_path: Path) -> None:
    GOOD.save(tmp_path / "d.safetensors")
    read = Direction.load(tmp_path / "d.safetensors")
    assert read.sha256 == GOOD.sha256
    assert read.meta == GOOD.meta
    assert torch.equal(read.vectors, GOOD.vectors)


def test_strength_is_not_folded_into_the_vector() -> None:
    strong = GOOD.meta.model_copy(update={"strength": GOOD.meta.strength.model_copy(update={"serving": 2.0})})
    assert torch.equal(Direction.create(strong, GOOD.vectors).vectors, GOOD.vectors)


@pytest.mark.parametrize(
    "field", [name for name in type(GOOD.meta).model_fields if name not in {"parent", "margin", "guard"}]
)
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    assert field in refused(rebuilt(drop=field))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"alpha": 3}, "alpha"),
        ({"format": "reins.direction/2"}, "format"),
        ({"strength": {"unit": "ref_norm", "serving": -1, "max": 2}}, "serving"),
        ({"strength": {"unit": "ref_norm", "serving": 0, "max": 2}}, "serving"),
        ({"strength": {"unit": "ref_norm", "serving": 1, "max": float("inf")}}, "finite"),
        ({"strength": {"unit": "ref_norm", "serving": 3, "max": 2}}, "must not exceed"),
        ({"blocks": [9]}, "blocks"),
        ({"operation": "setpoint"}, "deficit"),
        ({"window": {"start": 0.6, "end": 0.5}}, "window"),
        ({"margin": 0.5}, "margin is for setpoint"),
        ({"margin": 1.0}, "margin"),
        ({"margin": -0.1}, "margin"),
        ({"guard": {"blocks": [1], "shortfall": 0.25}}, "guard is for setpoint"),
        ({"guard": {"blocks": [1], "shortfall": 0}}, "shortfall"),
        ({"guard": {"blocks": [1], "shortfall": 0.6}}, "shortfall"),
        ({"guard": {"blocks": [], "shortfall": 0.25}}, "guard.blocks"),
        ({"statistics": [{"safe_mean": -1, "unsafe_mean": 1, "ref_norm": 1}]}, "safe must project higher"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(change: dict, word: str) -> None:
    message = refused(rebuilt(change))
    assert word in message
    assert "Make it again" in message


@pytest.mark.parametrize(
    ("vectors", "word"),
    [
        (torch.full((1, 16), float("nan")), "not finite"),
        (torch.ones(1, 16), "unit length"),
        (torch.zeros(1, 16), "unit length"),
        (torch.ones(1, 15), "shape"),
        (torch.ones(1, 16, dtype=torch.float64), "float32"),
    ],
)
def test_wrong_vectors_are_refused(vectors: torch.Tensor, word: str) -> None:
    assert word in refused(rebuilt(vectors=vectors))


def test_a_pickle_renamed_to_safetensors_is_refused_and_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    torch.save({"vectors": GOOD.vectors}, path)
    with pytest.raises(DirectionError, match="Pickles"):
        Direction.load(path)
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(DirectionError, match="Pickles"):
        Direction.load(path)


class _Bomb:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("the pickle was executed",))


def test_a_missing_file_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(DirectionError, match="cannot be read"):
        Direction.load(tmp_path / "none.safetensors")


@given(st.integers(0, len(GOOD.data) - 1))
@settings(max_examples=60)
def test_a_truncated_file_is_refused(length: int) -> None:
    refused(GOOD.data[:length])


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_a_file_with_flipped_bytes_is_refused_or_still_valid(data: st.DataObject) -> None:
    mutated = bytearray(GOOD.data)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = Direction.parse(bytes(mutated))
    except DirectionError:
        return
    assert torch.isfinite(parsed.vectors).all()
    assert parsed.serving_strength > 0


@pytest.mark.parametrize(("margin", "target"), [(None, 4.0), (0.0, 4.0), (0.25, 3.0), (0.75, 1.0)])
def test_a_margin_puts_the_target_between_the_classes_and_without_one_it_is_the_safe_mean(
    margin: float | None, target: float
) -> None:
    change: dict[str, object] = {
        "operation": "setpoint",
        "strength": {"unit": "deficit", "serving": 1, "max": 2},
        "statistics": [{"safe_mean": 4.0, "unsafe_mean": 0.0, "ref_norm": 1.0}],
    }
    data = rebuilt(change, drop="margin") if margin is None else rebuilt(change | {"margin": margin})
    found = Direction.parse(data)
    assert found.target(0) == target


def test_a_guard_aims_at_the_safe_mean_and_asks_for_clips_that_fall_short_of_it() -> None:
    change: dict[str, object] = {
        "operation": "setpoint",
        "strength": {"unit": "deficit", "serving": 1, "max": 2},
        "blocks": [1, 2],
        "statistics": [{"safe_mean": 4.0, "unsafe_mean": 0.0, "ref_norm": 1.0}] * 2,
        "margin": 0.5,
    }
    meta = type(GOOD.meta).model_validate(
        GOOD.meta.model_dump() | change | {"guard": {"blocks": [2], "shortfall": 0.25}}
    )
    found = Direction.create(meta, GOOD.vectors[:1].expand(2, -1))
    assert [found.target(at) for at in range(2)] == [2.0, 4.0]
    assert [found.condition(at) for at in range(2)] == [(float("inf"), 1.0), (3.0, 1.0)]
    with pytest.raises(ValueError, match="names some of its blocks"):
        type(meta).model_validate(meta.model_dump() | {"guard": {"blocks": [2, 3], "shortfall": 0.25}})


@pytest.mark.parametrize(("total", "expected"), [(10, range(5)), (9, range(5)), (1, range(1)), (3, range(2))])
def test_the_first_half_of_n_steps_is_below_the_ceiling_of_n_halves(total: int, expected: range) -> None:
    assert Window(start=0, end=0.5).steps(total) == expected


def test_a_direction_of_another_model_of_the_same_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.safetensors"
    GOOD.save(path)
    with pytest.raises(DirectionError, match=r"fingerprint.*refit"):
        attach(tiny.pipeline(seed=1), model="tiny", directions=path)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [("width", 8, "width"), ("num_blocks", 5, "number of blocks"), ("denoiser_class", "Other", "denoiser class")],
)
def test_a_direction_of_another_shape_is_refused(tmp_path: Path, field: str, value: object, word: str) -> None:
    base = GOOD.meta.base.model_copy(update={field: value})
    vectors = torch.nn.functional.normalize(torch.ones(1, base.width), dim=1)
    Direction.create(GOOD.meta.model_copy(update={"base": base}), vectors).save(tmp_path / "d.safetensors")
    with pytest.raises(DirectionError, match=word):
        attach(tiny.pipeline(), model="tiny", directions=tmp_path / "d.safetensors")


def test_the_fingerprint_is_that_of_the_checkpoint_not_of_its_dtype() -> None:
    from reins_serve.models.fingerprint import fingerprint

    half = tiny.pipeline().to(torch.bfloat16)
    assert fingerprint(half) == fingerprint(PIPELINE)
    assert fingerprint(tiny.pipeline(seed=1)) != fingerprint(PIPELINE)
