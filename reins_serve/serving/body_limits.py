"""How much of a body is read: counted while it comes, whatever its header says, before anything of it is parsed."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimits:
    """Middleware that ends the reading of a body with 413 once it exceeds the limit.

    Args:
        default: Bytes.
        own: Other limits, by the end of the path.
    """

    def __init__(self, app: ASGIApp, default: int, own: Mapping[str, int]) -> None:
        self._app = app
        self._default = default
        self._own = own

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = next((own for end, own in self._own.items() if scope["path"].endswith(end)), self._default)
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"At most {limit} bytes are accepted.")
            return message

        await self._app(scope, limited, send)
