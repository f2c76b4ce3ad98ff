"""Batches of stored clips as numpy arrays, without copies where Parquet's buffers allow; a prompt's clips stay together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from reins_serve.calibration.activation_schema import refuse_not_finite


@dataclass(frozen=True)
class ClipBatch:
    """Some clips of a store.

    Attributes:
        pooled: float16 or float32 `[N, L, D]`, read-only where it lies in the file's own buffer.
        token_norm: float32 `[N, L]`.
        columns: The other columns asked for, `[N]` each; a label that is null is NaN, a text that is null is None.
    """

    pooled: np.ndarray
    token_norm: np.ndarray
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, rows: slice) -> "ClipBatch":
        return ClipBatch(self.pooled[rows], self.token_norm[rows], {k: v[rows] for k, v in self.columns.items()})

    def joined(self, other: "ClipBatch") -> "ClipBatch":
        """The clips of both, in order."""
        columns = {name: np.concatenate([values, other.columns[name]]) for name, values in self.columns.items()}
        pooled, norms = (np.concatenate(pair) for pair in
                         ((self.pooled, other.pooled), (self.token_norm, other.token_norm)))  # fmt: skip
        return ClipBatch(pooled, norms, columns)


def clip_batch(batch: pa.RecordBatch, blocks: Sequence[int], wanted: Sequence[str]) -> ClipBatch:
    """A batch of a store as arrays. Raises ReinsError that names the clips whose values are not finite."""
    ids = batch.column("clip_id")
    layers = []
    for block in blocks:
        column = batch.column(f"block_{block}")
        layer = column.flatten().to_numpy(zero_copy_only=True).reshape(batch.num_rows, -1)
        refuse_not_finite(layer, ids, f"block_{block}", "capture them again, or remove their file")
        layers.append(layer)
    pooled = layers[0][:, None] if len(layers) == 1 else np.stack(layers, axis=1)
    norms = np.stack([batch.column(f"norm_{block}").to_numpy() for block in blocks], axis=1)
    columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in wanted}
    return ClipBatch(pooled, norms, columns)


def prompts_together(batches: Iterator[ClipBatch]) -> Iterator[ClipBatch]:
    """The same clips; those of the last prompt of a batch wait for the next one, which may have more of it."""
    waiting: ClipBatch | None = None
    for batch in batches:
        if waiting is not None:
            others = np.flatnonzero(batch.columns["prompt_sha256"] != waiting.columns["prompt_sha256"][-1])
            same = int(others[0]) if len(others) else len(batch)
            waiting = waiting.joined(batch[:same])
            batch = batch[same:]
            if not len(batch):
                continue
            yield waiting
        others = np.flatnonzero(batch.columns["prompt_sha256"] != batch.columns["prompt_sha256"][-1])
        last = int(others[-1]) + 1 if len(others) else 0
        waiting = batch[last:]
        if last:
            yield batch[:last]
    if waiting is not None:
        yield waiting
