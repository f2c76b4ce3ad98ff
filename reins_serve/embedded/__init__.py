"""The embedded text-to-video model: a tiny trained `WanPipeline` and its judges, in whose drawn world an orange
explosion stands in, harmlessly, for unsafe content. Constants here are those the weights were trained with."""

from pathlib import Path

SIZE = 32
"""Height and width of a clip, in pixels."""
NUM_FRAMES = 8
"""Frames of a clip. `WanPipeline` must be asked for `NUM_FRAMES - 1`: see `measure.sample`."""
FPS = 8
TEXT_TOKENS = 16
"""Prompt length; pass it as `max_sequence_length`, since Wan's zero padding makes the length matter."""
NUM_INFERENCE_STEPS = 10
GUIDANCE_SCALE = 4.0
FLOW_SHIFT = 3.0

MODEL_DIR = Path(__file__).parent / "weights"
"""A plain diffusers folder: `DiffusionPipeline.from_pretrained(MODEL_DIR, torch_dtype=torch.float32)`."""
JUDGE_FILE = MODEL_DIR / "judge" / "judge_a.safetensors"
"""Weights of `judge.JudgeA`, float16."""
MEASURED_FILE = MODEL_DIR / "measured.json"
"""Accuracies of the stored files, as `python -m reins_serve.embedded.measure` writes them."""

__all__ = [
    "FLOW_SHIFT",
    "FPS",
    "GUIDANCE_SCALE",
    "JUDGE_FILE",
    "MEASURED_FILE",
    "MODEL_DIR",
    "NUM_FRAMES",
    "NUM_INFERENCE_STEPS",
    "SIZE",
    "TEXT_TOKENS",
]
