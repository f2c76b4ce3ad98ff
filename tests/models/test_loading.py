"""A saved checkpoint is loaded as the options say and still steered, or refused with the reason."""

import dataclasses
import socket
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from pydantic import ValidationError

from reins_serve.errors import ReinsError
from reins_serve.models.acceleration import accelerate
from reins_serve.models.catalog import CatalogEntry, register
from reins_serve.models.generation import generate, request
from reins_serve.models.loading import load
from reins_serve.models.options import SWITCHES, LoadingOptions, switches_of
from reins_serve.plugin import attach
from reins_serve.steering.confirm import confirm
from tests.zoo.directions import direction
from tests.zoo.everything import CASES, entry


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> CatalogEntry:
    """The entry of a tiny Wan in a folder."""
    folder = tmp_path_factory.mktemp("wan")
    CASES["wan-t2v"].build(0).save_pretrained(folder)
    return dataclasses.replace(
        entry(CASES["wan-t2v"]),
        source=folder,
        dtype="float32",
        pipelines={"text-to-video": "WanPipeline", "video-to-video": "WanVideoToVideoPipeline"},
    )


def options(**switches: Any) -> LoadingOptions:
    return LoadingOptions.model_validate(switches)


def steered_clip(pipeline: Any, entry: CatalogEntry) -> np.ndarray:
    """Two clips of one call, proved and confirmed."""
    register(entry)
    steering = attach(pipeline, model=entry.name, directions={"live": direction(pipeline)})
    confirm(steering, entry)
    with steering.generation(prompts=2) as g:
        clips = generate(pipeline, entry, [request(entry, "a red square", seed) for seed in (1, 2)], g.arguments)
    assert g.record.proved
    return clips


class TestFolder:
    def test_a_folder_is_loaded_without_a_network(self, saved: CatalogEntry, monkeypatch: pytest.MonkeyPatch) -> None:
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was tried"))
        pipeline = load(saved)
        assert isinstance(pipeline, diffusers.WanPipeline)
        for name, weight in CASES["wan-t2v"].build(0).transformer.state_dict().items():
            assert torch.equal(pipeline.transformer.state_dict()[name], weight)

    def test_a_repository_that_is_not_there_is_refused(self, saved: CatalogEntry) -> None:
        with pytest.raises(ReinsError, match="could not be loaded from nobody/nothing"):
            load(dataclasses.replace(saved, source="nobody/nothing"))

    @pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
    def test_weights_in_a_pickle_are_refused(self, part: str, saved: CatalogEntry, tmp_path: Path) -> None:
        pipeline = load(saved)
        pipeline.save_pretrained(tmp_path)
        for file in (tmp_path / part).glob("*.safetensors"):
            file.unlink()
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(getattr(pipeline, part).state_dict(), tmp_path / part / name)
        with pytest.raises(ReinsError, match="weights in safetensors"):
            load(dataclasses.replace(saved, source=tmp_path))

    def test_parts_that_are_loaded_already_are_taken(self, saved: CatalogEntry) -> None:
        other = CASES["wan-t2v"].build(1).transformer
        assert load(saved, components={"transformer": other}).transformer is other

    def test_the_task_chooses_the_class(self, saved: CatalogEntry) -> None:
        assert type(load(saved, task="video-to-video")) is diffusers.WanVideoToVideoPipeline
        with pytest.raises(
            ReinsError, match="does not do image-to-video; its tasks are: text-to-video, video-to-video"
        ):
            load(saved, task="image-to-video")

    def test_a_class_that_diffusers_does_not_know_is_read_from_the_folder(self, saved: CatalogEntry) -> None:
        named = dataclasses.replace(saved, pipelines={"text-to-video": "MyOwnPipeline"})
        assert type(load(named)) is diffusers.WanPipeline

    @pytest.mark.parametrize(("name", "field"), [("wan-t2v", "flow_shift"), ("tiny", "shift")])
    def test_the_entrys_flow_shift_goes_to_the_scheduler(
        self, name: str, field: str, saved: CatalogEntry, tmp_path: Path
    ) -> None:
        if name == "tiny":  # another scheduler, with another name for it
            pipeline = load(saved)
            pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
            pipeline.save_pretrained(tmp_path)
            saved = dataclasses.replace(saved, source=tmp_path)
        assert load(saved).scheduler.config[field] == 3.0
        assert load(dataclasses.replace(saved, flow_shift=7.0)).scheduler.config[field] == 7.0

    def test_a_scheduler_without_a_shift_stays_as_it_is(self, saved: CatalogEntry, tmp_path: Path) -> None:
        CASES["cogvideox-t2v"].build(0).save_pretrained(tmp_path)
        cog = dataclasses.replace(
            saved, source=tmp_path, flow_shift=7.0, pipelines={"text-to-video": "CogVideoXPipeline"}
        )
        assert "shift" not in load(cog).scheduler.config


