"""Every video denoiser of diffusers that has no entry in SPECS: the words with which one works, or why it is refused.

`tests/models/test_others.py` finds the denoisers in the installed diffusers and fails when one is missing here, and puts
the words of every `Works` to the start-up proof on a tiny pipeline.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Works:
    """A class that can be steered with an entry of the user's own.

    Attributes:
        spec: The words of its `DenoiserSpec`.
        note: What its pipeline needs besides; empty if nothing.
    """

    spec: Mapping[str, Any]
    note: str = ""

    def __str__(self) -> str:
        words = ", ".join(f"{name}={value!r}" for name, value in self.spec.items())
        return f"DenoiserSpec({words}) passes the start-up proof on a tiny pipeline." + f" {self.note}".rstrip()


@dataclass(frozen=True)
class Refused:
    """A class that no entry makes steerable, and the reason."""

    reason: str

    def __str__(self) -> str:
        return f"It is refused, because {self.reason}."


Other: TypeAlias = Works | Refused

_UNET = Refused(
    "it is a UNet: its tokens change width from level to level, so there is no one stream that a direction fits"
)
_IMAGES = Refused("it makes images; the frames of its 5-D latents are those of one image, or of the images to edit")
_ONE_CLIP = "Its pipeline makes one clip in a call (`max_batch: 1`)."

OTHERS: Mapping[str, Other] = MappingProxyType(
    {
        "AnyFlowTransformer3DModel": Works({"blocks": ("blocks",), "guidance": "batched"}),
        "ChronoEditTransformer3DModel": Works(
            {"blocks": ("blocks",), "guidance": "ordered"},
            "Without `enable_temporal_reasoning` a clip has 5 frames, whatever was asked for.",
        ),
        "ConsisIDTransformer3DModel": Works(
            {"blocks": ("transformer_blocks",), "guidance": "batched", "video": 0},
            "The proof ran without the reader of faces. Each prompt needs an image of its own, so make one clip in a call.",
        ),
        "Kandinsky6Transformer3DModel": Works(
            {"blocks": ("visual_transformer_blocks",), "guidance": "sequential", "video": 0, "width": "model_dim"},
            "The proof ran without sound. An image is one more frame at the end of the stream, and is pushed with it; each "
            "prompt needs one of its own, so make one clip in a call.",
        ),
        "SanaWMTransformer3DModel": Works(
            {"blocks": ("blocks",), "guidance": "batched", "width": "hidden_size"},
            f"The camera's path is an argument of every call. {_ONE_CLIP}",
        ),
        "WanAnimateTransformer3DModel": Works(
            {"blocks": ("blocks",), "guidance": "sequential", "chunked": True},
            f"The pose and the face are arguments of every call; the proof ran on one segment. {_ONE_CLIP}",
        ),
        "WanVACETransformer3DModel": Works(
            {"blocks": ("blocks",), "guidance": "sequential"},
            f"The side blocks (`vace_blocks`) are not on the path. {_ONE_CLIP}",
        ),
        "AnyFlowFARTransformer3DModel": Refused(
            "its pipeline makes a clip of several chunks, begins the steps of each again at 0 but counts all of them together, "
            "and calls the denoiser between chunks to fill a cache: there is no first half of denoising"
        ),
        "Cosmos3OmniTransformer": Refused(
            "its blocks have no rows: the tokens of a prompt's video, sound and actions lie in one tensor [tokens, width]"
        ),
        "HunyuanVideoFramepackTransformer3DModel": Refused(
            "the tokens of earlier sections lie in front of the video's in the same tensor, and no argument of a block says how "
            "many of them are the video's"
        ),
        "Kandinsky6SRTransformer3DModel": Refused(
            "it enlarges a finished clip, tile by tile and without a prompt, and its pipeline has no step callback"
        ),
        "MiniMaxH3Transformer3DModel": Refused(
            "the tokens of text, video and sound lie in one tensor in the order of an index, and only modular pipelines have it, "
            "which have no step callback"
        ),
        "SanaWMLTX2RefinerTransformer3DModel": Refused(
            "it refines finished latents, a few frames after the others, with calls in between that fill a cache, and its "
            "pipeline has no step callback"
        ),
        "WanAnimate2Transformer3DModel": Refused(
            "only modular pipelines have it, which have no step callback, and a call before the steps fills a cache"
        ),
        "HunyuanImageTransformer2DModel": _IMAGES,
        "JoyImageEditPlusTransformer3DModel": _IMAGES,
        "JoyImageEditTransformer3DModel": _IMAGES,
        "I2VGenXLUNet": _UNET,
        "UNet2DConditionModel": _UNET,
        "UNet3DConditionModel": _UNET,
        "UNetMotionModel": _UNET,
        "UNetSpatioTemporalConditionModel": _UNET,
        "TransformerTemporalModel": Refused("it is a layer of UNets, and no denoiser by itself"),
    }
)
