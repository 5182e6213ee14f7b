"""What uvicorn lacks: deadlines, and errors that reach a client that still sends."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigpt_jax.server.api_error import ApiError

# At the same time; the usual limit of open files is 1,024.
MAX_CONNECTIONS = 512
# From a client that gets an error this much is read and discarded, for so many seconds at most: a
# connection that is closed while data arrive is reset, and the error with it.
_DISCARD_BYTES = 16 * 10**6
_DISCARD_SECONDS = 2.0


class Deadlines(NamedTuple):
    """Seconds that a client may take."""

    # From the first byte of a request (or the connection) to its last one, headers and body.
    receive: float = 10.0
    # To read on after the socket's buffers are full.
    send: float = 60.0


DEADLINES = Deadlines()


class ServerConfig(uvicorn.Config):
    """uvicorn's settings and our deadlines."""

    def __init__(self, app: ASGIApp, deadlines: Deadlines):
        super().__init__(
            app,
            loop="asyncio",
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            # Errors are bugs of ours. Warnings are about what clients sent.
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
        )
        self.deadlines = deadlines


class Protocol(H11Protocol):
    """uvicorn's, with deadlines for headers, bodies and clients that stop reading."""

    def __init__(self, config: ServerConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self._deadlines = config.deadlines
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        # After an error: bytes that may still be discarded.
        self._discard_bytes: int | None = None
        self._discard_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._start_receive_timer()
        if len(self.connections) > MAX_CONNECTIONS:
            error = ApiError(503, "too many connections", headers={"Retry-After": "5"})
            self._send_error_and_close(error)

    def data_received(self, data: bytes) -> None:
        if self._discard_bytes is None:
            super().data_received(data)
            return
        self._discard_bytes -= len(data)
        if self._discard_bytes < 0:
            self.transport.close()

    def handle_events(self) -> None:
        """Called when data arrive, and after a response if part of the next request is there."""
        super().handle_events()
        if self._discard_bytes is not None:
            return
        next_request_began = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if self.conn.their_state is h11.SEND_BODY or next_request_began:
            self._start_receive_timer()
        else:
            self._receive_timer = _cancel(self._receive_timer)

    def send_400_response(self, msg: str) -> None:
        if getattr(sys.exception(), "error_status_hint", 400) == 431:
            self._send_error_and_close(ApiError(431, "the headers are too long"))
        else:
            self._send_error_and_close(ApiError(400, "the request is not valid HTTP"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._receive_timer = _cancel(self._receive_timer)
        self._send_timer = _cancel(self._send_timer)
        self._discard_timer = _cancel(self._discard_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(self._deadlines.send, self.transport.abort)

    def resume_writing(self) -> None:
        self._send_timer = _cancel(self._send_timer)
        super().resume_writing()

    def _start_receive_timer(self) -> None:
        """Unless it runs: a client that sends one byte at a time gets no more time than others."""
        if self._receive_timer is None:
            self._receive_timer = self.loop.call_later(
                self._deadlines.receive, self._receive_timed_out
            )

    def _receive_timed_out(self) -> None:
        """Send 408 to a client that sent part of a request; close a connection without one."""
        self._receive_timer = None
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            seconds = self._deadlines.receive
            self._send_error_and_close(
                ApiError(408, f"the request took more than {seconds:g} s to arrive")
            )
        else:
            self.transport.close()

    def _send_error_and_close(self, error: ApiError) -> None:
        """Close, after the error if no response has begun.

        A route that waits for the body gets ClientDisconnect.
        """
        may_respond = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        if not may_respond or self.transport.is_closing():
            self.transport.close()
            return
        body = error.body()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **error.headers,
        }
        head = h11.Response(status_code=error.status, headers=list(headers.items()), reason=b"")
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        if self.cycle and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if len(self.connections) > MAX_CONNECTIONS:
            self.transport.close()
        else:
            self._discard_what_follows()

    def _discard_what_follows(self) -> None:
        """Close when the client does, or has sent too much, or has taken too long."""
        self._receive_timer = _cancel(self._receive_timer)
        self.transport.write_eof()
        self.flow.resume_reading()
        self._discard_bytes = _DISCARD_BYTES
        self._discard_timer = self.loop.call_later(_DISCARD_SECONDS, self.transport.close)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """uvicorn's, without its signal handlers: `serve_run` installs ours."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


def make_server(app: ASGIApp, deadlines: Deadlines = DEADLINES) -> Server:
    """A server of `app` that uses our protocol and logs nothing."""
    return Server(ServerConfig(app, deadlines))
