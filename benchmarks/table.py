"""The README's table of benchmarks, from the JSON files of `benchmarks/results`: `python -m benchmarks.table`."""

from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.paired import verdict
from benchmarks.quality_table import attacks, concepts, quality
from benchmarks.stored import NOT_RUN, Figures, read

README = Path("README.md")
BEGIN, END = "<!-- benchmarks: written by `make bench` -->", "<!-- end of benchmarks -->"
Row = tuple[str, str, str]  # what is measured, the figure, the aim and whether it is met


def _ratio(found: Figures, digits: int = 3) -> str:
    return f"{found['median']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _clocked(found: Figures) -> str:
    """A ratio from inside a call, which is known more closely than one of two calls."""
    return _ratio(found, 4)


def steering(f: Figures) -> Iterable[Row]:
    """Overhead of steering."""
    yield (
        "a denoising step, attached and off, to one of a pipeline never touched",
        _ratio(f["idle_ratio"]),
        f"1 ± .003: {f['idle_ratio']['aim']}",
    )
    same = "yes" if f["idle_bit_identical"] else "no"
    yield "clips attached and off are those of that pipeline, bit for bit", same, "yes"
    yield "the same for two equal copies (A/A)", _ratio(f["embedded"]["bare again"]), ""
    yield (
        "all steps of a clip, steered by the live set-point in the first half of them",
        _ratio(f["on_ratio_embedded"]),
        f"≤ 1.01: {f['on_ratio_embedded']['aim']}",
    )
    for name, found in f["embedded"].items():
        if name not in ("bare again", "idle"):
            yield f"a step in the window, {name}", _ratio(found), ""
    for name, found in f["in_call_embedded"].items():
        yield f"a call, {name}: to itself without the time in steering's functions", _clocked(found), ""
    block = f"a block as wide as Wan 2.1 1.3B's at {f['setting']['tokens']:,} tokens"
    yield f"{block} to itself (A/A)", _ratio(f["a_a_block_stack"]), ""
    for name, found in f["on_ratio_block_stack"].items():
        yield f"{block}, {name}: paired calls", _ratio(found), f"≤ 1.003: {found['aim']}"
    for name, found in f["in_call_block_stack"].items():
        if name != "naive":
            yield f"{block}, {name}: to itself without its hook's time", _clocked(found), f"≤ 1.003: {found['aim']}"
    naive = "the same with `h + a v` out of place"
    yield f"{naive}: paired calls", _ratio(f["naive_ratio"]), ""
    yield f"{naive}: without its hook's time", _clocked(f["in_call_block_stack"]["naive"]), ""
    for name, share in f["operator_bandwidth_of_copy"].items():
        yield f"the push alone, {name}: bandwidth, as a share of a copy's", f"{share:.2f}", ""


def capture(f: Figures) -> Iterable[Row]:
    """Overhead of capturing."""
    found = f["captured to bare"]
    yield (
        "all steps of a clip, the activations of all blocks captured in the first half of them, to bare ones",
        _ratio(found),
        f"≤ 1.01: {found['aim']}",
    )
    yield "the same for two equal series (A/A)", _ratio(f["bare again to bare"]), ""


def fit(f: Figures) -> Iterable[Row]:
    """The fit."""
    values = f["to_reading_seconds"]
    what = f"fit of {f['clips']:,} activations, {f['blocks']} blocks of width {f['width']:,}"
    yield (
        f"{what}, to reading the files alone",
        f"{values[len(values) // 2]:.2f} ({values[0]:.2f} to {values[-1]:.2f})",
        f"≤ 2: {verdict(values[0], values[-1], 2)}",
    )
    met = "met" if f["eigen_step_to_last_step"] >= 20 else "not met"
    yield (
        "eigenvectors of the D x D matrix, to the fit's last step",
        f"{f['eigen_step_to_last_step']:,} x",
        f"≥ 20 x: {met}",
    )
    yield "peak memory of the fit", f"{f['peak_rss_mib']:,} MiB", ""


def growth(f: Figures) -> Iterable[Row]:
    """How it grows."""
    for name, unit in (("directions", "distinct directions in a batch"), ("blocks", "steered blocks")):
        least, most = f["calls"][name][0], f["calls"][name][-1]
        yield (
            f"a call to itself without the time in steering's functions, {least['count']} and {most['count']} {unit}",
            f"{_clocked(least)}, {_clocked(most)}",
            "",
        )


def reach(f: Figures) -> Iterable[Row]:
    """Swaps over the number of replicas."""
    for one in f["swaps"]:
        yield (
            f"publish to all of {one['replicas']} replicas under load, {one['swaps']} swaps: p50, p95",
            f"{one['p50_ms']:.0f}, {one['p95_ms']:.0f} ms",
            "",
        )


def swap(f: Figures) -> Iterable[Row]:
    """Hot swaps."""
    met = "met" if f["p95_ms"] < 100 else "not met"
    yield (
        f"publish to all of {f['replicas']} replicas under load, {f['swaps']} swaps: p50, p95, most",
        f"{f['p50_ms']:.0f}, {f['p95_ms']:.0f}, {f['max_ms']:.0f} ms",
        f"p95 < 100 ms: {met}",
    )
    yield (
        "the same for rollbacks alone",
        f"{f['rollback']['p50_ms']:.0f}, {f['rollback']['p95_ms']:.0f}, {f['rollback']['max_ms']:.0f} ms",
        "",
    )
    lost = (f["lost"], f["mixed"], f["torn"], f["recompiles"])
    yield (
        f"of {f['requests']:,} requests: lost, of mixed versions, torn vectors; recompilations",
        ", ".join(str(n) for n in lost),
        "0: " + ("met" if not any(lost) else "not met"),
    )
    yield (
        "time of a generation while directions are swapped, to none swapped",
        _ratio(f["latency"]),
        f"≤ 1.02: {verdict(f['latency']['low'], f['latency']['high'], 1.02, f['latency']['pairs'])}",
    )


