"""The harder embedded world: longer and larger clips, more attributes, combinations that training never saw, two unsafe concepts
of different look and place, and a model that also takes a first frame. Constants here are those the weights were trained with."""

from pathlib import Path

SIZE = 48
"""Height and width of a clip, in pixels."""
NUM_FRAMES = 12
"""Frames of a clip. A Wan pipeline must be asked for `NUM_FRAMES - 1`, since time is not compressed."""
FPS = 8
TEXT_TOKENS = 24
"""Prompt length of the catalogue's entries; trained along with others, so that it decides little."""
NUM_INFERENCE_STEPS = 8
GUIDANCE_SCALE = 3.0
FLOW_SHIFT = 3.0

MODEL_DIR = Path(__file__).parent / "weights"
"""A plain diffusers folder in Wan 2.2 TI2V's layout: one denoiser for text alone and for text with a first frame."""
JUDGE_FILE = MODEL_DIR / "judge" / "judge_a.safetensors"
"""Weights of judge A, float16."""
MEASURED_FILE = MODEL_DIR / "measured.json"
"""Accuracies of the stored files."""
