"""The recalibration job: prompts become clips, clips activations with labels, activations a direction, and gates decide.

    collect -> label -> moments -> fit -> selection -> evaluation -> gates -> report -> publish

It runs on whatever Ray cluster the process is connected to, and begins again where it stopped: collected calls are kept as
files, the selection and the evaluation as JSON beside them.
"""

import getpass
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reins_serve.calibration.activations import StoredActivations
from reins_serve.calibration.collect import collect
from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.calibration.fit_stage import Fitted, evidence, held_out_scores
from reins_serve.calibration.fitting import describe_fit, finished, largest_dose
from reins_serve.calibration.gates import fit_gates, run_gates, worst_gates
from reins_serve.calibration.options import Basis, Option, bases, live_cosine, options, worth_trying
from reins_serve.calibration.report import write_html
from reins_serve.calibration.trials import Choice, Evaluation, Progress, choose, evaluate
from reins_serve.calibration.workers import entry_of
from reins_serve.errors import ReinsError
from reins_serve.rollout.storage import DirectionStore
from reins_serve.steering.direction import Base, Direction, Gate

STAGES = ("collect", "fit", "selection", "evaluation", "publish")
UNMEASURED = ("efficacy", "categories", "utility", "drift", "dose", "dose_choice")
FREE = ("name", "live", "store", "workers")  # may change between two runs in one folder
LAST = "evaluate"  # decides the evaluation alone: may change while there is none
EVALUATION = "evaluation.json"
DIRECTION, REPORT, PAGE = "direction.safetensors", "report.json", "report.html"


@dataclass(frozen=True)
class Outcome:
    """What a recalibration came to.

    Attributes:
        direction: The direction with its gates; None where the job stopped before there was one.
        gates: Every verdict.
        published: Number of the version in the store, if it was published.
    """

    direction: Direction | None
    gates: Mapping[str, Gate]
    published: int | None = None

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return all(gate.passed for gate in self.gates.values())


def recalibrate(
    config: RecalibrateConfig,
    out: Path,
    *,
    shuffle: bool = False,
    override: str | None = None,
    until: str = STAGES[-1],
    progress: Progress = lambda stage, done, total: None,
) -> Outcome:
    """Run the job, or the rest of it.

    Args:
        out: Folder of the result and of what the stages keep.
        shuffle: Let prompts exchange their labels, which the gates must refuse.
        override: Reason of a person who lets a direction serve although a gate failed; recorded in the file and in the store.
        until: The last stage to run.

    Raises:
        ReinsError: the folder holds another job's work, or a stage failed; what was done is kept.
    """
    _claim(out, config, shuffle)
    root = str(out / "activations")
    live = _live(config)
    stored = collect(config, root, progress)
    if until == "collect":
        return Outcome(None, {})
    progress("fit", 0, 1)
    together, each = bases(config, root, stored, config.seed if shuffle else None, live)
    fitted = together.fitted
    progress("fit", 1, 1)
    best = max(fitted.layers, key=lambda layer: layer["auc"])
    report: dict[str, Any] = {
        "layers": fitted.layers,
        "cosine_to_live": live_cosine([together, *each.values()]),
        "categories": fitted.categories,
        "labels": {name: basis.fitted.layers for name, basis in each.items()},
        "shuffled": shuffle,
        "config": config.model_dump(mode="json"),
    }
    made = options(config, _base(stored.meta, config), _places(config, fitted), together, each)
    tried = worth_trying(made)

    def gated(basis: Basis, block: int) -> dict[str, Gate]:
        return fit_gates(evidence(stored, basis.labels, basis.fitted, block, live, report["cosine_to_live"]))

    early = gated(together, best["block"])
    if until == "fit" or any(not early[name].passed for name in ("integrity", "separability", "null")):
        # Without a signal in the data there is nothing to generate with: the other gates stay unmeasured, which is not passed.
        unmeasured = {name: Gate(value=None, limit="not measured", passed=False) for name in UNMEASURED}
        gates = early if until == "fit" else early | unmeasured
        one = next(o.direction for o in made.values() if o.direction.blocks[0] == best["block"])
        described = describe_fit(config, fitted.model, fitted.clips, best["auc"])
        direction = finished(one, config.name, described, one.serving_strength, one.serving_strength, gates, None)
        return _written(out, config, direction, gates, report, [], override)
    choice = _choice(out, config, tried, progress)
    report |= {"selection": {"rounds": [[m.figures() for m in found] for found in choice.rounds]}}
    report["dose"] = [{"strength": m.candidate.strength, "unsafe": m.unsafe_rate, "loss": m.loss} for m in choice.doses]
    if until == "selection":
        return Outcome(None, early)
    chosen = tried[choice.direction.name]
    measured = _evaluation(out, config, choice, progress)
    report |= {"evaluation": measured.figures, "scores": _scores(stored, *chosen.basis[0])}
    found = [
        early if basis is together and block == best["block"] else gated(basis, block) for basis, block in chosen.basis
    ]
    gates = worst_gates(found) | run_gates(measured.evidence)
    first = chosen.basis[0][0].fitted
    direction = finished(
        choice.direction,
        config.name,
        describe_fit(config, first.model, first.clips, chosen.auc),
        choice.strength,
        largest_dose(choice.doses, choice.strength),
        gates,
        live.sha256 if live is not None else None,
    )
    return _written(out, config, direction, gates, report, measured.clips, override, publish=until == "publish")


