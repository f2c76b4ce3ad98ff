"""The checks of a fit: each passes on sound data and shows the fault that it is there for."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from reins_serve.calibration.checks import (
    _weighted_auc,
    assert_sign,
    bootstrap_auc_low,
    clipped_cosine,
    cross_fitted,
    cross_fitted_auc,
    leave_one_source_out,
    norm_clipped,
    permutation_p,
    split_half_cosine,
)
from reins_serve.calibration.supervised_pca import SupervisedPCA
from reins_serve.errors import ReinsError
from tests.calibration.samples import two_classes


def test_cross_fitted_auc_sees_a_signal_and_none_in_random_labels() -> None:
    activations, unsafe, prompts = two_classes(200, gap=3)
    groups = np.arange(200) // 4
    assert (cross_fitted_auc(activations, unsafe, prompts, groups) > 0.9).all()
    wide = np.random.default_rng(0).normal(size=(200, 1, 600))
    assert 0.35 < cross_fitted_auc(wide, unsafe, prompts, groups)[0] < 0.65


def test_cross_fitting_never_scores_a_group_by_a_fit_that_has_seen_it() -> None:
    rng, groups = np.random.default_rng(0), np.arange(200) // 10
    unsafe = np.tile([True, False], 100)
    x = (
        rng.normal(size=(200, 1, 300))
        + 20 * rng.normal(size=(20, 1, 300))[groups] * np.where(unsafe, 1, -1)[:, None, None]
    )
    found = cross_fitted(x, unsafe, np.arange(200), groups)
    assert all(len(np.unique(found.fold[groups == group])) == 1 for group in np.unique(groups))
    # A group's own axis separates it perfectly; a fit on other groups knows nothing of it.
    assert cross_fitted_auc(x, unsafe, np.arange(200), np.arange(200))[0] > 0.95
    assert cross_fitted_auc(x, unsafe, np.arange(200), groups)[0] < 0.8


def test_the_weighted_auc_is_scikit_learns_with_ties_and_multiplicities() -> None:
    rng = np.random.default_rng(0)
    scores, unsafe = rng.integers(0, 6, 50).astype(float), rng.random(50) < 0.4
    weights = rng.integers(0, 4, (5, 50)).astype(float)
    expected = [roc_auc_score(~unsafe, scores, sample_weight=row) for row in weights]
    assert np.allclose(_weighted_auc(scores, unsafe, weights), expected)


def test_the_lower_bound_lies_below_the_auc_by_the_error_of_few_prompts() -> None:
    activations, unsafe, prompts = two_classes(400, gap=1.5)
    groups = np.arange(400) // 4
    auc, low = (f(activations, unsafe, prompts, groups) for f in (cross_fitted_auc, bootstrap_auc_low))
    # Two standard errors of Hanley and McNeil (1982).
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    error = ((auc * (1 - auc) + 199 * (q1 - auc**2) + 199 * (q2 - auc**2)) / 200**2) ** 0.5
    assert np.allclose(auc - low, 1.96 * error, rtol=0.35)


def test_clips_of_one_prompt_are_resampled_together() -> None:
    activations, unsafe, prompts = two_classes(100, gap=1.5)
    copies = [np.repeat(a, 6, axis=0) for a in (activations, unsafe, prompts, np.arange(100) // 4)]
    once = bootstrap_auc_low(activations, unsafe, prompts, np.arange(100) // 4)
    assert np.allclose(bootstrap_auc_low(*copies), once, atol=0.02)  # six copies are no six-fold evidence


def test_permutation_finds_a_signal_and_is_level_without_one() -> None:
    activations, unsafe, prompts = two_classes(120, gap=1.5)
    assert (permutation_p(activations, unsafe, prompts, np.zeros(120)) <= 0.002).all()
    rng = np.random.default_rng(1)
    p = [permutation_p(rng.normal(size=(40, 1, 20)), unsafe[:40], prompts[:40], np.zeros(40), 99)[0] for _ in range(60)]
    assert 0.3 < np.mean(p) < 0.7
    assert min(p) >= 0.01


def test_labels_are_exchanged_within_strata_only() -> None:
    rng = np.random.default_rng(0)
    unsafe, strata = np.arange(200) % 20 < np.repeat([2, 18], 100), np.repeat([0, 1], 100)
    x = rng.normal(size=(200, 1, 10))
    x[strata == 1] += 3  # the stratum, which is mostly unsafe, makes all of the difference
    assert permutation_p(x, unsafe, np.arange(200), np.zeros(200))[0] <= 0.002
    assert permutation_p(x, unsafe, np.arange(200), strata)[0] > 0.02
    with pytest.raises(ReinsError, match="strata"):
        permutation_p(x, unsafe, np.arange(200), np.arange(200))


def test_split_halves_agree_with_what_the_whole_fit_expects_of_them() -> None:
    activations, unsafe, prompts = two_classes(400, gap=1)
    found, expected = split_half_cosine(activations, unsafe, prompts)
    assert np.allclose(found, expected, atol=0.05)
    noise, little = split_half_cosine(activations, unsafe[np.random.default_rng(0).permutation(400)], prompts)
    assert (noise < 0.5).all()
    assert (little < 0.5).all()
    with pytest.raises(ReinsError, match="one label only"):
        split_half_cosine(activations[:3], unsafe[:3], prompts[:3])


def test_a_few_extreme_clips_show_in_the_norm_clipped_fit() -> None:
    activations, unsafe, prompts = two_classes(400, gap=2)
    assert (clipped_cosine(activations, unsafe, prompts) > 0.97).all()
    poisoned = activations.copy()
    poisoned[np.flatnonzero(unsafe)[:20], :, 5] += 500  # 5 % of the clips
    assert (clipped_cosine(poisoned, unsafe, prompts) < 0.9).all()
    plain, robust = (SupervisedPCA().fit(x, unsafe, prompts) for x in (poisoned, norm_clipped(poisoned)))
    assert (np.abs(plain.direction_[:, 0]) < 0.5).all()
    assert (robust.direction_[:, 0] > 0.7).all()


def test_a_source_that_makes_the_direction_alone_is_named() -> None:
    activations, unsafe, prompts = two_classes(300, gap=2)
    sources = np.array(["set", "traffic", "people"])[np.arange(300) // 2 % 3]
    sound = leave_one_source_out(activations, unsafe, prompts, sources)
    assert set(sound) == {"set", "traffic", "people"}
    assert min(cosine.min() for cosine in sound.values()) > 0.9
    poisoned = activations.copy()
    poisoned[(sources == "traffic") & unsafe, :, 4] += 20
    found = leave_one_source_out(poisoned, unsafe, prompts, sources)
    assert min(found, key=lambda name: found[name].min()) == "traffic"
    assert found["traffic"].max() < 0.5
    assert leave_one_source_out(activations, unsafe, prompts, np.full(300, "set")) == {}
    with pytest.raises(ReinsError, match="Without the source 'other'"):
        leave_one_source_out(activations, unsafe, prompts, np.where(unsafe, "set", "other"))


def test_a_direction_that_is_the_wrong_way_round_on_held_out_clips_is_refused() -> None:
    activations, unsafe, prompts = two_classes(200, gap=2)
    fitted = SupervisedPCA().fit(activations[:100], unsafe[:100], prompts[:100])
    assert_sign(fitted, activations[100:], unsafe[100:], prompts[100:])
    with pytest.raises(ReinsError, match=r"places \[0, 1\].*inverted"):
        assert_sign(fitted, activations[100:], ~unsafe[100:], prompts[100:])
    half = activations[100:].copy()
    half[:, 1] *= -1
    with pytest.raises(ReinsError, match=r"places \[1\]"):
        assert_sign(fitted, half, unsafe[100:], prompts[100:])
