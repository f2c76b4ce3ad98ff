"""Supervised PCA: the unit vector per block along which safe and unsafe clips differ most (Barshan et al. 2011).

It maximises tr(U' X' H L H X U), with L = Y Y' the kernel of the labels. For two classes the matrix has rank one and its
eigenvector is `mean(safe) - mean(unsafe)`, normalised: the sign comes with it. For soft or several labels it is `C v`, with
C = sum (x - x̄)(y - ȳ)' and v the top eigenvector of C'C (K x K). No D x D matrix is formed.
"""

from collections.abc import Sequence

import numpy as np

from reins_serve.calibration.moments import Moments, Vectors
from reins_serve.calibration.stored_moments import LabelledMoments
from reins_serve.errors import ReinsError

CONFLICT = -0.1  # cosine with a category's own direction below which steering would work against it
KNOWN = 0.5  # expected refit cosine above which a category's own direction counts as known

SAME_LABEL = "All clips have the same label; a direction needs safe and unsafe ones. Add prompts of both kinds."
SAME_MEAN = "The classes have the same mean activation at some block: there is no direction to find."


class SupervisedPCA:
    """Fits one unit vector per block, towards safe. K is the number of labels (1 when they are binary).

    Args:
        categories: Names of the K labels, for messages.

    Attributes (after `fit`, `from_moments` or `solve`):
        direction_: float64 `[L, D]`, unit vectors towards safe.
        safe_mean_, unsafe_mean_: float64 `[L]`, mean projections of the classes; where labels are probabilities each
            clip counts in both classes by its probability (of any label).
        refit_cosine_: float64 `[L]`, the expected cosine with a fit on as many other prompts.
        prompts_: Numbers of (safe, unsafe) prompts; for soft labels, the expected ones, rounded.
        category_direction_: float64 `[K, L, D]`, each label's own unit vector away from it; NaN where a label is constant.
        category_cosine_: float64 `[L, K, K]`, cosines between those.
        category_effect_: float64 `[L, K, K]`: to first order, a push that closes the whole gap of label j closes this
            share `[:, j, k]` of the gap of label k; below 0 it makes k worse.
        moments_: What was accumulated.
    """

    direction_: np.ndarray
    safe_mean_: np.ndarray
    unsafe_mean_: np.ndarray
    refit_cosine_: np.ndarray
    prompts_: tuple[int, int]
    category_direction_: np.ndarray
    category_cosine_: np.ndarray
    category_effect_: np.ndarray

    def __init__(self, categories: Sequence[str] | None = None) -> None:
        self.categories = categories
        self.moments_ = LabelledMoments()

    def fit(
        self,
        activations: Vectors,
        unsafe: np.ndarray,
        prompts: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> "SupervisedPCA":
        """Fit on clips.

        Args:
            activations: `[N, L, D]` pooled hidden states, float16, float32 or float64; or L arrays `[N, D]` in a tuple.
            unsafe: bool `[N]`, or probabilities `[N, K]` of K labels.
            prompts: `[N]` names of the prompts; clips of one prompt and one label are averaged. weights: `[N]`.

        Raises:
            ReinsError: one label only, equal class means, values that are not finite, or categories that conflict.
        """
        self.moments_ = LabelledMoments.of(activations, unsafe, prompts, weights)
        return self.solve()

    def partial_fit(
        self,
        activations: Vectors,
        unsafe: np.ndarray,
        prompts: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> "SupervisedPCA":
        """Add a batch, as in `fit`; it may hold one class only. Call `solve` after the last one."""
        self.moments_ = self.moments_.merge(LabelledMoments.of(activations, unsafe, prompts, weights))
        return self

    @classmethod
    def from_moments(cls, moments: LabelledMoments, categories: Sequence[str] | None = None) -> "SupervisedPCA":
        """Fit from accumulated or stored moments."""
        names = moments.meta.labels if categories is None and moments.meta else categories
        return cls(names).merge(moments).solve()

    def merge(self, moments: LabelledMoments, half_life: float | None = None) -> "SupervisedPCA":
        """Add another worker's moments, or fresh ones (`half_life`: see `LabelledMoments.merge`). Then call `solve`."""
        self.moments_ = self.moments_.merge(moments, half_life)
        return self

    def solve(self) -> "SupervisedPCA":
        """Set the attributes from `moments_`. Raises as `fit` does."""
        parts = self.moments_.parts
        if "joint" in parts:
            self._solve_joint(parts["joint"])
        elif {"safe", "unsafe"} <= parts.keys():
            self._solve_binary(parts["safe"], parts["unsafe"])
        else:
            raise ReinsError(SAME_LABEL)
        return self

    def project(self, activations: np.ndarray) -> np.ndarray:
        """Projections `[N, L]` of `[N, L, D]`; higher is safer."""
        return np.stack([activations[:, place] @ vector for place, vector in enumerate(self.direction_)], axis=1)

    def _solve_binary(self, safe: Moments, unsafe: Moments) -> None:
        difference = safe.mean - unsafe.mean
        length = _lengths(difference)
        self.direction_ = difference / length[:, None]
        self.safe_mean_ = (safe.mean * self.direction_).sum(-1)
        self.unsafe_mean_ = (unsafe.mean * self.direction_).sum(-1)
        self.refit_cosine_ = _refit_cosine(length, safe.variance_of_mean + unsafe.variance_of_mean)
        self.prompts_ = (safe.prompts, unsafe.prompts)
        self._set_categories(self.direction_[None], length[:, None])

    def _solve_joint(self, joint: Moments) -> None:
        """Of y's columns the first K are labels and the last is "any" (the same column when K is 1)."""
        k = max(joint.cross.shape[-1] - 1, 1)
        spread = np.diag(joint.label_m2)
        any_rate = joint.label_mean[-1]
        if not spread[-1] > 1e-12 * joint.n:
            raise ReinsError(SAME_LABEL)
        cross, labels = joint.cross[..., :k], joint.label_m2[:k, :k]
        _, vectors = np.linalg.eigh(np.einsum("ldi,ldj->lij", cross, cross))
        v = vectors[..., -1]  # [L, K]
        found = np.einsum("ldk,lk->ld", cross, v)
        length = _lengths(found)
        # Towards safe: the summed labels fall along the direction.
        sign = -np.sign(np.einsum("ld,ldk->l", found, cross))
        if not sign.all():
            raise ReinsError("The summed unsafe labels do not change along the direction: its sign is unknown.")
        self.direction_ = found / length[:, None] * sign[:, None]
        centre = (joint.mean * self.direction_).sum(-1)
        slope = (joint.cross[..., -1] * self.direction_).sum(-1) / joint.n
        self.safe_mean_, self.unsafe_mean_ = centre - slope / (1 - any_rate), centre + slope / any_rate
        self.refit_cosine_ = _refit_cosine(length, _noise(joint, length, np.einsum("lj,jk,lk->l", v, labels, v)))
        unsafe = round(joint.prompts * any_rate)
        self.prompts_ = (joint.prompts - unsafe, unsafe)

        seen = spread[:k] > 1e-12 * joint.n
        lengths = np.linalg.norm(cross, axis=1)  # [L, K]
        with np.errstate(invalid="ignore", divide="ignore"):
            own = np.where(seen, -cross / lengths[:, None], np.nan)
            self._set_categories(np.moveaxis(own, -1, 0), np.where(seen, lengths / spread[:k], np.nan))
        self._refuse_conflicts(joint, lengths, spread[:k], seen)

    def _set_categories(self, own: np.ndarray, gaps: np.ndarray) -> None:
        """From unit vectors `[K, L, D]` and the gaps `[L, K]` that they close."""
        self.category_direction_ = own
        self.category_cosine_ = np.einsum("jld,kld->ljk", own, own)
        self.category_effect_ = self.category_cosine_ * gaps[:, :, None] / gaps[:, None, :]

    def _refuse_conflicts(self, joint: Moments, lengths: np.ndarray, spread: np.ndarray, seen: np.ndarray) -> None:
        """Labels that exclude each other may make the top eigenvector tell them apart, and not unsafe from safe."""
        cosine = np.einsum("kld,ld->lk", self.category_direction_, self.direction_)
        places = [column for column in range(len(seen)) if seen[column]]
        known = np.zeros(lengths.shape, dtype=bool)
        for column in places:
            noise = _noise(joint, lengths[:, column], np.full(len(lengths), spread[column]))
            known[:, column] = _refit_cosine(lengths[:, column], noise) > KNOWN
        against = known & (cosine < CONFLICT)
        if against.any():
            names = list(self.categories or [f"label {column}" for column in range(len(seen))])
            worse = [str(names[column]) for column in np.flatnonzero(against.any(axis=0)).tolist()]
            raise ReinsError(
                f"Categories conflict: the direction would work against {worse} at the blocks in places "
                f"{np.flatnonzero(against.any(axis=1)).tolist()}. Fit one label for all of them (bool, unsafe by any), or the "
                "categories apart."
            )


def _lengths(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=-1)
    if not (lengths > 0).all():
        raise ReinsError(SAME_MEAN)
    return lengths


def _refit_cosine(length: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Expected cosine of two independent fits `[L]`, from the squared length found and the part of it that is noise."""
    signal = np.maximum(length**2 - noise, 0)
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(noise), 0.0, signal / (signal + noise))


def _noise(joint: Moments, length: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Expected squared length `[L]` of the error of `C v`, whose regressor y v has the sum of squares `spread` `[L]`."""
    effective = joint.n**2 / joint.squares
    if effective <= 2:
        return np.full(len(length), np.inf)
    residual = np.maximum(joint.m2.sum(-1) - length**2 / spread, 0) / joint.n * effective / (effective - 2)
    return spread * residual * joint.squares / joint.n
