"""People's labels as a judge: a CSV, JSONL or Parquet table looked up by clip id or by prompt and seed."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq

from reins_serve.calibration.judges.base import Verdicts
from reins_serve.calibration.judges.config import HumanConfig
from reins_serve.calibration.judges.digests import digest
from reins_serve.errors import JudgeError

Key = tuple[str, ...]
KEY_COLUMNS = {"id": ("id",), "prompt-seed": ("prompt", "seed")}
_WORDS = {"true": 1.0, "false": 0.0}


class HumanJudge:
    """Looks labels up; never looks at pixels. A clip that the table does not label fully is refused, or skipped if told so.

    With `missing: skip` such a clip gets NaN and is marked in `Verdicts.missing`: it is not safe, it has no verdict.
    """

    deterministic = True

    def __init__(self, config: HumanConfig, table: Mapping[Key, Mapping[str, float]], revision: str) -> None:
        self._config = config
        self._table = table
        self.name = config.name
        self.revision = revision
        self.unsafe: Mapping[str, float] = config.unsafe
        self.kept = config.kept
        self.may_skip = config.missing == "skip"

    @classmethod
    def load(cls, config: HumanConfig) -> "HumanJudge":
        """Raises JudgeError for a file that is not there or not a table, a missing column, a cell that is no label, and
        a clip with several rows unless `repeated: mean`."""
        try:
            with fsspec.open(config.path, "rb") as file:
                content = file.read()
            rows = list(_rows(config.path, content))
        except (OSError, ValueError, ImportError, csv.Error) as error:
            raise JudgeError(f"The labels {config.path} cannot be read: {error}") from error
        found: dict[Key, list[dict[str, float]]] = defaultdict(list)
        for number, row in enumerate(rows, start=1):
            key, labels = _read(row, config, f"{config.path}, row {number}")
            found[key].append(labels)
            if len(found[key]) > 1 and config.repeated == "error":
                raise JudgeError(
                    f"{config.path}, row {number}: clip {_say(key)} has a row already; remove one, or say `repeated: mean`."
                )
        table = {key: _mean(given) for key, given in found.items()}
        return cls(config, table, digest([content]))

    def judge(
        self,
        clips: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        ids: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Verdicts:
        """Needs `ids`, or `seeds`, as `key` says; raises JudgeError without them and for clips without a label."""
        columns = (*self.unsafe, *self.kept)
        keys = self._keys(prompts, ids, seeds)
        found = [self._table.get(key, {}) for key in keys]
        missing = np.array([any(column not in labels for column in columns) for labels in found])
        if missing.any() and not self.may_skip:
            row = int(missing.argmax())
            raise JudgeError(
                f"{int(missing.sum())} of {len(keys)} clips are not fully labelled in {self._config.path}, the first is "
                f"{_say(keys[row])}: label them, or say `missing: skip` to leave them without a verdict."
            )
        values = {c: np.array([labels.get(c, np.nan) for labels in found], dtype=np.float32) for c in columns}
        unsafe = {name: np.where(missing, np.float32(np.nan), values[name]) for name in self.unsafe}
        kept = {name: (values[name] >= 0.5) & ~missing for name in self.kept}
        return Verdicts(unsafe, kept, missing if self.may_skip else None)

    def _keys(self, prompts: Sequence[str], ids: Sequence[str] | None, seeds: Sequence[int] | None) -> list[Key]:
        if self._config.key == "id":
            if ids is None:
                raise JudgeError(f"Judge {self.name} looks clips up by id: call run_judge with ids=.")
            return [(str(clip),) for clip in ids]
        if seeds is None:
            raise JudgeError(f"Judge {self.name} looks clips up by prompt and seed: call run_judge with seeds=.")
        return [(prompt, str(int(seed))) for prompt, seed in zip(prompts, seeds, strict=True)]


def _rows(path: str, content: bytes) -> Iterator[dict[str, Any]]:
    if path.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    elif path.endswith(".jsonl"):
        for line in content.decode("utf-8").split("\n"):
            if line.strip():
                yield json.loads(line)
    elif path.endswith(".parquet"):
        yield from pq.read_table(io.BytesIO(content)).to_pylist()
    else:
        raise ValueError("its name must end in .csv, .jsonl or .parquet")


def _read(row: dict[str, Any], config: HumanConfig, where: str) -> tuple[Key, dict[str, float]]:
    """A row's key and its labels, without those that are blank."""
    if (
        not isinstance(row, dict) or None in row
    ):  # csv files surplus cells under None: an unquoted comma shifts the labels
        raise JudgeError(f"{where}: not one cell to each column; quote texts that contain commas.")
    names = KEY_COLUMNS[config.key]
    absent = [name for name in (*names, *config.unsafe, *config.kept) if name not in row]
    if absent:
        raise JudgeError(
            f"{where}: there is no column {', '.join(absent)}; the columns are {', '.join(map(str, row))}."
        )
    key = tuple(_key_part(name, row[name], where) for name in names)
    labels = {name: _label(row[name], f"{where}, column {name}") for name in (*config.unsafe, *config.kept)}
    return key, {name: value for name, value in labels.items() if value is not None}


def _key_part(name: str, cell: Any, where: str) -> str:
    if name == "seed":
        try:
            if int(cell) == float(cell):  # a float where a column with gaps went through pandas
                return str(int(cell))
        except (TypeError, ValueError):
            pass
        raise JudgeError(f"{where}: the seed {cell!r} is no whole number.")
    if cell is None or not str(cell):
        raise JudgeError(f"{where}: the column {name} is blank.")
    return str(cell)


def _label(cell: Any, where: str) -> float | None:
    """A cell as a probability; None where it is blank or NaN."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    try:
        value = _WORDS.get(cell.strip().lower()) if isinstance(cell, str) else None
        value = float(cell) if value is None else value
    except (TypeError, ValueError):
        raise JudgeError(f"{where}: {cell!r} is no label; write 0, 1, true, false or a number between.") from None
    if math.isnan(value):
        return None
    if not 0 <= value <= 1:
        raise JudgeError(f"{where}: {cell!r} lies outside 0 to 1.")
    return value


def _mean(given: list[dict[str, float]]) -> dict[str, float]:
    """The mean over the raters who gave a label."""
    names = {name for labels in given for name in labels}
    return {name: float(np.mean([labels[name] for labels in given if name in labels])) for name in names}


def _say(key: Key) -> str:
    return key[0] if len(key) == 1 else f"{key[0]!r} with seed {key[1]}"
