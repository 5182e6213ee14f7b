"""Access control: checks of the Host header, the key and the origin before any route runs."""

import base64
import binascii
import hmac
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minigpt_jax.server.addresses import is_address, is_wildcard
from minigpt_jax.server.api_error import ApiError

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::[0-9]+)?")
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")


class Guard:
    """Passes allowed requests to `app`, adds headers to every response, counts running POSTs."""

    def __init__(
        self, app: ASGIApp, *, host: str, key: str | None, allowed_hosts: Iterable[str] = ()
    ):
        """`host` is the listening address; `allowed_hosts` are other names of this server."""
        self._app = app
        self._key = key.encode() if key else None
        known = ("localhost", "127.0.0.1", "::1", host, *allowed_hosts)
        self._hosts = {_normalize_host(name) for name in known}
        self._any_address = is_wildcard(host)
        # Set before the server stops: new POST requests then get the status 503.
        self.draining = False
        # POST requests without a complete response.
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] += _HEADERS
                if _POLICY[0] not in present:
                    message["headers"].append(_POLICY)
            await send(message)

        try:
            self._check(scope)
        except ApiError as error:
            await send_error(error, send_with_headers)
            return
        counted = scope["method"] == "POST"
        self.running += counted
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            self.running -= counted

    def _check(self, scope: Scope) -> None:
        """Raises ApiError."""
        host = _single_header(scope, b"host")
        self._check_host(host)
        if scope["path"] != "/health":
            self._check_key(_single_header(scope, b"authorization"), scope["path"])
        if scope["method"] == "POST":
            origin = _single_header(scope, b"origin")
            _check_origin(host, origin, _single_header(scope, b"sec-fetch-site"))
            if self.draining:
                headers = {"Retry-After": "10", "Connection": "close"}
                raise ApiError(503, "the server is stopping", headers=headers)

    def _check_host(self, header: str) -> None:
        """Against DNS rebinding, where another site's name is made to resolve to this machine.

        A plain address in the header is safe: it cannot be made to point elsewhere.
        """
        match = _HOST.fullmatch(header.lower())
        name = _normalize_host(match[1]) if match else ""
        if name not in self._hosts and not (self._any_address and is_address(name)):
            raise ApiError(
                421,
                "the Host header names another server; --allowed-host adds a name",
                param="Host",
            )

    def _check_key(self, header: str, path: str) -> None:
        if self._key is None or hmac.compare_digest(_key_in(header), self._key):
            return
        scheme = "Bearer"
        if path == "/" or path.startswith("/page/"):
            # A browser asks its user for the key, and sends it with all later requests of the page.
            realm = "miniGPT-JAX, any name, the key as password"
            scheme = f'Basic realm="{realm}", charset="UTF-8"'
        raise ApiError(
            401,
            "the key is missing or wrong",
            param="Authorization",
            code="invalid_api_key",
            headers={"WWW-Authenticate": scheme},
        )


def _check_origin(host: str, origin: str, site: str) -> None:
    """Raises ApiError for requests from pages of other sites.

    Only browsers send these headers; a request without them comes from another program.
    """
    own_origins = (f"http://{host.lower()}", f"https://{host.lower()}")
    other_origin = origin and origin.lower() not in own_origins
    other_site = site and site not in ("same-origin", "none")
    if other_origin or other_site:
        raise ApiError(403, "requests from pages of other sites are not allowed", param="Origin")


def _key_in(header: str) -> bytes:
    """The key in an Authorization header (Bearer, or the password of Basic), empty without one."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip(" \t").encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _single_header(scope: Scope, name: bytes) -> str:
    """The value of a header, "" without it. Raises ApiError (400) for a repeated header."""
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise ApiError(400, "the header is repeated, expected it once", param=name.decode())
    return values[0].decode("latin-1") if values else ""


def _normalize_host(name: str) -> str:
    return name.lower().strip("[]").rstrip(".")


async def send_error(error: ApiError, send: Send) -> None:
    """Send `error` as the complete response."""
    body = error.body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
