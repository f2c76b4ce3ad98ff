"""What steering costs, side by side with pipelines that were never touched: `python -m benchmarks.steering --json steering.json`.

1. The embedded model, denoising steps in lockstep: bare, bare again (another copy: how far two equal series differ), attached and
   off, each operation and norm rule in its window, and the set-point at every step; beside it the same calls whole, and calls to
   themselves without the time in steering's own functions, clocked inside them. Host
   synchronisations are counted for both: values that are read back from the device, of which steering must add none inside the
   loop.
2. One block of Wan 2.1 1.3B's width with random weights, at thousands of tokens, with the push alone in a plain hook: one that
   returns its input (bare), each norm rule, the set-point, and `h + a v` as one writes it at first, out of place, in float32.
   A call takes seconds, and paired calls differ by more than what is looked for. Therefore the hook is clocked too, and each
   call set beside itself without the time in its hook.
3. The push alone against a copy of the same bytes: how near it is to what memory allows; beside it the same as the formula
   reads, whole tensors one after the other and norms of what was pushed, which is what the operator once was.
4. Peak memory of that block's call at a quarter of the tokens, each way in a process of its own, in activations more than the
   bare one.

An aim is met only if the 95 % bootstrap interval of the paired median ratio lies within it, and two equal series lie no further
apart.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.clocked import in_calls, timed, to_rest
from benchmarks.lockstep import StepEnd, Stepped, in_step
from benchmarks.machine import describe
from benchmarks.output import show
from benchmarks.paired import Ratio, across, interleave, ratio
from reins_serve.models.catalog import EMBEDDED
from reins_serve.models.generation import generate, request
from reins_serve.models.loading import load
from reins_serve.models.spec import Pipeline
from reins_serve.plugin import attach
from reins_serve.steering.calls import CallsHook, _Listener
from reins_serve.steering.clock import StepClock
from reins_serve.steering.direction import Direction, Window
from reins_serve.steering.generation import Generation
from reins_serve.steering.hook import SteeringHook
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.operator import RowPush, steer
from reins_serve.steering.policy import SteeringRow

ON_STACK, ON_EMBEDDED, IDLE = 1.003, 1.01, 0.003
WIDTH, HEADS, FEED_FORWARD = 1536, 12, 8960  # Wan 2.1 1.3B
NORMS = ("none", "token", "channel")
OWN = (
    (Generation, "__enter__"),
    (Generation, "__exit__"),
    (StepClock, "_step_end"),
    (CallsHook, "pre_forward"),
    (_Listener, "set_context"),
    (SteeringHook, "pre_forward"),
    (SteeringHook, "post_forward"),
)
"""All of steering that runs while a pipeline does; what diffusers needs to call a hook, some microseconds each, is not among it."""


class Syncs(TorchDispatchMode):
    """Counts the operations that read a value back from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


def syncs(call: Callable[[], object]) -> int:
    """How many values a call reads back."""
    with Syncs() as mode:
        call()
    return mode.count


def varied(direction: Direction, **changes: Any) -> Direction:
    """The direction with other words in its file."""
    return Direction.create(direction.meta.model_copy(update=changes), direction.vectors)


def embedded_series(batch: int, *names: str) -> dict[str, Callable[..., np.ndarray]]:
    """Calls of the embedded model, with or without a callback for the end of a step: by pipelines never touched (`bare`,
    `bare again`), attached and off, and steered; all, or the named ones. Each has a pipeline of its own."""
    clips = [request(EMBEDDED, "a red square moving left at sea", seed) for seed in range(batch)]
    setpoint, add = (Direction.load(f"directions/embedded/{name}.safetensors") for name in ("setpoint", "add"))
    directions = {
        "live": setpoint,
        "setpoint, all steps": varied(setpoint, window=Window(start=0.0, end=1.0)),
        **{f"add, {norm}": varied(add, norm=norm, branches="both") for norm in NORMS},
    }

    def bare(pipeline: Pipeline, step_end: StepEnd | None = None) -> np.ndarray:
        return generate(pipeline, EMBEDDED, clips, {} if step_end is None else {"callback_on_step_end": step_end})

    def steered(steering: SteeringMiddleware, of: str | None, step_end: StepEnd | None = None) -> np.ndarray:
        amount = 0.0 if of is None else steering.directions[of].serving_strength
        with steering.generation(rows=[SteeringRow(of, amount)] * batch, callback_on_step_end=step_end) as g:
            return generate(steering.pipeline, EMBEDDED, clips, g.arguments)

    ways = {"idle": None, "setpoint": "live"} | {name: name for name in directions if name != "live"}

    def made(name: str) -> Callable[..., np.ndarray]:
        if name in ways:
            return partial(steered, attach(load(EMBEDDED), model="embedded", directions=directions), ways[name])
        return partial(bare, load(EMBEDDED))

    return {name: made(name) for name in names or ("bare", "bare again", *ways)}