class TestSwitches:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_the_floating_type_is_the_options_or_else_the_entrys(self, dtype: str, saved: CatalogEntry) -> None:
        by_option = load(saved, options(dtype=dtype))
        by_entry = load(dataclasses.replace(saved, dtype=dtype))
        assert by_option.transformer.blocks[0].ffn.net[2].weight.dtype == getattr(torch, dtype)
        assert by_entry.text_encoder.dtype == getattr(torch, dtype)
        steered_clip(by_option, saved)

    @pytest.mark.parametrize("name", ["tiling", "slicing"])
    def test_the_vae_decodes_in_parts(self, name: str, saved: CatalogEntry) -> None:
        whole = steered_clip(load(saved), saved)
        pipeline = load(saved, options(**{f"vae_{name}": True}))
        assert getattr(pipeline.vae, f"use_{name}")
        if name == "tiling":  # a clip of 16 pixels in four tiles
            pipeline.vae.tile_sample_min_height = pipeline.vae.tile_sample_min_width = 12
            pipeline.vae.tile_sample_stride_height = pipeline.vae.tile_sample_stride_width = 8
        parts = steered_clip(pipeline, saved)
        assert parts.shape == whole.shape
        assert np.abs(parts.astype(int) - whole).max() <= 1 if name == "slicing" else not np.array_equal(parts, whole)

    def test_a_vae_that_cannot_is_refused(self, saved: CatalogEntry, monkeypatch: pytest.MonkeyPatch) -> None:
        def cannot(vae: object) -> None:
            raise NotImplementedError("as diffusers' base class does where a VAE has no tiling")

        monkeypatch.setattr(diffusers.AutoencoderKLWan, "enable_tiling", cannot)
        with pytest.raises(ReinsError, match="AutoencoderKLWan cannot do vae_tiling"):
            load(saved, options(vae_tiling=True))

    @pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
    def test_weights_wait_in_eight_bits(self, dtype: str, saved: CatalogEntry) -> None:
        pipeline = load(saved, options())
        steering = attach(pipeline, model=saved.name, directions={"live": direction(pipeline)})
        accelerate(pipeline, options(layerwise_casting=dtype))
        assert pipeline.transformer.blocks[0].ffn.net[2].weight.dtype == getattr(torch, dtype)
        confirm(steering, saved)

    @pytest.mark.parametrize("backend", ["native", "_native_math"])
    def test_another_attention_backend_is_set(
        self, backend: str, saved: CatalogEntry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # diffusers makes it the default of the whole process besides, for the other tests as well.
        monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.NATIVE)
        pipeline = load(saved, options(attention_backend=backend))
        assert pipeline.transformer.blocks[0].attn1.processor._attention_backend == backend
        steered_clip(pipeline, saved)

    def test_an_attention_backend_that_is_not_installed_is_refused(self, saved: CatalogEntry) -> None:
        with pytest.raises(ReinsError, match="'flash' cannot be used here"):
            load(saved, options(attention_backend="flash", allow_unverified=True))

    def test_a_device_map_places_the_parts(self, saved: CatalogEntry) -> None:
        pipeline = load(saved, options(device_map="cpu"))
        assert pipeline.hf_device_map
        steered_clip(pipeline, saved)

    def test_with_offload_the_weights_stay_on_the_cpu(self, saved: CatalogEntry) -> None:
        wanted = options(device="cuda", offload={"kind": "model"}, allow_unverified=True)
        assert load(saved, wanted).device.type == "cpu"

    def test_quantisation_that_cannot_run_here_is_refused(self, saved: CatalogEntry) -> None:
        wanted = options(quantization={"kind": "bitsandbytes_8bit"}, allow_unverified=True)
        with pytest.raises(ReinsError, match=r"could not be loaded|cannot be set up"):
            load(saved, wanted)

    @pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
    def test_weights_that_torchao_quantised_are_steered(self, kind: str, saved: CatalogEntry) -> None:
        pytest.importorskip("torchao")
        wanted = {"kind": "torchao", "options": {"quant_type": kind}, "components": ["transformer"]}
        pipeline = load(saved, options(quantization=wanted))
        assert type(pipeline.transformer.blocks[0].ffn.net[2].weight).__module__.startswith("torchao")
        steered_clip(pipeline, saved)

    def test_weights_from_a_gguf_file_are_steered(self, saved: CatalogEntry, tmp_path: Path) -> None:
        gguf = pytest.importorskip("gguf")
        writer, q8 = gguf.GGUFWriter(tmp_path / "wan.gguf", "wan"), gguf.GGMLQuantizationType.Q8_0
        for name, weight in load(saved).transformer.state_dict().items():
            values = weight.float().numpy()
            if values.ndim == 2 and values.shape[1] % 32 == 0:
                writer.add_tensor(name, gguf.quantize(values, q8), raw_dtype=q8)
            else:
                writer.add_tensor(name, np.ascontiguousarray(values))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        wanted = {"kind": "gguf", "options": {"file": {"transformer": str(tmp_path / "wan.gguf")}}}
        pipeline = load(saved, options(quantization=wanted))
        assert type(pipeline.transformer.blocks[0].ffn.net[2].weight).__name__ == "GGUFParameter"
        steered_clip(pipeline, saved)

    def test_gguf_needs_its_files(self, saved: CatalogEntry) -> None:
        with pytest.raises(ReinsError, match="a file for each component"):
            load(saved, options(quantization={"kind": "gguf"}))

    def test_a_switch_that_was_not_run_needs_the_operators_word(self, saved: CatalogEntry) -> None:
        with pytest.raises(ReinsError, match=r"device\.cuda.*allow_unverified: true"):
            load(saved, options(device="cuda:1"))


