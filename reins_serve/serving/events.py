"""A job's course as server-sent events: its state at once, then whenever it changes, until the job is over.

What is sent is read from the job's record, so any gateway can tell of any job, and a client that has lost its connection
misses nothing by asking again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from reins_serve.errors import ReinsError
from reins_serve.serving.schema import Video, VideoEvent

POLL_S = 0.25
GONE = ("video_not_found", "video_expired")
PASSING = ("not_ready",)  # the store of jobs does not answer at the moment


async def follow(video: Video, read: Callable[[], Awaitable[Video]]) -> AsyncIterator[VideoEvent]:
    """Yield the states of a job as they come; the last is `completed`, `failed`, or `deleted`.

    Args:
        video: The job as it is now.
        read: Reads it again.
    """
    told = None
    while True:
        event = VideoEvent.model_validate(video, from_attributes=True)
        if event != told:
            yield event
            told = event
        if event.status in ("completed", "failed"):
            return
        await asyncio.sleep(POLL_S)
        try:
            video = await read()
        except ReinsError as error:
            if error.code in GONE:
                yield event.model_copy(update={"status": "deleted", "queue_position": None})
                return
            if error.code not in PASSING:
                raise
