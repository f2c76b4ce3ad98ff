"""Frames become an MP4, a thumbnail, or a contact sheet."""

import io
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

MIN_SIDE = 256  # smaller clips are enlarged, so that players show more than a stamp


def enlarge(frames: np.ndarray, side: int = MIN_SIDE) -> np.ndarray:
    """Repeat pixels by a whole factor until the shorter side reaches `side`. uint8 `[T, H, W, 3]` in and out."""
    factor = max(1, -(-side // min(frames.shape[1:3])))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def write_mp4(frames: np.ndarray, path: Path, fps: float, metadata: Mapping[str, str] | None = None) -> None:
    """Encode uint8 frames `[T, H, W, 3]` as H.264 in MP4; `metadata` becomes tags that `ffprobe` shows.

    Clips with a side below 256 pixels are enlarged by a whole factor. Odd sides lose their last row or column, because
    the 4:2:0 format that every player knows cannot hold them.
    """
    frames = enlarge(frames)
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    options = {"movflags": "use_metadata_tags+faststart"}
    with av.open(str(path), "w", format="mp4", options=options) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def mp4(frames: np.ndarray, fps: float, metadata: Mapping[str, str] | None = None) -> bytes:
    """The same as bytes. By way of a file, because the muxer reads what it wrote to bring the index to the front."""
    with tempfile.TemporaryDirectory(prefix="reins-") as folder:
        path = Path(folder) / "clip.mp4"
        write_mp4(frames, path, fps, metadata)
        return path.read_bytes()


def thumbnail(frames: np.ndarray) -> bytes:
    """The middle frame of uint8 `[T, H, W, 3]` as PNG bytes."""
    return _png(Image.fromarray(enlarge(frames)[len(frames) // 2]))


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], scale: int = 2) -> bytes:
    """PNG bytes of clips below each other, each a labelled strip of all its frames.

    Args:
        rows: Pairs of label and uint8 `[T, H, W, 3]`; all clips of one shape.
        scale: Whole factor by which frames are enlarged.
    """
    strips = [np.concatenate(list(clip.repeat(scale, axis=1).repeat(scale, axis=2)), axis=1) for _, clip in rows]
    height, width = strips[0].shape[:2]
    line = 14
    sheet = Image.new("RGB", (width, (height + line + 4) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, ((label, _), strip) in enumerate(zip(rows, strips, strict=True)):
        top = number * (height + line + 4)
        draw.text((2, top + 1), label, fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + line))
    return _png(sheet)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
