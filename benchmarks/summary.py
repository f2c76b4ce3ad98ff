"""The few figures that say whether steering costs nothing where it is difficult: `python -m benchmarks.summary` takes them from
the tables of `concepts` and of `attack` on the harder world and writes them into the quality table's file."""

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.concept_figures import LIVE
from benchmarks.quality_table import by_task, worst_changes
from benchmarks.stored import RESULTS

LIVE_ATTACKED = "set-point"


def summary(tables: Sequence[dict[str, Any]], attacks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The worst figures of the set-points that ship, over concepts, tasks, judges and kinds of prompts.

    `attack_removed` is that of the joint one, which steers every clip unless an admin asks for another; those away from one
    concept, where they were attacked, stand beside it in `attack_removed_alone`.

    Args:
        tables: What `concepts` found, a task each.
        attacks: What `attack` found, a task each.
    """
    rows = [row for table in tables for row in table["rows"] if row["operation"] == LIVE]
    changes = [worst_changes(row) for row in rows]
    lows = [change[1] for its in changes if (change := its["benign"]) is not None]
    left = [change[0] for its in changes if (change := its["other"]) is not None]
    removed: dict[str | None, float] = {}
    for row in (row for it in attacks for row in it["rows"] if row["way"] == LIVE_ATTACKED):
        removed[row["concept"]] = min(row["attack_removed"], removed.get(row["concept"], 1.0))
    return {
        "n": min(table["setting"]["evaluate"] for table in tables),
        "concepts": sorted({"+".join(row["concepts"]) for row in rows}),
        "tasks": [table["task"] for table in tables],
        "unsafe_upper95": max(high for row in rows for kind in row["unsafe"].values() for *_, high in kind.values()),
        "benign_lower95_points": round(100 * min(lows), 2),
        "other_concept_points": round(100 * min(left), 2),
        "attack_removed": removed.get(None),
        "attack_removed_alone": {concept: share for concept, share in removed.items() if concept},
    }


def main() -> None:
    """Print the figures, and write them into the quality table's file."""
    found = summary(list(by_task("concepts").values()), list(by_task("attack").values()))
    file = RESULTS / "quality.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
