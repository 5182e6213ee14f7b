"""Run a server: load a run, compile, answer requests, and finish running answers at the end."""

import argparse
import asyncio
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from minigpt_jax import load_run
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.runtime.interrupt import Interrupt
from minigpt_jax.server.app import App
from minigpt_jax.server.connection import make_server
from minigpt_jax.server.engine import Engine
from minigpt_jax.server.guard import Guard

_POLL_SECONDS = 0.02
# While it serves. Signals are noticed that often.
_IDLE_POLL_SECONDS = 0.1


def serve_run(folder: Path, listener: socket.socket, options: argparse.Namespace) -> None:
    """Serve the run in `folder` on `listener` until a signal comes. Raises InputError."""
    run = load_run(folder)
    enable_compilation_cache(folder.parent)
    print(
        f"{folder}: {run.config.parameters:,} parameters, context {run.config.context}; compiling",
        file=sys.stderr,
    )
    engine = Engine(
        run, num_slots=options.slots, queue_size=options.queue, quantize=options.quantize
    )
    # Absolute, because the path "." has no name.
    guard = Guard(
        App(engine, run, folder.absolute().name).routes(),
        host=options.host,
        key=options.api_key,
        allowed_hosts=options.allowed_host,
    )
    # Not earlier: until here there is nothing to finish, and a signal ends the process.
    interrupt = Interrupt("finishing running answers")
    asyncio.run(serve(guard, engine, listener, options.grace, lambda: interrupt.requested))


async def serve(
    guard: Guard,
    engine: Engine,
    listener: socket.socket,
    grace: float,
    stop_requested: Callable[[], bool],
) -> None:
    """Answer until a stop is requested; then running answers have `grace` seconds to finish.

    If the server itself fails before that, raises its error.
    """
    server = make_server(guard)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    # uvicorn has a flag for this, but no event to wait for.
    while not (server.started or serving.done()):
        await asyncio.sleep(_POLL_SECONDS)
    if server.started:
        print(f"ready: {_url(listener)}", file=sys.stderr, flush=True)
    while not (serving.done() or stop_requested()):
        await asyncio.sleep(_IDLE_POLL_SECONDS)
    # From now on new requests are refused.
    guard.draining = True
    deadline = time.monotonic() + grace
    while guard.running and not serving.done() and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
    # In a thread: close() waits for the engine, and this event loop must send answers meanwhile.
    await asyncio.to_thread(engine.close)
    server.should_exit = True
    await serving


def _url(listener: socket.socket) -> str:
    # The address of an IPv6 socket has four parts, and a URL needs brackets around it.
    address, port = listener.getsockname()[:2]
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}"
