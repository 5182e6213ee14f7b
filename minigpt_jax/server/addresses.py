"""Names and addresses of servers: which are whose, and which only this machine can reach."""

import ipaddress
import re
from collections.abc import Sequence

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]+))?")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`.

    Of names only "localhost" counts: what another name resolves to may change.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    # A socket that listens on :: sees an IPv4 client as ::ffff:127.0.0.1.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for every address of this machine, as 0.0.0.0 does."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def is_address(name: str) -> bool:
    """Whether `name` is an IPv4 or IPv6 address and not a host name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def client_address(peer: str, forwarded_for: Sequence[str]) -> str:
    """The address of a client: of the other end of the connection, or the one that a proxy names.

    `forwarded_for`: the headers X-Forwarded-For, to the last of which a proxy adds its own client,
    or after which it adds one. They count only if they come from this machine, as a proxy's do: all
    clients of one have one `peer`.
    """
    last = forwarded_for[-1].rpartition(",")[2].strip() if forwarded_for else ""
    return last if last and is_loopback(peer) else peer


def split_host(host: str) -> tuple[str, str]:
    """The name and the port ("" without one) in "NAME:PORT", as a Host header has it.

    In lower case, without the brackets of an IPv6 address and the dot that may end a name. The name
    is "" for what is neither.
    """
    match = _HOST.fullmatch(host.lower())
    return (match[1].strip("[]").rstrip("."), match[2] or "") if match else ("", "")


def split_argument(host: str) -> tuple[str, str]:
    """The same for a name on a command line, where an IPv6 address needs no brackets."""
    return (host.lower(), "") if is_address(host) else split_host(host)
