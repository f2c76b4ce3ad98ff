"""The activation store: Parquet under any fsspec path, `model=<name>/day=<YYYY-MM-DD>/`, one row a clip, one strict schema.

A file's metadata says which model, blocks, window and judges its columns belong to; a reader compares every file with it
column by column.
"""

import hashlib
import posixpath
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import quote

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from reins_serve.calibration.activation_schema import (
    CLIP_COLUMNS,
    INVALID,
    METADATA_KEY,
    ActivationsMeta,
    expect,
    refuse_not_finite,
)
from reins_serve.calibration.clip_batches import ClipBatch, clip_batch, prompts_together
from reins_serve.errors import ReinsError

ROW_GROUP = 512  # clips; 12 MiB for 4 blocks of width 3,072 in float16


def prompt_digest(prompt: str) -> str:
    """SHA-256 of a prompt, hexadecimal: its name where the text itself is not kept."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def clip_id(prompt: str, seed: int) -> str:
    """Names a clip of one model: by its prompt's digest and its seed."""
    return f"{prompt_digest(prompt)[:16]}-{seed}"


def write_activations(
    root: str,
    meta: ActivationsMeta,
    pooled: np.ndarray,
    token_norm: np.ndarray,
    columns: Mapping[str, Any],
    day: date | None = None,
    name: str | None = None,
) -> str:
    """Add one file of clips, under a temporary name first; returns its path.

    Args:
        root: Folder or fsspec URL of the store.
        pooled: `[N, L, D]` in the order of `meta.blocks`. token_norm: `[N, L]`.
        name: Of the file, where writing the same clips twice shall change nothing; None: a new one.
        columns: Values `[N]`, or one for all, of the clip columns and of the labels (NaN: not judged). `model`,
            `fingerprint` and the window come from `meta`; `weight` is 1 and nullable columns are null unless given.

    Raises:
        ReinsError: a column is missing, unknown, of the wrong length or type, or a value is not finite (names the clips).
    """
    n = len(pooled)
    fixed = {
        "model": meta.model,
        "fingerprint": meta.fingerprint,
        "window_start": meta.window.start,
        "window_end": meta.window.end,
    }
    expect(n > 0, "There are no clips to write.")
    expect(pooled.shape == (n, len(meta.blocks), meta.width), f"`pooled` must be [N, {len(meta.blocks)}, {meta.width}] "
            f"(blocks x width); it is {list(pooled.shape)}.")  # fmt: skip
    expect(token_norm.shape == (n, len(meta.blocks)), f"`token_norm` must be [{n}, {len(meta.blocks)}].")
    given: dict[str, Any] = {"weight": 1.0, **columns, **fixed}
    schema = meta.parquet_schema()
    unknown = [name for name in given if name not in schema.names or name.startswith(("block_", "norm_"))]
    expect(not unknown, f"Unknown columns {unknown}: declare a judge's labels in `ActivationsMeta.judges`.")
    with np.errstate(over="ignore"):
        stored = np.asarray(pooled).astype(meta.dtype)
    for place, block in enumerate(meta.blocks):
        given[f"block_{block}"], given[f"norm_{block}"] = stored[:, place], token_norm[:, place]
    arrays = [_array(field, given, n) for field in schema]
    ids = arrays[schema.get_field_index("clip_id")].to_pylist()
    expect(len(set(ids)) == n, "Column `clip_id` holds an id twice.")
    for place, block in enumerate(meta.blocks):
        refuse_not_finite(
            stored[:, place], ids, f"block_{block}", "store float32 if it exceeds 65504, or capture again"
        )
        refuse_not_finite(token_norm[:, place, None], ids, f"norm_{block}", "capture again")
    fs, base = fsspec.core.url_to_fs(root)
    stamp = (day or datetime.now(UTC).date()).isoformat()
    folder = posixpath.join(base, f"model={quote(meta.model, safe='')}", f"day={stamp}")
    fs.makedirs(folder, exist_ok=True)
    unique = uuid.uuid4().hex  # two workers that write the same name do not write the same temporary file
    temporary = posixpath.join(folder, f".{unique}.part")
    path = posixpath.join(folder, f"{quote(name, safe='') if name else unique}.parquet")
    try:
        with fs.open(temporary, "wb") as sink:
            pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink, row_group_size=ROW_GROUP, compression="none",
                           use_dictionary=list(CLIP_COLUMNS), write_statistics=False)  # fmt: skip
        fs.mv(temporary, path)
    finally:
        if fs.exists(temporary):
            fs.rm(temporary)
    return path


