"""Steering under caches, compilation, offload and half precision, on tiny pipelines: exact, or refused with the reason."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from reins_serve.errors import ReinsError, SteeringNotApplied
from reins_serve.models.acceleration import accelerate
from reins_serve.models.options import REFUSED, SWITCHES, LoadingOptions
from reins_serve.plugin import SteeringMiddleware, attach
from reins_serve.steering import generation as generation_module
from reins_serve.steering.confirm import confirm
from reins_serve.steering.generation import Generation
from reins_serve.steering.plan import GenerationRecord, RowPlan
from reins_serve.steering.policy import SteeringRow, unsteered
from reins_serve.steering.proof import clip_latents
from tests.zoo.directions import direction
from tests.zoo.everything import CASES, entry

MODELS = ("wan-t2v", "cogvideox-t2v", "ltx-t2v")
ALWAYS = 1e9  # a threshold that lets a cache answer whenever it may
FIRST_BLOCK = {"kind": "first_block", "options": {"threshold": ALWAYS}}
CACHES = {
    "first_block": FIRST_BLOCK,
    "mag": {
        "kind": "mag",
        "options": {"mag_ratios": [1.0] * 3, "num_inference_steps": 3, "retention_ratio": 0, "threshold": ALWAYS},
    },
    "sea": {"kind": "sea", "options": {"threshold": ALWAYS, "retention_steps": 0, "cache_end_steps": 0}},
    "taylorseer": {
        "kind": "taylorseer",
        "options": {
            "cache_interval": 2,
            "disable_cache_before_step": 1,
            "cache_identifiers": [r".*blocks\.\d+\.attn\d"],
        },
    },
    "taylorseer_lite": {
        "kind": "taylorseer",
        "options": {"cache_interval": 2, "disable_cache_before_step": 1, "use_lite_mode": True},
    },
    "pyramid_attention": {
        "kind": "pyramid_attention",
        "options": {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [-1, 1001]},
    },
}
GUARDED = {"operation": "setpoint", "branches": "cond", "guarded": True}


def options(**switches: Any) -> LoadingOptions:
    return LoadingOptions.model_validate({"dtype": "float32"} | switches)


class Steered:
    """A proved tiny pipeline with two directions, `live` and `other`."""

    def __init__(self, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> None:
        self.pipeline = CASES[name].build(0).to(dtype)
        self.entry = entry(CASES[name])
        directions = {word: direction(self.pipeline, seed, **changes) for seed, word in enumerate(("live", "other"))}
        self.steering: SteeringMiddleware = attach(self.pipeline, model=name, directions=directions)

    def accelerate(self, **switches: Any) -> None:
        accelerate(self.pipeline, options(**switches))
        confirm(self.steering, self.entry)

    def run(self, of: str | None, strength: float = 1.0) -> tuple[torch.Tensor, GenerationRecord]:
        """The proof's two clips, both steered alike."""
        row = unsteered("test") if of is None else SteeringRow(of, strength)
        plan = RowPlan(row, self.steering.directions[of] if of is not None else None)
        with Generation(self.steering.hooked, [plan, plan]) as g:
            latents = clip_latents(self.pipeline, self.entry, g.arguments)
        return latents, g.record


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


class TestCompilation:
    @pytest.mark.slow
    @pytest.mark.parametrize(("name", "changes"), [*((name, {}) for name in MODELS), ("wan-t2v", GUARDED)])
    @pytest.mark.parametrize("mode", ["regional", "whole"])
    def test_a_compiled_pipeline_is_steered_exactly_and_a_late_swap_compiles_nothing(
        self, name: str, changes: dict[str, Any], mode: str
    ) -> None:
        steered = Steered(name, **changes)
        asked: list[tuple[str | None, float]] = [(None, 0.0), ("live", 1.0), ("other", 0.5)]
        eager = [steered.run(*of) for of in asked]
        steered.accelerate(compile={"mode": mode, "backend": "eager", "fullgraph": True})
        compiled = [steered.run(*of) for of in asked[:2]]
        graphs = counters["stats"]["unique_graphs"]
        assert graphs > 0
        fresh = direction(steered.pipeline, seed=7, **changes)
        steered.steering.swap({"live": fresh, "other": steered.steering.directions["other"]})
        compiled.append(steered.run("other", 0.5))
        late, record = steered.run("live", 1.5)
        assert counters["stats"]["unique_graphs"] == graphs
        assert not counters["graph_break"]
        for (found, found_record), (wanted, wanted_record) in zip(compiled, eager, strict=True):
            assert close(found, wanted)
            assert found_record.applied == wanted_record.applied == wanted_record.planned
        assert record.sha256 == fresh.sha256
        assert record.applied == record.planned == compiled[1][1].planned
        assert not close(late, compiled[1][0])

    @pytest.mark.slow
    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_real_backends_round_a_little_and_steer_exactly(self, backend: str) -> None:
        steered = Steered("cogvideox-t2v")
        eager = [steered.run(of) for of in (None, "live")]
        steered.accelerate(compile={"backend": backend})
        for (found, record), (wanted, _) in zip((steered.run(None), steered.run("live")), eager, strict=True):
            assert close(found, wanted)
            assert record.applied == record.planned

    @pytest.mark.slow
    def test_a_step_cache_may_be_compiled(self) -> None:
        steered = Steered("cogvideox-t2v")
        steered.accelerate(compile={"mode": "regional", "backend": "eager"}, cache=FIRST_BLOCK)
        _, record = steered.run("live")
        assert (record.planned, record.applied, record.reused) == (4, 2, 2)


