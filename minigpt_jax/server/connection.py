"""Deadlines for connections, which uvicorn has none of."""

import asyncio
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
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
        )
        self.deadlines = deadlines


class Protocol(H11Protocol):
    """uvicorn's, with deadlines for the headers, for the body and for a client that stops reading.

    uvicorn has none of them.
    """

    def __init__(self, config: ServerConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        self._deadlines = config.deadlines
        self._receive_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._start_receive_timer()
        if len(self.connections) > MAX_CONNECTIONS:
            error = ApiError(503, "too many connections", headers={"Retry-After": "5"})
            self._send_error_and_close(error)

    def handle_events(self) -> None:
        """Called when data arrive, and after a response if part of the next request is there."""
        super().handle_events()
        next_request_began = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if self.conn.their_state is h11.SEND_BODY or next_request_began:
            self._start_receive_timer()
        else:
            self._receive_timer = _cancel(self._receive_timer)

    def send_400_response(self, msg: str) -> None:
        self._send_error_and_close(ApiError(400, "the request is not valid HTTP"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._receive_timer = _cancel(self._receive_timer)
        self._send_timer = _cancel(self._send_timer)
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
        if may_respond and not self.transport.is_closing():
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
        self.transport.close()


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