@dataclass(frozen=True)
class StoredActivations:
    """Files of one model that passed the check: `dataset` for any pyarrow use, `batches` for a fit."""

    dataset: ds.Dataset
    meta: ActivationsMeta

    @property
    def files(self) -> list[str]:
        """Paths of the files; any part of them may be opened by itself, for instance by another worker."""
        return list(self.dataset.files)

    def batches(
        self, blocks: Sequence[int] | None = None, columns: Sequence[str] = (), rows: int = ROW_GROUP
    ) -> Iterator[ClipBatch]:
        """Stream the clips, never more than a few row groups in memory; neighbours of one prompt stay in one batch.

        Args:
            blocks: Numbers of the blocks to read, all by default, in the order of axis L.
            columns: Other columns to read; `clip_id` and `prompt_sha256` always are.
            rows: Clips to a batch, about.

        Raises:
            ReinsError: a block or a column that the store lacks; a value that is not finite (names the clips).
        """
        chosen = self.meta.blocks if blocks is None else tuple(blocks)
        wanted = list(dict.fromkeys(["clip_id", "prompt_sha256", *columns]))
        vectors = [name for block in chosen for name in (f"block_{block}", f"norm_{block}")]
        missing = [name for name in [*vectors, *wanted] if name not in self.dataset.schema.names]
        expect(not missing, f"The store has no columns {missing}; its blocks are {list(self.meta.blocks)}.")
        options = ds.ParquetFragmentScanOptions(pre_buffer=False)  # a pre-buffered file stays in memory to its end
        read = self.dataset.to_batches(
            columns=[*vectors, *wanted], batch_size=rows, batch_readahead=2, fragment_readahead=1,
            fragment_scan_options=options,
        )  # fmt: skip
        return prompts_together(clip_batch(batch, chosen, wanted) for batch in read if batch.num_rows)


def open_activations(
    root: str,
    model: str | None = None,
    *,
    files: Sequence[str] | None = None,
    since: date | None = None,
    until: date | None = None,
    **expected: Any,
) -> StoredActivations:
    """Open a model's files, each one checked.

    Args:
        model: Name of the model; may be left out where the store holds one only.
        files: Only these (as `StoredActivations.files` names them), instead of all.
        since, until: First and last day, inclusive.
        expected: Fields of `ActivationsMeta` (fingerprint, width, window, blocks, ...) that must have these values.

    Raises:
        ReinsError: nothing is there, or a file's column or field is wrong; the message names file and column or field.
    """
    fs, base = fsspec.core.url_to_fs(root)
    folder = base if model is None else posixpath.join(base, f"model={quote(model, safe='')}")
    fs.invalidate_cache()  # others write to the same store
    first, last = (since or date.min).isoformat(), (until or date.max).isoformat()
    paths = list(files) if files is not None else [
        path for path in sorted(fs.find(folder))
        if path.endswith(".parquet") and first <= posixpath.basename(posixpath.dirname(path)).removeprefix("day=") <= last
    ]  # fmt: skip
    expect(
        bool(paths), f"There are no activations in {folder}; collect some, or look at the days and the model's name."
    )
    if model is not None:
        expected["model"] = model
    reference: ActivationsMeta | None = None
    for path in paths:
        meta = _checked(pq.read_schema(path, filesystem=fs), path, expected)
        reference = reference or meta
        _compare(meta, reference.model_dump(), path)
    assert reference is not None
    day = pa.field("day", pa.string())  # of the folder's name
    partitions = ds.partitioning(pa.schema([day]), flavor="hive")
    schema = reference.parquet_schema().append(day)
    dataset = ds.dataset(paths, filesystem=fs, format="parquet", schema=schema, partitioning=partitions)
    return StoredActivations(dataset, reference)


def _array(field: pa.Field, given: Mapping[str, Any], n: int) -> pa.Array:
    """One column. A value for all is repeated; NaN in a label is null."""
    value: Any = given.get(field.name)
    expect(value is not None or field.nullable, f"Column `{field.name}` is missing.")
    try:
        if pa.types.is_fixed_size_list(field.type):
            return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(value).reshape(-1)), type=field.type)
        single = value is None or np.ndim(value) == 0
        array = pa.array([value] * n if single else list(value), type=field.type, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise ReinsError(f"Column `{field.name}` cannot be stored as {field.type}: {error}", code=INVALID) from error
    expect(len(array) == n, f"Column `{field.name}` has {len(array)} values for {n} clips.")
    expect(field.nullable or not array.null_count, f"Column `{field.name}` must not be null.")
    return array


def _checked(schema: pa.Schema, path: str, expected: Mapping[str, Any]) -> ActivationsMeta:
    """The metadata of a file whose columns are exactly those that it promises."""
    try:
        meta = ActivationsMeta.model_validate_json((schema.metadata or {})[METADATA_KEY])
    except KeyError as error:
        raise ReinsError(f"{path} is no activation file: it has no `reins` metadata.", code=INVALID) from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise ReinsError(f"{path}: its metadata is refused: {wrong}.", code=INVALID) from error
    _compare(meta, expected, path)
    promised = meta.parquet_schema()
    for field in promised:
        expect(field.name in schema.names, f"{path}: column `{field.name}` is missing.")
        found = schema.field(field.name)
        expect(found.type == field.type, f"{path}: column `{field.name}` is {found.type}, not {field.type}.")
        expect(field.nullable or not found.nullable, f"{path}: column `{field.name}` may be null, and must not.")
    unknown = [name for name in schema.names if name not in promised.names]
    expect(not unknown, f"{path}: unknown columns {unknown}; read it with the version of reins-serve that wrote it.")
    return meta


def _compare(meta: ActivationsMeta, expected: Mapping[str, Any], path: str) -> None:
    found = meta.model_dump()
    for name, value in expected.items():
        expect(name in found, f"`{name}` is no field of ActivationsMeta.")
        value = value.model_dump() if isinstance(value, BaseModel) else value
        value = tuple(value) if name == "blocks" else value
        expect(found[name] == value, f"{path}: {name} is {found[name]!r}, expected {value!r}. Activations of different "
                "models, windows or judges must not be mixed: name one of them, or another folder.")  # fmt: skip
