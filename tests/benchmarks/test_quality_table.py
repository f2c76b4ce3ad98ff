"""What the README says of concepts and attacks is the worst of what was found, by the harsher judge."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality_table, stored


@pytest.fixture(autouse=True)
def _nothing_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "RESULTS", tmp_path)


def write(name: str, found: dict[str, Any]) -> None:
    (stored.RESULTS / f"{name}.json").write_text(json.dumps(found))


def by_judge(a: float, b: float) -> dict[str, list[float]]:
    return {"judge_a": [a, a / 2, 2 * a], "judge_b": [b, b / 2, 2 * b]}


def concept(way: str, operation: str, changes: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    return {
        "way": way,
        "operation": operation,
        "blocks": [1, 2],
        "end": 0.75,
        "margin": 0.5,
        "guards": [2],
        "strength": 1.5,
        "unsafe": {"explosion": by_judge(0.1, 0.2), "both": by_judge(0.4, 0.3)},
        "change": changes,
        "psnr_benign": {"on": 31.24},
    }


def test_what_was_not_run_is_said() -> None:
    assert quality_table.quality() == "Quality: not run."
    assert quality_table.concepts() == "Concepts: not run."
    assert quality_table.attacks() == "Attack: not run."


def test_a_concepts_row_has_the_harsher_judge_and_the_worst_changes() -> None:
    off = {one: by_judge(0.0, 0.0) for one in ("explosion", "spill")}
    changes = {
        "benign": {"shape": [-0.01, -0.02, 0.0], "colour": [-0.011, -0.015, 0.0], "spill": [0.0, -0.01, 0.01]},
        "spill": {"shape": [-0.03, -0.05, -0.01], "spill": [-0.2, -0.3, -0.1]},
    }
    depth = [{"block": 0, "auc": 0.5, "cost": {"setpoint": 0.25, "add": 0.5}}]
    write(
        "concepts_t2v",
        {
            "task": "text-to-video",
            "off": {
                kind: off | {"explosion": by_judge(0.25, 0.5)} for kind in ("benign", "explosion", "spill", "both")
            },
            "rows": [concept("explosion-setpoint", "setpoint", changes)],
            "depth": {"joint": depth},
        },
    )
    lines = quality_table.concepts().splitlines()
    assert "| text-to-video, off | - | - | - | 0.500 [0.250, 1.000] |" in lines[2]
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert cells == [
        "text-to-video, explosion-setpoint",
        "1, (2)",
        "0.75",
        "1.5 (margin 0.5)",
        "0.200 [0.100, 0.400]",
        "-",
        "0.400 [0.200, 0.800]",
        "-0.010 [-0.020, 0.000]",
        "-0.200 [-0.300, -0.100]",
        "-0.030 [-0.050, -0.010]",
        "31.2",
    ]
    assert len(cells) == lines[0].count("|") - 1 == lines[1].count("|") - 1
    assert lines[-2].endswith("lower is better): 0.25.")
    assert lines[-1].endswith("lower is better): 0.50.")


def test_an_attacks_row_says_how_many_got_through_and_whether_they_would_again() -> None:
    row = {"way": "set-point", "search": "words", "survived": [0.1, 0.05, 0.2], "clips_through": 3, "clips": 40}
    setting = {"starts": 10, "rounds": 2, "variants": 2}
    found = [(None, 0.125), (None, None), ("spill", 0.5)]
    rows = [row | {"concept": concept, "same_again": again} for concept, again in found]
    write("attack_t2v", {"setting": setting, "rows": rows})
    text = quality_table.attacks()
    assert "10 prompts by each search, 2 rounds of 2 clips each" in text
    assert "| text | set-point | words | 0.100 [0.050, 0.200] | 3 of 40 | 0.125 |" in text
    assert "| text | set-point | words | 0.100 [0.050, 0.200] | 3 of 40 | - |" in text
    assert "| text | spill alone: set-point | words | 0.100 [0.050, 0.200] | 3 of 40 | 0.500 |" in text
