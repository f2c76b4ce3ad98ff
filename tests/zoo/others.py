"""Tiny pipelines of denoisers that have no entry in SPECS: those for which a user's own works, and one that is refused.

Their VAEs, text encoders and sizes are those of other modules of the zoo, in most cases `tests.zoo.wan`.
"""

import numpy as np
import torch
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    ConsisIDTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    SanaWMPipeline,
    SanaWMTransformer3DModel,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # the public name asks for OpenCV
from PIL import Image
from transformers import Gemma2Config, Gemma2ForCausalLM

from tests.zoo import cogvideox, hunyuan, kandinsky, ltx, parts, wan
from tests.zoo.case import Case

# Four blocks of the width of `tests.zoo.wan`.
WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 8, "out_channels": wan.CHANNELS,
    "text_dim": parts.TEXT_WIDTH, "freq_dim": 16, "ffn_dim": 32, "num_layers": 4,
}  # fmt: skip
FACE = 16  # width and height of a face's pictures in pixels


def vace(seed: int) -> WanVACEPipeline:
    """VACE from text alone; two side blocks, whose hints are added behind the blocks 0 and 2."""
    torch.manual_seed(seed)
    denoiser = WanVACETransformer3DModel(
        **WAN, in_channels=wan.CHANNELS, vace_layers=[0, 2], vace_in_channels=2 * wan.CHANNELS + 16
    )
    made = WanVACEPipeline(
        parts.tokenizer(), parts.umt5(), wan.vae(), wan.scheduler(), parts.wake(denoiser).eval(), None
    )
    made.set_progress_bar_config(disable=True)
    return made


