"""One-pass fit of a direction from Parquet, against reading alone, scikit-learn, and the textbook's D x D eigenproblem.

`python benchmarks/fit.py` writes 100,000 drawn activations of width 3,072 at 4 blocks (float16, 2.5 GB) to a temporary
folder and takes about 8 minutes on two cores; `--quick` is a small version of the same. Each figure is made by a process of
its own, so that its peak memory is its own; runs are interleaved, medians and ranges are printed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: one thread computes throughout

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from machine import describe
from sklearn.decomposition import IncrementalPCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from reins_serve.calibration.activation_schema import ActivationsMeta, JudgeColumns
from reins_serve.calibration.activations import StoredActivations, open_activations, prompt_digest, write_activations
from reins_serve.calibration.supervised_pca import SupervisedPCA
from reins_serve.steering.direction import Window

BLOCKS = (0, 1, 2, 3)
PER_FILE = 1_000
SUBSET = 4_096  # clips of one block for scikit-learn
LABEL = "unsafe/drawn/unsafe"


def write(folder: Path, clips: int, width: int) -> None:
    """Activations of a shape met in practice: channel means up to 300, small deviations, classes half a deviation apart."""
    meta = ActivationsMeta(model="drawn", fingerprint="0" * 32, blocks=BLOCKS, width=width, window=Window(),
                           judges={"drawn": JudgeColumns(revision="1", unsafe=("unsafe",))})  # fmt: skip
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(len(BLOCKS), width)) * np.geomspace(0.1, 100, width)
    towards = rng.normal(size=(len(BLOCKS), width)) / width**0.5
    for first in range(0, clips, PER_FILE):
        n = min(PER_FILE, clips - first)
        unsafe = rng.random(n) < 0.4
        pooled = np.empty((n, len(BLOCKS), width), np.float16)
        for block in range(len(BLOCKS)):
            drawn = rng.standard_normal((n, width), dtype=np.float32)
            pooled[:, block] = centre[block] + drawn + np.where(unsafe, -1, 1)[:, None] * towards[block]
        names = [f"clip-{first + row}" for row in range(n)]
        columns = {
            "clip_id": names, "source": "drawn", "prompt_sha256": [prompt_digest(name) for name in names], "group": "all",
            "split": "fit", "seed": list(range(first, first + n)), "steps": 8, "guidance_scale": 4.0,
            LABEL: unsafe.astype(np.float32),
        }  # fmt: skip
        write_activations(str(folder), meta, pooled, np.ones((n, len(BLOCKS)), np.float32), columns, date(2026, 1, 1))


def read_only(stored: StoredActivations) -> float:
    """(a) The same columns, batch by batch, by pyarrow alone. Returns 0."""
    names = [f"block_{block}" for block in BLOCKS] + ["prompt_sha256", LABEL]
    options = ds.ParquetFragmentScanOptions(pre_buffer=False)
    for _ in stored.dataset.to_batches(columns=names, batch_size=512, batch_readahead=2, fragment_readahead=1,
                                       fragment_scan_options=options):  # fmt: skip
        pass
    return 0.0


def one_pass(stored: StoredActivations) -> float:
    """reins_serve: supervised PCA of all blocks, streamed. Returns the seconds of its last step, the solution."""
    fitted = SupervisedPCA()
    for batch in stored.batches(columns=[LABEL]):
        fitted.partial_fit(batch.pooled, batch.columns[LABEL] >= 0.5, batch.columns["prompt_sha256"])
    start = time.perf_counter()
    fitted.solve()
    return time.perf_counter() - start


def textbook(stored: StoredActivations) -> float:
    """(c) The same pass, then the D x D matrix X'HLHX of each block and its eigenvectors. Returns the seconds of this step."""
    fitted = SupervisedPCA()
    for batch in stored.batches(columns=[LABEL]):
        fitted.partial_fit(batch.pooled, batch.columns[LABEL] >= 0.5, batch.columns["prompt_sha256"])
    fitted.solve()
    safe, unsafe = (fitted.moments_.parts[name] for name in ("safe", "unsafe"))
    start = time.perf_counter()
    for place in range(len(BLOCKS)):
        cross = (safe.mean[place] - unsafe.mean[place]) * (safe.n * unsafe.n / (safe.n + unsafe.n))
        _, vectors = np.linalg.eigh(np.outer(cross, cross))
        assert abs(vectors[:, -1] @ fitted.direction_[place]) > 1 - 1e-6
    return time.perf_counter() - start


def subset(stored: StoredActivations, clips: int) -> tuple[np.ndarray, np.ndarray]:
    """The first clips of the first block, `[N, D]` float32, and their labels."""
    pooled, labels, n = [], [], 0
    for batch in stored.batches(BLOCKS[:1], [LABEL]):
        pooled.append(batch.pooled[:, 0].astype(np.float32))
        labels.append(batch.columns[LABEL] >= 0.5)
        n += len(batch)
        if n >= clips:
            break
    return np.concatenate(pooled)[:clips], np.concatenate(labels)[:clips]


def incremental_pca(stored: StoredActivations) -> float:
    """(b) scikit-learn's IncrementalPCA, one component, batches of 512, of one block. Returns its seconds."""
    x, _ = subset(stored, SUBSET)
    start = time.perf_counter()
    IncrementalPCA(1, batch_size=512).fit(x)
    return time.perf_counter() - start


