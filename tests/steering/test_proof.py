"""The start-up proof passes on a sound pipeline, and refuses each fault that is planted in one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig

from reins_serve.errors import ReinsError, SteeringNotApplied, SteeringUnavailable
from reins_serve.models.generation import generate, request
from reins_serve.models.spec import SPECS, DenoiserSpec
from reins_serve.plugin import SteeringMiddleware, SteeringPolicy, attach
from reins_serve.steering import hook as hook_module
from reins_serve.steering import operator
from tests import tiny

Steer = Callable[..., SteeringMiddleware]


def test_the_proof_measures_every_direction(steer: Steer) -> None:
    proof = steer("add", a="setpoint", b="token", c="channel", d="guard").proof
    assert {name: p.applications for name, p in proof.items()} == {"live": 8 // 2, "a": 2, "b": 8, "c": 2, "d": 8}
    for p in proof.values():
        assert p.error < 1e-5
        assert p.displacement > 0
        assert p.latent_change > 0


def test_taps_and_hooks_of_the_proof_are_gone_afterwards(steer: Steer, folder: Path) -> None:
    steering = steer()
    names = [
        list(b._diffusers_hook.hooks) for b in steering.pipeline.transformer.blocks if hasattr(b, "_diffusers_hook")
    ]
    assert [name for block in names for name in block] == ["reins_steering"]


def test_a_push_of_the_wrong_size_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = operator.steer
    monkeypatch.setattr(hook_module, "steer", lambda h, p, **k: real(h, p._replace(amount=p.amount * 1.01), **k))
    with pytest.raises(SteeringNotApplied, match="away from the predicted push"):
        attach(tiny.pipeline(), model="tiny", directions=folder / "add.safetensors")


def test_a_guard_that_pushes_every_clip_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = operator.steer
    monkeypatch.setattr(hook_module, "steer", lambda h, p, **k: real(h, p, **k | {"guards": False}))
    with pytest.raises(SteeringNotApplied, match="away from the predicted push"):
        attach(tiny.pipeline(), model="tiny", directions=folder / "guard.safetensors")


def test_a_hook_that_is_not_neutral_when_off_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_module.SteeringHook, "post_forward", lambda self, module, output: output * 1.0001)
    with pytest.raises(SteeringNotApplied, match="not neutral"):
        attach(tiny.pipeline(), model="tiny", directions=folder / "add.safetensors")


def test_a_hook_that_never_fires_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook_module.SteeringHook, "post_forward", lambda self, module, output: output)
    with pytest.raises(SteeringNotApplied, match="0 times"):
        attach(tiny.pipeline(), model="tiny", directions=folder / "add.safetensors")


def test_a_push_that_leaks_into_other_rows_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = operator.steer

    def leaking(h: torch.Tensor, p: operator.RowPush, **flags: bool) -> operator.Pushed:
        result = real(h, p, **flags)
        return result._replace(hidden=result.hidden + 1e-3)

    monkeypatch.setattr(hook_module, "steer", leaking)
    with pytest.raises(SteeringNotApplied, match="another row"):
        attach(tiny.pipeline(), model="tiny", directions=folder / "add.safetensors")


def test_a_spec_with_the_wrong_guidance_layout_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPECS, "WanTransformer3DModel", DenoiserSpec(("blocks",), guidance="batched"))
    with pytest.raises(SteeringNotApplied, match="guidance layout"):
        attach(tiny.pipeline(), model="tiny", directions=folder / "setpoint.safetensors")


def test_an_unknown_denoiser_is_refused_with_instructions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SPECS, "WanTransformer3DModel")
    with pytest.raises(ReinsError, match=r"SPECS\['WanTransformer3DModel'\]"):
        attach(tiny.pipeline(), model="tiny", directions=folder / "add.safetensors")


def test_a_step_cache_that_was_enabled_first_is_refused(folder: Path) -> None:
    pipeline = tiny.pipeline()
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ReinsError, match="before enabling a step cache"):
        attach(pipeline, model="tiny", directions=folder / "add.safetensors")


def test_a_failed_attach_leaves_the_pipeline_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny.pipeline()
    with monkeypatch.context() as patch:
        patch.setattr(hook_module.SteeringHook, "post_forward", lambda self, module, output: output)
        with pytest.raises(SteeringNotApplied):
            attach(pipeline, model="tiny", directions=folder / "add.safetensors")
    assert attach(pipeline, model="tiny", directions=folder / "add.safetensors").proof


def test_without_directions_clips_are_marked_as_unsteered_where_the_operator_allows_it() -> None:
    with pytest.raises(SteeringUnavailable, match="required: false"):
        attach(tiny.pipeline(), model="tiny", directions={})
    steering = attach(tiny.pipeline(), model="tiny", directions={}, policy=SteeringPolicy(required=False))
    with steering.generation() as g:
        generate(steering.pipeline, tiny.ENTRY, [request(tiny.ENTRY, "a clip", 1)], g.arguments)
    assert (g.record.steered, g.record.proved, g.record.reason) == (False, False, "no_direction")
