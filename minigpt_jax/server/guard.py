"""Access control: checks of the Host header, the key and the origin before any route runs."""

import base64
import binascii
import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minigpt_jax.server.addresses import is_address, is_wildcard, split_argument, split_host
from minigpt_jax.server.api_error import ApiError

# For programs that watch servers, as with other servers of models: counts and names of runs.
_WITHOUT_KEY = ("/health", "/metrics")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# Characters of a header that an error message repeats.
_MAX_SHOWN = 100
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
        """`host` is the listening address; `allowed_hosts` are other names of this server.

        Each is NAME or NAME:PORT, for one port only.
        """
        self._app = app
        self._key = key.encode() if key else None
        self._allowed = {split_argument(name) for name in allowed_hosts}
        own = {split_argument(name)[0] for name in ("localhost", "127.0.0.1", "::1", host)}
        self._hosts = own | {name for name, _ in self._allowed}
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

        # A slash at the end changes nothing. Starlette would redirect the client, and not know that
        # a proxy in front of it has another name and TLS.
        path = scope["path"].rstrip("/") or "/"
        scope = {**scope, "path": path, "draining": self.draining}
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
        _check_framing(scope)
        host = _single_header(scope, b"host")
        self._check_host(host)
        if scope["path"] not in _WITHOUT_KEY:
            self._check_key(_single_header(scope, b"authorization"), scope["path"])
        if scope["method"] == "POST":
            origin = _single_header(scope, b"origin")
            self._check_origin(host, origin, _single_header(scope, b"sec-fetch-site"))
            if self.draining:
                headers = {"Retry-After": "10", "Connection": "close"}
                raise ApiError(503, "the server is stopping", headers=headers)

    def _check_host(self, header: str) -> None:
        """Against DNS rebinding, where another site's name is made to resolve to this machine.

        A plain address in the header is safe: it cannot be made to point elsewhere.
        """
        name, _ = split_host(header)
        known = name in self._hosts or (self._any_address and is_address(name))
        # A name that cannot be one is "".
        if not (name and known):
            raise ApiError(
                421,
                f"the Host header names another server ({_shown(header)}): if this one has that "
                "name, start it with --allowed-host NAME",
                param="Host",
            )

    def _check_origin(self, host: str, origin: str, site: str) -> None:
        """Raises ApiError for requests from pages of other sites.

        Only browsers send these headers; a request without them comes from another program. Behind
        a proxy that sends a Host header of its own, as nginx does, the page has another origin.
        """
        if site and site not in ("same-origin", "none"):
            raise ApiError(403, "requests from pages of other sites are refused", param="Origin")
        scheme, _, address = origin.lower().partition("://")
        if not origin or (scheme in _DEFAULT_PORTS and address == host.lower()):
            return
        name, port = split_host(address)
        port = port or _DEFAULT_PORTS.get(scheme, "")
        if scheme in _DEFAULT_PORTS and {(name, ""), (name, port)} & self._allowed:
            return
        raise ApiError(
            403,
            f"the page's address (Origin {_shown(origin)}) is not this server's (Host "
            f"{_shown(host)}): if a proxy is between them, start the server with --allowed-host "
            "and the name in the page's address",
            param="Origin",
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


def _check_framing(scope: Scope) -> None:
    """Raises ApiError for a body of two lengths, of which a proxy may believe the other one."""
    names = {name for name, _ in scope["headers"]}
    if {b"content-length", b"transfer-encoding"} <= names:
        raise ApiError(
            400,
            "the request has both Content-Length and Transfer-Encoding",
            param="Content-Length",
            headers={"Connection": "close"},
        )


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


def _shown(header: str) -> str:
    """A header in an error message."""
    return header if len(header) <= _MAX_SHOWN else header[:_MAX_SHOWN] + "..."


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
