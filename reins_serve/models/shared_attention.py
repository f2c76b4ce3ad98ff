"""LTX's attention where several processes share its tokens.

diffusers 0.42 gives LTX's text attention one mask for each head. Under Ulysses a process has a part of the heads only, so that
mask has too many; but all heads have the same one, and a single one for all is what diffusers gathers from the processes. Its
plan leaves out that image-to-video has a timestep for each token.
"""

from typing import Any, cast

import diffusers
import torch
from diffusers.models._modeling_parallel import ContextParallelInput
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor, apply_rotary_emb

from reins_serve.models.spec import Denoiser

LTX = diffusers.LTXVideoTransformer3DModel


def prepare_sharing(denoiser: Denoiser) -> dict[str, Any] | None:
    """Make a denoiser fit to share its tokens; the plan for it, or None where diffusers' own will do."""
    if type(denoiser) is not LTX:
        return None
    for module in cast(torch.nn.Module, denoiser).modules():
        if isinstance(module, LTXAttention):
            cast(Any, module).set_processor(SharedLTXProcessor())
    # A timestep for the whole clip has one dimension, and is not split.
    by_token = ContextParallelInput(split_dim=1, expected_dims=2, split_output=False)
    return LTX._cp_plan | {"": LTX._cp_plan[""] | {"timestep": by_token}}


class SharedLTXProcessor(LTXVideoAttnProcessor):
    """The same attention as `LTXVideoAttnProcessor` makes, with one mask for all heads.

    Shapes: `hidden_states [B, S, D]` and `encoder_hidden_states [B, T, D]` are this process's tokens; `attention_mask [B, 1, T]` is
    added to the scores.
    """

    def __call__(
        self,
        attn: LTXAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> torch.Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(source))
        if image_rotary_emb is not None:
            query, key = (apply_rotary_emb(tokens, image_rotary_emb) for tokens in (query, key))
        query, key, value = (tokens.unflatten(2, (attn.heads, -1)) for tokens in (query, key, attn.to_v(source)))
        attended = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=None if attention_mask is None else attention_mask.unsqueeze(1),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        projection, dropout = attn.to_out
        mixed: torch.Tensor = dropout(projection(attended.flatten(2, 3)))
        return mixed
