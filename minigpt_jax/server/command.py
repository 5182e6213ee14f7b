"""The server's command line and its life: load, compile, answer, and let running answers finish."""

import argparse
import asyncio
import os
import socket
import sys
import time
from pathlib import Path

from minigpt_jax import load_run
from minigpt_jax.errors import InputError
from minigpt_jax.runs import newest_run
from minigpt_jax.runtime.compilation_cache import enable_compilation_cache
from minigpt_jax.server.app import App
from minigpt_jax.server.connection import make_server, on_signals
from minigpt_jax.server.engine import Engine
from minigpt_jax.server.guard import Guard, is_loopback


def main() -> int:
    """Serve until told to stop."""
    options = parse()
    folder = Path(options.run) if options.run else newest_run(Path(options.runs))
    with listen(options.host, options.port) as door:
        run = load_run(folder)
        enable_compilation_cache(folder.parent)
        print(
            f"{folder}: {run.config.parameters:,} parameters, context {run.config.context}; compiling",
            file=sys.stderr,
        )
        engine = Engine(
            run,
            slots=options.slots,
            queue=options.queue,
            quantize=options.quantize,
        )
        app = App(engine, folder.absolute().name).routes()
        guard = Guard(
            app, host=options.host, key=options.api_key, allowed_hosts=options.allowed_host
        )
        asyncio.run(serve(guard, engine, door, options.grace))
    return 0


def parse() -> argparse.Namespace:
    """The command line. Raises InputError for what would be unsafe or cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m minigpt_jax.server", description="A chat page and an OpenAI-compatible API."
    )
    parser.add_argument("--run", help="folder of a run (default: the newest one)")
    parser.add_argument("--runs", default="runs", help="where runs lie (default: runs)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="0: any that is free (default: 8000)"
    )
    parser.add_argument(
        "--api-key",
        help="key that clients must send; better MINIGPT_API_KEY, which no list of processes shows",
    )
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this server (may be repeated)",
    )
    parser.add_argument(
        "--slots", type=int, default=8, help="answers written at a time (default: 8)"
    )
    parser.add_argument(
        "--queue", type=int, default=64, help="answers that may wait for a slot (default: 64)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        help="seconds that running answers have after SIGTERM (default: 30)",
    )
    parser.add_argument(
        "--quantize",
        choices=["int8"],
        help="weights in eight bits: faster where reading them is the work, a little less exact",
    )
    options = parser.parse_args()
    for name, low, high in (
        ("port", 0, 65535),
        ("slots", 1, 1024),
        ("queue", 1, 10**6),
        ("grace", 0, 10**6),
    ):
        if not low <= getattr(options, name) <= high:
            raise InputError(
                f"--{name} {getattr(options, name)} is out of range: expected a number from {low} to {high}"
            )
    options.api_key = (
        os.environ.get("MINIGPT_API_KEY") if options.api_key is None else options.api_key
    )
    options.api_key = options.api_key and options.api_key.strip()
    if options.api_key == "":
        raise InputError("the key is empty: set a long random one, or none at all")
    if options.api_key is None and not is_loopback(options.host):
        raise InputError(
            f"--host {options.host} would let the network in without a key: set MINIGPT_API_KEY, or listen on 127.0.0.1"
        )
    return options


def listen(host: str, port: int) -> socket.socket:
    """A socket at `host` and `port`, taken before anything slow begins. Raises InputError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        door = socket.socket(family, kind, protocol)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(address)
        door.listen()  # at once: two sockets may be bound to a port that neither listens at
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror}): choose another --port or --host"
        ) from None
    return door


async def serve(guard: Guard, engine: Engine, door: socket.socket, grace: float) -> None:
    """Answer until a signal comes; then let running answers finish, for `grace` seconds at most."""
    stop, server = asyncio.Event(), make_server(guard)
    on_signals(stop)
    serving = asyncio.create_task(server.serve(sockets=[door]))
    while not server.started:
        if serving.done():
            await asyncio.to_thread(engine.close)
            return await serving
        await asyncio.sleep(0.01)
    address, port = door.getsockname()[:2]
    print(
        f"ready: http://{f'[{address}]' if ':' in address else address}:{port}",
        file=sys.stderr,
        flush=True,
    )
    await stop.wait()
    guard.draining = True
    deadline = time.monotonic() + grace
    while guard.running and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    await asyncio.to_thread(engine.close)
    server.should_exit = True
    await serving
