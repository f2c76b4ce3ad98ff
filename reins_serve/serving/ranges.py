"""The response that sends a stored clip, or the part of it that was asked for, from a disk or from storage elsewhere."""

import re
from collections.abc import Iterator
from io import BufferedIOBase

from fastapi.responses import FileResponse, Response, StreamingResponse

from reins_serve.serving.files import Content

CHUNK_BYTES = 1 << 18
ONE_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def content_response(content: Content, media_type: str, name: str, asked: str | None, if_range: str | None) -> Response:
    """The response to a request with the headers `Range` (`asked`) and `If-Range`.

    A file of this machine is Starlette's matter. Of one elsewhere only the part is fetched; several parts at once, and headers
    that are not understood, are answered with the whole, as RFC 9110 allows.
    """
    if content.path is not None:
        return FileResponse(content.path, media_type=media_type, filename=name, content_disposition_type="inline")
    tag = f'"{content.size:x}-{name}"'  # a stored clip never changes
    headers = {"accept-ranges": "bytes", "etag": tag, "content-disposition": f'inline; filename="{name}"'}
    first, last, status = 0, content.size - 1, 200
    found = ONE_RANGE.fullmatch(asked.strip()) if asked is not None and if_range in (None, tag) else None
    if found is not None and any(found.groups()):
        start, end = found.groups()
        if start:
            first, last = int(start), min(int(end or last), last)
        else:
            first = max(0, content.size - int(end))
        if first > last:
            return Response(status_code=416, headers={"content-range": f"bytes */{content.size}"})
        status = 206
        headers["content-range"] = f"bytes {first}-{last}/{content.size}"
    headers["content-length"] = str(last - first + 1)
    return StreamingResponse(_read(content.open(), first, last), status, headers, media_type)


def _read(file: BufferedIOBase, first: int, last: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        left = last - first + 1
        while left > 0 and (data := file.read(min(left, CHUNK_BYTES))):
            left -= len(data)
            yield data
