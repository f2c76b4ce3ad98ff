"""A job's course as server-sent events: its state at once, then whenever it changes, until the job is over.

What is sent is read from the job's record, so any gateway can tell of any job, and a client that has lost its connection
misses nothing by asking again. A stream ends by itself after `FOLLOW_S`, because a gateway that shall go waits for its open
answers; browsers' `EventSource` and our own client ask again, as the standard has it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from reins_serve.errors import ReinsError
from reins_serve.serving.schema import Video, VideoEvent

POLL_S = 0.25
FOLLOW_S = 30.0
GONE = ("video_not_found", "video_expired")
PASSING = ("not_ready",)  # the store of jobs does not answer at the moment


async def follow(video: Video, read: Callable[[], Awaitable[Video]]) -> AsyncIterator[VideoEvent]:
    """Yield the states of a job as they come; the last is `completed`, `failed`, or `deleted`, unless the stream's time is over.

    Args:
        video: The job as it is now.
        read: Reads it again.
    """
    told, end = None, time.monotonic() + FOLLOW_S
    while True:
        event = VideoEvent.model_validate(video, from_attributes=True)
        if event != told:
            yield event
            told = event
        if event.status in ("completed", "failed") or time.monotonic() > end:
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
