"""What other packages' hooks cost at the same place: `python -m benchmarks.peers --json benchmarks/results/peers.json`.

`steering-vectors` asks for transformers below 5, which our diffusers does not take: it and `nnsight` get a virtual environment of
their own, with the same torch, and are compared there with the same bare blocks: layers of torch's own, as wide as Wan 2.1 1.3B's.
What cannot be installed or does not run is "not run", with the reason. Calls take turns, as everywhere here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from benchmarks.output import show
from benchmarks.paired import interleave, ratio

WIDTH, HEADS, FEED_FORWARD, STRENGTH = 1536, 12, 8960, 2.0
PACKAGES = ("steering-vectors", "transformers<5", "nnsight", "numpy")
Call = Callable[[torch.Tensor], object]


class Stack(torch.nn.Module):
    """Blocks as any language model has them: what the packages expect."""

    def __init__(self) -> None:
        super().__init__()
        made = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, FEED_FORWARD, batch_first=True, norm_first=True)
        self.blocks = torch.nn.ModuleList([made.eval()])

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def with_steering_vectors(vector: torch.Tensor) -> Call:
    """The package's own patch, put on once, as it is used."""
    from steering_vectors import SteeringVector

    model = Stack()
    steering = SteeringVector({0: STRENGTH * vector}, "decoder_block")
    steering.patch_activations(model, layer_config={"decoder_block": "blocks.{num}"})
    return model


def with_nnsight(vector: torch.Tensor) -> Call:
    """A trace around each call, as it is used."""
    from nnsight import NNsight

    model = NNsight(Stack())

    def call(hidden: torch.Tensor) -> None:
        with model.trace(hidden):
            model.blocks[0].output += STRENGTH * vector

    return call


def with_a_hook(vector: torch.Tensor) -> Call:
    """`h + a v`, out of place, in float32."""
    model = Stack()
    model.blocks[0].register_forward_hook(
        lambda module, given, output: (output.float() + STRENGTH * vector).to(output.dtype)
    )
    return model


PEERS = {"steering-vectors": with_steering_vectors, "nnsight": with_nnsight, "naive hook": with_a_hook}


def inside(tokens: int, rounds: int, threads: int) -> dict[str, Any]:
    """Every peer that runs here, against blocks without any hook."""
    torch.set_num_threads(threads)
    vector = torch.nn.functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), dim=0)
    hidden = torch.randn(1, tokens, WIDTH)
    bare, again = Stack(), Stack()
    series: dict[str, Call] = {"bare": bare, "bare again": again}
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for name, make in PEERS.items():
            try:
                call = make(vector)
                call(hidden[:, :8])
                series[name] = call
            except Exception as error:
                found[name] = f"not run: {type(error).__name__}: {str(error)[:200]}"
        times = interleave({name: (lambda call=call: call(hidden)) for name, call in series.items()}, rounds)  # type: ignore[misc]
    for name in series:
        if name != "bare":
            found[name] = ratio(times[name], times["bare"]).as_json()
    return found


def outside(asked: argparse.Namespace) -> dict[str, Any]:
    """Make the environment, and measure in it."""
    with tempfile.TemporaryDirectory(prefix="reins-peers-") as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        torch_there = f"torch=={version('torch').partition('+')[0]}"
        for packages in ((torch_there,), PACKAGES):
            command = [python, "-m", "pip", "install", "--quiet", *packages]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return {name: f"not run: {done.stderr.strip()[-200:]}" for name in PEERS}
        measured = f"{folder}/peers.json"
        arguments = [
            "--inside",
            "--tokens",
            str(asked.tokens),
            "--rounds",
            str(asked.rounds),
            "--threads",
            str(asked.threads),
        ]
        subprocess.run([python, "-m", "benchmarks.peers", *arguments, "--json", measured], check=True)
        return dict(json.loads(Path(measured).read_text()))


def main() -> None:
    """Print and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inside", action="store_true", help="measure in this environment, instead of making one")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.inside:
        figures = inside(asked.tokens, asked.rounds, asked.threads)
    else:
        figures = {"machine": describe(), "tokens": asked.tokens, "ratios": outside(asked)}
    show(figures, asked.json)
    sys.exit(0)


if __name__ == "__main__":
    main()
