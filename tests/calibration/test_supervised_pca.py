"""Supervised PCA against Barshan's matrix written out, and what it does with labels that are soft, several, or wrong."""

import numpy as np
import pytest
from scipy.linalg import eigh

from reins_serve.calibration.stored_moments import LabelledMoments, MomentsMeta
from reins_serve.calibration.supervised_pca import SupervisedPCA
from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Window
from tests.calibration.samples import several_labels, two_classes


def barshan(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Top eigenvector `[D]` of X' H Y Y' H X of `[N, D]` and `[N, K]`."""
    centre = np.eye(len(x)) - 1 / len(x)
    _, vectors = eigh(x.T @ centre @ (y @ y.T) @ centre @ x)
    return vectors[:, -1]


def test_the_direction_is_the_top_eigenvector_of_barshans_matrix() -> None:
    activations, unsafe, prompts = two_classes()
    fitted = SupervisedPCA().fit(activations, unsafe, prompts)
    for place in range(2):
        top = barshan(activations[:, place], unsafe[:, None].astype(float))
        assert abs(top @ fitted.direction_[place]) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_several_labels_give_the_top_eigenvector_of_barshans_matrix(soft: bool) -> None:
    activations, labels = several_labels(soft=soft)
    fitted = SupervisedPCA().fit(activations, labels)
    for place in range(activations.shape[1]):
        assert abs(barshan(activations[:, place], labels) @ fitted.direction_[place]) == pytest.approx(1, abs=1e-6)
        correlation = np.corrcoef(fitted.project(activations)[:, place], labels.sum(axis=1))[0, 1]
        assert correlation < 0


def test_one_soft_label_is_the_covariance_with_it_and_a_hard_one_the_closed_form() -> None:
    activations, unsafe, prompts = two_classes()
    y = np.random.default_rng(0).random(len(unsafe))
    soft = SupervisedPCA().fit(activations, y)
    covariance = -np.einsum("nld,n->ld", activations - activations.mean(0), y - y.mean())
    assert np.allclose(soft.direction_, covariance / np.linalg.norm(covariance, axis=1, keepdims=True))
    binary = SupervisedPCA().fit(activations, unsafe, prompts)
    joint = SupervisedPCA().fit(activations, unsafe[:, None].astype(float), prompts)
    for name in ("direction_", "safe_mean_", "unsafe_mean_", "category_direction_", "category_cosine_"):
        assert np.allclose(getattr(binary, name), getattr(joint, name)), name
    assert np.allclose(binary.refit_cosine_, joint.refit_cosine_, atol=0.01)
    assert binary.prompts_ == joint.prompts_ == (30, 30)


def test_the_sign_points_towards_safe() -> None:
    activations, unsafe, prompts = two_classes(gap=3)
    for labels in (unsafe, unsafe.astype(float), np.c_[unsafe, unsafe].astype(float)):
        fitted = SupervisedPCA().fit(activations, labels, prompts)
        assert (fitted.safe_mean_ > fitted.unsafe_mean_).all()
        assert (fitted.direction_[:, 0] > 0.7).all()


def test_prompts_count_once_however_many_clips_they_have() -> None:
    activations, unsafe, prompts = two_classes()
    many = np.concatenate([activations, np.repeat(activations[:1], 50, axis=0)])
    repeated = SupervisedPCA().fit(many, np.r_[unsafe, [False] * 50], np.r_[prompts, prompts[:1].repeat(50)])
    assert np.allclose(repeated.direction_, SupervisedPCA().fit(activations, unsafe, prompts).direction_)
    assert repeated.prompts_ == (30, 30)


@pytest.mark.parametrize("soft", [False, True])
def test_batches_of_one_class_workers_and_stored_moments_give_the_fit_of_the_whole(soft: bool) -> None:
    activations, unsafe, _ = two_classes(90)
    labels = several_labels(90)[1] if soft else unsafe
    whole = SupervisedPCA().fit(activations, labels)
    streamed = SupervisedPCA()
    for rows in (~unsafe, unsafe):
        streamed.partial_fit(activations[rows], labels[rows])
    streamed.solve()
    meta = MomentsMeta(model="m", fingerprint="f", blocks=(0, 1), window=Window(), labels=("a",))
    parts = [LabelledMoments.of(activations[i : i + 30], labels[i : i + 30], meta=meta) for i in (0, 30, 60)]
    stored = LabelledMoments.from_bytes(parts[2].merge(parts[0]).to_bytes())
    for other in (streamed, SupervisedPCA.from_moments(stored.merge(parts[1]))):
        for name in ("direction_", "safe_mean_", "unsafe_mean_", "refit_cosine_", "category_effect_"):
            assert np.allclose(getattr(other, name), getattr(whole, name), rtol=1e-9), name
        assert other.prompts_ == whole.prompts_


def test_one_label_only_equal_means_and_values_that_are_not_finite_are_refused() -> None:
    activations, unsafe, prompts = two_classes()
    for labels in (np.zeros_like(unsafe), np.ones_like(unsafe), np.full(60, 0.3), np.zeros((60, 3))):
        with pytest.raises(ReinsError, match="same label"):
            SupervisedPCA().fit(activations, labels, prompts)
    with pytest.raises(ReinsError, match="same label"):
        SupervisedPCA().solve()
    for equal in (unsafe, unsafe.astype(float)):
        with pytest.raises(ReinsError, match="same mean"):
            SupervisedPCA().fit(np.ones((60, 2, 4)), equal)
    activations[7, 1, 3] = np.nan
    with pytest.raises(ReinsError, match="not finite"):
        SupervisedPCA().fit(activations, unsafe, prompts)


def test_categories_that_conflict_are_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 2)) < 0.4).astype(float)
    x = rng.normal(size=(400, 1, 20))
    x[:, 0, 0] += -4 * labels[:, 0] + 3 * labels[:, 1]  # away from one is towards the other
    with pytest.raises(ReinsError, match=r"conflict.*\['second'\] at the blocks in places \[0\]"):
        SupervisedPCA(["first", "second"]).fit(x, labels)
    x[:, 0, 0] += -6 * labels[:, 1]
    SupervisedPCA(["first", "second"]).fit(x, labels)


def test_categories_that_exclude_each_other_are_refused_where_they_alone_would_make_the_direction() -> None:
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 4, 2000)  # safe twice, and two kinds of unsafe, each with an axis of its own
    labels = np.stack([kind == 2, kind == 3], axis=1).astype(float)
    x = rng.normal(size=(2000, 1, 20))
    x[:, 0, :2] -= 4 * labels
    with pytest.raises(ReinsError, match="Fit one label for all"):
        SupervisedPCA().fit(x, labels)
    together = SupervisedPCA().fit(x, labels.any(axis=1)).direction_[0]
    assert np.allclose(together[:2], 0.5**0.5, atol=0.1)


def test_each_category_has_its_direction_and_its_effect_on_the_others() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((4000, 3)) < 0.3).astype(float)
    labels[:, 2] = 0  # never seen
    x = rng.normal(size=(4000, 1, 6)) * 0.1
    first, second = np.eye(6)[0], (np.eye(6)[0] + np.eye(6)[1]) / 2**0.5
    x[:, 0] -= 2 * labels[:, :1] * first + 4 * labels[:, 1:2] * second
    fitted = SupervisedPCA().fit(x, labels)
    assert np.allclose(fitted.category_direction_[:2, 0], [first, second], atol=0.05)
    assert fitted.category_cosine_[0, 0, 1] == pytest.approx(0.5**0.5, abs=0.05)
    assert np.isnan(fitted.category_direction_[2]).all()
    # Closing the gap of 4 along `second` moves 4 cos(45°) along `first`, whose gap is 2.
    assert fitted.category_effect_[0, 1, 0] == pytest.approx(2**0.5, abs=0.1)
    assert fitted.category_effect_[0, 0, 1] == pytest.approx(0.5**1.5, abs=0.05)
    assert np.allclose(np.diagonal(fitted.category_effect_[0])[:2], 1)


@pytest.mark.parametrize("kind", ["binary", "soft", "several"])
def test_the_predicted_refit_cosine_is_that_of_independent_fits(kind: str) -> None:
    def fit(seed: int) -> SupervisedPCA:
        rng, unsafe = np.random.default_rng(seed), np.arange(400) % 2 == 1
        x = rng.normal(size=(400, 1, 50))
        x[~unsafe, 0, 0] += 1
        soft = np.clip(unsafe + rng.normal(0, 0.2, 400), 0, 1)
        labels = {"binary": unsafe, "soft": soft, "several": np.c_[soft, unsafe]}[kind]
        return SupervisedPCA().fit(x, labels)

    fits = [fit(seed) for seed in range(16)]
    found = np.mean([a.direction_[0] @ b.direction_[0] for a, b in zip(fits[::2], fits[1::2], strict=True)])
    assert np.mean([f.refit_cosine_[0] for f in fits]) == pytest.approx(found, abs=0.06)
