"""The activation store: what is written is read back bit for bit, and anything that does not fit is refused by name."""

from datetime import date
from functools import reduce
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reins_serve.calibration.activation_schema import ActivationsMeta, JudgeColumns
from reins_serve.calibration.activations import StoredActivations, open_activations, prompt_digest, write_activations
from reins_serve.calibration.clip_batches import ClipBatch
from reins_serve.errors import ReinsError
from reins_serve.steering.direction import Window

BLOCKS, WIDTH = (3, 7), 6
META = ActivationsMeta(
    model="tiny", fingerprint="f" * 32, blocks=BLOCKS, width=WIDTH, window=Window(),
    judges={"judge-a": JudgeColumns(revision="1", unsafe=("explosion",), kept=("shape",))},
)  # fmt: skip
DAY = date(2026, 1, 2)


def clips(n: int, seed: int = 0, first: int = 0) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Clips in pairs that share a prompt."""
    rng = np.random.default_rng(seed)
    rows = range(first, first + n)
    columns = {
        "clip_id": [f"clip-{row}" for row in rows],
        "source": "tests",
        "prompt_sha256": [prompt_digest(f"prompt {row // 2}") for row in rows],
        "group": [f"group {row // 4}" for row in rows],
        "split": "fit",
        "seed": list(rows),
        "steps": 8,
        "guidance_scale": 4.0,
        "unsafe/judge-a/explosion": np.where(np.arange(n) == 1, np.nan, rng.random(n)),
        "kept/judge-a/shape": 1.0,
    }
    return rng.normal(size=(n, 2, WIDTH)).astype(np.float16), rng.random((n, 2)).astype(np.float32), columns


def write(root: Path | str, n: int = 4, meta: ActivationsMeta = META, **changes: Any) -> str:
    pooled, norms, columns = clips(n)
    return write_activations(str(root), meta, pooled, norms, columns | changes, DAY)


def read(stored: StoredActivations, *arguments: Any, **options: Any) -> ClipBatch:
    """All clips in one batch."""
    return reduce(ClipBatch.joined, stored.batches(*arguments, **options))


def rewrite(path: str, change: Any) -> None:
    """Replace a file by what `change` makes of its table."""
    table = change(pq.read_table(path, partitioning=None))
    pq.write_table(table, path)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, dtype: str) -> None:
    meta = META.model_copy(update={"dtype": dtype})
    pooled, norms, columns = clips(9)
    path = write_activations(str(tmp_path), meta, pooled, norms, columns, DAY)
    assert path.startswith(f"{tmp_path}/model=tiny/day=2026-01-02/")
    stored = open_activations(str(tmp_path), "tiny")
    assert stored.meta == meta
    label = "unsafe/judge-a/explosion"
    batch = read(stored, columns=[label, "prompt", "weight", "window_end", "seed"])
    assert batch.pooled.dtype == dtype
    assert np.array_equal(batch.pooled, pooled)
    assert np.array_equal(batch.token_norm, norms)
    assert batch.columns["clip_id"].tolist() == columns["clip_id"]
    assert np.allclose(batch.columns[label], columns[label], equal_nan=True)  # null, and NaN again: never 0
    assert batch.columns["prompt"].tolist() == [None] * 9
    assert (batch.columns["weight"] == 1).all()
    assert (batch.columns["window_end"] == 0.5).all()


def test_chosen_blocks_come_in_the_order_asked_for_and_one_block_is_not_copied(tmp_path: Path) -> None:
    write(tmp_path)
    stored = open_activations(str(tmp_path), "tiny")
    both, swapped, one = read(stored), read(stored, (7, 3)), next(stored.batches((7,)))
    assert np.array_equal(swapped.pooled, both.pooled[:, ::-1])
    assert np.array_equal(one.pooled[:, 0], both.pooled[:2, 1])
    assert not one.pooled.flags.owndata
    assert not one.pooled.flags.writeable  # it is Arrow's own buffer
    with pytest.raises(ReinsError, match="block_4"):
        stored.batches((4,))


def test_a_memory_store_works_like_a_folder() -> None:
    root = "memory://activations-test"
    write(root, 6)
    assert sum(len(batch) for batch in open_activations(root, "tiny").batches()) == 6
    fsspec.filesystem("memory").rm("/activations-test", recursive=True)


def test_clips_of_one_prompt_stay_in_one_batch_across_batches_and_files(tmp_path: Path) -> None:
    for number, (first, n) in enumerate([(0, 5), (5, 8), (13, 1), (14, 4)]):  # pairs cut at 5 and 13
        pooled, norms, columns = clips(n, first=first)
        path = write_activations(str(tmp_path), META, pooled, norms, columns, DAY)
        Path(path).rename(Path(path).with_name(f"{number}.parquet"))
    batches = list(open_activations(str(tmp_path)).batches(rows=3))
    assert [i for batch in batches for i in batch.columns["clip_id"]] == [f"clip-{i}" for i in range(18)]
    seen = [set(batch.columns["prompt_sha256"]) for batch in batches]
    assert sum(len(prompts) for prompts in seen) == len(set().union(*seen)) == 9
    assert len(batches) > 3


def test_days_and_single_files_can_be_chosen(tmp_path: Path) -> None:
    pooled, norms, columns = clips(2)
    paths = [write_activations(str(tmp_path), META, pooled, norms, columns, date(2026, 1, day)) for day in (1, 2, 3)]
    later = open_activations(str(tmp_path), "tiny", since=date(2026, 1, 2))
    assert sorted(later.files) == sorted(paths[1:])
    assert set(later.dataset.to_table(["day"])["day"].to_pylist()) == {"2026-01-02", "2026-01-03"}
    assert open_activations(str(tmp_path), files=paths[:1]).files == paths[:1]
    with pytest.raises(ReinsError, match="no activations"):
        open_activations(str(tmp_path), "tiny", until=date(2025, 1, 1))


def test_writing_under_one_name_twice_changes_nothing(tmp_path: Path) -> None:
    pooled, norms, columns = clips(4)
    paths = [write_activations(str(tmp_path), META, pooled, norms, columns, DAY, name="call/7") for _ in range(2)]
    assert paths[0] == paths[1]
    assert open_activations(str(tmp_path), "tiny").files == [f"{tmp_path}/model=tiny/day=2026-01-02/call%2F7.parquet"]
    assert len(list(tmp_path.rglob("*.part"))) == 0


def test_a_failed_write_leaves_nothing_that_a_reader_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(table: pa.Table, sink: Any, **_: Any) -> None:
        sink.write(b"PAR1 and then the disk is full")
        raise OSError("no space")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_half_written_file_under_its_temporary_name_is_not_read(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    path.with_name(f".{path.name}.part").write_bytes(b"PAR1")
    assert open_activations(str(tmp_path), "tiny").files == [str(path)]


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        ({"fingerprint": "0" * 32}, "fingerprint"),
        ({"width": 8}, "width"),
        ({"window": Window(start=0.0, end=1.0)}, "window"),
        ({"blocks": (3,)}, "blocks"),
        ({"colour": 1}, "colour"),
    ],
)
def test_another_model_width_or_window_is_refused_by_the_fields_name(tmp_path: Path, expected: Any, name: str) -> None:
    write(tmp_path)
    with pytest.raises(ReinsError, match=name):
        open_activations(str(tmp_path), "tiny", **expected)
    open_activations(str(tmp_path), "tiny", fingerprint=META.fingerprint, width=WIDTH, window=Window(), blocks=BLOCKS)


@pytest.mark.parametrize(
    ("update", "name"),
    [
        ({"fingerprint": "0" * 32}, "fingerprint"),
        ({"window": Window(start=0.5, end=1.0)}, "window"),
        ({"judges": {"judge-a": META.judges["judge-a"].model_copy(update={"revision": "2"})}}, "judges"),
    ],
)
def test_files_of_different_models_windows_or_judges_are_never_mixed(tmp_path: Path, update: Any, name: str) -> None:
    write(tmp_path)
    write(tmp_path, meta=META.model_copy(update=update))
    with pytest.raises(ReinsError, match=name):
        open_activations(str(tmp_path), "tiny")


def replaced(table: pa.Table, name: str, array: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), pa.field(name, array.type), array)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["norm_7"]), "`norm_7` is missing"),
        (lambda t: replaced(t, "seed", pa.array(["1"] * len(t))), "`seed` is string"),
        (lambda t: replaced(t, "block_3", pa.array([[1.0] * 5] * len(t), pa.list_(pa.float16(), 5))), "`block_3`"),
        (lambda t: replaced(t, "source", t["source"]), "`source` may be null"),
        (lambda t: t.append_column("extra", pa.array([1] * len(t))), "extra"),
        (lambda t: t.replace_schema_metadata({}), "no `reins` metadata"),
        (lambda t: t.replace_schema_metadata({"reins": '{"format": "reins.activations/9"}'}), "format"),
    ],
)
def test_a_wrong_schema_is_refused_by_the_columns_name(tmp_path: Path, change: Any, message: str) -> None:
    rewrite(write(tmp_path), change)
    with pytest.raises(ReinsError, match=message):
        open_activations(str(tmp_path), "tiny")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_values_that_are_not_finite_are_refused_with_the_clips_ids(tmp_path: Path, bad: float, dtype: str) -> None:
    meta = META.model_copy(update={"dtype": dtype})
    pooled, norms, columns = clips(40)
    pooled[33, 1, 2] = bad
    with pytest.raises(ReinsError, match=r"`block_7`.*clip-33"):
        write_activations(str(tmp_path), meta, pooled, norms, columns, DAY)
    path = write_activations(str(tmp_path), meta, np.nan_to_num(pooled), norms, columns, DAY)

    def spoil(table: pa.Table) -> pa.Table:
        field = table.schema.field("block_7")
        values = pa.array(pooled[:, 1].astype(dtype).reshape(-1))
        array = pa.FixedSizeListArray.from_arrays(values, type=field.type)
        return table.set_column(table.schema.get_field_index("block_7"), field, array)

    rewrite(path, spoil)
    with pytest.raises(ReinsError, match=r"`block_7`.*1 clips \(clip-33\)"):
        list(open_activations(str(tmp_path), "tiny").batches())


def test_values_beyond_float16_are_refused_and_kept_in_float32(tmp_path: Path) -> None:
    pooled, norms, columns = clips(2)
    large = pooled.astype(np.float32) + 1e5
    with pytest.raises(ReinsError, match="store float32"):
        write_activations(str(tmp_path), META, large, norms, columns, DAY)
    write_activations(str(tmp_path), META.model_copy(update={"dtype": "float32"}), large, norms, columns, DAY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, "`source`"),
        ({"seed": ["a", "b", "c", "d"]}, "`seed`"),
        ({"group": ["one"]}, "`group` has 1 values for 4"),
        ({"clip_id": "same"}, "`clip_id` holds an id twice"),
        ({"unsafe/judge-a/gore": 0.0}, "unsafe/judge-a/gore"),
    ],
)
def test_columns_that_do_not_fit_are_refused_on_writing(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ReinsError, match=message):
        write(tmp_path, **changes)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_model_name_cannot_leave_its_folder(tmp_path: Path) -> None:
    meta = META.model_copy(update={"model": "org/../model"})
    path = write(tmp_path, meta=meta)
    assert "/model=org%2F..%2Fmodel/" in path
    assert open_activations(str(tmp_path), "org/../model").meta.model == "org/../model"


def test_on_s3_they_are_found_by_whoever_reads_next(s3: tuple[str, dict], monkeypatch: pytest.MonkeyPatch) -> None:
    url, options = s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", options["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    for first in (0, 9):
        pooled, norms, columns = clips(9, seed=first, first=first)
        path = write_activations(url, META, pooled, norms, columns, DAY)
        assert path.startswith(f"{url.removeprefix('s3://')}/model=tiny/day=2026-01-02/")
        stored = open_activations(url, "tiny")
        assert len(stored.files) == 1 + first // 9
    batch = read(stored)
    assert sorted(batch.columns["clip_id"]) == sorted(f"clip-{row}" for row in range(18))
    again = np.concatenate([clips(9)[0], clips(9, seed=9)[0]])
    rows = [int(clip.removeprefix("clip-")) for clip in batch.columns["clip_id"]]
    assert np.array_equal(batch.pooled, again[rows])
    names = fsspec.filesystem("s3", **options, skip_instance_cache=True).find(url)
    assert sorted(names) == sorted(stored.files)  # no temporary file stays
