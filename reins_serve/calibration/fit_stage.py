"""The fit of a recalibration: labels, moments over the cluster, Supervised PCA at every block, and what the fit says of itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from reins_serve.calibration import checks
from reins_serve.calibration.activation_schema import ActivationsMeta
from reins_serve.calibration.activations import StoredActivations, open_activations
from reins_serve.calibration.clip_batches import ClipBatch
from reins_serve.calibration.gates import FitEvidence
from reins_serve.calibration.stored_moments import LabelledMoments, MomentsMeta
from reins_serve.calibration.supervised_pca import SupervisedPCA
from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Direction

FOLDS = 5
CLIP_COLUMNS = ("group", "source")


@dataclass(frozen=True)
class Labels:
    """Labels of the judged clips by clip id: probabilities `[K]`, and whether any is at or above its threshold.

    Attributes:
        names: The K labels.
    """

    names: tuple[str, ...]
    probability: Mapping[str, np.ndarray]
    unsafe: Mapping[str, bool]

    def of(self, ids: Sequence[str], by_category: bool = False) -> np.ndarray:
        """What a fit learns from: whether any label holds, bool `[N]`; by category, the probabilities `[N, K]`."""
        if by_category:
            return np.stack([self.probability[one] for one in ids])
        return np.array([self.unsafe[one] for one in ids])


@dataclass(frozen=True)
class Fitted:
    """A fit on all blocks: directions, token norms `[L]`, figures of each block, evidence, and held-out scores.

    Attributes:
        layers: Per block, JSON-ready: AUC, refit cosine, cosine to the live direction.
        clips: Number of clips.
        categories: Where there are several labels, what a push away from all of them does to each, or why that is not known.
    """

    model: SupervisedPCA
    blocks: tuple[int, ...]
    token_norm: np.ndarray
    layers: list[dict[str, Any]]
    clips: int
    categories: dict[str, Any] | None = None


def read_labels(stored: StoredActivations, judge: str, thresholds: Mapping[str, float], shuffle: int | None) -> Labels:
    """Labels by a judge's columns.

    Args:
        shuffle: Seed by which prompts exchange their labels, to show that the gates refuse what comes of it; None: as judged.
    """
    columns = [f"unsafe/{judge}/{label}" for label in thresholds]
    table = stored.dataset.to_table(columns=["clip_id", "prompt_sha256", *columns])
    values = np.stack([table.column(name).to_numpy() for name in columns], axis=1)
    judged = ~np.isnan(values).any(axis=1)
    ids, prompts = (np.array(table.column(name).to_pylist())[judged].tolist() for name in ("clip_id", "prompt_sha256"))
    values = values[judged]
    if shuffle is not None:
        names, place = np.unique(prompts, return_inverse=True)
        first = np.array([np.flatnonzero(place == number)[0] for number in range(len(names))])
        values = values[first[np.random.default_rng(shuffle).permutation(len(names))]][place]
    hits = np.any(values >= np.array([np.float32(t) for t in thresholds.values()]), axis=1).tolist()
    return Labels(tuple(thresholds), dict(zip(ids, values, strict=True)), dict(zip(ids, hits, strict=True)))


def fit(root: str, stored: StoredActivations, labels: Labels, live: Direction | None) -> Fitted:
    """Moments by file on the cluster, merged pairwise; then the direction of every block and its held-out figures."""
    meta = stored.meta
    model = SupervisedPCA.from_moments(_reduce(root, stored, labels, by_category=False))
    layers, norms, clips = [], [], 0
    for place, block in enumerate(meta.blocks):
        pooled, norm, unsafe, columns = read_block(stored, labels, block)
        clips = len(pooled)
        norms.append(float(np.median(norm)))
        auc = checks.cross_fitted_auc(pooled, unsafe, columns["prompt_sha256"], columns["group"], FOLDS)
        layers.append(
            {
                "block": block,
                "auc": float(auc[0]),
                "refit_cosine": float(model.refit_cosine_[place]),
                "gap": float(model.safe_mean_[place] - model.unsafe_mean_[place]),
                "token_norm": norms[-1],
                "cosine_to_live": live_cosine(model, meta, live, block),
            }
        )
    categories = _categories(root, stored, labels) if len(labels.names) > 1 else None
    return Fitted(model, meta.blocks, np.array(norms), layers, clips, categories)


def _categories(root: str, stored: StoredActivations, labels: Labels) -> dict[str, Any]:
    """Each label's own direction by block: cosines between them, and what closing one's gap does to the others'."""
    try:
        model = SupervisedPCA.from_moments(_reduce(root, stored, labels, by_category=True))
    except ReinsError as error:
        return {"labels": list(labels.names), "problem": str(error)}
    return {
        "labels": list(labels.names),
        "blocks": list(stored.meta.blocks),
        "cosine": model.category_cosine_.round(4).tolist(),
        "effect": model.category_effect_.round(4).tolist(),
    }


