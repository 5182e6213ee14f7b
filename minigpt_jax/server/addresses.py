"""Names and addresses of servers: which are whose, and which only this machine can reach."""

import ipaddress
import re

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::([0-9]+))?")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`.

    Of names only "localhost" counts: what another name resolves to may change.
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


def client_address(peer: str, forwarded_for: str) -> str:
    """The address of a client: of the other end of the connection, or the one that a proxy names.

    `forwarded_for`: the header X-Forwarded-For, to which each proxy adds its own client. It counts
    only if it comes from this machine, as a proxy's does: all clients of one have one `peer`.
    """
    last = forwarded_for.rpartition(",")[2].strip()
    return last if last and is_loopback(peer) else peer


def split_host(host: str) -> tuple[str, str]:
    """The name and the port ("" without one) in "NAME:PORT", as a Host header has it.

    In lower case, without the brackets of an IPv6 address and the dot that may end a name. The name
    is "" for what is neither.
    """
    if is_address(host):
        return host.lower(), ""
    match = _HOST.fullmatch(host.lower())
    return (match[1].strip("[]").rstrip("."), match[2] or "") if match else ("", "")