def embedded(rounds: int, batch: int) -> tuple[dict[str, Stepped], bool, dict[str, int]]:
    """Steps of the embedded model, whether being attached changes no bit, and host synchronisations."""
    series = embedded_series(batch)
    same = bool(np.array_equal(series["bare"](), series["idle"]()))
    read_back = {name: syncs(series[name]) for name in ("bare", "idle", "setpoint")}
    return in_step(series, rounds), same, read_back


def in_embedded(rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """Whole calls of the embedded model to themselves without the time in steering's own functions."""
    series = partial(embedded_series, batch, "idle", "setpoint", "setpoint, all steps")
    return {name: found.as_json() for name, found in in_calls(series, OWN, rounds).items()}


def units(count: int, width: int = WIDTH) -> torch.Tensor:
    """Random unit vectors `[count, width]`; the first is that of every push here."""
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(drawn, dim=1)


def pusher(
    norm: str, setpoint: bool = False, vectors: torch.Tensor | None = None, guards: bool = False
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The push of `[R, S, D]` along `vectors` `[R, D]`, by default of one row; all that does not depend on the hidden states is
    made here, as in serving."""
    vectors = units(1) if vectors is None else vectors
    rows, token, channel = len(vectors), norm == "token", norm == "channel"
    flags = (torch.full((rows,), flag) for flag in (setpoint, token, channel))
    onset = 1.0 if guards else torch.inf
    numbers = (torch.full((rows,), value) for value in (2.0, 1.0, onset, 1.0))
    push = RowPush(vectors, *numbers, *flags)
    does = {"token_norm": token, "channel_norm": channel, "all_rows": True, "guards": guards}
    return lambda hidden: steer(hidden, push, **does).hidden


def block(tokens: int) -> tuple[dict[str, Callable[[], None]], dict[str, list[float]]]:
    """Calls of a denoiser of one block of full width, by what its hook does, and the seconds in it; it sits where ours do."""
    torch.manual_seed(0)
    side = int(tokens**0.5)
    denoiser = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=16, out_channels=16,
        text_dim=64, freq_dim=64, ffn_dim=FEED_FORWARD, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    ).eval()  # fmt: skip
    latents, text = torch.randn(1, 16, 1, 2 * side, 2 * side), torch.randn(1, 16, 64)
    does: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"bare": lambda h: h, "bare again": lambda h: h}
    does |= {f"add, {norm}": pusher(norm) for norm in NORMS} | {"setpoint": pusher("none", setpoint=True)}
    does["setpoint, guard"] = pusher("none", setpoint=True, guards=True)
    plain = units(1)[0]
    does["naive"] = lambda h: (h.float() + 2.0 * plain).to(h.dtype)
    seconds: dict[str, list[float]] = {name: [] for name in does}

    def call(hook: Callable[[torch.Tensor], torch.Tensor]) -> None:
        handle = denoiser.blocks[0].register_forward_hook(lambda module, args, output: hook(output))
        try:
            with torch.inference_mode():
                denoiser(latents, torch.tensor([500.0]), text, return_dict=False)
        finally:
            handle.remove()

    return {name: partial(call, timed(hook, seconds[name])) for name, hook in does.items()}, seconds


def peak(tokens: int, name: str, threads: int) -> int:
    """Peak memory of this process after two calls, in bytes."""
    torch.set_num_threads(threads)
    call = block(tokens)[0][name]
    call()
    call()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peaks(tokens: int) -> dict[str, float]:
    """Peak memory beyond the bare call's, in activations of the block, by what the hook does."""
    names = ("bare", *(f"add, {norm}" for norm in NORMS), "setpoint", "setpoint, guard", "naive")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        peaks_of = pool.map(peak, [tokens] * len(names), names, [1] * len(names))
        found = dict(zip(names, peaks_of, strict=True))
    activation = 4 * tokens * WIDTH
    return {name: round((value - found["bare"]) / activation, 2) for name, value in found.items() if name != "bare"}


def as_it_reads(norm: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The formula with its figures, an addition, of whole tensors."""
    plain, dim = units(1)[0], {"token": 2, "channel": 1}.get(norm)

    def push(hidden: torch.Tensor) -> torch.Tensor:
        h = hidden.float()
        before = h @ plain
        moved = h + 2.0 * plain
        if dim is not None:
            moved = moved * (h.norm(dim=dim, keepdim=True) / moved.norm(dim=dim, keepdim=True))
        displacement = (moved @ plain - before).mean()
        return torch.where(displacement.isfinite(), moved, h).to(hidden.dtype)

    return push


def bandwidth(tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of a copy (a read and a write of every byte) over seconds of the push, by rule: 1 is the floor."""
    hidden = torch.randn(1, tokens, WIDTH)
    series: dict[str, Callable[[], object]] = {"copy": hidden.clone}
    series |= {norm: partial(pusher(norm), hidden) for norm in NORMS}
    series |= {f"{norm}, as the formula reads": partial(as_it_reads(norm), hidden) for norm in NORMS}
    with torch.inference_mode():
        times = interleave(series, rounds, warm=3)
    return {name: round(ratio(times["copy"], times[name]).median, 3) for name in series if name != "copy"}


def by_step(found: Mapping[str, Stepped]) -> dict[str, Ratio]:
    """Every series' denoising steps to those of `bare`; a series that steers in the first half of them, in those alone."""
    open_steps = {name: slice(None) for name in ("bare again", "idle", "setpoint, all steps")}
    bare = found["bare"]
    return {
        name: across(series.to(bare, open_steps.get(name, bare.first_half)))
        for name, series in found.items() if name != "bare"
    }  # fmt: skip


def main() -> None:
    """Print and write every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=24, help="of the embedded model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--stack-rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    began = time.perf_counter()
    steps, same, read_back = embedded(asked.rounds, asked.batch)
    on_embedded, bare = by_step(steps), steps["bare"]
    on, idle = across(steps["setpoint"].to(bare)), on_embedded["idle"]
    calls, in_hook = block(asked.tokens)
    stack = interleave(calls, asked.stack_rounds)
    on_stack = {name: ratio(series, stack["bare"]) for name, series in stack.items() if name != "bare"}
    in_stack = {
        name: to_rest(series, in_hook[name][-len(series) :])
        for name, series in stack.items() if name not in ("bare", "bare again")
    }  # fmt: skip
    resolved = "met" if abs(idle.low - 1) <= IDLE and abs(idle.high - 1) <= IDLE else "not resolved"
    figures: dict[str, Any] = {
        "machine": describe(),
        "setting": {name: value for name, value in vars(asked).items() if name != "json"},
        "idle_bit_identical": same,
        "idle_ratio": idle.as_json() | {"aim": resolved},
        "on_ratio_embedded": on.as_json() | {"aim": on.beside(on_embedded["bare again"], ON_EMBEDDED)},
        "on_ratio_block_stack": {
            name: found.as_json() | {"aim": found.beside(on_stack["bare again"], ON_STACK)}
            for name, found in on_stack.items() if name not in ("bare again", "naive")
        },
        "in_call_embedded": in_embedded(asked.rounds // 2, asked.batch),
        "in_call_block_stack": {name: found.as_json() | {"aim": found.within(ON_STACK)} for name, found in in_stack.items()},
        "naive_ratio": on_stack["naive"].as_json(),
        "operator_bandwidth_of_copy": bandwidth(asked.tokens, 20),
        "block_seconds": round(float(np.median(stack["bare"] + stack["bare again"])), 3),
        "step_seconds": round(float(np.median(bare.parts[:, 1:-1])), 4),
        "host_syncs": read_back,
        "peak_activations_more": peaks(asked.tokens // 4),
        "embedded": {name: found.as_json() for name, found in on_embedded.items()},
        "embedded_calls": {
            name: ratio(series.calls(), bare.calls()).as_json() for name, series in steps.items() if name != "bare"
        },
        "a_a_block_stack": on_stack["bare again"].as_json(),
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    show(figures, asked.json)


if __name__ == "__main__":
    main()
