"""Questions about network addresses that decide whether a server needs a key."""

import ipaddress


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
