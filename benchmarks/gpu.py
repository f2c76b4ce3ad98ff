"""A denoising step on a GPU, bare, idle and steered: `python -m benchmarks.gpu --json benchmarks/results/gpu.json`.

Full-size denoisers with random weights, made from their configurations: nothing is downloaded, and a step takes as long as with
real weights. Each model stands in memory twice, once never touched and once with the real hook at half its depth, whose rows
are put as a generation puts them: none (idle), then each norm rule and the set-point. Calls take turns in every order; the
ratio is the median of paired ratios. Then the same with blocks compiled by region, where a swap of the rows between two calls
must compile nothing, with a first-block cache, and with CUDA graphs where they work. Last the push alone against a copy of the
same bytes.

`--tiny` runs the same lines on small models, on any device: that is all that was ever run of this without a GPU.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FirstBlockCacheConfig,
    LTXVideoTransformer3DModel,
    WanTransformer3DModel,
)

from benchmarks.machine import compiled_graphs, describe
from benchmarks.output import write
from benchmarks.paired import interleave, ratio
from reins_serve.models.spec import blocks_of
from reins_serve.steering.branches import COND
from reins_serve.steering.calls import Calls
from reins_serve.steering.direction import Direction, Strength
from reins_serve.steering.hook import Rows, SteeringHook, SteeringState, register, rows_at
from reins_serve.steering.plan import RowPlan
from reins_serve.steering.policy import LIVE, SteeringRow
from reins_serve.steering.trial import trial_direction

WAYS: dict[str, dict[str, Any]] = {
    "add, none": {"norm": "none"},
    "add, token": {"norm": "token"},
    "add, channel": {"norm": "channel"},
    "setpoint": {"operation": "setpoint", "strength": Strength(unit="deficit", serving=1.0, max=2.0)},
}
Call = Callable[[], object]


def wan(tiny: bool) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Wan 2.1 1.3B: 81 frames of 832 x 480, 32,760 tokens."""
    layers, heads, ffn, text, size = (2, 2, 64, 32, (1, 3, 8, 8)) if tiny else (30, 12, 8960, 4096, (1, 21, 60, 104))
    made = WanTransformer3DModel(
        num_layers=layers, num_attention_heads=heads, attention_head_dim=128, ffn_dim=ffn, text_dim=text, freq_dim=256,
        in_channels=16, out_channels=16, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    batch, frames, height, width = size
    return made, {
        "hidden_states": torch.randn(batch, 16, frames, height, width),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": torch.randn(batch, 512, text),
    }


def cogvideox(tiny: bool) -> tuple[torch.nn.Module, dict[str, Any]]:
    """CogVideoX 5b: 49 frames of 720 x 480, 17,550 tokens and 226 of the text."""
    layers, heads, text, (frames, height, width) = (2, 2, 32, (3, 8, 8)) if tiny else (42, 48, 4096, (13, 60, 90))
    made = CogVideoXTransformer3DModel(
        num_layers=layers, num_attention_heads=heads, attention_head_dim=64, text_embed_dim=text,
        use_rotary_positional_embeddings=True, sample_height=height, sample_width=width, sample_frames=4 * frames - 3,
    )  # fmt: skip
    tokens = frames * height * width // 4
    return made, {
        "hidden_states": torch.randn(1, frames, 16, height, width),
        "timestep": torch.full((1,), 500),
        "encoder_hidden_states": torch.randn(1, 226, text),
        "image_rotary_emb": (torch.ones(tokens, 64), torch.zeros(tokens, 64)),
    }


def ltx(tiny: bool) -> tuple[torch.nn.Module, dict[str, Any]]:
    """LTX-Video 2B: 161 frames of 768 x 512, 8,064 tokens."""
    layers, heads, (frames, height, width) = (2, 2, (3, 4, 4)) if tiny else (28, 32, (21, 16, 24))
    text = 32 if tiny else 4096
    made = LTXVideoTransformer3DModel(
        num_layers=layers, num_attention_heads=heads, attention_head_dim=64, cross_attention_dim=64 * heads, caption_channels=text,
    )  # fmt: skip
    return made, {
        "hidden_states": torch.randn(1, frames * height * width, 128),
        "timestep": torch.full((1,), 500.0),
        "encoder_hidden_states": torch.randn(1, 128, text),
        "encoder_attention_mask": torch.ones(1, 128),
        "num_frames": frames,
        "height": height,
        "width": width,
    }


MODELS = {"Wan 2.1 1.3B": wan, "CogVideoX 5b": cogvideox, "LTX-Video 2B": ltx}


class Steered:
    """A denoiser with the steering hook at half its depth, whose rows the benchmark puts itself."""

    def __init__(self, denoiser: torch.nn.Module, device: torch.device) -> None:
        self.denoiser = denoiser
        self.pipeline = SimpleNamespace(transformer=denoiser, do_classifier_free_guidance=False)
        self._calls = Calls(self.pipeline, denoiser)
        self._calls.begin(prompts=1)
        if self._calls.spec.guidance == "sequential":
            self._calls.enter(COND)
        self._state = SteeringState()
        self._state.tally = torch.zeros(1, 4, dtype=torch.float64, device=device)
        self.direction: Direction = trial_direction(self.pipeline, norm="none")
        (self.block,) = self.direction.blocks
        self._hook: SteeringHook
        (self._hook,) = register(self.pipeline, [self.block], self._state, {"transformer": self._calls})
        self._device = device

    def rows(self, way: str) -> dict[str, Rows]:
        """The rows of one way of steering, for one clip that is pushed in every call."""
        meta = self.direction.meta.model_copy(update={"norm": "none"} | WAYS[way])
        made = Direction.create(meta, self.direction.vectors)
        return rows_at(self.block, [RowPlan(SteeringRow(LIVE, 1.0), made)], [True], self._device)

    def put(self, rows: dict[str, Rows]) -> None:
        """What the host does when the window opens or closes, or another direction is swapped in."""
        self._hook.rows = rows


def measure(name: str, tiny: bool, device: torch.device, rounds: int) -> Iterator[dict[str, Any]]:
    """Every figure of one model."""
    bare, given = _made(name, tiny, device)
    steered = Steered(copy.deepcopy(bare), device)
    rows: dict[str, dict[str, Rows]] = {"idle": {}} | {way: steered.rows(way) for way in WAYS}

    def call(denoiser: torch.nn.Module, due: dict[str, Rows] | None = None) -> None:
        if due is not None:
            steered.put(due)
        with torch.inference_mode():
            denoiser(**given, return_dict=False)
        _wait(device)

    def series() -> dict[str, Call]:
        ways: dict[str, Call] = {way: partial(call, steered.denoiser, due) for way, due in rows.items()}
        return {"bare": partial(call, bare), "bare again": partial(call, bare)} | ways

    yield from _compared(name, "eager", series(), rounds, device)
    for one in (bare, steered.denoiser):
        _compile(one)
    for warm in series().values():
        warm()
    graphs = compiled_graphs()
    for due in rows.values():
        call(steered.denoiser, due)
    yield {
        "model": name,
        "way": "swaps between compiled calls: graphs compiled anew",
        "value": compiled_graphs() - graphs,
    }
    yield from _compared(name, "compiled by region", series(), rounds, device)


def cached(name: str, tiny: bool, device: torch.device) -> Iterator[dict[str, Any]]:
    """Whether a first-block cache and CUDA graphs carry the hook: they may refuse, and the table says so."""
    tried: dict[str, Callable[[torch.nn.Module], None]] = {
        "first-block cache": lambda denoiser: denoiser.enable_cache(FirstBlockCacheConfig(threshold=0.1)),
    }
    if device.type == "cuda":
        tried["CUDA graphs"] = partial(_compile, mode="reduce-overhead")
    for way, prepare in tried.items():
        torch._dynamo.reset()
        denoiser, given = _made(name, tiny, device)
        steered = Steered(denoiser, device)
        try:
            prepare(steered.denoiser)
            steered.put(steered.rows("add, none"))
            with torch.inference_mode(), steered.denoiser.cache_context(COND):
                for _ in range(3):
                    steered.denoiser(**given, return_dict=False)
            _wait(device)
            applied = steered._state.tally
            assert applied is not None
            found: str | float = f"runs, pushed {int(applied[0, 0])} times in 3 calls"
        except Exception as error:
            found = f"does not run: {type(error).__name__}: {str(error)[:100]}"
        yield {"model": name, "way": way, "value": found}


def operator(device: torch.device, tokens: int, width: int, rounds: int) -> dict[str, float]:
    """Seconds of a copy over seconds of the push, by way: 1 is what memory allows."""
    denoiser, _ = wan(True)
    steered = Steered(denoiser.eval().to(device), device)
    hidden = torch.randn(1, tokens, width, device=device, dtype=_dtype(device))
    vector = torch.nn.functional.normalize(torch.randn(1, width, device=device), dim=1)

    def timed(work: Call) -> Call:
        def call() -> None:
            with torch.inference_mode():
                work()
            _wait(device)

        return call

    series: dict[str, Call] = {"copy": timed(hidden.clone)}
    for way in WAYS:
        made = steered.rows(way)[COND]
        rows = made._replace(push=made.push._replace(vector=vector))
        series[way] = timed(partial(rows.steer, hidden))
        series[f"{way}, compiled"] = timed(partial(torch.compile(rows.steer, dynamic=False), hidden))
    times = interleave(series, rounds, warm=3)
    return {way: round(ratio(times["copy"], times[way]).median, 3) for way in series if way != "copy"}


def _compared(
    name: str, how: str, series: dict[str, Call], rounds: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    times = interleave(series, rounds, warm=2)
    for way in series:
        memory = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            series[way]()
            memory = round(torch.cuda.max_memory_allocated(device) / 2**20)
        if way != "bare":
            found = ratio(times[way], times["bare"])
            yield {"model": name, "way": f"{how}, {way}", **found.as_json(), "peak_mib": memory}


def _made(name: str, tiny: bool, device: torch.device) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A denoiser, the same each time, and the arguments of its calls."""
    torch.manual_seed(0)
    denoiser, arguments = MODELS[name](tiny)
    dtype = _dtype(device)
    return denoiser.eval().to(device, dtype), {key: _moved(value, device, dtype) for key, value in arguments.items()}


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_moved(one, device, torch.float32) for one in value)
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() and value.dim() > 1 else value.dtype)


def _compile(denoiser: torch.nn.Module, **options: Any) -> None:
    for block in blocks_of(denoiser):
        block.compile(dynamic=False, **options)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Print and write every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--tiny", action="store_true", help="small models, on any device: to try the script")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        parser.exit(1, "No GPU here: nothing was run. `--tiny` tries the script itself.\n")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        for found in (*measure(name, asked.tiny, device, asked.rounds), *cached(name, asked.tiny, device)):
            rows.append(found)
            value = (
                found["value"]
                if "value" in found
                else f"{found['median']:.4f} [{found['low']:.4f}, {found['high']:.4f}]"
            )
            print(f"{found['model']:14} {found['way']:55} {value}  {found.get('peak_mib') or ''}", flush=True)
    tokens, width = (512, 256) if asked.tiny else (32_760, 1536)
    floor = operator(device, tokens, width, asked.rounds)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    figures = {
        "machine": describe(),
        "card": card,
        "tiny": asked.tiny,
        "rows": rows,
        "operator_bandwidth_of_copy": floor,
    }
    figures["seconds"] = round(time.perf_counter() - began)
    print(json.dumps({"card": card, "operator_bandwidth_of_copy": floor, "seconds": figures["seconds"]}, indent=1))
    write(figures, asked.json)


if __name__ == "__main__":
    main()
