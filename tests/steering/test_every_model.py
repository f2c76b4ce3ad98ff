"""Every tiny pipeline of the zoo through the serving path: proved at the start, exact in its window, its rows and its branches."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import SkipLayerGuidance
from diffusers.hooks import LayerSkipConfig
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from reins_serve.errors import (
    DirectionError,
    GenerationCancelled,
    ReinsError,
    SteeringNotApplied,
    UnsupportedRequest,
)
from reins_serve.models.catalog import CatalogEntry
from reins_serve.models.generation import ClipRequest, call_arguments, generate, needs_image, request
from reins_serve.models.spec import SPECS, path_of, spec_of
from reins_serve.plugin import SteeringMiddleware, attach
from reins_serve.steering.calls import CONTEXTS
from reins_serve.steering.direction import Window
from reins_serve.steering.policy import SteeringRow, unsteered
from tests.zoo.case import Case
from tests.zoo.directions import direction
from tests.zoo.everything import CASES, entry

OFF = unsteered("test")
KINDS: dict[str, dict[str, Any]] = {
    "live": {},
    "cond": {"branches": "cond", "norm": "token", "name": "cond"},
    "setpoint": {"branches": "cond", "operation": "setpoint", "name": "setpoint"},
    "channel": {"norm": "channel", "name": "channel"},
    "guard": {"branches": "cond", "operation": "setpoint", "name": "guard", "guarded": True},
}
# Pushes that a step gives one row at one block with guidance on: by `both` branches, and by the conditional one alone.
PUSHES = {"ltx2": (4, 3)}  # its two perturbed forwards carry the prompt too


class Model(NamedTuple):
    case: Case
    entry: CatalogEntry
    steering: SteeringMiddleware

    @property
    def batch(self) -> int:
        return self.case.max_batch

    def requests(self, n: int, **changes: object) -> list[ClipRequest]:
        image = None
        if needs_image(self.steering.pipeline, self.entry):
            image = Image.linear_gradient("L").resize((self.case.width, self.case.height)).convert("RGB")
        return [request(self.entry, "a red clip", seed, image=image, **changes) for seed in range(n)]

    def latents(self, rows: list[SteeringRow], **changes: object) -> torch.Tensor:
        """Latents of one generation, whose records are kept in `records`."""
        arguments = call_arguments(self.steering.pipeline, self.entry, self.requests(len(rows), **changes), "latent")
        with self.steering.generation(rows=rows) as g:
            frames = self.steering.pipeline(**arguments, **g.arguments).frames
        self.steering.last = g.records  # type: ignore[attr-defined]
        return frames


@pytest.fixture(scope="module", params=CASES.values(), ids=lambda case: case.name)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    """One attached tiny pipeline: five directions, proved on the way."""
    case: Case = request.param
    pipeline, made = case.build(0), entry(case)
    directions = {name: direction(pipeline, seed, **changes) for seed, (name, changes) in enumerate(KINDS.items())}
    yield Model(case, made, attach(pipeline, model=case.name, directions=directions))


def test_the_start_up_proof_passes_and_predicts_every_push(model: Model) -> None:
    assert set(model.steering.proof) == set(KINDS)
    for proof in model.steering.proof.values():
        assert proof.applications > 0
        assert proof.error < 1e-5
        assert proof.latent_change > 0


def test_a_clip_is_made_and_its_record_is_proved(model: Model) -> None:
    rows = [SteeringRow("live", 1.0), OFF][: model.batch]
    with model.steering.generation(rows=rows) as g:
        frames = generate(model.steering.pipeline, model.entry, model.requests(len(rows)), g.arguments)
    assert frames.dtype == np.uint8
    assert frames.shape[0] == len(rows)
    assert frames.shape[-1] == 3
    assert frames.ndim == 5
    assert g.records[0].proved
    assert all(record.reason == "test" for record in g.records[1:])


@pytest.mark.parametrize("steps", [4, 5])
def test_the_window_and_the_pushes_are_those_of_the_plan(model: Model, steps: int) -> None:
    both, cond = PUSHES.get(model.case.name, (2, 1))
    for name, pushes in (("live", both), ("cond", cond)):
        model.latents([SteeringRow(name, 1.0)], num_inference_steps=steps)
        (record,) = model.steering.last  # type: ignore[attr-defined]
        window = -(-steps // 2)
        assert record.steps_steered == window
        # Of two experts each makes some of the steps, at one block of its own.
        assert record.applied == record.planned == pushes * window


def test_two_rows_carry_two_directions_as_if_each_were_alone(model: Model) -> None:
    if model.batch == 1:
        with pytest.raises(Exception, match="at most 1 clips"):
            model.steering.generation(rows=[OFF, OFF])
        return
    rows = [SteeringRow("live", 1.0), SteeringRow("cond", 0.7)]
    together = model.latents(rows)
    assert [record.direction for record in model.steering.last] == ["random", "cond"]  # type: ignore[attr-defined]
    for place, row in enumerate(rows):
        alone = model.latents([row if place == other else OFF for other in range(2)])
        assert torch.equal(alone[place], together[place])
    assert not torch.equal(together, model.latents([OFF, OFF]))


def test_a_cancelled_generation_stops_within_one_step(model: Model) -> None:
    cancel, seen = threading.Event(), []

    def on_step(done: int, total: int) -> None:
        seen.append((done, total))
        cancel.set()

    with pytest.raises(GenerationCancelled), model.steering.generation(on_step=on_step, cancel=cancel) as g:
        generate(model.steering.pipeline, model.entry, model.requests(1), g.arguments)
    assert seen == [(1, 4)]
    before = model.latents([OFF])
    assert torch.equal(before, model.latents([OFF]))


def test_progress_reaches_the_last_step(model: Model) -> None:
    seen: list[tuple[int, int]] = []
    with model.steering.generation(on_step=lambda done, total: seen.append((done, total))) as g:
        generate(model.steering.pipeline, model.entry, model.requests(1), g.arguments)
    assert seen == [(step, 4) for step in range(1, 5)]


def test_a_direction_of_another_checkpoint_of_the_same_shape_is_refused(model: Model, tmp_path: Any) -> None:
    stranger = direction(model.case.build(1))
    stranger.save(tmp_path / "stranger.safetensors")
    loaded = type(stranger).load(tmp_path / "stranger.safetensors")
    assert loaded.sha256 == stranger.sha256
    with pytest.raises(DirectionError, match="fingerprint"):
        model.steering.swap({"live": loaded})


def test_equal_seeds_give_equal_clips(model: Model) -> None:
    rows = [SteeringRow("live", 1.0)]
    assert torch.equal(model.latents(rows), model.latents(rows))


def test_an_image_is_asked_for_where_a_clip_begins_with_one(model: Model) -> None:
    pipeline, (one,) = model.steering.pipeline, model.requests(1)
    if one.image is not None:
        assert "image" in call_arguments(pipeline, model.entry, [one])
        with pytest.raises(UnsupportedRequest, match="add one"):
            call_arguments(pipeline, model.entry, [replace(one, image=None)])
    else:
        assert "image" not in call_arguments(pipeline, model.entry, [one])


class TestExceptions:
    """What single models do differently."""

    def test_each_of_two_experts_is_pushed_in_the_steps_that_it_makes(self) -> None:
        pipeline, made = CASES["wan22-a14b-t2v"].build(0), entry(CASES["wan22-a14b-t2v"])
        whole = direction(pipeline, window=Window(start=0, end=1), blocks=(2, 5, 6))
        steering = attach(pipeline, model=made.name, directions={"live": whole})
        with steering.generation() as g:
            generate(pipeline, made, [request(made, "a clip", 0)], g.arguments)
        # Two steps each: one block of the first expert, two of the second, both branches.
        assert g.record.applied == 2 * 2 * 1 + 2 * 2 * 2

    def test_a_direction_that_leaves_an_expert_unsteered_is_refused(self) -> None:
        pipeline, made = CASES["wan22-a14b-t2v"].build(0), entry(CASES["wan22-a14b-t2v"])
        with pytest.raises(DirectionError, match="no vector for transformer_2"):
            attach(pipeline, model=made.name, directions={"live": direction(pipeline, blocks=(2,))})

    @pytest.mark.parametrize("name", ["skyreels-df", "helios"])
    def test_a_long_clip_is_steered_in_the_first_half_of_each_chunk(self, name: str) -> None:
        case = CASES[name]
        pipeline, made = case.build(0), entry(case)
        steering = attach(pipeline, model=name, directions={"live": direction(pipeline)})
        more = {"helios": {}, "skyreels-df": {"base_num_frames": 9, "overlap_history": 5}}[name]
        chunks = {"helios": 2, "skyreels-df": 3}[name]
        one = request(made, "a clip", 0, num_frames={"helios": 10, "skyreels-df": 17}[name])
        with steering.generation() as g:
            generate(pipeline, replace(made, arguments={**made.arguments, **more}), [one], g.arguments)
        assert g.record.steps_steered == 2 * chunks
        assert g.record.applied == 2 * 2 * chunks

    def test_frames_at_different_noise_levels_are_refused(self) -> None:
        case = CASES["skyreels-df"]
        pipeline, made = case.build(0), entry(case)
        steering = attach(pipeline, model=case.name, directions={"live": direction(pipeline)})
        arguments = call_arguments(pipeline, made, [request(made, "a clip", 0, num_frames=13)]) | {"ar_step": 1}
        with pytest.raises(SteeringNotApplied, match="ar_step=0"), steering.generation() as g:
            pipeline(**arguments, **g.arguments)

    def test_a_pipeline_whose_steps_restart_in_stages_is_refused(self) -> None:
        pipeline, made = CASES["helios"].build(0), entry(CASES["helios"])
        live = direction(pipeline)
        pipeline.__class__ = type("HeliosPyramidPipeline", (type(pipeline),), {})
        with pytest.raises(ReinsError, match="begin again at 0 in each stage"):
            attach(pipeline, model=made.name, directions={"live": live})

    def test_history_tokens_are_not_pushed(self) -> None:
        """Helios' blocks carry history in front of the video: a push of all tokens would be another clip."""
        case = CASES["helios"]
        pipeline, made = case.build(0), entry(case)
        steering = attach(pipeline, model=case.name, directions={"live": direction(pipeline)})
        (hook,) = steering.hooks
        seen: list[tuple[int, int]] = []
        video = hook.video

        def spy(output: torch.Tensor) -> torch.Tensor:
            seen.append((output.shape[1], video(output).shape[1]))
            return video(output)

        hook.video = spy  # type: ignore[method-assign, assignment]
        with steering.generation() as g:
            generate(pipeline, made, [request(made, "a clip", 0)], g.arguments)
        assert set(seen) == {(18, 8)}

    def test_the_blocks_of_a_decoder_are_no_part_of_the_path(self) -> None:
        pipeline = CASES["motif-t2v"].build(0)
        denoiser = pipeline.transformer
        assert len(path_of(pipeline)) == 4
        assert len(denoiser.transformer_blocks) + len(denoiser.single_transformer_blocks) == 5

    def test_frames_in_rows_count_as_one_push_of_their_prompt(self) -> None:
        case = CASES["latte"]
        pipeline, made = case.build(0), entry(case)
        steering = attach(pipeline, model=case.name, directions={"live": direction(pipeline)})
        with steering.generation(prompts=2) as g:
            generate(pipeline, made, [request(made, "a clip", seed) for seed in (0, 1)], g.arguments)
        assert [record.applied for record in g.records] == [4, 4]
        assert g.record.displacement == pytest.approx(1.0)

    def test_a_guider_that_perturbs_a_forward_of_the_same_prompt_steers_that_too(self) -> None:
        case = CASES["motif-t2v"]
        pipeline, made = case.build(0), entry(case)
        pipeline.guider = SkipLayerGuidance(
            guidance_scale=4.0,
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
            skip_layer_config=LayerSkipConfig(indices=[0], fqn="transformer_blocks", skip_attention=True, skip_ff=True),
        )
        steering = attach(pipeline, model=case.name, directions={"live": direction(pipeline, branches="cond")})
        with steering.generation() as g:
            generate(pipeline, made, [request(made, "a clip", 0)], g.arguments)
        # Two steps in the window; the second has a perturbed forward beside the conditional one (this guider spares step 0).
        assert g.record.applied == 3

    def test_several_videos_of_one_prompt_are_rows_of_their_own(self) -> None:
        case = CASES["wan-t2v"]
        pipeline, made = case.build(0), entry(case)
        steering = attach(pipeline, model=made.name, directions={"live": direction(pipeline)})
        arguments = call_arguments(pipeline, made, [request(made, "a clip", 0)], "latent")
        arguments |= {"num_videos_per_prompt": 2, "generator": [torch.Generator().manual_seed(s) for s in (0, 1)]}
        with steering.generation(rows=[OFF, OFF]) as g:
            plain = pipeline(**arguments, **g.arguments).frames
        arguments["generator"] = [torch.Generator().manual_seed(s) for s in (0, 1)]
        with steering.generation(rows=[OFF, SteeringRow("live", 1.0)]) as g:
            frames = pipeline(**arguments, **g.arguments).frames
        assert torch.equal(frames[0], plain[0])
        assert not torch.equal(frames[1], plain[1])
        assert [record.proved for record in g.records] == [False, True]

    def test_a_callback_of_the_callers_is_called_too(self) -> None:
        case = CASES["wan-t2v"]
        pipeline, made = case.build(0), entry(case)
        steering = attach(pipeline, model=made.name, directions={"live": direction(pipeline)})
        seen: list[int] = []

        def mine(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            seen.append(step)
            return kwargs

        with steering.generation(callback_on_step_end=mine) as g:
            generate(pipeline, made, [request(made, "a clip", 0)], g.arguments)
        assert seen == [0, 1, 2, 3]
        assert g.record.proved

    def test_nothing_is_read_back_from_the_device_inside_a_step(self) -> None:
        """Reading one value would make the host wait for the device at every steered block."""
        case = CASES["wan-t2v"]
        pipeline, made = case.build(0), entry(case)
        steering = attach(pipeline, model=made.name, directions={"live": direction(pipeline, norm="channel")})
        (hook,) = steering.hooks
        inside = hook.post_forward

        class NoReading(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read back"
                return func(*args, **(kwargs or {}))

        def watched(module: torch.nn.Module, output: object) -> object:
            with NoReading():
                return inside(module, output)

        hook.fn_ref.post_forward = watched
        with steering.generation() as g:
            generate(pipeline, made, [request(made, "a clip", 0)], g.arguments)
        assert g.record.applied == 4

    def test_an_unknown_name_of_a_call_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = CASES["wan-t2v"]
        pipeline, made = case.build(0), entry(case)
        monkeypatch.delitem(CONTEXTS, "uncond")
        with pytest.raises(SteeringNotApplied, match="does not know"):
            attach(pipeline, model=made.name, directions={"live": direction(pipeline)})


WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "the text tokens instead of the video's": ("cogvideox-t2v", {"video": 1}),
    "the audio tokens instead of the video's": ("ltx2", {"video": 1}),
    "the wrong order of branches": ("kandinsky5-t2v", {"guidance": "batched"}),
    "one call where there are two": ("sana-t2v", {"guidance": "ordered"}),
    "a layout that the names of the calls deny": ("ltx-t2v", {"guidance": "sequential"}),
    "frames taken for prompts": ("latte", {"frames_in_rows": False}),
    "blocks that do not exist": ("mochi", {"blocks": ("blocks",)}),
    "the wrong list of blocks": ("kandinsky5-t2v", {"blocks": ("text_transformer_blocks",)}),
    "the wrong width": ("kandinsky5-t2v", {"width": "in_visual_dim"}),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_spec_never_serves(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change = WRONG[fault]
    pipeline, made = CASES[name].build(0), entry(CASES[name])
    monkeypatch.setitem(SPECS, type(pipeline.transformer).__name__, replace(spec_of(pipeline.transformer), **change))
    with pytest.raises((ReinsError, RuntimeError)):
        attach(pipeline, model=made.name, directions={"live": direction(pipeline, branches="cond")})
