"""Moments of one pass, of parts merged in any order, and of the textbook's two passes are the same."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reins_serve.calibration.moments import Moments
from reins_serve.calibration.stored_moments import LabelledMoments, MomentsMeta
from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Window

META = MomentsMeta(model="tiny", fingerprint="f" * 32, blocks=(0, 4), window=Window(), labels=("a", "b"))


def textbook(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """(mean, m2, label mean, label m2, cross) of `[N, D]` and `[N, K]` in extended precision, two passes."""
    x, y, w = (np.asarray(a, dtype=np.longdouble) for a in (x, y, w))
    mean, label = w @ x / w.sum(), w @ y / w.sum()
    dx, dy = x - mean, y - label
    return mean, w @ dx**2, label, (dy * w[:, None]).T @ dy, (dx * w[:, None]).T @ dy


def assert_close(found: Moments, expected: Sequence[np.ndarray], scale: float, rtol: float = 1e-12) -> None:
    """Within rtol of the size that the sum of the terms' magnitudes has: `scale` is a term's."""
    mean, m2, label, label_m2, cross = (np.asarray(e, dtype=np.float64) for e in expected)
    n = found.n
    assert np.allclose(found.mean, mean, rtol=rtol, atol=rtol * scale)
    assert np.allclose(found.m2, m2, rtol=rtol, atol=rtol * n * scale**2)
    assert np.allclose(found.label_mean, label, rtol=rtol, atol=rtol)
    assert np.allclose(found.label_m2, label_m2, rtol=rtol, atol=rtol * n)
    assert np.allclose(found.cross, cross, rtol=rtol, atol=rtol * n * scale)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 2**31), st.booleans(), st.randoms())
@settings(max_examples=60, deadline=None)
def test_parts_merged_in_any_order_agree_with_the_whole_to_1e_12(
    sizes: list[int], seed: int, shifted: bool, order: object
) -> None:
    rng, n = np.random.default_rng(seed), sum(sizes)
    x = rng.normal(rng.normal(size=5) * 3, 1, size=(n, 5)) + (300 if shifted else 0)
    y, w = rng.random((n, 2)), rng.uniform(0.1, 3, n)
    cuts = np.cumsum(sizes)[:-1]
    parts = [Moments.of(*p) for p in zip(np.split(x, cuts), np.split(y, cuts), [None] * n, np.split(w, cuts))]  # noqa: B905
    order.shuffle(parts)  # type: ignore[attr-defined]
    while len(parts) > 1:  # a tree, as workers merge
        parts = [a.merge(b) for a, b in zip(parts[::2], parts[1::2])] + parts[len(parts) // 2 * 2 :]  # noqa: B905
    whole = Moments.of(x, y, weights=w)
    assert_close(parts[0], textbook(x, y, w), scale=np.abs(x).max())
    assert_close(whole, textbook(x, y, w), scale=np.abs(x).max())
    assert parts[0].prompts == whole.prompts == n
    assert parts[0].n == pytest.approx(whole.n, rel=1e-12)
    assert parts[0].squares == pytest.approx(whole.squares, rel=1e-12)


@given(st.integers(0, 2**31), st.sampled_from([np.float16, np.float32, np.float64]), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_means_of_300_with_deviations_of_0_05_keep_their_variances(seed: int, dtype: type, n: int) -> None:
    x = np.random.default_rng(seed).normal(300, 0.05, size=(n, 8)).astype(dtype)
    mean, m2, *_ = textbook(x, np.zeros((n, 0)), np.ones(n))
    for found in (Moments.of(x), Moments.of(x[: n // 2 + 1]).merge(Moments.of(x[n // 2 :]))):
        assert (found.m2 >= 0).all()
    found = Moments.of(x)
    assert np.allclose(found.mean, mean.astype(float), rtol=1e-14)
    assert np.allclose(found.m2, m2.astype(float), rtol=1e-9, atol=1e-18)


def test_a_constant_column_has_no_variance_however_large_it_is() -> None:
    found = Moments.of(np.full((100, 3), 1e4 + 1 / 3))
    assert (found.m2 >= 0).all()
    assert (found.m2 < 1e-18).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_short_floats_are_summed_in_float64_without_a_float64_copy(dtype: type) -> None:
    x = np.random.default_rng(0).normal(2, 1, size=(2000, 2, 300)).astype(dtype)
    tracemalloc.start()
    found = Moments.of(x)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.allclose(found.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    assert peak < x.size * 8 / 20


def test_the_clips_of_a_prompt_and_label_are_averaged_and_weigh_one() -> None:
    rng = np.random.default_rng(1)
    x, prompts = rng.normal(size=(7, 2, 3)), np.array(list("abacbab"))
    found = Moments.of(x, prompts=prompts)
    means = np.stack([x[prompts == name].mean(0) for name in "abc"])
    assert (found.prompts, found.n) == (3, 3)
    assert np.allclose(found.mean, means.mean(0))
    assert np.allclose(found.m2, ((means - means.mean(0)) ** 2).sum(0))


def test_a_prompt_whose_clips_have_different_labels_still_weighs_one() -> None:
    rng = np.random.default_rng(1)
    x, y, prompts = rng.normal(size=(5, 3)), np.array([[0.1], [0.9], [0.9], [0.2], [0.4]]), np.array(list("aaabc"))
    found = Moments.of(x, y, prompts)
    rows = np.stack([x[0], x[1:3].mean(0), x[3], x[4]])
    assert found.prompts == 3
    assert_close(found, textbook(rows, y[[0, 1, 3, 4]], np.array([0.5, 0.5, 1, 1])), scale=1)


def test_weights_count_within_a_prompt_and_between_prompts() -> None:
    x = np.random.default_rng(2).normal(size=(4, 3))
    found = Moments.of(x, prompts=np.array(list("aabc")), weights=np.array([3.0, 1.0, 1.0, 0.5]))
    rows = np.stack([(3 * x[0] + x[1]) / 4, x[2], x[3]])
    assert_close(found, textbook(rows, np.zeros((3, 0)), np.array([2, 1, 0.5])), scale=1)
    assert found.squares == pytest.approx(4 + 1 + 0.25)


def test_the_variance_of_the_mean_is_that_of_repeated_draws_with_weights_too() -> None:
    rng = np.random.default_rng(3)
    weights = rng.uniform(0.2, 2, 40)
    draws = [Moments.of(rng.normal(size=(40, 6)), weights=weights) for _ in range(400)]
    spread = np.var([d.mean for d in draws], axis=0).sum()
    assert np.mean([d.variance_of_mean for d in draws]) == pytest.approx(spread, rel=0.1)
    assert np.isinf(Moments.of(np.ones((1, 6))).variance_of_mean)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    x = np.zeros((50, 2, 3), np.float32)
    x[47, 1, 2] = bad
    with pytest.raises(ReinsError, match="not finite"):
        Moments.of(x)
    with pytest.raises(ReinsError, match="Weights"):
        Moments.of(x[:1], weights=np.array([bad]))
    with pytest.raises(ReinsError, match="missing"):
        LabelledMoments.of(x[:1], np.array([bad]))


def labelled(seed: int, n: int = 30, soft: bool = True, meta: MomentsMeta = META) -> LabelledMoments:
    rng = np.random.default_rng(seed)
    y = rng.random((n, 2)) if soft else rng.random(n) < 0.5
    return LabelledMoments.of(rng.normal(size=(n, 2, 4)), y, meta=meta)


def test_half_life_halves_what_is_stored_for_so_many_fresh_prompts() -> None:
    old, new = labelled(0, 90), labelled(1, 30)
    merged = old.merge(new, half_life=30).parts["joint"]
    expected = old.parts["joint"].scaled(0.5).merge(new.parts["joint"])
    assert merged.n == pytest.approx(45 + 30)
    assert merged.prompts == 120
    assert merged.n**2 / merged.squares < 120  # fewer effective prompts than were seen
    assert np.allclose(merged.cross, expected.cross)
    assert np.allclose(old.merge(new, half_life=1e12).parts["joint"].cross, old.merge(new).parts["joint"].cross)
    with pytest.raises(ReinsError, match="half_life"):
        old.merge(new, half_life=0)


@pytest.mark.parametrize("soft", [True, False])
def test_stored_moments_are_read_back_bit_for_bit_and_merge_on(soft: bool) -> None:
    whole = labelled(0, soft=soft)
    back = LabelledMoments.from_bytes(whole.to_bytes())
    assert back.meta == META
    assert back.parts.keys() == whole.parts.keys()
    for name, part in whole.parts.items():
        for key, value in part.tensors().items():
            assert np.array_equal(back.parts[name].tensors()[key], value), key
        assert back.parts[name].prompts == part.prompts
    fresh = labelled(1, soft=soft)
    assert back.merge(fresh).to_bytes() == whole.merge(fresh).to_bytes()


def test_a_file_that_is_cut_off_or_of_another_kind_is_refused() -> None:
    data = labelled(0).to_bytes()
    for broken in (data[:-8], data[:40], b"", data.replace(b"reins.moments/1", b"reins.moments/2")):
        with pytest.raises(ReinsError, match="stored moments"):
            LabelledMoments.from_bytes(broken)


@pytest.mark.parametrize(
    ("field", "value"), [("fingerprint", "0" * 32), ("blocks", (0, 5)), ("labels", ("a", "c")), ("model", "other")]
)
def test_moments_of_another_model_or_other_labels_do_not_merge(field: str, value: object) -> None:
    with pytest.raises(ReinsError, match=field):
        labelled(0).merge(labelled(1, meta=META.model_copy(update={field: value})))


def test_binary_and_soft_moments_and_other_shapes_do_not_merge() -> None:
    with pytest.raises(ReinsError, match="Binary"):
        labelled(0).merge(labelled(1, soft=False))
    with pytest.raises(ReinsError, match="shapes"):
        Moments.of(np.zeros((2, 3))).merge(Moments.of(np.zeros((2, 4))))