def animate(seed: int) -> WanAnimatePipeline:
    """A character's picture moves as a pose and a face do. Clips longer than a segment are made of several."""
    torch.manual_seed(seed)
    denoiser = WanAnimateTransformer3DModel(
        **WAN, in_channels=wan.CONDITIONED, latent_channels=wan.CHANNELS, image_dim=wan.IMAGE_WIDTH,
        added_kv_proj_dim=wan.WIDTH, motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=FACE,
        motion_style_dim=8, motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=16, face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )  # fmt: skip
    made = WanAnimatePipeline(
        parts.tokenizer(), parts.umt5(), wan.vae(), wan.scheduler(), wan.image_processor(), wan.image_encoder(),
        wan.heed_text(denoiser.eval()),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def _pictures(side: int, count: int) -> list[Image.Image]:
    return [Image.linear_gradient("L").rotate(10 * turn).resize((side, side)).convert("RGB") for turn in range(count)]


def chronoedit(seed: int) -> ChronoEditPipeline:
    """An edit of an image as a clip from before to after; no name for its calls."""
    torch.manual_seed(seed)
    denoiser = ChronoEditTransformer3DModel(
        **WAN, in_channels=wan.CONDITIONED, image_dim=wan.IMAGE_WIDTH, added_kv_proj_dim=wan.WIDTH
    )
    made = ChronoEditPipeline(
        parts.tokenizer(), parts.umt5(), wan.image_encoder(), wan.image_processor(),
        wan.heed_text(denoiser.eval()), wan.vae(), wan.scheduler(),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def anyflow(seed: int) -> AnyFlowPipeline:
    """Flow maps: every step is told where it begins and where it ends."""
    torch.manual_seed(seed)
    denoiser = AnyFlowTransformer3DModel(**WAN, in_channels=wan.CHANNELS).eval()
    made = AnyFlowPipeline(
        tokenizer=parts.tokenizer(), text_encoder=parts.umt5(), transformer=denoiser, vae=wan.vae(),
        scheduler=FlowMapEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def anyflow_far(seed: int) -> AnyFlowFARPipeline:
    """The same in two chunks of one latent frame each."""
    torch.manual_seed(seed)
    denoiser = AnyFlowFARTransformer3DModel(
        **WAN, in_channels=wan.CHANNELS, chunk_partition=(1, 1), compressed_patch_size=(1, 4, 4)
    ).eval()
    made = AnyFlowFARPipeline(
        tokenizer=parts.tokenizer(), text_encoder=parts.umt5(), transformer=denoiser, vae=wan.vae(),
        scheduler=FlowMapEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def consisid(seed: int) -> ConsisIDPipeline:
    """CogVideoX's blocks, with an image and without the part that reads a face (it needs models of its own)."""
    torch.manual_seed(seed)
    denoiser = ConsisIDTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=16,
        text_embed_dim=parts.TEXT_WIDTH, num_layers=4, sample_width=4, sample_height=4, sample_frames=5,
        temporal_compression_ratio=2, max_text_seq_length=cogvideox.LENGTH, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    shared = cogvideox.i2v(seed)
    made = ConsisIDPipeline(
        tokenizer=shared.tokenizer, text_encoder=shared.text_encoder, vae=shared.vae, scheduler=shared.scheduler,
        transformer=parts.wake(denoiser).eval(),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def kandinsky6(seed: int) -> Kandinsky6TI2VAPipeline:
    """Kandinsky 6 without sound: blocks return None in its place. The image is a last latent frame, which is cut off."""
    torch.manual_seed(seed)
    denoiser = Kandinsky6Transformer3DModel(
        in_visual_dim=hunyuan.CHANNELS, out_visual_dim=hunyuan.CHANNELS, in_text_dim=parts.TEXT_WIDTH,
        in_text_dim2=16, time_dim=16, model_dim=16, ff_dim=32, num_text_blocks=1, num_visual_blocks=4,
        axes_dims=(4, 2, 2), in_audio_dim=4, out_audio_dim=4, visual_token_type_num_embeddings=2,
    )  # fmt: skip
    shared = kandinsky.text_to_video(seed)
    made = Kandinsky6TI2VAPipeline(
        transformer=parts.wake(denoiser).eval(), vae=shared.vae, text_encoder=shared.text_encoder,
        tokenizer=shared.tokenizer, text_encoder_2=shared.text_encoder_2, tokenizer_2=shared.tokenizer_2,
        scheduler=shared.scheduler,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def sana_wm(seed: int) -> SanaWMPipeline:
    """A camera moves through a world; the image stays the first latent frame. Every other block has softmax attention."""
    torch.manual_seed(seed)
    denoiser = SanaWMTransformer3DModel(
        in_channels=4, num_layers=4, hidden_size=32, num_attention_heads=2, softmax_every_n=2, linear_head_dim=16,
        chunk_plucker_channels=12, caption_channels=parts.TEXT_WIDTH, mlp_ratio=2.0,
    )  # fmt: skip
    text_encoder = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=len(parts.WORDS), hidden_size=parts.TEXT_WIDTH, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8, initializer_range=0.5,
            pad_token_id=0, bos_token_id=1, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    made = SanaWMPipeline(
        tokenizer=parts.tokenizer(), text_encoder=text_encoder, vae=ltx.ltx2(seed).vae,
        transformer=parts.wake(denoiser).eval(), scheduler=FlowMatchEulerDiscreteScheduler(shift=8.0),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def _path(frames: int) -> np.ndarray:
    """A camera's poses `[T, 4, 4]`: it looks ahead and moves to the right."""
    poses = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    poses[:, 0, 3] = 0.01 * np.arange(frames)
    return poses


SILENT = wan.SHORT | {"sample_audio": False}
CASES: tuple[Case, ...] = (
    Case(
        "wan-vace", vace, 16, 16, 5, arguments=wan.SHORT,
        max_batch=1, why="it refuses several videos and several generators",
    ),
    Case(
        "wan-animate", animate, 16, 16, 5, image=True,
        arguments=wan.LONG | {
            "segment_frame_length": 5, "pose_video": _pictures(16, 5), "face_video": _pictures(FACE, 5)
        },
        max_batch=1, why="it takes one image only",
    ),
    Case("chronoedit", chronoedit, 16, 16, 5, image=True, arguments=wan.LONG),
    Case("anyflow", anyflow, 16, 16, 5, arguments=wan.SHORT),
    Case(
        "consisid", consisid, 8, 8, 5, image=True, arguments={"max_sequence_length": cogvideox.LENGTH},
        max_batch=1, why="it takes an image for each prompt, and requests share one",
    ),
    Case("kandinsky6-t2v", kandinsky6, 16, 16, 5, arguments=SILENT),
    Case(
        "kandinsky6-i2v", kandinsky6, 16, 16, 5, image=True, arguments=SILENT,
        max_batch=1, why="it takes an image for each prompt, and requests share one",
    ),
    Case(
        "sana-wm", sana_wm, 32, 32, 5, image=True,
        arguments={"max_sequence_length": 16, "chi_prompt": ["a"], "c2w": _path(9), "intrinsics": [32.0, 32.0, 16.0, 16.0]},
        max_batch=1, why="it takes one prompt only",
    ),
)  # fmt: skip
FAR = Case("anyflow-far", anyflow_far, 16, 16, 5, arguments=wan.SHORT)
