"""The benchmark of the fit runs, in its small version."""

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_small_benchmark_prints_every_comparison() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.fit", "--quick", "--repeats", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    for part in ("reading only", "one pass", "D x D eigenvectors", "IncrementalPCA", "LDA", "N = 4,000", "D = 256"):
        assert part in run.stdout
    assert re.search(r'"processor": .*"versions": ', run.stdout)
    assert len(re.findall(r"peak RSS (\d+) MiB", run.stdout)) == 3
