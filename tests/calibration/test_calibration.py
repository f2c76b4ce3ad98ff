"""Capture, moments, supervised PCA, statistics and controls, each against the same thing written out another way."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import eigh

from reins_serve.calibration.capture import Capture
from reins_serve.calibration.controls import random_control
from reins_serve.calibration.moments import ClassMoments
from reins_serve.calibration.statistics import Rate, paired_change, psnr
from reins_serve.calibration.supervised_pca import SupervisedPCA, cross_fitted_auc
from reins_serve.calibration.sweep import Candidate, Prompts, Seen, successive_halving
from reins_serve.errors import ReinsError
from reins_serve.models.generation import generate, request
from reins_serve.plugin import attach
from reins_serve.steering.policy import SteeringRow
from tests import tiny

RNG = np.random.default_rng(0)


def two_classes(n: int = 60, gap: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    unsafe = np.arange(n) % 2 == 1
    activations = RNG.normal(size=(n, 2, 12))
    activations[~unsafe, :, 0] += gap
    return activations, unsafe, np.array([f"prompt {i // 2} {i % 2}" for i in range(n)])


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


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_moments_merge_to_those_of_the_whole(sizes: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).normal(300, 0.05, size=(sum(sizes), 4))
    parts = [ClassMoments.of(part) for part in np.split(values, np.cumsum(sizes)[:-1])]
    merged = parts[-1]
    for part in parts[:-1]:
        merged = part.merge(merged)
    whole = ClassMoments.of(values)
    assert merged.n == whole.n
    assert np.allclose(merged.mean, whole.mean, rtol=1e-12)
    assert np.allclose(merged.m2, whole.m2, rtol=1e-6, atol=1e-9)
    assert (merged.m2 >= 0).all()


def test_moments_refuse_values_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        ClassMoments.of(np.array([[1.0, np.nan]]))


def test_the_direction_is_the_top_eigenvector_of_barshans_matrix() -> None:
    activations, unsafe, prompts = two_classes()
    fitted = SupervisedPCA().fit(activations, unsafe, prompts)
    x, labels = activations[:, 1], (~unsafe).astype(float)[:, None]
    centre = np.eye(len(x)) - 1 / len(x)
    _, vectors = eigh(x.T @ centre @ (labels @ labels.T) @ centre @ x)
    assert abs(vectors[:, -1] @ fitted.direction_[1]) == pytest.approx(1, abs=1e-6)


def test_the_sign_points_towards_safe() -> None:
    activations, unsafe, prompts = two_classes(gap=3)
    fitted = SupervisedPCA().fit(activations, unsafe, prompts)
    assert (fitted.safe_mean_ > fitted.unsafe_mean_).all()
    assert (fitted.direction_[:, 0] > 0.7).all()


def test_prompts_count_once_however_many_clips_they_have() -> None:
    activations, unsafe, prompts = two_classes()
    many = np.concatenate([activations, np.repeat(activations[:1], 50, axis=0)])
    repeated = SupervisedPCA().fit(many, np.r_[unsafe, [False] * 50], np.r_[prompts, prompts[:1].repeat(50)])
    assert np.allclose(repeated.direction_, SupervisedPCA().fit(activations, unsafe, prompts).direction_)


def test_one_class_alone_is_refused() -> None:
    activations, unsafe, prompts = two_classes()
    with pytest.raises(ReinsError, match="same label"):
        SupervisedPCA().fit(activations, np.zeros_like(unsafe), prompts)


def test_cross_fitted_auc_sees_a_signal_and_none_in_random_labels() -> None:
    activations, unsafe, prompts = two_classes(200, gap=3)
    groups = np.arange(200) // 4
    assert (cross_fitted_auc(activations, unsafe, prompts, groups) > 0.9).all()
    wide = RNG.normal(size=(200, 1, 600))
    assert 0.35 < cross_fitted_auc(wide, unsafe, prompts, groups)[0] < 0.65


def test_the_predicted_refit_cosine_is_that_of_independent_fits() -> None:
    def fit(seed: int) -> SupervisedPCA:
        rng, unsafe = np.random.default_rng(seed), np.arange(400) % 2 == 1
        x = rng.normal(size=(400, 1, 50))
        x[~unsafe, 0, 0] += 1
        return SupervisedPCA().fit(x, unsafe, np.arange(400).astype(str))

    fits = [fit(seed) for seed in range(12)]
    found = np.mean([a.direction_[0] @ b.direction_[0] for a, b in zip(fits[::2], fits[1::2], strict=True)])
    assert np.mean([f.refit_cosine_[0] for f in fits]) == pytest.approx(found, abs=0.06)


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


def test_successive_halving_keeps_the_cheapest_and_prefers_the_smaller_push_among_equals() -> None:
    pipeline = tiny.pipeline()
    steering = attach(pipeline, model="tiny", directions={"live": tiny.direction(pipeline)})
    clips = [request(tiny.ENTRY, "a clip", seed) for seed in range(4)]
    nothing = np.zeros(4, bool)

    def see(frames: np.ndarray, rows: object) -> Seen:
        n = len(frames)
        return Seen({"judge": np.zeros(n, bool)}, {"shape": np.ones(n, bool)})

    rounds = successive_halving(
        steering, tiny.ENTRY, [Candidate("live", s) for s in (2.0, 1.0, 0.5)], Prompts(clips, see), Prompts(clips, see),
        Seen({"judge": nothing}, {"shape": ~nothing}), [(0, 2), (2, 4)],
    )  # fmt: skip
    assert [[m.candidate.strength for m in found] for found in rounds] == [[0.5, 1.0, 2.0], [0.5, 1.0]]
    assert rounds[1][0].n == 4
