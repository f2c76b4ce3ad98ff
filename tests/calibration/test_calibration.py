"""Capture, statistics and controls, each against the same thing written out another way."""

import numpy as np
import pytest
import torch

from reins_serve.calibration.capture import Capture
from reins_serve.calibration.controls import random_control
from reins_serve.calibration.statistics import Rate, paired_change, psnr
from reins_serve.errors import ReinsError
from reins_serve.models.generation import generate, request
from reins_serve.plugin import attach
from reins_serve.steering.policy import SteeringRow
from tests import tiny


@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
def test_capture_is_the_mean_over_tokens_and_window_of_the_conditional_branch(guidance_scale: float) -> None:
    pipeline = tiny.pipeline()
    clips = [request(tiny.ENTRY, "red square", seed, guidance_scale=guidance_scale) for seed in range(3)]
    calls: list[torch.Tensor] = []
    handle = pipeline.transformer.blocks[2].register_forward_hook(lambda m, i, output: calls.append(output.clone()))
    plain = generate(pipeline, tiny.ENTRY, clips)
    handle.remove()
    with Capture(pipeline, 3, (0, 2)) as capture:
        frames = generate(pipeline, tiny.ENTRY, clips, capture.arguments)
    assert np.array_equal(frames, plain)  # reading changes nothing
    window = (
        [calls[0], calls[2]] if guidance_scale > 1 else calls[:2]
    )  # steps 0 and 1; the conditional call comes first
    assert np.allclose(capture.activations.pooled[:, 1], torch.stack(window).mean(dim=(0, 2)).numpy(), atol=1e-5)
    norms = torch.stack([call.norm(dim=2).median(dim=1).values for call in window]).mean(0)
    assert np.allclose(capture.activations.token_norm[:, 1], norms.numpy(), atol=1e-5)
    assert not pipeline.transformer.blocks[2]._diffusers_hook.hooks


def test_capture_of_nothing_is_an_error() -> None:
    with Capture(tiny.pipeline(), 1, (0,)) as capture:
        pass
    with pytest.raises(ReinsError, match="Nothing was captured"):
        _ = capture.activations


def test_intervals_match_published_examples() -> None:
    rate = Rate.of(np.arange(263) < 81)  # Newcombe 1998: Wilson, 81 of 263
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.2553, 0.3662)
    before = np.r_[np.ones(36), np.ones(12), np.zeros(2)].astype(
        bool
    )  # 36 both, 12 before only, 2 after only, 0 neither
    after = np.r_[np.ones(36), np.zeros(12), np.ones(2)].astype(bool)
    change, low, high = paired_change(after, before)  # Newcombe 1998, table III (a): 0.20 [0.0569, 0.3404]
    assert (round(change, 2), round(low, 4), round(high, 4)) == (0.2, 0.0569, 0.3404)


def test_no_change_in_many_pairs_has_a_tight_interval_around_zero() -> None:
    change, low, high = paired_change(np.ones(432, bool), np.ones(432, bool))
    assert change == 0
    assert -0.02 < low < 0 < high < 0.02


def test_psnr_of_equal_clips_is_capped_and_of_a_known_error_right() -> None:
    clip = np.zeros((1, 2, 4, 4, 3), np.uint8)
    assert psnr(clip, clip)[0] == 99
    assert psnr(clip, clip + np.uint8(255))[0] == pytest.approx(0)


def test_a_random_control_moves_tokens_as_far_as_it_is_told() -> None:
    pipeline = tiny.pipeline()
    live = tiny.direction(pipeline, operation="setpoint", branches="cond")
    control = random_control(live, 1, displacement=0.37)
    steering = attach(pipeline, model="tiny", directions={"live": live, "control": control})
    with steering.generation(rows=[SteeringRow("control", control.serving_strength)]) as g:
        generate(pipeline, tiny.ENTRY, [request(tiny.ENTRY, "a clip", 0)], g.arguments)
    assert g.record.displacement == pytest.approx(0.37, rel=1e-5)
    assert g.record.planned == 2  # the conditional branch alone, as the direction it is matched to
    assert control.meta.role == "control"
