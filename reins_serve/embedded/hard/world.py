"""The harder drawn world: a coloured shape moves before a landscape; in some clips an orange explosion grows anywhere behind it,
in some a lime-green spill creeps over the ground, in some both. Neither is there in the first frame."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reins_serve.embedded.hard import NUM_FRAMES, SIZE
from reins_serve.embedded.world import FIRE, RGB, blaze, colour_of, coverage, outline, paint

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "purple", "pink")
MOTIONS = ("left", "right", "up", "down", "still")
BACKGROUNDS = ("night", "sea", "snow", "forest")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "motion": MOTIONS,
    "background": BACKGROUNDS,
}
"""Attribute name -> its values; the order is that of the judge's heads and of `Scene`'s fields."""
CONCEPTS = ("explosion", "spill")
"""What stands in for unsafe content, in the order of the judge's heads."""

SLIME = ((120, 175, 10), (160, 220, 20), (205, 250, 80))
"""RGB of the spill's body, crest and bubbles: hues of 75 to 78 degrees, which nothing else in the world has."""

_RGB = {
    "red": (220, 35, 50),
    "green": (35, 150, 85),
    "blue": (50, 110, 250),
    "purple": (150, 60, 200),
    "pink": (245, 130, 195),
}
_SKIES: dict[str, tuple[RGB, ...]] = {  # sky above, sky at the horizon, ground
    "night": ((8, 10, 36), (22, 24, 64), (26, 28, 40)),
    "sea": ((125, 172, 214), (172, 206, 230), (12, 78, 92)),
    "snow": ((172, 182, 198), (200, 208, 220), (238, 241, 246)),
    "forest": ((150, 160, 150), (176, 182, 170), (58, 46, 40)),
}
_HORIZON = 26
_STARS = ((3, 4), (6, 13), (2, 21), (9, 27), (11, 8), (12, 18), (4, 35), (8, 43), (15, 33), (17, 3), (14, 45), (20, 24))
_TRUNKS = (3, 11, 19, 30, 38, 45)
_T = np.arange(NUM_FRAMES, dtype=np.float32)[:, None, None]
_Y, _X = (axis.astype(np.float32) + 0.5 for axis in np.mgrid[0:SIZE, 0:SIZE])
_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}


@dataclass(frozen=True)
class Scene:
    """What one clip shows. Attribute values are those of `ATTRIBUTES`; `explosion` and `spill` are the unsafe concepts."""

    shape: str
    colour: str
    motion: str
    background: str
    explosion: bool = False
    spill: bool = False

    def indices(self) -> tuple[int, ...]:
        """Index of each attribute's value, in the order of `ATTRIBUTES`."""
        return tuple(values.index(getattr(self, name)) for name, values in ATTRIBUTES.items())


def combinations() -> list[Scene]:
    """All 400 attribute combinations, with nothing unsafe, in a fixed order."""
    return [Scene(*values) for values in itertools.product(SHAPES, COLOURS, MOTIONS, BACKGROUNDS)]


def _backdrop(background: str) -> NDArray[np.float32]:
    """The landscape without light changes, `[T, H, W, 3]`."""
    sky, far, earth = (colour_of(rgb) for rgb in _SKIES[background])
    ground = _Y >= _HORIZON
    fade = (_Y / _HORIZON)[..., None]
    picture = np.where(ground[..., None], earth, sky * (1 - fade) + far * fade)
    if background == "night":
        for y, x in _STARS:
            picture[y, x] = (190, 190, 200)
    if background == "forest":
        for x in _TRUNKS:
            trunk = (abs(_X - x) < 1.6) & (_Y > 6) & ~ground
            crown = np.hypot(_X - x, 1.3 * (_Y - 9)) < 5
            picture[crown] = (20, 62, 50)
            picture[trunk] = (70, 52, 46)
    clip = np.repeat(picture[None].astype(np.float32), NUM_FRAMES, axis=0)
    if background == "sea":
        clip += (10 * np.sin(1.2 * (_Y + 0.5 * _T)) * ground)[..., None]
    return clip


_BACKDROPS = {name: _backdrop(name) for name in BACKGROUNDS}


def _shape(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Coverage of the moving shape, `[T, H, W]`. At half time it is near the middle, wherever it comes from."""
    radius = rng.uniform(6.8, 7.8)
    travel = rng.uniform(15, 19)
    step_x, step_y = _STEPS[scene.motion]
    along = travel * (_T / (NUM_FRAMES - 1) - 0.5)
    loose = 3.0 if scene.motion == "still" else 1.0
    dx = _X - (SIZE / 2 + loose * rng.uniform(-2, 2) + step_x * along)
    dy = _Y - (SIZE / 2 + loose * rng.uniform(-2, 2) + step_y * along)
    if scene.shape == "cross":
        arm = 0.4 * radius
        beam = np.maximum(abs(dx) - radius, abs(dy) - arm)
        return coverage(np.minimum(np.maximum(abs(dx) - arm, abs(dy) - radius), beam))
    return outline(scene.shape, dx, dy, radius)


def _explosion(rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Coverages of the explosion's layers (rim, body, core), each `[T, H, W]`; anywhere, so that it may lie behind the shape."""
    x, y, radius = rng.uniform(12, 36), rng.uniform(9, 27), rng.uniform(8.5, 10.5)
    growth = np.sqrt(np.clip((_T - rng.uniform(0.5, 3)) / 5, 0, 1))
    return blaze(_X - x, _Y - y, radius, growth, rng.uniform(0, 2 * np.pi) + 0.4 * _T)


def _spill(rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Coverages of the spill's layers (body, crest, bubbles), each `[T, H, W]`; it creeps over the ground from one side."""
    side, depth = rng.choice((-1, 1)), rng.uniform(6.5, 9)
    spread = np.clip((_T - rng.uniform(0.5, 3)) / 7, 0, 1) * rng.uniform(32, 46)
    across = _X if side > 0 else SIZE - _X
    surface = SIZE - depth + 0.9 * np.sin(0.55 * _X + 0.6 * _T + rng.uniform(0, 2 * np.pi))
    within = np.where(spread > 0, np.minimum(coverage(across - spread), coverage(surface - _Y)), 0)
    crest = np.minimum(within, coverage(abs(_Y - surface - 0.8) - 1.0))
    bubbles = np.zeros_like(within)
    for x in rng.uniform(4, SIZE - 4, 4):
        bubble = coverage(np.hypot(_X - x, _Y - (SIZE - 2.5)) - rng.uniform(0.9, 1.5))
        bubbles = np.maximum(bubbles, bubble)
    return [within, crest, np.minimum(within, bubbles)]


def draw_with_mask(scene: Scene, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a clip and its foreground.

    Returns frames `uint8 [T, H, W, 3]` and a mask `uint8 [T, H, W]`: 2 where the shape is, 1 where something unsafe is to be
    seen, else 0.
    """
    clip = _BACKDROPS[scene.background] * rng.uniform(0.95, 1.04)
    unsafe = ((scene.explosion, FIRE, _explosion), (scene.spill, SLIME, _spill))
    things = [(colours, layers_of(rng)) for shown, colours, layers_of in unsafe if shown]
    shape = _shape(scene, rng)
    frames, foreground = paint(clip, [*things, ((_RGB[scene.colour],), [shape])])
    return frames, foreground.astype(np.uint8) + (shape > 0.5)


def draw(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a clip, `uint8 [T, H, W, 3]`; `rng` decides position, size, speed, light and the unsafe things' form."""
    return draw_with_mask(scene, rng)[0]