def load(f: Figures) -> Iterable[Row]:
    """The server under overload."""
    setting = f["setting"]
    what = (
        f"{setting['replicas']} replica(s), batches of {setting['batch']}, {setting['steps']} steps, "
        f"{setting['overload']:g} times the capacity offered"
    )
    found = f["throughput"]
    yield (
        f"clips a second, served to a bare loop ({what})",
        _ratio(found),
        f"≥ .95: {verdict(-found['high'], -found['low'], -0.95, found['pairs'])}",
    )
    yield (
        "jobs accepted, completed, failed, lost; refused with 429",
        f"{f['accepted']}, {f['completed']}, {f['failed']}, {f['lost']}; {f['rejected_429']}",
        "none lost: " + ("met" if not f["lost"] else "not met"),
    )
    yield (
        "latency p50, p99; growth of memory",
        f"{f['p50_s']:.1f}, {f['p99_s']:.1f} s; {f['rss_growth_mib']:.0f} MiB",
        "",
    )


def fanout(f: Figures) -> Iterable[Row]:
    """The registry."""
    many = f["measured"][-1]
    yield f"a new version told to {many['watchers']} watchers: the last one, median", f"{many['last_ms']:.0f} ms", ""
    line = f["extrapolated"]
    yield f"drawn on to {line['replicas']:,} (extrapolated)", f"{line['last_ms']:.0f} ms", ""


def simulate(f: Figures) -> Iterable[Row]:
    """The simulation against the real server."""
    if "check" in f:
        real, simulated = f["check"]["real"], f["check"]["simulated"]
        yield (
            f"latency p50, p90 of {f['check']['jobs']} jobs: real server, simulation",
            f"{real['p50_s']:.1f}, {real['p90_s']:.1f} s; {simulated['p50_s']:.1f}, {simulated['p90_s']:.1f} s",
            "",
        )

    heavy = f["sizing"][-1]
    yield (
        f"replicas that keep 95 % within {f['within_s']:g} s at {heavy['in_capacities']:g} times a replica's capacity (simulated)",
        f"{heavy['replicas']}, p95 {heavy['p95_s']:.1f} s",
        "",
    )
    for one in f["to_zero"]:
        yield (
            f"scale-to-zero at {one['clips_per_hour']:g} clips an hour: replica time saved; p95 with and without (simulated)",
            f"{100 * one['replica_time_saved']:.0f} %; {one['p95_s']['to_zero']:.1f}, {one['p95_s']['always']:.1f} s",
            "",
        )


def trace(f: Figures) -> Iterable[Row]:
    """What steering adds, by the profiler."""
    found = f["embedded model"]["setpoint"]
    yield (
        "operations of a steered call beyond a bare one's, and their share of its time (profiler)",
        f"{found['added_operations']:,}, {found['added_ms'] / found['steered_ms']:.3f}",
        "",
    )


def peers(f: Figures) -> Iterable[Row]:
    """Hooks of other packages."""
    for name, found in f["ratios"].items():
        figure = found if isinstance(found, str) else _ratio(found)
        yield f"a block of torch's own at {f['tokens']:,} tokens with {name}, to one without", figure, ""


def gpu(f: Figures) -> Iterable[Row]:
    """On a GPU."""
    for one in f["rows"]:
        value = str(one["value"]) if "value" in one else _ratio(one)
        yield f"{one['model']} on {f['card']}: {one['way']}", value, ""


SCRIPTS: dict[str, tuple[str, Callable[[Figures], Iterable[Row]]]] = {
    "steering": ("steering", steering),
    "capture": ("capture", capture),
    "fit": ("fit", fit),
    "fit_quick": ("fit --clips 5000", fit),
    "growth": ("growth", growth),
    "trace": ("trace", trace),
    "swap": ("swap", swap),
    "swap_quick": ("swap --replicas 2", swap),
    "reach": ("reach", reach),
    "load": ("load", load),
    "load_quick": ("load --steps 10", load),
    "fanout": ("fanout", fanout),
    "simulate": ("simulate", simulate),
    "peers": ("peers", peers),
    "gpu": ("gpu", gpu),
}
"""Result -> what made it, and its rows."""


def costs() -> str:
    """The table of times."""
    lines = ["| | measured | aim | script |", "|---|---|---|---|"]
    for name, (script, of) in SCRIPTS.items():
        found = read(name)
        rows = [(str(of.__doc__).rstrip("."), NOT_RUN, "")] if found is None else list(of(found))
        lines += [f"| {what} | {figure} | {aim} | `{script}` |" for what, figure, aim in rows]
    return "\n".join(lines)


def machine() -> str:
    """On what the newest of the results was measured."""
    found = next((one for name in SCRIPTS if (one := read(name)) is not None), None)
    if found is None:
        return ""
    of, versions = found["machine"], found["machine"]["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers", "ray") if name in versions)
    return f"{of['cores']} cores of {of['processor']}, {of['memory_gib']:.0f} GiB, Python {of['python']}, {named}."


def write(readme: Path = README) -> None:
    """Put the tables between the README's two marks. Raises ValueError where they are missing."""
    text = readme.read_text()
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    body = f"\n\n{machine()}\n\n{costs()}\n\n{quality()}\n\n{concepts()}\n\n{attacks()}\n\n"
    readme.write_text(text[:before] + body + text[after:])


if __name__ == "__main__":
    write()
