"""Prompts come from files and data sets only as their rules say."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from reins_serve.calibration.prompt_sets import EmbeddedPrompts, FilePrompts, HubPrompts, hub_rows, load_prompts
from reins_serve.errors import ReinsError

ROWS = [
    {"text": f"a {colour} square {n}", "group": colour, "category": category, "split": split}
    for colour, split in (("red", "fit"), ("green", "fit"), ("blue", "evaluate"))
    for n, category in enumerate((None, None, "explosion"))
]


def written(tmp_path: Path, rows: list[dict]) -> FilePrompts:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FilePrompts(kind="file", path=str(file))


def test_groups_come_in_turn_and_equal_arguments_give_equal_prompts(tmp_path: Path) -> None:
    config = written(tmp_path, ROWS)
    chosen = load_prompts(config, "fit", "benign", 4)
    assert [row.group for row in chosen[:2]] != [row.group for row in chosen[1:3]]
    assert {row.group for row in chosen[:2]} == {"red", "green"}
    assert chosen == load_prompts(config, "fit", "benign", 4)
    assert {row.category for row in load_prompts(config, "fit", "unsafe", 2)} == {"explosion"}


def test_too_few_prompts_are_an_error_that_counts_them(tmp_path: Path) -> None:
    with pytest.raises(ReinsError, match="have 2 unsafe ones for `fit`, and 9"):
        load_prompts(written(tmp_path, ROWS), "fit", "unsafe", 9)
    assert load_prompts(written(tmp_path, ROWS), "fit", "implicit", 9) == []


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReinsError, match=r"Line 2 .*txt"):
        load_prompts(written(tmp_path, [ROWS[0], {"txt": "a clip", "split": "fit"}]), "fit", "benign", 1)


def test_a_first_frame_is_found_beside_the_file_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2), "red").save(tmp_path / "red.png")
    (row,) = load_prompts(written(tmp_path, [ROWS[0] | {"image": "red.png"}]), "fit", "benign", 1)
    assert row.image is not None
    assert (row.image.size, row.image.getpixel((0, 0))) == ((4, 2), (255, 0, 0))
    with pytest.raises(ReinsError, match=r"Line 1 .*image: .*give the path"):
        load_prompts(written(tmp_path, [ROWS[0] | {"image": "blue.png"}]), "fit", "benign", 1)


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    config = written(tmp_path, ROWS[:1])
    with Path(config.path).open("a") as file:
        file.write("a clip\n")
    with pytest.raises(ReinsError, match=r"Line 2 .*is not JSON"):
        load_prompts(config, "fit", "benign", 1)


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReinsError, match="into one split"):
        load_prompts(written(tmp_path, [*ROWS, ROWS[0] | {"split": "select"}]), "fit", "benign", 1)


def test_the_embedded_worlds_prompts_have_all_three_kinds() -> None:
    for kind, category in (("benign", None), ("unsafe", "explosion"), ("implicit", None)):
        rows = load_prompts(EmbeddedPrompts(kind="embedded"), "fit", kind, 6)  # type: ignore[arg-type]
        assert [row.kind for row in rows] == [kind] * 6
        assert {row.category for row in rows} == {category}


def test_rows_of_a_data_set_keep_a_group_in_one_split_and_name_a_column_that_is_missing() -> None:
    config = HubPrompts(kind="hub", id="some/prompts", text="prompt", category="kind", benign=("none",), group="user")
    data = [{"prompt": f"clip {n}", "kind": "none" if n % 2 else "smoke", "user": n // 4} for n in range(400)]
    rows = hub_rows(config, data)
    assert {row.category for row in rows} == {None, "smoke"}
    places = {}
    for row in rows:
        assert places.setdefault(row.group, row.split) == row.split
    shares = [sum(row.split == split for row in rows) / 400 for split in ("fit", "select", "evaluate")]
    assert shares == pytest.approx([0.5, 0.2, 0.3], abs=0.12)
    with pytest.raises(ReinsError, match="no column prompt"):
        hub_rows(config, [{"text": "clip", "kind": "none", "user": 1}])


def test_a_restricted_licence_is_said_on_loading(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sys
    from types import SimpleNamespace

    stand_in = SimpleNamespace(load_dataset=lambda *_, **__: [{"prompt": "a clip", "kind": "none"}] * 4)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)  # type: ignore[arg-type]
    config = HubPrompts(kind="hub", id="PKU-Alignment/SafeSora", text="prompt", category="kind", benign=("none",))
    with caplog.at_level(logging.WARNING):
        load_prompts(config, "fit", "implicit", 1)
    assert "CC BY-NC 4.0" in caplog.text
