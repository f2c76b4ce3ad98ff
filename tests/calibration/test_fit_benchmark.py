"""The benchmark of the fit runs, in its small version."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_small_benchmark_prints_every_comparison(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.fit", "--quick", "--repeats", "1", "--json", str(tmp_path / "fit.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads((tmp_path / "fit.json").read_text())
    assert figures["eigen_step_to_last_step"] > 1
    assert len(figures["growth"]["clips"]) == len(figures["growth"]["width"]) == 3
    for part in ("reading only", "one pass", "D x D eigenvectors", "IncrementalPCA", "LDA", "N = 4,000", "D = 256"):
        assert part in run.stdout
    assert re.search(r'"processor": .*"versions": ', run.stdout)
    assert len(re.findall(r"peak RSS (\d+) MiB", run.stdout)) == 3
