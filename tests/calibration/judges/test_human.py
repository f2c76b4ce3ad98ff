"""People's labels: found by id or by prompt and seed, from three kinds of file; what is not labelled is never safe."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reins_serve.calibration.judges import load, read_config, run_judge
from reins_serve.errors import JudgeError

ROWS = [
    {"id": "007", "prompt": "a red circle, at sea", "seed": 1, "fire": 1, "smoke": 0.25, "colour": True},
    {"id": "8", "prompt": "a red circle, at sea", "seed": 2, "fire": 0, "smoke": 0.5, "colour": False},
    {"id": "9", "prompt": "snow\u2028again", "seed": 1, "fire": 0, "smoke": 0.0, "colour": True},
]


def write_csv(path, rows):
    lines = [",".join(rows[0])]
    lines += [
        ",".join(f'"{v}"' if isinstance(v, str) else ("" if v is None else str(v)) for v in r.values()) for r in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


WRITERS = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}


@pytest.fixture(params=list(WRITERS))
def table(request, tmp_path):
    """Writes rows to a file of each kind and gives the judge that reads them."""

    def make(rows=ROWS, **changes):
        path = tmp_path / f"labels.{request.param}"
        WRITERS[request.param](path, rows)
        document = {"kind": "human", "path": str(path), "unsafe": {"fire": 0.5, "smoke": 0.5}, "kept": ["colour"]}
        return load(read_config(document | changes))

    return make


def ask(judge, n=3, **names):
    clips = [np.zeros((1, 2, 2, 3), dtype=np.uint8)] * n
    return run_judge(judge, clips, names.pop("prompts", [""] * n), **names)


def test_labels_are_found_by_id(table):
    judge = table()
    verdicts = ask(judge, ids=["9", "007", "8"])
    np.testing.assert_array_equal(verdicts.unsafe["fire"], [0, 1, 0])
    np.testing.assert_array_equal(verdicts.unsafe["smoke"], [0, 0.25, 0.5])
    np.testing.assert_array_equal(verdicts.kept["colour"], [True, True, False])
    np.testing.assert_array_equal(verdicts.is_unsafe(judge.unsafe), [False, True, True])


def test_labels_are_found_by_prompt_and_seed(table):
    judge = table(key="prompt-seed")
    prompts = [ROWS[1]["prompt"], ROWS[2]["prompt"], ROWS[0]["prompt"]]
    verdicts = ask(judge, prompts=prompts, seeds=[2, 1, np.int64(1)])
    np.testing.assert_array_equal(verdicts.unsafe["smoke"], [0.5, 0, 0.25])


@pytest.mark.parametrize(("key", "needed"), [("id", "ids="), ("prompt-seed", "seeds=")])
def test_what_names_a_clip_must_be_given(table, key, needed):
    with pytest.raises(JudgeError, match=needed):
        ask(table(key=key))


def test_a_clip_that_the_table_lacks_is_an_error(table):
    with pytest.raises(JudgeError, match=r"1 of 3 clips are not fully labelled.*the first is 10"):
        ask(table(), ids=["9", "10", "8"])


@pytest.mark.parametrize("column", ["fire", "smoke", "colour"])
def test_a_blank_cell_is_no_label(table, column):
    rows = [ROWS[0] | {column: None}, *ROWS[1:]]
    with pytest.raises(JudgeError, match="not fully labelled"):
        ask(table(rows), ids=["007", "8", "9"])


def test_when_told_to_skip_unlabelled_clips_have_no_verdict(table):
    rows = [ROWS[0], ROWS[1] | {"fire": None}, ROWS[2]]
    judge = table(rows, missing="skip")
    verdicts = ask(judge, n=4, ids=["10", "007", "8", "9"])
    np.testing.assert_array_equal(verdicts.judged, [False, True, False, True])
    assert np.isnan(verdicts.unsafe["smoke"][[0, 2]]).all()
    with pytest.raises(JudgeError, match="2 clips have no verdict"):
        verdicts.is_unsafe(judge.unsafe)
    np.testing.assert_array_equal(verdicts.take(verdicts.judged).is_unsafe(judge.unsafe), [True, False])


def test_nan_in_a_table_is_no_label(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "1", "fire": NaN}\n')
    with pytest.raises(JudgeError, match="not fully labelled"):
        ask(load(read_config({"kind": "human", "path": str(path), "unsafe": {"fire": 0.5}})), n=1, ids=["1"])


def test_several_raters_are_refused_or_averaged(table):
    rows = [ROWS[0], ROWS[0] | {"fire": 0, "smoke": None, "colour": False}, *ROWS[1:]]
    with pytest.raises(JudgeError, match="row 2: clip 007 has a row already"):
        table(rows)
    verdicts = ask(table(rows, repeated="mean"), n=1, ids=["007"])
    assert verdicts.unsafe["fire"] == [0.5]
    assert verdicts.unsafe["smoke"] == [0.25]
    assert verdicts.kept["colour"][0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,fire\n1,2\n", "row 1, column fire: '2' lies outside"),
        ("id,fire\n1,maybe\n", "'maybe' is no label"),
        ("id,smoke\n1,0\n", "no column fire; the columns are id, smoke"),
        ("id,fire\n,0\n", "the column id is blank"),
        ("id,note,fire\n1,red, and blue,0\n", "not one cell to each column"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(tmp_path, content, message):
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(JudgeError, match=message):
        load(read_config({"kind": "human", "path": str(tmp_path / "labels.csv"), "unsafe": {"fire": 0.5}}))


@pytest.mark.parametrize("name", ["absent.csv", "labels.txt", "broken.parquet", "broken.jsonl"])
def test_a_file_that_is_no_table_is_refused(tmp_path, name):
    for written in ("labels.txt", "broken.parquet", "broken.jsonl"):
        (tmp_path / written).write_text("{no table")
    with pytest.raises(JudgeError, match="cannot be read"):
        load(read_config({"kind": "human", "path": str(tmp_path / name), "unsafe": {"fire": 0.5}}))


def test_words_count_as_labels_and_the_revision_follows_the_content(tmp_path):
    path, revisions = tmp_path / "labels.csv", set()
    for word, expected in (("true", 1), ("False", 0)):
        path.write_text(f"\ufeffid,fire\n1,{word}\n", encoding="utf-8")
        judge = load(read_config({"kind": "human", "path": str(path), "unsafe": {"fire": 0.5}}))
        assert ask(judge, n=1, ids=["1"]).unsafe["fire"] == [expected]
        revisions.add(judge.revision)
    assert len(revisions) == 2


def test_a_table_may_lie_on_any_fsspec_path():
    import fsspec

    with fsspec.open("memory://judges/labels.csv", "w") as file:
        file.write("prompt,seed,fire\na,3.0,1\n")
    document = {"kind": "human", "path": "memory://judges/labels.csv", "unsafe": {"fire": 0.5}, "key": "prompt-seed"}
    with pytest.raises(JudgeError, match=r"the seed '3.0' is no whole number"):
        load(read_config(document))
    with fsspec.open("memory://judges/labels.csv", "w") as file:
        file.write("prompt,seed,fire\na,3,1\n")
    assert ask(load(read_config(document)), n=1, prompts=["a"], seeds=[3]).unsafe["fire"] == [1]
