"""Every benchmark that needs no GPU, one after the other, then the README's table: `python -m benchmarks`, or `make bench`.

Results go to `benchmarks/results`. The quality table is measured again in part, and compared with the committed one: the exit
status is 1 where they disagree beyond their intervals, or where a script failed.
"""

import subprocess
import sys
import time

from benchmarks import draw_growth, table
from benchmarks.stored import RESULTS, read

QUALITY = ("--evaluate", "24", "--seed", "32", "--ways", "set-point", "addition")
STEPS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("steering", "steering", ("--batch", "1", "--rounds", "8", "--stack-rounds", "6", "--tokens", "2048")),
    ("capture", "capture", ("--rounds", "8", "--batch", "8")),
    ("fit", "fit_quick", ("--clips", "5000", "--repeats", "2")),
    ("growth", "growth", ("--rounds", "4")),
    ("swap", "swap_quick", ("--replicas", "2", "--swaps", "16", "--stretches", "2")),
    ("load", "load_quick", ("--replicas", "1", "--steps", "10", "--rounds", "6", "--block", "10")),
    ("fanout", "fanout", ("--moves", "10")),
    ("simulate", "simulate", ("--check", "20")),
    ("quality", "quality_again", (*QUALITY, "--against", str(RESULTS / "quality.json"))),
)


def main() -> None:
    """Run them all; a script that fails does not keep the others from running."""
    RESULTS.mkdir(exist_ok=True)
    began, failed = time.monotonic(), []
    for script, result, arguments in STEPS:
        start = time.monotonic()
        print(f"== {script} {' '.join(arguments)}", flush=True)
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{script}",
            *arguments,
            "--json",
            str(RESULTS / f"{result}.json"),
        ]
        if subprocess.run(command, check=False).returncode:
            failed.append(script)
        print(f"== {script}: {time.monotonic() - start:.0f} s", flush=True)
    table.write()
    if read("growth") is not None:
        draw_growth.main()
    print(f"== {time.monotonic() - began:.0f} s in all; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
