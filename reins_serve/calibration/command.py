"""`reins-serve recalibrate`: connects to Ray, shows progress, and prints the verdicts."""

import os
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from reins_serve.calibration.config import RecalibrateConfig
from reins_serve.console import console
from reins_serve.errors import ReinsError


def run(path: Path, out: Path, shuffle: bool, override: str | None, until: str) -> int:
    """Run the job; returns the exit status.

    Raises:
        ReinsError: the configuration is wrong, or a stage failed.
    """
    config = RecalibrateConfig.load(path)
    # Set before Ray is imported: unset, a cluster of this process would turn token authentication on.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    from reins_serve.calibration.job import STAGES, recalibrate

    if until not in STAGES:
        raise ReinsError(f"There is no stage {until!r}; choose one of {', '.join(STAGES)}.")
    own = not ray.is_initialized()
    if own:
        # A worker of each kind at a time, even where fewer processors are to be had.
        cpus = max(
            os.cpu_count() or 1, 1 + round(config.workers.num_cpus * config.workers.generators) + config.workers.judges
        )
        local = (
            {} if "RAY_ADDRESS" in os.environ else {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        )
        ray.init(log_to_driver=False, configure_logging=False, **local)  # type: ignore[arg-type]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns) as shown:
            tasks: dict[str, int] = {}

            def progress(stage: str, done: int, total: int) -> None:
                if not shown.console.is_terminal and (stage not in tasks or done == total):
                    print(f"{stage}: {done}/{total}", flush=True)  # a job's log has no bars
                if stage not in tasks:
                    tasks[stage] = shown.add_task(stage, total=total)
                shown.update(tasks[stage], completed=done, total=total)  # type: ignore[arg-type]

            outcome = recalibrate(config, out, shuffle=shuffle, override=override, until=until, progress=progress)
    finally:
        if own:
            ray.shutdown()
    shown_at = console(140)
    table = Table("gate", "value", "limit", "verdict")
    for name, gate in outcome.gates.items():
        value = "" if gate.value is None else f"{gate.value:.4g}"
        table.add_row(name, value, gate.limit, "passed" if gate.passed else "FAILED")
    shown_at.print(table)
    if outcome.direction is not None:
        strength = outcome.direction.meta.strength
        shown_at.print(
            f"{outcome.direction.name}: {outcome.direction.operation}, {outcome.direction.branches} branches, blocks "
            f"{list(outcome.direction.blocks)}, strength {strength.serving:g} (up to {strength.max:g}) in {strength.unit}; "
            f"written to {out}" + (f", published as version {outcome.published}" if outcome.published else ""),
            highlight=False,
        )
    return 0 if outcome.passed or override else 1
