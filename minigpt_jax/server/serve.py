"""Run a server: load runs, compile, answer requests, and finish running answers at the end."""

import argparse
import asyncio
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minigpt_jax import load_run
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.runtime.interrupt import Interrupt
from minigpt_jax.server.app import App
from minigpt_jax.server.connection import make_server
from minigpt_jax.server.engine import Engine
from minigpt_jax.server.examples import example_questions
from minigpt_jax.server.guard import Guard
from minigpt_jax.server.models import ServedModel
from minigpt_jax.server.stats import CompilationCounter

_POLL_SECONDS = 0.02
# While it serves. Signals are noticed that often.
_IDLE_POLL_SECONDS = 0.1


def serve_runs(
    folders: Mapping[str, Path], listener: socket.socket, options: argparse.Namespace
) -> None:
    """Serve the runs in `folders`, by the names of their models, until a signal comes.

    Raises InputError.
    """
    models = load_models(folders, options)
    guard = Guard(
        App(models).routes(),
        host=options.host,
        key=options.api_key,
        allowed_hosts=options.allowed_host,
    )
    # Not earlier: until here there is nothing to finish, and a signal ends the process.
    interrupt = Interrupt("finishing running answers")
    engines = [model.engine for model in models]
    asyncio.run(serve(guard, engines, listener, options.grace, lambda: interrupt.requested))


def load_models(folders: Mapping[str, Path], options: argparse.Namespace) -> list[ServedModel]:
    """Load each run, then compile what each needs to answer. Raises InputError."""
    # All are loaded before any is compiled, which takes longer than to find out that one is bad.
    runs = {name: load_run(folder) for name, folder in folders.items()}
    enable_compilation_cache(next(iter(folders.values())).parent)
    compilations = CompilationCounter()
    models = []
    for name, run in runs.items():
        print(
            f"{folders[name]}: {run.config.parameters:,} parameters, "
            f"context {run.config.context}; compiling",
            file=sys.stderr,
        )
        engine = Engine(
            run,
            num_slots=options.slots,
            queue_size=options.queue,
            quantize=options.quantize,
            compilations=compilations,
        )
        # Now and not for the first request, because it reads files.
        models.append(ServedModel(name, run, engine, example_questions(run)))
    return models


async def serve(
    guard: Guard,
    engines: Sequence[Engine],
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
    # In threads: close() waits for the engine, and this event loop must send answers meanwhile.
    await asyncio.gather(*(asyncio.to_thread(engine.close) for engine in engines))
    server.should_exit = True
    await serving


def _url(listener: socket.socket) -> str:
    # The address of an IPv6 socket has four parts, and a URL needs brackets around it.
    address, port = listener.getsockname()[:2]
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}"
