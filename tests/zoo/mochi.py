"""Mochi, whose timesteps ascend."""

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

from .case import Case
from .parts import TEXT_WIDTH, t5, tokenizer, wake

LENGTH = 16  # of a prompt in tokens


def build(seed: int) -> MochiPipeline:
    """The pipeline fixes factors 8 (space) and 6 (time), its autoencoder 32 groups: 2 x 2 x 2 tokens a clip."""
    torch.manual_seed(seed)
    transformer = MochiTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=4, pooled_projection_dim=16, text_embed_dim=TEXT_WIDTH,
        time_embed_dim=16, max_sequence_length=LENGTH,
    )  # fmt: skip
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, layers_per_block=(1, 0, 0, 0, 0),
        add_attention_block=(False,) * 5,
    )  # fmt: skip
    made = MochiPipeline(
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True), vae.eval(), t5(), tokenizer(LENGTH),
        wake(transformer).eval(),
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


CASES = (Case("mochi", build, 32, 32, 7, arguments={"max_sequence_length": LENGTH}),)
