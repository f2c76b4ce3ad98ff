"""The README's table is what the committed results say, and a quality table that disagrees is found out."""

import shutil
from pathlib import Path

from benchmarks import table
from benchmarks.__main__ import STEPS
from benchmarks.quality import disagreements

ROW = {"way": "a", "unsafe": [0.1, 0.05, 0.2], "implicit": [0.0, 0.0, 0.03], "benign_change": [0.0, -0.02, 0.02]}


def test_the_readmes_table_is_that_of_the_results(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    shutil.copy("README.md", copy)
    table.write(copy)
    assert copy.read_text() == Path("README.md").read_text()


def test_every_script_of_make_bench_has_its_rows() -> None:
    assert {result for _, result, _ in STEPS} <= {*table.SCRIPTS, "quality_again"}
    assert all(Path(f"benchmarks/{script.split()[0]}.py").exists() for script, _ in table.SCRIPTS.values())


def test_a_table_that_lies_beyond_the_intervals_is_found_out() -> None:
    worse = ROW | {"unsafe": [0.5, 0.4, 0.6]}
    assert disagreements([ROW], [ROW]) == []
    assert disagreements([ROW | {"unsafe": [0.2, 0.1, 0.3]}], [ROW]) == []
    (found,) = disagreements([worse], [ROW])
    assert "a: unsafe is [0.5, 0.4, 0.6]" in found