class TestCaches:
    @pytest.mark.parametrize("name", MODELS)
    def test_a_push_inside_a_cached_output_is_counted_once(self, name: str) -> None:
        steered = Steered(name)
        plain, _ = steered.run("live")
        steered.accelerate(cache=FIRST_BLOCK)
        bare, _ = steered.run(None)
        latents, record = steered.run("live")
        assert record.applied + record.reused == record.planned
        assert record.reused > 0
        assert record.proved
        assert not close(latents, bare)
        assert not close(latents, plain)  # the cache did answer

    @pytest.mark.parametrize("name", MODELS)
    def test_a_cache_that_is_not_reset_at_the_edge_of_the_window_fails_the_generation(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steered = Steered(name)
        steered.accelerate(cache=FIRST_BLOCK)
        plan = RowPlan(SteeringRow("live", 1.0), steered.steering.directions["live"])
        with (
            pytest.raises(SteeringNotApplied, match="step cache"),
            Generation(steered.steering.hooked, [plan, plan]) as g,
        ):
            monkeypatch.setattr(generation_module, "reset_caches", lambda pipeline: None)
            clip_latents(steered.pipeline, steered.entry, g.arguments)

    @pytest.mark.parametrize("name", MODELS)
    def test_a_generation_carries_nothing_of_the_one_before(self, name: str) -> None:
        steered, afresh = Steered(name), Steered(name)
        for one in (steered, afresh):
            one.accelerate(cache=FIRST_BLOCK)
        steered.run("live", 2.0)
        assert torch.equal(steered.run("other")[0], afresh.run("other")[0])

    def test_two_experts_keep_caches_of_their_own(self) -> None:
        steered = Steered("wan22-a14b-t2v")
        steered.accelerate(cache=FIRST_BLOCK)
        _, record = steered.run("live")
        assert record.applied + record.reused == record.planned
        assert record.reused > 0

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("wan-t2v", "mag"),
            ("wan-t2v", "sea"),
            ("wan-t2v", "taylorseer"),
            ("wan-t2v", "taylorseer_lite"),
            ("cogvideox-t2v", "mag"),
            ("cogvideox-t2v", "taylorseer"),
            ("cogvideox-t2v", "pyramid_attention"),
            ("ltx-t2v", "mag"),
            ("ltx-t2v", "taylorseer"),
            ("ltx-t2v", "pyramid_attention"),
            ("allegro", "pyramid_attention"),
            ("mochi", "first_block"),
            ("hunyuan", "first_block"),
        ],
    )
    def test_other_caches_that_keep_steering_exact(self, name: str, kind: str) -> None:
        steered = Steered(name)
        plain, _ = steered.run(None)
        steered.accelerate(cache=CACHES[kind])
        latents, record = steered.run("live")
        bare, _ = steered.run(None)
        assert record.applied + record.reused == record.planned
        assert (record.reused > 0) == (kind not in ("taylorseer", "pyramid_attention"))  # these keep parts of a block
        assert not close(bare, plain)  # the cache did answer
        assert not close(latents, bare)


class TestConfirmation:
    """What acceleration may do to steering, done by hand."""

    def test_a_hook_that_is_cut_off_is_refused(self) -> None:
        steered = Steered("ltx-t2v")
        for hook in steered.steering.hooks:
            hook.fn_ref.post_forward = lambda module, output: output
        with pytest.raises(SteeringNotApplied, match="0 times"):
            confirm(steered.steering, steered.entry)

    def test_a_push_that_is_counted_but_does_not_arrive_is_refused(self) -> None:
        steered = Steered("ltx-t2v")
        for hook in steered.steering.hooks:
            hook.replaced = lambda output, video: output
        with pytest.raises(SteeringNotApplied, match="the same clip"):
            confirm(steered.steering, steered.entry)

    def test_a_push_that_stays_is_refused(self) -> None:
        steered = Steered("ltx-t2v")
        (hook,) = steered.steering.hooks[:1]
        push = hook.post_forward
        kept: list[torch.Tensor] = []

        def keeps(module: torch.nn.Module, output: torch.Tensor) -> torch.Tensor:
            pushed = push(module, output)
            if pushed is not output:
                kept.append(pushed - output)
            return pushed if pushed is not output or not kept else output + kept[-1]

        hook.fn_ref.post_forward = keeps
        with pytest.raises(SteeringNotApplied, match="another clip after a steered one"):
            confirm(steered.steering, steered.entry)


