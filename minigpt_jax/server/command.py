"""The server's flags and its listening socket: all that can fail before JAX is loaded."""

import argparse
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from minigpt_jax.errors import InputError
from minigpt_jax.runtime.files import user_name
from minigpt_jax.server.addresses import is_loopback, split_argument

PROGRAM = "python -m minigpt_jax.server"
_RANGES = {"port": (0, 65535), "slots": (1, 1024), "queue": (1, 10**6), "grace": (0, 10**6)}


def parse_options(
    arguments: Sequence[str] | None = None, program: str = PROGRAM
) -> argparse.Namespace:
    """The flags in `arguments` (default: the command line) of `program`.

    Raises InputError for values that are out of range or would be unsafe.
    """
    options = _parser(program).parse_args(arguments)
    for name, (low, high) in _RANGES.items():
        value = getattr(options, name)
        if not low <= value <= high:
            raise InputError(
                f"--{name} {value} is out of range: expected a number from {low} to {high}"
            )
    options.allowed_host = [_allowed_host(name) for name in options.allowed_host]
    options.api_key = _api_key(options.api_key)
    if options.api_key is None and not is_loopback(options.host):
        raise InputError(
            f"--host {options.host} would open the server to the network without a key: "
            "set MINIGPT_API_KEY, or listen on 127.0.0.1"
        )
    return options


def _allowed_host(name: str) -> str:
    """As browsers send it: a name that is not ASCII has an ASCII form (IDNA)."""
    try:
        sent = name.encode("idna").decode()
    except UnicodeError:
        sent = ""
    host, port = split_argument(sent)
    if not host or int(port or 0) > _RANGES["port"][1]:
        raise InputError(f"--allowed-host {name}: expected a name, or NAME:PORT, without http://")
    return sent


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program, description="A chat page and an OpenAI-compatible API."
    )
    add = parser.add_argument
    add(
        "--run",
        type=user_name,
        action="append",
        help="folder of a run (default: the newest one); may be repeated: requests name the model",
    )
    add(
        "--runs",
        type=user_name,
        default="runs",
        help="folder that holds the runs (default: runs)",
    )
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    add("--port", type=int, default=8000, help="0: any free port (default: 8000)")
    add(
        "--api-key",
        help="key that clients must send; prefer MINIGPT_API_KEY, which no process list shows",
    )
    add(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="another name of this server, such as that of a proxy (may be repeated)",
    )
    add("--slots", type=int, default=8, help="answers generated at the same time (default: 8)")
    add("--queue", type=int, default=64, help="answers that may wait for a slot (default: 64)")
    add(
        "--grace",
        type=float,
        default=30.0,
        help="seconds that running answers get after SIGTERM (default: 30)",
    )
    add(
        "--quantize",
        choices=["int8"],
        help="8-bit weights: faster where reading weights is the bottleneck, slightly less exact",
    )
    return parser


def models_by_name(folders: Sequence[Path]) -> dict[str, Path]:
    """The runs in `folders` by the names of their models.

    The name is that of the folder; where two have the same, with as many of the folders above as
    tell them apart. Raises InputError for a folder that comes twice.
    """
    # Absolute, because "." and ".." are no names; not resolved, because links have names too.
    paths = [Path(os.path.normpath(folder.absolute())) for folder in folders]
    real = [folder.resolve() for folder in folders]
    for i, folder in enumerate(folders):
        if real[i] in real[:i]:
            raise InputError(f"--run {folder}: this run is there twice, expected it once")
    # A folder's name may be bytes that are no text.
    names = (
        _shortest_name(path, paths).encode("utf-8", "backslashreplace").decode() for path in paths
    )
    return dict(zip(names, folders, strict=True))


def _shortest_name(path: Path, paths: Sequence[Path]) -> str:
    """The last parts of `path`, as few as no other of `paths` ends with."""
    parts = path.parts
    for count in range(1, len(parts)):
        last = parts[-count:]
        if sum(other.parts[-count:] == last for other in paths) == 1:
            return "/".join(last)
    return str(path)


def _api_key(flag: str | None) -> str | None:
    """The key that clients must send, None for no key. The flag overrides the environment."""
    key = os.environ.get("MINIGPT_API_KEY") if flag is None else flag
    if key is None:
        return None
    if not key.strip():
        raise InputError("the key is empty: set a long random one, or none")
    return key.strip()


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket at `host` and `port`. Raises InputError where that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Now and not when the model is ready: until one of them listens, two sockets can be bound
        # to one port, and a second server would notice too late.
        listener.listen()
    except OSError as error:
        raise InputError(
            f"cannot listen on {host} port {port} ({error.strerror}): "
            "choose another --port or --host"
        ) from None
    return listener
