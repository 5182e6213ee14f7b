"""From the engine's thread to HTTP: deltas as they arrive, complete or as server-sent events."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minigpt_jax.server.api_error import ApiError
from minigpt_jax.server.engine import Engine
from minigpt_jax.server.parse import ParsedRequest
from minigpt_jax.server.request import Delta, EngineClosed, QueueFull, Request
from minigpt_jax.server.responses import Choice, sse_event
from minigpt_jax.server.waiting_comments import POLL_SECONDS, WaitingComments

T = TypeVar("T")


class ResponseStream:
    """The deltas of some requests that the engine works on. The caller must close it."""

    def __init__(self, engine: Engine, requests: Sequence[Request], client: str):
        """`client`: whose it is. Raises ApiError if the engine accepts no more requests."""
        loop = asyncio.get_running_loop()
        self._engine = engine
        self.num_choices = len(requests)
        self._deltas: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        capacity = engine.queue_size + engine.num_slots
        if len(requests) > capacity:
            raise ApiError(
                400,
                f"{len(requests)} answers are more than this server can hold ({capacity}): "
                "ask for fewer",
                param="n",
            )

        def receive(index: int, delta: Delta) -> None:
            loop.call_soon_threadsafe(self._deltas.put_nowait, (index, delta))

        try:
            self._active = engine.submit(requests, receive, client)
        except QueueFull as full:
            seconds = max(math.ceil(full.seconds), 1)
            raise ApiError(
                429,
                f"too many requests are waiting: try again in {seconds} s",
                code="queue_full",
                headers={"Retry-After": str(seconds)},
            ) from None
        except EngineClosed:
            raise ApiError(503, "the engine has stopped", headers={"Retry-After": "10"}) from None

    def queue_position(self) -> int | None:
        """How many others get a slot before; None if the request does not wait for one."""
        return self._engine.queue_position(self._active)

    async def deltas(
        self, poll_seconds: float | None = None
    ) -> AsyncIterator[tuple[int, Delta] | None]:
        """(index of the choice, delta) until all choices are complete.

        None each time that nothing has come for `poll_seconds`. Raises ApiError (503) if the engine
        stops before the end.
        """
        unfinished = self.num_choices
        while unfinished:
            try:
                async with asyncio.timeout(poll_seconds):
                    index, delta = await self._deltas.get()
            except TimeoutError:
                yield None
                continue
            if delta.finish_reason == "closed":
                raise ApiError(503, "the server stopped before the answer was complete")
            unfinished -= delta.finish_reason is not None
            yield index, delta

    def close(self) -> None:
        """Cancel what is not complete."""
        self._engine.cancel(self._active)


async def collect(parsed: ParsedRequest, stream: ResponseStream) -> dict:
    """The complete response."""
    choices = [Choice() for _ in range(stream.num_choices)]
    async for part in stream.deltas():
        assert part, "None comes only with poll_seconds"
        index, delta = part
        choices[index].add(delta)
    return parsed.format.body(choices, parsed.prompt_tokens)


async def sse_events(parsed: ParsedRequest, stream: ResponseStream) -> AsyncIterator[bytes]:
    """The response as server-sent events."""
    for event in parsed.format.first_events(stream.num_choices):
        yield event
    now = time.monotonic()
    comments = WaitingComments(now)
    if comment := comments.next(now, stream.queue_position()):
        yield comment
    offsets = [0] * stream.num_choices
    completion_tokens = 0
    try:
        async for part in stream.deltas(POLL_SECONDS):
            if part is None:
                if comment := comments.next(time.monotonic(), stream.queue_position()):
                    yield comment
                continue
            index, delta = part
            yield b"".join(parsed.format.delta_events(index, delta, offsets[index]))
            comments.text_sent(time.monotonic())
            offsets[index] += parsed.format.num_characters(delta.tokens)
            completion_tokens += delta.num_generated
    except ApiError as error:
        # The status has been sent already, so the error is an event.
        yield sse_event(error.body())
        return
    yield b"".join(parsed.format.final_events(parsed.prompt_tokens, completion_tokens))


class EventStreamResponse(Response):
    """Server-sent events that stop as soon as the client disconnects."""

    media_type = "text/event-stream"

    def __init__(self, parsed: ParsedRequest, stream: ResponseStream):
        # Proxies such as nginx would otherwise collect the events before they pass them on.
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._parsed = parsed
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_events() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in sse_events(self._parsed, self._stream):
                if event:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        try:
            await cancel_on_disconnect(receive, send_events())
        except ClientDisconnect:
            pass
        finally:
            self._stream.close()


async def cancel_on_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns.

    Cancels it and raises ClientDisconnect as soon as the client disconnects.
    """

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.create_task(wait_for_disconnect())
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((watch, task), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(watch, task, return_exceptions=True)
