"""Is a fitted direction more than an accident of its clips? Each function answers one question, as numbers for the gates.

Everything resamples prompts, never clips, and works on activations `[N, L, D]` in memory, bool `unsafe` `[N]` and names of
`prompts` `[N]`; results have one value a block, `[L]`.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from reins_serve.calibration.supervised_pca import SupervisedPCA
from reins_serve.errors import ReinsError

AT_ONCE = 64  # resamples computed together


@dataclass(frozen=True)
class HeldOut:
    """Scores of clips by fits that have not seen their groups.

    Attributes:
        scores: float64 `[N, L]`, higher is safer; only clips of one fold are comparable.
        fold: int `[N]`.
    """

    scores: np.ndarray
    fold: np.ndarray


def cross_fitted(
    activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray, groups: np.ndarray, folds: int = 5
) -> HeldOut:
    """Scores of every clip by a fit on the other folds.

    Args:
        groups: `[N]` what folds must not split, for instance the prompt's subject.

    Raises:
        ReinsError: a fold would have one label only, because too few groups have the other.
    """
    scores, fold = np.empty(activations.shape[:2]), np.empty(len(activations), dtype=int)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(unsafe, unsafe, groups)
    for number, (fit, held) in enumerate(splits):
        if unsafe[held].all() or not unsafe[held].any():
            raise ReinsError(
                f"There are too few groups of prompts for {folds} folds: one of them has one label only. Give more prompts, of "
                f"at least {2 * folds} groups, each label in at least {folds} of them."
            )
        model = SupervisedPCA().fit(activations[fit], unsafe[fit], prompts[fit])
        scores[held], fold[held] = model.project(activations[held]), number
    return HeldOut(scores, fold)


def cross_fitted_auc(
    activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray, groups: np.ndarray, folds: int = 5
) -> np.ndarray:
    """AUC of the projection on clips whose groups were left out of the fit; 0.5 says nothing, 1 separates.

    On the fitting data itself the AUC is worthless when D exceeds N. Scores of different folds are ranked apart.
    """
    found = cross_fitted(activations, unsafe, prompts, groups, folds)
    aucs = [
        [roc_auc_score(~unsafe[held], column) for column in found.scores[held].T]
        for held in (found.fold == number for number in np.unique(found.fold))
    ]
    return np.mean(aucs, axis=0)


def bootstrap_auc_low(
    activations: np.ndarray,
    unsafe: np.ndarray,
    prompts: np.ndarray,
    groups: np.ndarray,
    folds: int = 5,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Lower end of the 95 % percentile interval (its 2.5 % point) of `cross_fitted_auc`, over resampled prompts."""
    found = cross_fitted(activations, unsafe, prompts, groups, folds)
    _, prompt = np.unique(prompts, return_inverse=True)
    n, rng = int(prompt.max()) + 1, np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    aucs = np.empty((len(np.unique(found.fold)), resamples, activations.shape[1]))
    for number in range(len(aucs)):
        held = np.flatnonzero(found.fold == number)
        weights = counts[:, prompt[held]].astype(np.float64)
        for place in range(activations.shape[1]):
            aucs[number, :, place] = _weighted_auc(found.scores[held, place], unsafe[held], weights)
    return np.percentile(np.nanmean(aucs, axis=0), 2.5, axis=0)


def permutation_p(
    activations: np.ndarray,
    unsafe: np.ndarray,
    prompts: np.ndarray,
    strata: np.ndarray,
    permutations: int = 999,
    seed: int = 0,
) -> np.ndarray:
    """p value of the distance of the class means when prompts exchange their labels within strata.

    Args:
        strata: `[N]` within which prompts are exchangeable, for instance the subject; one value for all is allowed.

    Raises:
        ReinsError: no stratum has prompts of both labels, so that nothing can be exchanged.
    """
    values, label, first = _prompt_means(activations, unsafe, prompts)
    stratum = np.asarray(strata)[first]
    members = [np.flatnonzero(stratum == one) for one in np.unique(stratum)]
    members = [rows for rows in members if len(np.unique(label[rows])) == 2]
    if not members:
        raise ReinsError("No stratum has both safe and unsafe prompts: choose wider strata for the permutation test.")
    rng = np.random.default_rng(seed)
    labels = np.repeat(label[None], permutations + 1, axis=0)  # row 0 is as observed
    for row in labels[1:]:
        for rows in members:
            row[rows] = rng.permutation(row[rows])
    lengths = np.concatenate(
        [
            np.linalg.norm(_differences(values, labels[start : start + AT_ONCE]), axis=-1)
            for start in range(0, len(labels), AT_ONCE)
        ]
    )
    return (lengths >= lengths[0] * (1 - 1e-12)).mean(axis=0)  # the observed one counts, so p is never 0