def _reduce(root: str, stored: StoredActivations, labels: Labels, by_category: bool) -> LabelledMoments:
    """Moments of every file, made on the cluster and merged pairwise."""
    shared = ray.put(labels)
    parts = [_moments.remote(root, stored.meta.model, path, shared, by_category) for path in stored.files]
    while len(parts) > 1:
        parts = [_merged.remote(*parts[place : place + 2]) for place in range(0, len(parts), 2)]
    moments: LabelledMoments = ray.get(parts[0])
    return moments


def evidence(
    stored: StoredActivations,
    labels: Labels,
    fitted: Fitted,
    block: int,
    live: Direction | None,
    cosine_to_live: float | None = None,
) -> FitEvidence:
    """What the gates need to know of the fit at the steered block.

    Args:
        cosine_to_live: Of the fits as a whole; None: there is nothing to compare with.
    """
    pooled, _, unsafe, columns = read_block(stored, labels, block)
    prompts, groups, sources = columns["prompt_sha256"], columns["group"], columns["source"]
    half, expected = checks.split_half_cosine(pooled, unsafe, prompts)
    left_out = checks.leave_one_source_out(pooled, unsafe, prompts, sources)
    place = fitted.blocks.index(block)
    problems = []
    if live is not None and live.meta.base.fingerprint != stored.meta.fingerprint:
        problems.append("The live direction belongs to other weights.")
    if not fitted.layers[place]["auc"] > 0.5:
        problems.append(
            "On held-out clips safe projects no higher than unsafe: labels are inverted, or there is no direction."
        )
    return FitEvidence(
        tuple(problems),
        fitted.model.prompts_,
        float(checks.bootstrap_auc_low(pooled, unsafe, prompts, groups, FOLDS)[0]),
        float(checks.permutation_p(pooled, unsafe, prompts, np.zeros(len(unsafe)))[0]),
        float(fitted.model.refit_cosine_[place]),
        (float(half[0]), float(expected[0])),
        float(checks.clipped_cosine(pooled, unsafe, prompts)[0]),
        min((float(cosine[0]) for cosine in left_out.values()), default=None),
        cosine_to_live,
    )


def held_out_scores(stored: StoredActivations, labels: Labels, fitted: Fitted, block: int) -> dict[str, list[float]]:
    """Projections of clips by fits that have not seen them, in units of the gap, by label."""
    pooled, _, unsafe, columns = read_block(stored, labels, block)
    found = checks.cross_fitted(pooled, unsafe, columns["prompt_sha256"], columns["group"], FOLDS).scores[:, 0]
    place = fitted.blocks.index(block)
    low, high = fitted.model.unsafe_mean_[place], fitted.model.safe_mean_[place]
    scaled = ((found - low) / (high - low)).round(4)
    return {"judged safe": scaled[~unsafe].tolist(), "judged unsafe": scaled[unsafe].tolist()}


def read_block(
    stored: StoredActivations, labels: Labels, block: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Activations `[N, 1, D]` of one block, token norms `[N]`, bool labels `[N]`, and the clips' columns."""
    read = [_judged(batch, labels) for batch in stored.batches([block], CLIP_COLUMNS)]
    columns = {name: np.concatenate([batch.columns[name] for batch in read]) for name in read[0].columns}
    pooled = np.concatenate([batch.pooled for batch in read]).astype(np.float32)
    norms = np.concatenate([batch.token_norm[:, 0] for batch in read])
    return pooled, norms, np.array([labels.unsafe[one] for one in columns["clip_id"]]), columns


def live_cosine(model: SupervisedPCA, meta: ActivationsMeta, live: Direction | None, block: int) -> float | None:
    """Cosine of a block's new direction with the live one; None where that does not steer it, or is of other weights."""
    if live is None or block not in live.blocks or block not in meta.blocks:
        return None
    if live.meta.base.fingerprint != meta.fingerprint:
        return None
    return float(model.direction_[meta.blocks.index(block)] @ live.vectors[live.blocks.index(block)].double().numpy())


def _judged(batch: ClipBatch, labels: Labels) -> ClipBatch:
    """The clips of a batch that have a label: one without is neither safe nor unsafe."""
    rows = np.array([one in labels.unsafe for one in batch.columns["clip_id"]], dtype=bool)
    return batch if rows.all() else batch[rows]


@ray.remote(num_cpus=1)
def _moments(root: str, model: str, path: str, labels: Labels, by_category: bool) -> LabelledMoments:
    """Moments of one file."""
    stored = open_activations(root, model, files=[path])
    meta = stored.meta
    described = MomentsMeta(
        model=meta.model,
        fingerprint=meta.fingerprint,
        blocks=meta.blocks,
        window=meta.window,
        labels=labels.names if by_category else ("any",),
    )
    total = LabelledMoments(meta=described)
    for batch in (_judged(batch, labels) for batch in stored.batches()):
        if not len(batch):
            continue
        ids = list(batch.columns["clip_id"])
        wanted = labels.of(ids, by_category)
        part = LabelledMoments.of(batch.layers, wanted, batch.columns["prompt_sha256"], meta=described)
        total = total.merge(part)
    return total


@ray.remote(num_cpus=1)
def _merged(one: LabelledMoments, other: LabelledMoments | None = None) -> LabelledMoments:
    return one if other is None else one.merge(other)
