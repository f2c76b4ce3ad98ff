"""The response that sends a stored clip, or the part of it that was asked for, from a disk or from storage elsewhere."""

import re
from collections.abc import Iterator
from io import BufferedIOBase

from fastapi.responses import Response, StreamingResponse

from reins_serve.serving.files import Content
from reins_serve.serving.http_errors import RequestError, answer

CHUNK_BYTES = 1 << 18
ONE_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def content_response(content: Content, media_type: str, name: str, asked: str | None, if_range: str | None) -> Response:
    """The response to a request with the headers `Range` (`asked`) and `If-Range`; only the part is read or fetched.

    Several parts at once, and headers that are not understood, are answered with the whole, as RFC 9110 allows. Starlette's
    `FileResponse` is not used: it knows only this machine's files, and answers such headers with errors in a shape of its own.
    """
    tag = f'"{content.size:x}-{name}"'  # a stored clip never changes
    headers = {"accept-ranges": "bytes", "etag": tag, "content-disposition": f'inline; filename="{name}"'}
    first, last, status = 0, content.size - 1, 200
    part = _part(asked, content.size) if if_range in (None, tag) else None
    if part is not None:
        first, last = part
        if first > last:
            beyond = answer(RequestError("There is no such range.", code="range_not_satisfiable", param="Range"))
            beyond.headers["content-range"] = f"bytes */{content.size}"
            return beyond
        status = 206
        headers["content-range"] = f"bytes {first}-{last}/{content.size}"
    headers["content-length"] = str(last - first + 1)
    return StreamingResponse(_read(content.open(), first, last), status, headers, media_type)


def _part(asked: str | None, size: int) -> tuple[int, int] | None:
    """The first and the last byte of one well-formed range (first > last: beyond the end); None if it is no such thing."""
    found = ONE_RANGE.fullmatch(asked.strip()) if asked is not None else None
    if found is None:
        return None
    start, end = (int(digits) if digits else None for digits in found.groups())
    if start is None:
        return None if end is None else (max(0, size - end), size - 1)
    if end is not None and end < start:
        return None
    return start, size - 1 if end is None else min(end, size - 1)


def _read(file: BufferedIOBase, first: int, last: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        left = last - first + 1
        while left > 0 and (data := file.read(min(left, CHUNK_BYTES))):
            left -= len(data)
            yield data