def _claim(out: Path, config: RecalibrateConfig, shuffle: bool) -> None:
    """Make the folder this job's own, or refuse one that holds another job's work."""
    out.mkdir(parents=True, exist_ok=True)
    described = {"config": config.model_dump(mode="json"), "shuffled": shuffle}
    file = out / "job.json"
    if file.exists() and (other := _differences(json.loads(file.read_text()), described)):
        evaluated, last = out / EVALUATION, other == [LAST]
        if evaluated.exists() or not last:
            instead = (
                f"delete {evaluated} to evaluate again, or give another --out"
                if last
                else "give another --out, or delete it"
            )
            raise ReinsError(
                f"{out} holds the work of another configuration (it differs in {', '.join(other)}): {instead}."
            )
    file.write_text(json.dumps(described, indent=1) + "\n")


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The words that differ, but for those that decide no clip, label or figure that the folder keeps."""
    found = [name for name in other["config"] if one["config"].get(name) != other["config"][name] and name not in FREE]
    return found + ["shuffled"] * (one["shuffled"] != other["shuffled"])


def _live(config: RecalibrateConfig) -> Direction | None:
    if config.live is not None:
        return Direction.load(config.live)
    if config.store is None:
        return None
    store = DirectionStore(config.store)
    pointer = store.find(config.model)
    return store.load(config.model, pointer.live) if pointer is not None and pointer.live else None


def _places(config: RecalibrateConfig, fitted: Fitted) -> list[tuple[int, ...]]:
    """The places where steering is tried: a block, or the same block of each expert."""
    entry = entry_of(config)
    depth = (entry.num_blocks or max(fitted.blocks) + 1) if entry.experts > 1 else max(fitted.blocks) + 1
    places = [
        tuple(block + depth * expert for expert in range(entry.experts)) for block in fitted.blocks if block < depth
    ]
    if config.selection.choose == "half_depth":
        middle = (entry.num_blocks or len(fitted.blocks)) // 2
        places = [place for place in places if place[0] == middle]
    if not places or any(set(place) - set(fitted.blocks) for place in places):
        raise ReinsError(
            "The captured blocks hold no place to steer at: list the same blocks of every expert, or half depth."
        )
    return places


def _scores(stored: StoredActivations, basis: Basis, block: int) -> dict[str, list[float]]:
    return held_out_scores(stored, basis.labels, basis.fitted, block)


def _base(meta: Any, config: RecalibrateConfig) -> Base:
    entry = entry_of(config)
    denoiser = "transformer" if entry.experts == 1 else "transformer+transformer_2"
    return Base(
        fingerprint=meta.fingerprint,
        denoiser=denoiser,
        denoiser_class=entry.denoiser or "",
        width=meta.width,
        num_blocks=(entry.num_blocks or 0) * entry.experts,
    )


def _choice(out: Path, config: RecalibrateConfig, tried: Mapping[str, Option], progress: Progress) -> Choice:
    file = out / "selection.json"
    named = {name: option.direction for name, option in tried.items()}
    if file.exists():
        return Choice.from_json(json.loads(file.read_text()), named)
    choice = choose(config, tried, progress)
    file.write_text(json.dumps(choice.to_json()) + "\n")
    return choice


def _evaluation(out: Path, config: RecalibrateConfig, choice: Choice, progress: Progress) -> Evaluation:
    file = out / EVALUATION
    if file.exists():
        return Evaluation.from_json(json.loads(file.read_text()))
    measured = evaluate(config, choice, progress)
    file.write_text(json.dumps(measured.to_json()) + "\n")
    return measured


def _written(
    out: Path,
    config: RecalibrateConfig,
    direction: Direction,
    gates: Mapping[str, Gate],
    report: dict[str, Any],
    clips: list[Any],
    override: str | None,
    publish: bool = False,
) -> Outcome:
    """Write the files, and publish where the gates or a person allow it."""
    direction.save(out / DIRECTION)
    passed = all(gate.passed for gate in gates.values())
    report |= {
        "gates": {name: gate.model_dump() for name, gate in gates.items()},
        "direction": {
            "name": direction.name,
            "model": direction.model,
            "sha256": direction.sha256,
            "operation": direction.operation,
            "branches": direction.branches,
            "norm": direction.meta.norm,
            "blocks": list(direction.blocks),
            "strength": direction.meta.strength.model_dump(),
            "fit": direction.meta.fit.model_dump(),
        },
        "passed": passed,
        "override": None if passed else override,
    }
    page = write_html(report, clips)
    (out / PAGE).write_text(page)
    (out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    number = None
    if publish and config.store is not None and (passed or override):
        version = DirectionStore(config.store).publish(
            direction,
            who=getpass.getuser(),
            why=f"recalibrated from {config.prompts.kind} prompts" + ("" if passed else f"; override: {override}"),
            report=page.encode(),
        )
        number = version.number
    return Outcome(direction, gates, number)
