"""What steering buys on the embedded worlds, for the README: each way of steering, each concept, and what an attack leaves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.stored import NOT_RUN, Figures, read
from benchmarks.targets import OUTRIGHT
from reins_serve.embedded.hard.world import CONCEPTS

FROM = {"t2v": "text", "i2v": "a first frame"}
"""What clips are made from, by the names' ends of `concepts`' and `attack`'s results."""


def by_task(name: str) -> dict[str, Figures]:
    """What a script has found, by the task; those that were not run are left out."""
    return {task: found for task in FROM if (found := read(f"{name}_{task}")) is not None}


def rate(found: Sequence[float]) -> str:
    """A figure with its interval."""
    value, low, high = found
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def quality() -> str:
    """The table of ways of steering."""
    found = read("quality")
    if found is None:
        return f"Quality: {NOT_RUN}."
    lines = [
        "| | block | strength | unsafe, asked outright | unsafe, hinted at | worst benign change |",
        "|---|---|---|---|---|---|",
    ]
    for one in found["rows"]:
        blocks = ", ".join(map(str, one.get("blocks", []))) or "-"
        strength = f"{one['strength']:g}" if "strength" in one else "-"
        figures = " | ".join(rate(one[name]) for name in ("unsafe", "implicit", "benign_change"))
        lines.append(f"| {one['way']} | {blocks} | {strength} | {figures} |")
    return "\n".join([*lines, "", *depths(found)])


def depths(found: Figures) -> Iterable[str]:
    """Information and effect by block, in words."""
    auc = ", ".join(f"{one['auc']:.3f}" for one in found["depth"])
    yield f"Information by block, 0 to {len(found['depth']) - 1} (cross-fitted AUC of safe against unsafe): {auc}."
    for way in ("set-point", "addition"):
        cost: dict[int, float] = {}
        for one in found["sweep"]:
            name, _, block = one["candidate"]["direction"].rpartition("-")
            if name == way:
                cost[int(block)] = min(one["cost"], cost.get(int(block), 2.0))
        yield _effect(way, [cost[block] for block in sorted(cost)])


def _effect(way: str, costs: Iterable[float]) -> str:
    figures = ", ".join(f"{cost:.2f}" for cost in costs)
    return (
        f"Effect of the {way} by block at its best strength (unsafe rate plus worst benign loss on selection prompts, "
        f"lower is better): {figures}."
    )


def concepts() -> str:
    """The table of the harder world's concepts, and what its blocks know and do."""
    tables = list(by_task("concepts").values())
    if not tables:
        return f"Concepts: {NOT_RUN}."
    asked = " | ".join(f"unsafe, {kind} asked for" for kind in OUTRIGHT[1:])
    lines = [
        f"| | blocks (guards) | steps up to | strength | {asked} | worst benign change | the other concept | "
        "attributes beside it | benign PSNR, dB |",
        "|---" * (len(OUTRIGHT) + 7) + "|",
    ]
    for table in tables:
        off = {kind: _worst([table["off"][kind][one] for one in CONCEPTS]) for kind in OUTRIGHT[1:]}
        lines.append(f"| {table['task']}, off | - | - | - | {' | '.join(map(rate, off.values()))} | - | - | - | - |")
        lines += [f"| {table['task']}, {_concept_row(row)} |" for row in table["rows"]]
    lines.append("")
    for table in tables:
        joint = table["depth"]["joint"]
        auc = ", ".join(f"{one['auc']:.3f}" for one in joint)
        lines.append(f"{table['task'].capitalize()}, joint direction: information by block, {auc}.")
        lines += [_effect(way, [one["cost"][way] for one in joint]) for way in ("setpoint", "add")]
    return "\n".join(lines)


def _concept_row(row: Mapping[str, Any]) -> str:
    unsafe = [rate(_worst([row["unsafe"][kind]])) if kind in row["unsafe"] else "-" for kind in OUTRIGHT[1:]]
    changes = worst_changes(row)
    cells = [
        row["way"],
        ", ".join(f"({block})" if block in row.get("guards", []) else f"{block}" for block in row["blocks"]),
        f"{row['end']:g}",
        f"{row['strength']:g}" + (f" (margin {margin:g})" if (margin := row.get("margin")) else ""),
        *unsafe,
        *("-" if change is None else rate(change) for change in map(changes.get, ("benign", "other", "beside"))),
        f"{row['psnr_benign']['on']:.1f}",
    ]
    return " | ".join(cells)


def worst_changes(row: Mapping[str, Any]) -> dict[str, list[float] | None]:
    """Of a row of `concepts`: the worst change, by its lower bound, of an attribute on benign prompts, of one beside the other
    concept, and of that concept; None where there is no other."""
    found: dict[str, list[list[float]]] = {"benign": [], "beside": [], "other": []}
    for kind, its in row["change"].items():
        for name, change in its.items():
            found["other" if name in CONCEPTS else "benign" if kind == "benign" else "beside"].append(change)
    return {name: min(changes, key=lambda change: change[1], default=None) for name, changes in found.items()}


def _worst(found: Sequence[Mapping[str, list[float]]]) -> list[float]:
    """The highest rate by any judge."""
    return max(interval for by_judge in found for interval in by_judge.values())


def attacks() -> str:
    """The table of what searches for a way around the steering found."""
    every = by_task("attack")
    if not every:
        return f"Attack: {NOT_RUN}."
    of = next(iter(every.values()))["setting"]
    lines = [
        f"Attacked: {of['starts']} prompts by each search, {of['rounds']} rounds of {of['variants']} clips each.",
        "",
        "| from | way of steering | search | prompts that get through | clips that do | the same prompt again, other seeds |",
        "|---|---|---|---|---|---|",
    ]
    for task, found in every.items():
        for row in found["rows"]:
            share = f"{row['clips_through']} of {row['clips']}"
            again = "-" if row["same_again"] is None else f"{row['same_again']:.3f}"
            away = f"{row['concept']} alone: " if row["concept"] else ""
            how = f"{FROM[task]} | {away}{row['way']} | {row['search']}"
            lines.append(f"| {how} | {rate(row['survived'])} | {share} | {again} |")
    return "\n".join(lines)
