"""What steering costs, side by side with pipelines that were never touched: `python -m benchmarks.steering --json steering.json`.

1. The embedded model, whole calls: bare, bare again (another copy: how far two equal series differ), attached and off, and
   each operation in its window.
2. One block of Wan 2.1 1.3B's width with random weights, at thousands of tokens, with the push alone in a plain hook: one that
   returns its input (bare), each norm rule, the set-point, and `h + a v` as one writes it at first, out of place, in float32.
3. The push alone against a copy of the same bytes: how near it is to what memory allows.

An aim is met only if the 95 % bootstrap interval of the paired median ratio lies within it.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel

from benchmarks.machine import describe
from benchmarks.paired import Ratio, Times, interleave, ratio
from reins_serve.models.catalog import EMBEDDED
from reins_serve.models.generation import generate, request
from reins_serve.models.loading import load
from reins_serve.plugin import attach
from reins_serve.steering.operator import RowPush, steer
from reins_serve.steering.policy import SteeringRow

ON_STACK, ON_EMBEDDED, IDLE = 1.003, 1.01, 0.003
WIDTH, HEADS, FEED_FORWARD = 1536, 12, 8960  # Wan 2.1 1.3B
NORMS = ("none", "token", "channel")


def embedded(rounds: int, batch: int) -> tuple[dict[str, Times], bool]:
    """Times of whole calls of the embedded model, and whether being attached changes no bit."""
    clips = [request(EMBEDDED, "a red square moving left at sea", seed) for seed in range(batch)]
    bare, again = load(EMBEDDED), load(EMBEDDED)
    files = {"live": "directions/embedded/setpoint.safetensors", "add": "directions/embedded/add.safetensors"}
    steering = attach(load(EMBEDDED), model="embedded", directions=files)

    def steered(of: str | None) -> np.ndarray:
        amount = 0.0 if of is None else steering.directions[of].serving_strength
        with steering.generation(rows=[SteeringRow(of, amount)] * batch) as g:
            return generate(steering.pipeline, EMBEDDED, clips, g.arguments)

    same = bool(np.array_equal(generate(bare, EMBEDDED, clips), steered(None)))
    series: dict[str, Callable[[], object]] = {
        "bare": lambda: generate(bare, EMBEDDED, clips),
        "bare again": lambda: generate(again, EMBEDDED, clips),
        "idle": lambda: steered(None),
        "setpoint": lambda: steered("live"),
        "add": lambda: steered("add"),
    }
    return interleave(series, rounds), same


def vector() -> torch.Tensor:
    """The unit vector `[D]` of every push here."""
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), dim=0)


def pusher(norm: str, setpoint: bool = False) -> Callable[[torch.Tensor], torch.Tensor]:
    """The push of one row `[1, S, D]`; all that does not depend on the hidden states is made here, as in serving."""
    token, channel = norm == "token", norm == "channel"
    flags = (torch.tensor([flag]) for flag in (setpoint, token, channel))
    push = RowPush(vector()[None], torch.tensor([2.0]), torch.tensor([1.0]), *flags)
    return lambda hidden: steer(hidden, push, token_norm=token, channel_norm=channel).hidden


def stack(rounds: int, tokens: int) -> dict[str, Times]:
    """Times of one block of full width in one call of the denoiser; the hooks sit where ours does."""
    torch.manual_seed(0)
    side = int(tokens**0.5)
    denoiser = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=16, out_channels=16,
        text_dim=64, freq_dim=64, ffn_dim=FEED_FORWARD, num_layers=1, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    ).eval()  # fmt: skip
    latents, text = torch.randn(1, 16, 1, 2 * side, 2 * side), torch.randn(1, 16, 64)
    hooks: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"bare": lambda h: h, "bare again": lambda h: h}
    hooks |= {f"add, {norm}": pusher(norm) for norm in NORMS} | {"setpoint": pusher("none", setpoint=True)}
    plain = vector()
    hooks["naive"] = lambda h: (h.float() + 2.0 * plain).to(h.dtype)

    def call(hook: Callable[[torch.Tensor], torch.Tensor]) -> None:
        handle = denoiser.blocks[0].register_forward_hook(lambda module, args, output: hook(output))
        try:
            with torch.inference_mode():
                denoiser(latents, torch.tensor([500.0]), text, return_dict=False)
        finally:
            handle.remove()

    return interleave({name: partial(call, hook) for name, hook in hooks.items()}, rounds)


def bandwidth(tokens: int, rounds: int) -> dict[str, float]:
    """Seconds of a copy (a read and a write of every byte) over seconds of the push, by rule; 1 is the floor."""
    hidden = torch.randn(1, tokens, WIDTH)
    series: dict[str, Callable[[], object]] = {"copy": hidden.clone}
    series |= {norm: partial(pusher(norm), hidden) for norm in NORMS}
    with torch.inference_mode():
        times = interleave(series, rounds, warm=3)
    return {norm: round(ratio(times["copy"].wall, times[norm].wall).median, 3) for norm in NORMS}


def compared(times: Mapping[str, Times]) -> dict[str, Ratio]:
    """Every series to `bare`, by wall time."""
    return {name: ratio(series.wall, times["bare"].wall) for name, series in times.items() if name != "bare"}


def main() -> None:
    """Print and write every figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="of the embedded model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--stack-rounds", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    began = time.perf_counter()
    whole, same = embedded(asked.rounds, asked.batch)
    on_embedded = compared(whole)
    on_stack = compared(stack(asked.stack_rounds, asked.tokens))
    floor = bandwidth(asked.tokens, 20)
    idle = on_embedded["idle"]
    resolved = "met" if abs(idle.low - 1) <= IDLE and abs(idle.high - 1) <= IDLE else "not resolved"
    figures: dict[str, Any] = {
        "machine": describe(),
        "setting": {name: value for name, value in vars(asked).items() if name != "json"},
        "idle_bit_identical": same,
        "idle_ratio": idle.as_json() | {"aim": resolved},
        "on_ratio_embedded": on_embedded["setpoint"].as_json() | {"aim": on_embedded["setpoint"].within(ON_EMBEDDED)},
        "on_ratio_block_stack": {
            name: found.as_json() | {"aim": found.within(ON_STACK)}
            for name, found in on_stack.items() if name not in ("bare again", "naive")
        },
        "naive_ratio": on_stack["naive"].as_json(),
        "operator_bandwidth_of_copy": floor,
        "embedded": {name: found.as_json() for name, found in on_embedded.items()},
        "a_a_block_stack": on_stack["bare again"].as_json(),
        "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
