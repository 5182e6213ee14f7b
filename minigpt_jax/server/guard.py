"""Who may ask: the Host header, the key and the browser's word on where a request comes from, before any route sees it."""

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minigpt_jax.server.refusal import Refusal

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::[0-9]+)?")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost is not trusted to stay where it is."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


class Guard:
    """Lets through to `app` what may pass, gives every answer its headers, and knows how many answers are being written."""

    def __init__(
        self, app: ASGIApp, *, host: str, key: str | None, allowed_hosts: Iterable[str] = ()
    ):
        """`host`: what is listened on; `allowed_hosts`: further names by which people call this server."""
        self._app, self._key = app, key.encode() if key else None
        self._hosts = {
            _bare(name) for name in ("localhost", "127.0.0.1", "::1", host, *allowed_hosts)
        }
        self._any_address = is_wildcard(host)
        self.draining = False
        self.running = 0  # POST requests on their way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] += [*_HEADERS, *([] if _POLICY[0] in own else [_POLICY])]
            await send(message)

        try:
            self._check(scope)
        except Refusal as refusal:
            await refuse(refusal, send_guarded)
            return
        counted = scope["method"] == "POST"
        self.running += counted
        try:
            await self._app(scope, receive, send_guarded)
        finally:
            self.running -= counted

    def _check(self, scope: Scope) -> None:
        """Raises Refusal."""
        host = _one(scope, b"host")
        self._check_host(host)
        if scope["path"] != "/health":
            self._check_key(_one(scope, b"authorization"), scope["path"])
        if scope["method"] == "POST":
            _check_origin(host, _one(scope, b"origin"), _one(scope, b"sec-fetch-site"))
            if self.draining:
                raise Refusal(
                    503,
                    "this server is about to stop",
                    headers={"Retry-After": "10", "Connection": "close"},
                )

    def _check_host(self, header: str) -> None:
        """Against DNS rebinding: a stranger's name that was made to point here is not ours. An address cannot be made to."""
        match = _HOST.fullmatch(header.lower())
        name = _bare(match[1]) if match else ""
        if name not in self._hosts and not (self._any_address and _is_address(name)):
            raise Refusal(
                421,
                "the Host header names another server; --allowed-host adds a name",
                param="Host",
            )

    def _check_key(self, header: str, path: str) -> None:
        if self._key is None or hmac.compare_digest(_given_key(header), self._key):
            return
        # A browser asks its user for the key on the page, and then sends it with what the page asks for.
        scheme = (
            'Basic realm="miniGPT-JAX, any name, the key as password", charset="UTF-8"'
            if path == "/"
            else "Bearer"
        )
        raise Refusal(
            401,
            "the key is missing or wrong",
            param="Authorization",
            code="invalid_api_key",
            headers={"WWW-Authenticate": scheme},
        )


def _check_origin(host: str, origin: str, site: str) -> None:
    """A browser says where a request comes from; other programs say nothing. Other sites' pages have no business here."""
    if (origin and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")) or (
        site and site not in ("same-origin", "none")
    ):
        raise Refusal(403, "requests from other sites' pages are not answered", param="Origin")


def _given_key(header: str) -> bytes:
    """The key in an Authorization header: of a Bearer, or the password of Basic; empty if there is none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip(" \t").encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _one(scope: Scope, name: bytes) -> str:
    """The value of a header, "" without it. Raises Refusal (400) if it comes twice: whose word would count?"""
    values = [value for own, value in scope["headers"] if own == name]
    if len(values) > 1:
        raise Refusal(400, "the header comes more than once", param=name.decode())
    return values[0].decode("latin-1") if values else ""


def _bare(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def refuse(refusal: Refusal, send: Send) -> None:
    """Send a refusal as the whole answer."""
    body = refusal.body()
    own = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *own,
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