class TestPlaceAndPrecision:
    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize(
        "offload", [{"num_blocks_per_group": 1}, {"offload_type": "leaf_level"}], ids=["block", "leaf"]
    )
    def test_group_offload_changes_nothing(self, name: str, offload: dict[str, Any]) -> None:
        steered = Steered(name)
        before = [steered.run(of) for of in (None, "live")]
        steered.accelerate(offload={"kind": "group"} | offload)
        for (found, record), (wanted, _) in zip((steered.run(None), steered.run("live")), before, strict=True):
            assert torch.equal(found, wanted)
            assert record.applied == record.planned

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_proved_and_bit_identical_when_off(self, name: str, dtype: torch.dtype) -> None:
        steered = Steered(name, dtype)
        assert steered.pipeline.transformer.dtype == dtype
        bare = clip_latents(CASES[name].build(0).to(dtype), steered.entry, {})
        off, _ = steered.run(None)
        latents, record = steered.run("live")
        assert torch.equal(off, bare)
        assert record.applied == record.planned
        assert not torch.equal(latents, bare)


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("cogvideox-t2v", {"cache": {"kind": "faster"}}, "guesses them from steered conditional ones"),
    ("allegro", {"cache": FIRST_BLOCK}, "does not tell its calls"),
    ("latte", {"cache": FIRST_BLOCK}, "does not tell its calls"),
    ("sana-t2v", {"cache": FIRST_BLOCK}, "has no step caches in diffusers"),
    ("easyanimate", {"cache": CACHES["taylorseer"]}, "has no step caches in diffusers"),
    ("cosmos2-v2w", {"cache": FIRST_BLOCK}, "has no step caches in diffusers"),
    ("kandinsky5-t2v", {"cache": FIRST_BLOCK}, "does not tell its calls"),
    ("ltx2", {"cache": FIRST_BLOCK}, "leave out a LTX2VideoTransformerBlock"),
    ("skyreels-t2v", {"cache": CACHES["mag"]}, "leave out a SkyReelsV2TransformerBlock"),
    ("motif-t2v", {"cache": FIRST_BLOCK}, "decoder that begins from the input again"),
    ("ltx-t2v", {"cache": CACHES["sea"]}, "Wan's text-to-video pipelines only"),
    ("wan-i2v", {"cache": CACHES["sea"]}, "Wan's text-to-video pipelines only"),
    ("wan-t2v", {"cache": CACHES["pyramid_attention"]}, "the attention of another"),
    ("ltx2", {"cache": CACHES["pyramid_attention"]}, "the attention of another"),
    ("wan-t2v", {"cache": {"kind": "taylorseer"}}, "set its cache_identifiers"),
    ("wan-t2v", {"cache": FIRST_BLOCK, "compile": {"fullgraph": True}}, "fullgraph is not possible"),
    ("wan-t2v", {"compile": {"backend": "none"}, "allow_unverified": True}, "no backend 'none'"),
    ("wan-t2v", {"offload": {"kind": "model"}, "allow_unverified": True}, "model offload moves weights to an accelerator"),
    ("wan-t2v", {"offload": {"kind": "sequential"}, "allow_unverified": True}, "the device is the CPU"),
    (
        "wan-t2v",
        {"offload": {"kind": "group", "offload_type": "leaf_level", "use_stream": True}, "allow_unverified": True},
        "with a stream needs an accelerator",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "switches", "reason"), REFUSALS)
def test_what_a_class_cannot_do_is_refused_before_anything_is_changed(
    name: str, switches: dict[str, Any], reason: str
) -> None:
    pipeline = CASES[name].build(0)
    before = pipeline.transformer.forward
    with pytest.raises(ReinsError, match=reason):
        accelerate(pipeline, options(**switches))
    assert pipeline.transformer.forward == before
    assert not getattr(pipeline.transformer, "is_cache_enabled", False)
    assert pipeline.transformer._compiled_call_impl is None


NOT_RUN: list[dict[str, Any]] = [
    {"device": "cuda"},
    {"device_map": "balanced"},
    {"attention_backend": "flash"},
    {"compile": {"inductor_mode": "reduce-overhead"}},
    {"compile": {"backend": "cudagraphs"}},
    {"offload": {"kind": "model"}},
    {"context_parallel": {"ring_degree": 2}},
    {"quantization": {"kind": "bitsandbytes_4bit"}},
]


@pytest.mark.parametrize("switches", NOT_RUN, ids=str)
def test_what_was_not_run_needs_the_operators_word(switches: dict[str, Any]) -> None:
    with pytest.raises(ReinsError, match=r"allow_unverified: true"):
        accelerate(CASES["wan-t2v"].build(0), options(**switches))


def test_every_refused_switch_has_its_reason() -> None:
    assert {name for name, where in SWITCHES.items() if where == "refused"} == set(REFUSED)