def split_half_cosine(
    activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray, repeats: int = 20, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Mean cosine of the fits on two random halves of the prompts, and what the whole fit expects of it: two `[L]`."""
    expected = SupervisedPCA().fit(activations, unsafe, prompts).refit_cosine_
    values, label, first = _prompt_means(activations, unsafe, prompts)
    _, prompt = np.unique(np.asarray(prompts)[first], return_inverse=True)
    rng, cosines = np.random.default_rng(seed), []
    for _ in range(repeats):
        left = (rng.permutation(prompt.max() + 1) % 2 == 0)[prompt]
        a, b = (_differences(values[half], label[None, half])[0] for half in (left, ~left))
        cosines.append(_cosine(a, b))
    # Half the prompts double the noise: signal / (signal + 2 noise), of cosine = signal / (signal + noise).
    return np.mean(cosines, axis=0), expected / (2 - expected)


def norm_clipped(activations: np.ndarray, quantile: float = 0.9) -> np.ndarray:
    """Activations `[N, L, D]` whose distance from the block's median is cut to that of the `quantile` of clips."""
    values = np.asarray(activations, dtype=np.float64)
    centre = np.median(values, axis=0)
    offset = values - centre
    distance = np.linalg.norm(offset, axis=-1)
    limit = np.quantile(distance, quantile, axis=0)
    return centre + offset * np.minimum(1, limit / np.maximum(distance, 1e-300))[..., None]


def clipped_cosine(
    activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray, quantile: float = 0.9
) -> np.ndarray:
    """Cosine of the fit with one on `norm_clipped` activations: low where a few extreme clips make the direction."""
    plain = SupervisedPCA().fit(activations, unsafe, prompts)
    robust = SupervisedPCA().fit(norm_clipped(activations, quantile), unsafe, prompts)
    return _cosine(plain.direction_, robust.direction_)


def leave_one_source_out(
    activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray, sources: np.ndarray
) -> dict[str, np.ndarray]:
    """By source, the cosine of the fit with one that lacks this source's clips; empty for a single source.

    Raises:
        ReinsError: without some source one label alone is left (the message names the source).
    """
    sources = np.asarray(sources)
    names = np.unique(sources)
    if len(names) < 2:
        return {}
    whole, found = SupervisedPCA().fit(activations, unsafe, prompts), {}
    for name in names:
        rest = sources != name
        if len(np.unique(unsafe[rest])) < 2:
            raise ReinsError(
                f"Without the source {str(name)!r} only one label is left: add clips of both from another source."
            )
        fit = SupervisedPCA().fit(activations[rest], unsafe[rest], np.asarray(prompts)[rest])
        found[str(name)] = _cosine(whole.direction_, fit.direction_)
    return found


def assert_sign(fitted: SupervisedPCA, activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray) -> None:
    """Raise ReinsError unless held-out safe prompts project higher than unsafe ones at every block. Nothing is flipped."""
    values, label, _ = _prompt_means(activations, unsafe, prompts)
    gaps = (_differences(values, label[None])[0] * fitted.direction_).sum(-1)
    if not (gaps > 0).all():
        raise ReinsError(
            "On held-out clips safe projects no higher than unsafe at the blocks in places "
            f"{np.flatnonzero(~(gaps > 0)).tolist()}: the labels are inverted, or there is no direction to be found there. "
            "Check the judge; leave these blocks out."
        )


def _prompt_means(
    activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means float64 `[U, L, D]` of the clips of one prompt and label, their labels `[U]`, and the first clip `[U]` of each."""
    _, prompt = np.unique(prompts, return_inverse=True)
    _, first, unit, size = np.unique(2 * prompt + unsafe, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(unit, kind="stable")
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    sums = np.add.reduceat(np.asarray(activations)[order], starts, axis=0, dtype=np.float64)
    return sums / size[:, None, None], unsafe[first], first


def _differences(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """mean(safe) - mean(unsafe) `[R, L, D]` of `[U, L, D]` under R labellings bool `[R, U]`."""
    unsafe, safe = labels.sum(axis=1, keepdims=True), (~labels).sum(axis=1, keepdims=True)
    if not (unsafe.all() and safe.all()):
        raise ReinsError("A part of the prompts has one label only: add prompts of both kinds.")
    contrast = np.where(labels, -1 / unsafe, 1 / safe)
    return np.stack([contrast @ values[:, place] for place in range(values.shape[1])], axis=1)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def _weighted_auc(scores: np.ndarray, unsafe: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC `[R]` of scores `[N]` under R weightings `[R, N]` of the clips; ties count half. NaN where a class weighs nothing."""
    _, rank = np.unique(scores, return_inverse=True)
    order = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.diff(rank[order], prepend=-1))
    safe, harmful = (
        np.add.reduceat((weights * chosen)[:, order], starts, axis=1) for chosen in (~unsafe, unsafe)
    )  # [R, distinct scores]
    below = np.cumsum(harmful, axis=1) - harmful / 2
    with np.errstate(invalid="ignore"):
        return (safe * below).sum(axis=1) / (safe.sum(axis=1) * harmful.sum(axis=1))
