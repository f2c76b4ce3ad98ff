"""The image that a clip begins with: decoded within bounds, turned upright, and fitted to the clip's size.

The rule of fitting: the image is scaled until it covers the clip, and what stands over is cut off evenly on both sides. It is
neither stretched nor framed by bars. Transparent parts become white.
"""

import base64
import binascii
import io
import re

from PIL import Image, ImageOps

from reins_serve.serving.config import Limits
from reins_serve.serving.http_errors import RequestError

FORMATS = ("PNG", "JPEG", "WEBP")
FIELD = "input_reference"
DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII)


def from_data_url(url: str) -> bytes:
    """The bytes of `data:image/png;base64,...`. Raises RequestError where it is none."""
    head = DATA_URL.match(url)
    try:
        if head is not None:
            return base64.b64decode(url[head.end() :], validate=True)
    except binascii.Error:
        pass
    raise RequestError(
        "Give image_url as `data:image/png;base64,...`, or send the image as a file.", code="invalid_value", param=FIELD
    )


def first_frame(data: bytes, width: int, height: int, limits: Limits) -> Image.Image:
    """The first frame, in RGB, of a clip of this size; of an animation its first picture.

    Raises:
        RequestError: too many bytes or pixels (`payload_too_large`), or no PNG, JPEG or WebP that can be read.
    """
    if len(data) > limits.max_image_bytes:
        raise too_large(limits)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the size, and no pixel yet
        if image.width * image.height > limits.max_image_pixels:
            raise RequestError(
                f"An image may have at most {limits.max_image_pixels} pixels.", code="payload_too_large", param=FIELD
            )
        image.load()
        return ImageOps.fit(_opaque(ImageOps.exif_transpose(image)), (width, height), Image.Resampling.LANCZOS)
    except (RequestError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise RequestError("This image has too many pixels.", code="payload_too_large", param=FIELD) from error
    except Exception as error:  # decoders of damaged files raise what they like
        raise RequestError(
            f"The image cannot be read. Send one of {', '.join(FORMATS)}, whole.", code="invalid_value", param=FIELD
        ) from error


def too_large(limits: Limits) -> RequestError:
    """The refusal of an image with too many bytes."""
    return RequestError(
        f"An image may have at most {limits.max_image_bytes} bytes.", code="payload_too_large", param=FIELD
    )


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":  # a PNG of 16 bits of grey, which `convert` would cut off above 255
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
