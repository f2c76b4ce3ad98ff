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
        layers: For each of L blocks float16 or float32 `[N, D]`, which may lie in the file's own buffer, read-only.
        token_norm: float32 `[N, L]`.
        columns: The other columns asked for, `[N]` each; a label that is null is NaN, a text that is null is None.
    """

    layers: tuple[np.ndarray, ...]
    token_norm: np.ndarray
    columns: dict[str, np.ndarray]

    @property
    def pooled(self) -> np.ndarray:
        """`[N, L, D]`; a copy, unless there is one block only."""
        return self.layers[0][:, None] if len(self.layers) == 1 else np.stack(self.layers, axis=1)

    def __len__(self) -> int:
        return len(self.token_norm)

    def __getitem__(self, rows: slice | np.ndarray) -> "ClipBatch":
        columns = {name: values[rows] for name, values in self.columns.items()}
        return ClipBatch(tuple(layer[rows] for layer in self.layers), self.token_norm[rows], columns)

    def joined(self, other: "ClipBatch") -> "ClipBatch":
        """The clips of both, in order."""
        layers = tuple(np.concatenate(pair) for pair in zip(self.layers, other.layers, strict=True))
        columns = {name: np.concatenate([values, other.columns[name]]) for name, values in self.columns.items()}
        return ClipBatch(layers, np.concatenate([self.token_norm, other.token_norm]), columns)


def clip_batch(batch: pa.RecordBatch, blocks: Sequence[int], wanted: Sequence[str]) -> ClipBatch:
    """A batch of a store as arrays. Raises ReinsError that names the clips whose values are not finite."""
    ids = batch.column("clip_id")
    layers = []
    for block in blocks:
        column = batch.column(f"block_{block}")
        layer = column.flatten().to_numpy(zero_copy_only=True).reshape(batch.num_rows, -1)
        refuse_not_finite(layer, ids, f"block_{block}", "capture them again, or remove their file")
        layers.append(layer)
    norms = np.stack([batch.column(f"norm_{block}").to_numpy() for block in blocks], axis=1)
    columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in wanted}
    return ClipBatch(tuple(layers), norms, columns)


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
