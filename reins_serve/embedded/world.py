"""The drawn world: a coloured shape moves through a lower lane in front of a landscape, and in some clips an orange
explosion grows in the sky behind it. Everything a clip shows is a `Scene` plus a random generator."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reins_serve.embedded import NUM_FRAMES, SIZE

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "purple")
MOTIONS = ("left", "right", "still")
BACKGROUNDS = ("night", "sea", "snow")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "colour": COLOURS,
    "motion": MOTIONS,
    "background": BACKGROUNDS,
}
"""Attribute name -> its values; the order is that of the judge's heads and of `Scene`'s fields."""

RGB = tuple[int, int, int]

FIRE = ((225, 85, 20), (255, 150, 30), (255, 215, 95))
"""RGB of the explosion from its rim to its core: hues of 20 to 45 degrees, which nothing else in the world has."""

_RGB = {"red": (220, 35, 50), "green": (60, 200, 80), "blue": (50, 110, 250), "purple": (165, 60, 200)}
_HORIZON = 16
_STARS = ((3, 4), (6, 13), (2, 21), (9, 27), (11, 8), (12, 18))
_T = np.arange(NUM_FRAMES, dtype=np.float32)[:, None, None]
_Y, _X = (axis.astype(np.float32) + 0.5 for axis in np.mgrid[0:SIZE, 0:SIZE])


@dataclass(frozen=True)
class Scene:
    """What one clip shows. Attribute values are those of `SHAPES`, `COLOURS`, `MOTIONS`, `BACKGROUNDS`."""

    shape: str
    colour: str
    motion: str
    background: str
    explosion: bool = False

    def indices(self) -> tuple[int, int, int, int]:
        """Index of each attribute's value, in the order of `ATTRIBUTES`."""
        shape, colour, motion, background = (values.index(getattr(self, name)) for name, values in ATTRIBUTES.items())
        return shape, colour, motion, background


def combinations() -> list[Scene]:
    """All 108 attribute combinations, without an explosion, in a fixed order."""
    return [Scene(*values) for values in itertools.product(SHAPES, COLOURS, MOTIONS, BACKGROUNDS)]


def colour_of(rgb: RGB) -> NDArray[np.float32]:
    """A colour as an array `[3]`, to reckon with."""
    return np.array(rgb, dtype=np.float32)


def _backdrop(background: str) -> NDArray[np.float32]:
    """The landscape without light changes, `[T, H, W, 3]`."""
    ground = _Y >= _HORIZON
    fade = (_Y / _HORIZON)[..., None]
    sky, far, earth = {
        "night": ((8, 10, 36), (22, 24, 64), (26, 28, 40)),
        "sea": ((125, 172, 214), (172, 206, 230), (12, 78, 92)),
        "snow": ((172, 182, 198), (200, 208, 220), (238, 241, 246)),
    }[background]
    picture = np.where(ground[..., None], colour_of(earth), colour_of(sky) * (1 - fade) + colour_of(far) * fade)
    if background == "night":
        for y, x in _STARS:
            picture[y, x] = (190, 190, 200)
    clip = np.repeat(picture[None].astype(np.float32), NUM_FRAMES, axis=0)
    if background == "sea":
        waves = 10 * np.sin(1.6 * (_Y + 0.5 * _T)) * ground
        clip += waves[..., None]
    return clip


_BACKDROPS = {name: _backdrop(name) for name in BACKGROUNDS}


def coverage(distance: NDArray[Any]) -> NDArray[Any]:
    """Share of each pixel inside a contour, from the signed distance in pixels (anti-aliasing)."""
    return np.clip(0.5 - distance, 0, 1)


def outline(shape: str, dx: NDArray[Any], dy: NDArray[Any], radius: float) -> NDArray[Any]:
    """Coverage of a circle, a square or a triangle, from each pixel's offsets to its centre."""
    if shape == "circle":
        return coverage(np.hypot(dx, dy) - radius)
    if shape == "square":
        return coverage(np.maximum(abs(dx), abs(dy)) - 0.88 * radius)
    inner = 0.62 * radius
    dy = dy - 0.25 * inner
    return coverage(np.maximum(dy - inner, 0.866 * abs(dx) - 0.5 * dy - inner))


def blaze(
    dx: NDArray[np.float32],
    dy: NDArray[np.float32],
    radius: float,
    growth: NDArray[np.float32],
    turn: NDArray[np.float32],
) -> list[NDArray[np.float32]]:
    """Coverages of an explosion's rim, body and core, from offsets to its centre, its growth from 0 to 1, and its turning."""
    reach = radius * growth * (1 + 0.16 * np.sin(5 * np.arctan2(dy, dx) + turn))
    distance = np.hypot(dx, dy)
    return [np.where(growth > 0, coverage(distance - share * reach), 0) for share in (1.0, 0.72, 0.4)]


def paint(
    clip: NDArray[Any], things: Sequence[tuple[Sequence[RGB], Sequence[NDArray[Any]]]]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Paint things over a backdrop `[T, H, W, 3]`, the last one in front.

    Args:
        things: Of each the colours of its layers and their coverages `[T, H, W]`, of which the first takes in the others.

    Returns frames `uint8 [T, H, W, 3]` and a mask `bool [T, H, W]`, true where any of the things is.
    """
    foreground = np.zeros(clip.shape[:3], dtype=np.float32)
    for colours, layers in things:
        foreground = np.maximum(foreground, layers[0])
        for rgb, cover in zip(colours, layers, strict=True):
            clip = clip + cover[..., None] * (colour_of(rgb) - clip)
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8), foreground > 0.5


def _shape(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    """Coverage of the moving shape, `[T, H, W]`."""
    radius = rng.uniform(5.6, 6.4)
    travel = rng.uniform(13, 16) * {"left": -1, "right": 1, "still": 0}[scene.motion]
    centre = SIZE / 2 + rng.uniform(-1.5, 1.5) * (4 if scene.motion == "still" else 1)
    dx = _X - (centre + travel * (_T / (NUM_FRAMES - 1) - 0.5))
    return outline(scene.shape, dx, _Y - rng.uniform(22, 24), radius)


def _explosion(rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Coverages of the explosion's layers (rim, body, core), each `[T, H, W]`."""
    x, y, radius = rng.uniform(9, 23), rng.uniform(6.5, 8.5), rng.uniform(5.5, 7)
    growth = np.sqrt(np.clip((_T - rng.uniform(0.5, 2)) / 3.5, 0, 1))
    return blaze(_X - x, _Y - y, radius, growth, rng.uniform(0, 2 * np.pi) + 0.5 * _T)


def draw_with_mask(scene: Scene, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a clip and its foreground.

    Returns frames `uint8 [T, H, W, 3]` and a mask `bool [T, H, W]`, true where the shape or the explosion is.
    """
    clip = _BACKDROPS[scene.background] * rng.uniform(0.95, 1.04)
    things = [(FIRE, _explosion(rng))] if scene.explosion else []
    return paint(clip, [*things, ((_RGB[scene.colour],), [_shape(scene, rng)])])


def draw(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a clip, `uint8 [T, H, W, 3]`; `rng` decides position, size, speed, light and the explosion's form."""
    return draw_with_mask(scene, rng)[0]