class TestOptions:
    @pytest.mark.parametrize(
        ("wrong", "word"),
        [
            ({"dtypes": "float32"}, "Extra inputs"),
            ({"dtype": "int8"}, "float32"),
            ({"device": "gpu"}, "no device"),
            ({"device_map": "auto"}, "balanced"),
            ({"device_map": "cpu", "device": "cuda"}, "stands alone"),
            ({"compile": {"fullgraf": True}}, "Extra inputs"),
            ({"cache": {"kind": "none"}}, "first_block"),
            ({"cache": {"kind": "first_block", "options": {"treshold": 1}}}, "it has: threshold"),
            ({"cache": {"kind": "first_block", "options": {"threshold": "high"}}}, "valid number"),
            ({"cache": {"kind": "mag"}}, "mag_ratios"),
            ({"cache": {"kind": "sea", "options": {"raw_vision_callback": "f"}}}, "no option 'raw_vision_callback'"),
            ({"offload": {"kind": "group"}}, "num_blocks_per_group"),
            ({"offload": {"kind": "model", "use_stream": True}}, "use_stream: for kind: group only"),
            ({"layerwise_casting": "int4"}, "float8_e4m3fn"),
            ({"layerwise_casting": "float8_e5m2", "quantization": {"kind": "torchao"}}, "leave one out"),
            ({"context_parallel": {}}, "at least 2"),
        ],
        ids=str,
    )
    def test_a_word_that_makes_no_sense_is_refused(self, wrong: dict[str, Any], word: str) -> None:
        with pytest.raises(ValidationError, match=word):
            LoadingOptions.model_validate(wrong)

    def test_options_survive_being_written_down(self) -> None:
        made = options(
            cache={"kind": "taylorseer", "options": {"taylor_factors_dtype": "float32", "use_lite_mode": True}},
            offload={"kind": "group", "offload_type": "leaf_level"},
            compile={"mode": "whole"},
        )
        assert LoadingOptions.model_validate_json(made.model_dump_json()) == made
        assert made.cache is not None
        assert made.cache.build().taylor_factors_dtype == torch.float32

    def test_every_switch_of_a_configuration_is_named(self) -> None:
        made = options(
            device="cuda:1",
            attention_backend="flash",
            compile={"inductor_mode": "max-autotune"},
            cache={"kind": "first_block"},
            offload={"kind": "group", "offload_type": "leaf_level", "use_stream": True},
            context_parallel={"ulysses_degree": 2, "ring_degree": 2},
            quantization={"kind": "gguf"},
            vae_tiling=True,
        )
        assert switches_of(made, "float32") == [
            "dtype.float32",
            "device.cuda",
            "attention_backend.flash",
            "vae_tiling",
            "quantization.gguf",
            "compile.regional",
            "compile.backend.inductor",
            "compile.inductor_mode.max-autotune",
            "cache.first_block",
            "offload.group.leaf_level",
            "offload.group.use_stream",
            "context_parallel.ulysses",
            "context_parallel.ring",
        ]
        assert set(switches_of(made, "float32")) - set(SWITCHES) == {"attention_backend.flash"}
