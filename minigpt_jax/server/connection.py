"""How long a client may take, and how the server goes: what uvicorn leaves open about sockets and signals."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigpt_jax.server.refusal import Refusal

SEND_SECONDS = 10.0  # for a request to arrive, headers and body
READ_SECONDS = 60.0  # for a client to read on, once the socket's buffers are full
CONNECTIONS = 512  # at a time; the usual limit of open files is 1,024


class Protocol(H11Protocol):
    """uvicorn's, with deadlines: it has none for the headers, none for the body, and none for a reader who stands still."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._sending: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._sending = self.loop.call_later(SEND_SECONDS, self._too_slow)
        if len(self.connections) > CONNECTIONS:
            self._turn_away(Refusal(503, "too many connections", headers={"Retry-After": "5"}))

    def handle_events(self) -> None:
        """Called with whatever came, and with what came too early once an answer is out: a second request in one packet, say."""
        super().handle_events()
        if self.conn.their_state is h11.SEND_BODY or (
            self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        ):
            self._sending = self._sending or self.loop.call_later(SEND_SECONDS, self._too_slow)
        else:
            self._sending = _cancelled(self._sending)

    def send_400_response(self, msg: str) -> None:
        self._turn_away(Refusal(400, "this is no HTTP that this server reads"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._sending, self._reading = _cancelled(self._sending), _cancelled(self._reading)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._reading = _cancelled(self._reading)
        super().resume_writing()

    def _too_slow(self) -> None:
        """Whoever sent part of a request is told; whoever sent nothing just hears no more."""
        self._sending = None
        if self.conn.their_state is h11.SEND_BODY or self.conn.trailing_data[0]:
            self._turn_away(
                Refusal(408, f"the request took more than {SEND_SECONDS:g} s to arrive")
            )
        else:
            self.transport.close()

    def _turn_away(self, refusal: Refusal) -> None:
        """Answer, unless an answer is on its way, and close. The route, if one waits for the body, hears that the client is gone."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = refusal.body()
            given = {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "Connection": "close",
                **refusal.headers,
            }
            head = h11.Response(status_code=refusal.status, headers=list(given.items()), reason=b"")
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """uvicorn's, but what a signal means is decided in `serve_until_told`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None of them."""
        yield


def make_server(app: ASGIApp) -> Server:
    """Serves `app` with our protocol, whatever faster ones are installed, and says nothing of itself."""
    return Server(
        uvicorn.Config(
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
    )


def on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and Ctrl-C set `stop`; the second one ends the process at once."""

    def hear(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        print("finishing running answers (again: stop at once)", file=sys.stderr, flush=True)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, hear, number)
