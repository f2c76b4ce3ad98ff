"""One-pass fit of a direction from Parquet, against reading alone, scikit-learn, and the textbook's D x D eigenproblem.

`python -m benchmarks.fit` writes 100,000 drawn activations of width 3,072 at 4 blocks (float16, 2.5 GB) to a temporary
folder and takes about 8 minutes on two cores; `--quick` is a small version of the same. Each figure is made by a process of
its own, so that its peak memory is its own; runs are interleaved, medians and ranges are printed.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: one thread computes throughout

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from sklearn.decomposition import IncrementalPCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from benchmarks.machine import describe
from benchmarks.output import write as write_figures
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
        fitted.partial_fit(batch.layers, batch.columns[LABEL] >= 0.5, batch.columns["prompt_sha256"])
    start = time.perf_counter()
    fitted.solve()
    return time.perf_counter() - start


def textbook(stored: StoredActivations) -> float:
    """(c) The same pass, then the D x D matrix X'HLHX of each block and its eigenvectors. Returns the seconds of this step."""
    fitted = SupervisedPCA()
    for batch in stored.batches(columns=[LABEL]):
        fitted.partial_fit(batch.layers, batch.columns[LABEL] >= 0.5, batch.columns["prompt_sha256"])
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
        pooled.append(batch.layers[0].astype(np.float32))
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
    """One run in this process: seconds of the pass (clock, processors), of the way's own step, and peak RSS in MiB."""
    pa.set_cpu_count(1)
    files = open_activations(str(folder), "drawn").files[: -(-clips // PER_FILE)]
    start, cpu = time.perf_counter(), time.process_time()
    step = WAYS[way](open_activations(str(folder), "drawn", files=files))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu": cpu,
        "step": step,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """A call in a process of its own, forked before any thread was started: its memory and its allocator are fresh."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(function, *arguments).result()


def run(way: str, folder: Path, clips: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    found: dict[str, float] = apart(measure, way, folder, clips)
    return found


def spread(values: list[float]) -> str:
    """Median and range, in words."""
    return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def compare(folder: Path, clips: int, repeats: int) -> dict[str, Any]:
    """The one pass against the others on all clips."""
    figures: dict[str, Any] = {}
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for repeat in range(repeats):
        for way in WAYS:
            if way in ("read", "reins") or repeat == 0:
                runs[way].append(run(way, folder, clips))
    seconds = {way: [r["seconds"] for r in found] for way, found in runs.items()}
    for way, name in (("read", "(a) reading only"), ("reins", "reins, one pass ")):
        cpu, rss = [r["cpu"] for r in runs[way]], max(r["rss"] for r in runs[way])
        print(f"{name}        {spread(seconds[way])} s; {spread(cpu)} s of processors; peak RSS {rss:.0f} MiB")
    for key, name in (("seconds", "clock"), ("cpu", "processors")):
        ratios = [b[key] / a[key] for a, b in zip(runs["read"], runs["reins"], strict=True)]
        print(f"  / reading             {spread(ratios)} by {name} (aim: at most 2)")
        figures[f"to_reading_{key}"] = [round(value, 3) for value in sorted(ratios)]
    solve, eigen = float(np.median([r["step"] for r in runs["reins"]])), runs["textbook"][0]
    print(f"(c) D x D eigenvectors  {eigen['step']:.2f} s after the same pass, {eigen['seconds']:.2f} s in all; "
          f"peak RSS {eigen['rss']:.0f} MiB")  # fmt: skip
    print(f"  / reins               {eigen['step'] / solve:,.0f} x its last step ({1e3 * solve:.2f} ms; aim: at least 20), "
          f"{eigen['seconds'] / np.median(seconds['reins']):.1f} x in all, reading included")  # fmt: skip
    part = min(SUBSET, clips)
    figures |= {
        "seconds": round(float(np.median(seconds["reins"])), 2),
        "peak_rss_mib": round(max(r["rss"] for r in runs["reins"])),
        "eigen_step_to_last_step": round(eigen["step"] / solve),
        "eigen_whole_to_whole": round(eigen["seconds"] / float(np.median(seconds["reins"])), 1),
    }
    share = np.median(seconds["reins"]) * part / (clips * len(BLOCKS))
    for way, name in (("pca", "IncrementalPCA"), ("lda", "LDA")):
        found = runs[way][0]["step"]
        print(f"(b) scikit-learn {name}: {found:.2f} s for {part:,} clips of one block in memory, {found / share:.0f} x the share "
              "of reins' pass, reading included")  # fmt: skip
        figures[f"{name}_to_share"] = round(found / share, 1)
    print("    (IncrementalPCA grows with N as the pass does; most of LDA's time at this size is D x D and does not.)")
    return figures


def growth(
    name: str, folders: list[tuple[int, Path]], clips: list[int], values: list[int], repeats: int
) -> list[dict[str, float]]:
    """Time of the pass for each size, whole and per value: linear growth is a constant time per value."""
    found = []
    for number, (size, folder) in enumerate(folders):
        runs = [run("reins", folder, clips[number]) for _ in range(repeats)]
        clock, cpu = (float(np.median([r[key] for r in runs])) for key in ("seconds", "cpu"))
        print(f"  {name} = {size:,}: {clock:.2f} s, {cpu:.2f} s of processors: {1e9 * clock / values[number]:.1f} and "
              f"{1e9 * cpu / values[number]:.1f} ns a value")  # fmt: skip
        found.append({name: size, "seconds": round(clock, 2), "ns_per_value": round(1e9 * clock / values[number], 2)})
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4,000 clips of width 256")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clips, widths = (4_000, (64, 128, 256)) if arguments.quick else (arguments.clips, (768, 1536, 3072))
    figures: dict[str, Any] = {"machine": describe(), "clips": clips, "blocks": len(BLOCKS), "width": widths[-1]}
    print(json.dumps(figures["machine"], ensure_ascii=False))
    with tempfile.TemporaryDirectory(prefix="reins-fit-") as temporary:
        root = Path(temporary)
        start = time.perf_counter()
        apart(write, root / "all", clips, widths[-1])
        size = sum(path.stat().st_size for path in root.rglob("*.parquet")) / 1e9
        print(f"{clips:,} clips, {len(BLOCKS)} blocks, width {widths[-1]}, float16: {size:.2f} GB, written in "
              f"{time.perf_counter() - start:.0f} s")  # fmt: skip
        figures |= compare(root / "all", clips, arguments.repeats)
        values = len(BLOCKS) * widths[-1]
        sizes = [clips // 4, clips // 2, clips]
        print(f"growth with N at D = {widths[-1]:,}, and with D at N = {sizes[0]:,}:")
        by_n = growth("N", [(n, root / "all") for n in sizes], sizes, [n * values for n in sizes], arguments.repeats)
        for width in widths[:-1]:
            apart(write, root / str(width), sizes[0], width)
        folders = [(width, root / str(width)) for width in widths[:-1]] + [(widths[-1], root / "all")]
        by_d = growth(
            "D", folders, sizes[:1] * 3, [sizes[0] * len(BLOCKS) * width for width in widths], arguments.repeats
        )
    figures["growth"] = {"clips": by_n, "width": by_d}
    write_figures(figures, arguments.json)


if __name__ == "__main__":
    main()
