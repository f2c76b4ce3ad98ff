"""A direction is tried before it serves: what steers passes in every dtype, each planted fault is refused, nothing else notices."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reins_serve.errors import DirectionError
from reins_serve.models.generation import generate, request
from reins_serve.plugin import SteeringMiddleware
from reins_serve.steering import dry_run as module
from reins_serve.steering import hook
from reins_serve.steering.direction import BlockStatistics, Direction, Strength
from reins_serve.steering.dry_run import dry_run
from tests import tiny

SHIPPED = Path(__file__).parents[2] / "directions" / "embedded"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PIPELINE = tiny.pipeline()


def of(dtype: torch.dtype) -> Any:
    """What the dry run asks of a pipeline in this dtype."""
    return SimpleNamespace(transformer=torch.nn.Linear(1, 1).to(dtype), _execution_device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def denoisers(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(pipeline: Any) -> dict[str, Any]:
        return {"transformer": SimpleNamespace(dtype=next(pipeline.transformer.parameters()).dtype)}

    monkeypatch.setattr(module, "denoisers_of", found)


def changed(strength: float = 0.5, **statistics: float) -> Direction:
    """A direction for the tiny pipeline whose push is `strength` times its `ref_norm`."""
    told = {"safe_mean": 0.5, "unsafe_mean": -0.5, "ref_norm": 1.0} | statistics
    return tiny.direction(
        PIPELINE,
        1,
        statistics=[BlockStatistics(**told)],
        strength=Strength(unit="ref_norm", serving=strength, max=2 * strength),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["add", "setpoint", "guard", "token", "channel"])
def test_what_steers_passes(folder: Path, name: str, dtype: torch.dtype) -> None:
    dry_run(Direction.load(folder / f"{name}.safetensors"), of(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["add", "setpoint"])
def test_the_shipped_directions_pass(name: str, dtype: torch.dtype) -> None:
    dry_run(Direction.load(SHIPPED / f"{name}.safetensors"), of(dtype))


@given(
    seed=st.integers(0, 99), norm=st.sampled_from(["none", "token", "channel"]),
    kind=st.sampled_from(["add", "setpoint"]), scale=st.floats(0.05, 2000), strength=st.floats(0.05, 2.0),
    mean=st.floats(-2, 2), margin=st.sampled_from([0.0, 0.5]), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_no_direction_of_usual_size_is_refused(
    seed: int, norm: str, kind: str, scale: float, strength: float, mean: float, margin: float, dtype: torch.dtype
) -> None:
    statistics = BlockStatistics(safe_mean=(mean + 0.1) * scale, unsafe_mean=mean * scale, ref_norm=scale)
    unit = "deficit" if kind == "setpoint" else "ref_norm"
    direction = tiny.direction(PIPELINE, seed, operation=kind, norm=norm, statistics=[statistics])
    update = {"strength": Strength(unit=unit, serving=strength, max=strength), "margin": margin * (kind == "setpoint")}
    meta = direction.meta.model_copy(update=update)
    denoiser = SimpleNamespace(transformer=torch.nn.Linear(1, 1).to(dtype), _execution_device=torch.device("cpu"))
    found = {"transformer": SimpleNamespace(dtype=dtype)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "denoisers_of", lambda _: found)
        dry_run(Direction.create(meta, direction.vectors), denoiser)


@pytest.mark.parametrize(
    ("direction", "dtype", "reason"),
    [
        (changed(strength=1e6), torch.float16, "not finite in torch.float16, because its strength or its statistics"),
        (changed(ref_norm=1e6), torch.float16, "not finite"),
        (changed(strength=1e-5), torch.bfloat16, "lost in the rounding of torch.bfloat16"),
        (changed(strength=1e-12), torch.float32, "lost in the rounding"),
    ],
    ids=["overflow", "norm", "too small", "too small in float32"],
)
def test_a_valid_file_that_this_pipeline_cannot_carry_out_is_refused(
    direction: Direction, dtype: torch.dtype, reason: str
) -> None:
    with pytest.raises(DirectionError, match=reason):
        dry_run(direction, of(dtype))


def test_a_greatest_strength_that_overflows_is_refused_although_the_serving_one_does_not() -> None:
    direction = changed()
    strength = Strength(unit="ref_norm", serving=0.5, max=1e6)
    meta = direction.meta.model_copy(update={"strength": strength})
    with pytest.raises(DirectionError, match=r"with strength 1e\+06: it makes hidden states that are not finite"):
        dry_run(Direction.create(meta, direction.vectors), of(torch.float16))


class TestSwap:
    """On a pipeline that serves."""

    @pytest.fixture(autouse=True)
    def denoisers(self) -> None:
        """The real ones."""

    @pytest.mark.parametrize("fault", ["vector", "operator"])
    def test_a_push_that_goes_wrong_on_the_device_is_refused_and_the_last_direction_serves(
        self, steer: Callable[..., SteeringMiddleware], monkeypatch: pytest.MonkeyPatch, fault: str
    ) -> None:
        steering = steer("add")
        before = steering.directions
        rows_at, push = module.rows_at, hook.steer

        def torn(*arguments: Any) -> Any:
            rows = rows_at(*arguments)
            rows["cond"].push.vector[:, :2] = 0  # a part of it has not arrived
            return rows

        def backwards(hidden: torch.Tensor, rows: Any, **options: Any) -> Any:
            return push(hidden, rows._replace(amount=-rows.amount), **options)

        where, name, faulty = (module, "rows_at", torn) if fault == "vector" else (hook, "steer", backwards)
        monkeypatch.setattr(where, name, faulty)
        with pytest.raises(DirectionError, match=r"away from what its file says"):
            steering.swap({"live": changed()})
        assert steering.directions is before
        steering.swap(before)  # what serves already is not tried again

    def test_a_strength_that_steers_nothing_is_refused(self, steer: Callable[..., SteeringMiddleware]) -> None:
        steering = steer("add")
        with pytest.raises(DirectionError, match="lost in the rounding"):
            steering.swap({"live": changed(strength=1e-12)})

    def test_neither_a_running_generation_nor_the_random_numbers_notice(
        self, steer: Callable[..., SteeringMiddleware]
    ) -> None:
        def frames(steering: SteeringMiddleware, swap: bool) -> Any:
            def on_step(done: int, total: int) -> None:
                if swap and done == 1:
                    before = torch.get_rng_state()
                    steering.swap({"live": changed()})
                    assert torch.equal(torch.get_rng_state(), before)

            with steering.generation(on_step=on_step) as g:
                made = generate(steering.pipeline, tiny.ENTRY, [request(tiny.ENTRY, "a red square", 1)], g.arguments)
            return made, g.record

        steering = steer("add")
        one, other = frames(steering, swap=False), frames(steering, swap=True)
        assert (one[0] == other[0]).all()
        assert one[1] == other[1]
        assert steering.directions["live"].sha256 == changed().sha256
