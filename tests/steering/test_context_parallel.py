"""Context parallelism: two processes that share a clip's tokens make the clip that one process makes."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from reins_serve.errors import ReinsError
from reins_serve.models.acceleration import accelerate
from reins_serve.models.options import LoadingOptions
from reins_serve.plugin import attach
from reins_serve.steering.confirm import confirm
from reins_serve.steering.generation import Generation
from reins_serve.steering.middleware import SteeringMiddleware
from reins_serve.steering.plan import GenerationRecord, RowPlan
from reins_serve.steering.policy import SteeringRow
from reins_serve.steering.proof import clip_latents
from tests.zoo.directions import direction
from tests.zoo.everything import CASES, entry

PROCESSES = 2
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "token": {"norm": "token"},
    "channel": {"norm": "channel"},
    "guard": {"operation": "setpoint", "blocks": (0, 1), "guard": {"blocks": (1,), "shortfall": 0.5}},
}
TWO = LoadingOptions.model_validate({"dtype": "float32", "context_parallel": {"ulysses_degree": PROCESSES}})


def run(steering: SteeringMiddleware, name: str, of: str) -> tuple[torch.Tensor, GenerationRecord]:
    plan = RowPlan(SteeringRow(of, 1.0), steering.directions[of])
    with Generation(steering.hooked, [plan, plan]) as g:
        latents = clip_latents(steering.pipeline, entry(CASES[name]), g.arguments)
    return latents, g.record


def accelerator_shim() -> None:
    """For this test only: diffusers counts accelerators, and a machine without one has none to put its processes on."""
    torch.accelerator.device_count = lambda: PROCESSES  # type: ignore[assignment]


def one_of_two(rank: int, port: int, name: str, out: Path) -> None:
    """One process: every way alone, then shared; rank 0 writes down the largest differences and the records."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    accelerator_shim()
    pipeline = CASES[name].build(0)
    directions = {way: direction(pipeline, seed, **changes) for seed, (way, changes) in enumerate(WAYS.items())}
    steering = attach(pipeline, model=entry(CASES[name]).name, directions=directions | {"live": directions["none"]})
    alone = {way: run(steering, name, way) for way in WAYS}
    accelerate(pipeline, TWO)
    confirm(steering, entry(CASES[name]))
    shared = {way: run(steering, name, way) for way in WAYS}
    if rank == 0:
        found = {n: ((alone[n][0] - shared[n][0]).abs().max().item(), alone[n][1], shared[n][1]) for n in WAYS}
        torch.save(found, out)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan-t2v", "ltx-t2v", "ltx-i2v"])
def test_two_processes_steer_a_clip_as_one_does(name: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_of_two, args=(port, name, tmp_path / "found.pt"), nprocs=PROCESSES)
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    assert set(found) == set(WAYS)
    for difference, alone, shared in found.values():
        assert difference < 1e-5
        assert (shared.planned, shared.applied) == (alone.planned, alone.applied)
        assert shared.displacement == pytest.approx(alone.displacement, rel=1e-4)
        assert shared.score == pytest.approx(alone.score, rel=1e-4)
        assert shared.guarded == alone.guarded


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cogvideox-t2v", "no plan by which CogVideoXTransformer3DModel"),
        ("ltx2", "masks all heads of LTX2VideoTransformer3DModel"),
    ],
)
def test_a_class_that_cannot_share_its_tokens_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ReinsError, match=reason):
        accelerate(CASES[name].build(0), TWO)


def test_ring_attention_without_a_backend_for_it_is_refused() -> None:
    ring = {"dtype": "float32", "allow_unverified": True, "context_parallel": {"ring_degree": 2}}
    with pytest.raises(ReinsError, match="log-sum-exps"):
        accelerate(CASES["wan-t2v"].build(0), LoadingOptions.model_validate(ring))


def test_one_process_alone_is_refused() -> None:
    with pytest.raises(ReinsError, match="set to 2 processes, and there are 1"):
        accelerate(CASES["wan-t2v"].build(0), TWO)


def test_a_cache_that_each_process_would_decide_on_is_refused() -> None:
    options = TWO.model_dump() | {"cache": {"kind": "first_block"}}
    with pytest.raises(ReinsError, match="each process would decide for itself"):
        accelerate(CASES["wan-t2v"].build(0), LoadingOptions.model_validate(options))
