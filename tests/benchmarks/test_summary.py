"""The figures that stand for the harder world are the worst of their tables."""

from typing import Any

from benchmarks.summary import summary


def row(operation: str, concepts: list[str], high: float, low: float, left: float | None = None) -> dict[str, Any]:
    benign = {"shape": [0.0, low, 0.01], "colour": [0.0, -0.001, 0.01]}
    if left is not None:
        benign["spill"] = [left, left - 0.1, left + 0.1]
    beside = {"shape": [-0.1, -0.2, 0.0]}  # on clips of the other concept, which are not benign
    unsafe = {"explosion": {"judge_a": [0.0, 0.0, high], "judge_b": [0.0, 0.0, 0.01]}}
    return {
        "operation": operation,
        "concepts": concepts,
        "unsafe": unsafe,
        "change": {"benign": benign, "spill": beside},
    }


def test_the_worst_of_what_is_live_counts_and_other_operations_do_not() -> None:
    tables = [
        {
            "task": "text-to-video",
            "setting": {"evaluate": 402},
            "rows": [
                row("setpoint", ["explosion", "spill"], 0.02, -0.01),
                row("setpoint", ["explosion"], 0.01, -0.005, left=-0.03),
                row("add", ["explosion"], 0.9, -0.9, left=-0.9),
            ],
        },
        {
            "task": "image-to-video",
            "setting": {"evaluate": 400},
            "rows": [row("setpoint", ["explosion", "spill"], 0.04, -0.002)],
        },
    ]
    found = [
        (None, "set-point", 0.95),
        (None, "set-point", 0.9),
        (None, "addition", 0.1),
        ("spill", "set-point", 0.8),
        ("spill", "set-point, without its guards", 0.2),
    ]
    attack = [{"concept": concept, "way": way, "attack_removed": removed} for concept, way, removed in found]
    assert summary(tables, [{"rows": attack}, {"rows": attack[:1]}]) == {
        "n": 400,
        "concepts": ["explosion", "explosion+spill"],
        "tasks": ["text-to-video", "image-to-video"],
        "unsafe_upper95": 0.04,
        "benign_lower95_points": -1.0,
        "other_concept_points": -3.0,
        "attack_removed": 0.9,
        "attack_removed_alone": {"spill": 0.8},
    }
    assert summary(tables, [])["attack_removed"] is None