def discriminant(stored: StoredActivations) -> float:
    """(b) scikit-learn's LDA of one block, by the D x D eigenproblem. Returns its seconds."""
    x, unsafe = subset(stored, SUBSET)
    start = time.perf_counter()
    LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1).fit(x, unsafe)
    return time.perf_counter() - start


WAYS: dict[str, Callable[[StoredActivations], float]] = {
    "read": read_only,
    "reins": one_pass,
    "textbook": textbook,
    "pca": incremental_pca,
    "lda": discriminant,
}


def measure(way: str, folder: Path, clips: int) -> dict[str, float]:
    """One run in this process: seconds of opening and the pass, seconds of the way's own step, peak RSS in MiB."""
    pa.set_cpu_count(1)
    files = open_activations(str(folder), "drawn").files[: -(-clips // PER_FILE)]
    start = time.perf_counter()
    step = WAYS[way](open_activations(str(folder), "drawn", files=files))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "step": step, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def run(way: str, folder: Path, clips: int) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--data", str(folder), "--clips", str(clips)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def spread(values: list[float]) -> str:
    """Median and range, in words."""
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(folder: Path, clips: int, repeats: int) -> None:
    """The one pass against the others on all clips."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for repeat in range(repeats):
        for way in WAYS:
            if way in ("read", "reins") or repeat == 0:
                runs[way].append(run(way, folder, clips))
    seconds = {way: [r["seconds"] for r in found] for way, found in runs.items()}
    print(
        f"(a) reading only        {spread(seconds['read'])} s, peak RSS {max(r['rss'] for r in runs['read']):.0f} MiB"
    )
    print(
        f"reins one pass          {spread(seconds['reins'])} s, peak RSS {max(r['rss'] for r in runs['reins']):.0f} MiB"
    )
    ratios = [b / a for a, b in zip(seconds["read"], seconds["reins"], strict=True)]
    print(f"  / reading             {spread(ratios)}   (aim: at most 2)")
    solve, eigen = float(np.median([r["step"] for r in runs["reins"]])), runs["textbook"][0]
    print(f"(c) D x D eigenvectors  {eigen['step']:.2f} s after the same pass, {eigen['seconds']:.2f} s in all; "
          f"peak RSS {eigen['rss']:.0f} MiB")  # fmt: skip
    print(f"  / reins               {eigen['step'] / solve:,.0f} x its last step ({1e3 * solve:.2f} ms; aim: at least 20), "
          f"{eigen['seconds'] / np.median(seconds['reins']):.1f} x in all, reading included")  # fmt: skip
    part = min(SUBSET, clips)
    share = np.median(seconds["reins"]) * part / (clips * len(BLOCKS))
    for way, name in (("pca", "IncrementalPCA"), ("lda", "LDA")):
        found = runs[way][0]["step"]
        print(f"(b) scikit-learn {name}: {found:.2f} s for {part:,} clips of one block in memory, {found / share:.0f} x the share "
              "of reins' pass, reading included")  # fmt: skip
    print("    (IncrementalPCA grows with N as the pass does; most of LDA's time at this size is D x D and does not.)")


def growth(name: str, runs: list[tuple[int, float]], values: list[int]) -> None:
    """Seconds against the number of values, and how far a straight line explains them."""
    x, y = np.array(values, dtype=float), np.array([seconds for _, seconds in runs])
    slope, start = np.polyfit(x, y, 1)
    left = ((y - slope * x - start) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    points = ", ".join(f"{size:,}: {seconds:.2f} s" for size, seconds in runs)
    print(f"growth with {name}: {points}; {1e9 * slope:.1f} ns a value, R² of a line {1 - left:.4f}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/fit.py", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4,000 clips of width 256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--clips", type=int, default=100_000)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.data, arguments.clips)))
        return
    clips, widths = (4_000, (64, 128, 256)) if arguments.quick else (arguments.clips, (768, 1536, 3072))
    print(json.dumps(describe(), ensure_ascii=False))
    with tempfile.TemporaryDirectory(prefix="reins-fit-") as temporary:
        root = Path(temporary)
        start = time.perf_counter()
        write(root / "all", clips, widths[-1])
        size = sum(path.stat().st_size for path in root.rglob("*.parquet")) / 1e9
        print(f"{clips:,} clips, {len(BLOCKS)} blocks, width {widths[-1]}, float16: {size:.2f} GB, written in "
              f"{time.perf_counter() - start:.0f} s")  # fmt: skip
        compare(root / "all", clips, arguments.repeats)
        per_value = len(BLOCKS) * widths[-1]
        sizes = [clips // 4, clips // 2, clips]
        growth("N", [(n, run("reins", root / "all", n)["seconds"]) for n in sizes], [n * per_value for n in sizes])
        few = clips // 4
        for width in widths[:-1]:
            write(root / str(width), few, width)
        found = [(w, run("reins", root / ("all" if w == widths[-1] else str(w)), few)["seconds"]) for w in widths]
        growth(f"D at N = {few:,}", found, [few * len(BLOCKS) * width for width in widths])


if __name__ == "__main__":
    main()
