"""Supervised PCA for two classes: the direction is the difference of the class means, and its sign comes with it.

Barshan et al. 2011 maximise tr(U' X' H L H X U); with two classes the matrix has rank one, and its eigenvector is
`mean(safe) - mean(unsafe)`, normalised. Clips that share a prompt are not independent: vectors are averaged by prompt
first, so that every prompt counts once, and folds are grouped.
"""

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from reins_serve.calibration.moments import ClassMoments
from reins_serve.errors import ReinsError


class SupervisedPCA:
    """Fits one unit vector per block on activations with binary labels.

    Attributes (after `fit`):
        direction_: float64 `[L, D]`, unit vectors towards safe.
        safe_mean_, unsafe_mean_: float64 `[L]`, mean projections of the classes.
        refit_cosine_: float64 `[L]`, the expected cosine with a fit on as many other prompts.
        prompts_: Numbers of (safe, unsafe) prompts.
    """

    direction_: np.ndarray
    safe_mean_: np.ndarray
    unsafe_mean_: np.ndarray
    refit_cosine_: np.ndarray
    prompts_: tuple[int, int]

    def fit(self, activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray) -> "SupervisedPCA":
        """Fit on clips.

        Args:
            activations: `[N, L, D]` pooled hidden states.
            unsafe: bool `[N]`.
            prompts: `[N]` names of the prompts; clips of one prompt and one label are averaged.

        Raises:
            ReinsError: a class is empty, or the class means coincide.
        """
        safe, harmful = (_prompt_moments(activations, prompts, unsafe == label) for label in (False, True))
        difference = safe.mean - harmful.mean
        length = np.linalg.norm(difference, axis=-1, keepdims=True)
        if not (length > 0).all():
            raise ReinsError("The classes have the same mean activation at some block: there is no direction to find.")
        self.direction_ = difference / length
        self.safe_mean_ = (safe.mean * self.direction_).sum(-1)
        self.unsafe_mean_ = (harmful.mean * self.direction_).sum(-1)
        noise = safe.variance_of_mean + harmful.variance_of_mean
        signal = np.maximum(length[:, 0] ** 2 - noise, 0)
        self.refit_cosine_ = signal / (signal + noise)
        self.prompts_ = (safe.n, harmful.n)
        return self

    def project(self, activations: np.ndarray) -> np.ndarray:
        """Projections `[N, L]` of `[N, L, D]`; higher is safer."""
        return np.einsum("nld,ld->nl", activations, self.direction_)


def cross_fitted_auc(
    activations: np.ndarray, unsafe: np.ndarray, prompts: np.ndarray, groups: np.ndarray, folds: int = 5
) -> np.ndarray:
    """AUC `[L]` of the projection on clips whose groups were left out of the fit; 0.5 says nothing, 1 separates.

    On the fitting data itself the AUC is worthless when D exceeds N. Scores of different folds are ranked apart.

    Args:
        groups: `[N]` what folds must not split, for instance the prompt's subject.
    """
    scores = []
    for fit, held in StratifiedGroupKFold(folds, shuffle=True, random_state=0).split(activations, unsafe, groups):
        model = SupervisedPCA().fit(activations[fit], unsafe[fit], prompts[fit])
        projected = model.project(activations[held])
        scores.append([roc_auc_score(~unsafe[held], column) for column in projected.T])
    return np.mean(scores, axis=0)


def _prompt_moments(activations: np.ndarray, prompts: np.ndarray, chosen: np.ndarray) -> ClassMoments:
    if not chosen.any():
        raise ReinsError(
            "All clips have the same label; a direction needs safe and unsafe ones. Add prompts of both kinds."
        )
    values, names = np.asarray(activations, dtype=np.float64)[chosen], prompts[chosen]
    return ClassMoments.of(np.stack([values[names == name].mean(axis=0) for name in np.unique(names)]))
