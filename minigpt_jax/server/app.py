"""The HTTP routes: they read a body, send its requests to the engine and return the response."""

import asyncio
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from minigpt_jax import __version__
from minigpt_jax.server import schema
from minigpt_jax.server.addresses import client_address
from minigpt_jax.server.api_error import ApiError, encode_json
from minigpt_jax.server.metrics import CONTENT_TYPE, metrics_text
from minigpt_jax.server.models import ServedModel, find_model, health
from minigpt_jax.server.page_files import PageFiles
from minigpt_jax.server.parse import ParsedRequest, RequestParser, parse_body
from minigpt_jax.server.streaming import (
    EventStreamResponse,
    ResponseStream,
    cancel_on_disconnect,
    collect,
)

MAX_BODY_BYTES = 10**6
# What clients of other servers ask for first, and why they do not find it here.
_OTHER_APIS = {
    "/v1/responses": "the Responses API is not here",
    "/v1/embeddings": "this server makes no embeddings",
    "/api/chat": "Ollama's API is not here",
    "/api/generate": "Ollama's API is not here",
    "/api/tags": "Ollama's API is not here",
    "/completion": "llama.cpp's own API is not here",
}
_ROUTES_THAT_WORK = (
    "clients use POST /v1/chat/completions, POST /v1/completions and GET /v1/models, "
    "with a base URL that ends in /v1"
)
# Of a longer body this much is read and discarded before the connection is closed: many clients do
# not read a response before they have sent everything.
DISCARD_BYTES = 16 * MAX_BODY_BYTES


class App:
    """The routes, and what they share."""

    def __init__(self, models: Sequence[ServedModel]):
        """`models`: the first one answers requests that name none."""
        self._models = models
        self._page = PageFiles()

    def routes(self) -> Starlette:
        """The ASGI application."""
        routes = [
            *self._page.routes(),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]
        handlers = {
            ApiError: on_api_error,
            HTTPException: on_http_error,
            ClientDisconnect: on_disconnect,
            Exception: on_exception,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    async def health(self, request: HttpRequest) -> Response:
        """Whether the server takes requests (then the status is 200), and how fast it works."""
        numbers = health(self._models, draining=request.scope["draining"])
        status = 200 if numbers["status"] == "ok" else 503
        return _json({**numbers, "tasks": len(asyncio.all_tasks())}, status)

    async def metrics(self, request: HttpRequest) -> Response:
        """Counts and times for Prometheus."""
        models = {model.name: model.engine.metrics() for model in self._models}
        return Response(metrics_text(models), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, request: HttpRequest) -> Response:
        """The description of the API."""
        return _json(schema.openapi(__version__))

    async def models(self, request: HttpRequest) -> Response:
        """A list of the models."""
        data = [model.description() for model in self._models]
        return _json({"object": "list", "data": data})

    async def model(self, request: HttpRequest) -> Response:
        """One model."""
        return _json(find_model(self._models, request.path_params["name"]).description())

    async def chat_completions(self, request: HttpRequest) -> Response:
        """The next message of a conversation."""
        return await self._generate(request, schema.CHAT, RequestParser.parse_chat)

    async def completions(self, request: HttpRequest) -> Response:
        """Continuations of one or more texts."""
        return await self._generate(request, schema.COMPLETION, RequestParser.parse_completion)

    async def _generate(
        self,
        request: HttpRequest,
        fields: dict,
        parse: Callable[[RequestParser, dict], ParsedRequest],
    ) -> Response:
        """The response to a body with these `fields`, which the model's parser reads by `parse`."""
        raw = await read_body(request)

        def read() -> tuple[ServedModel, ParsedRequest, str]:
            body = parse_body(raw, fields)
            model = find_model(self._models, body.get("model"))
            return model, parse(model.parser, body), client_of(request, body)

        # In a thread: the tokenizer may need long, and other clients must not wait for it.
        model, parsed, client = await asyncio.to_thread(read)
        stream = ResponseStream(model.engine, parsed.requests, client)
        if parsed.stream:
            return EventStreamResponse(parsed, stream)
        try:
            return _json(await cancel_on_disconnect(request.receive, collect(parsed, stream)))
        finally:
            stream.close()


def client_of(request: HttpRequest, body: dict) -> str:
    """What tells clients apart, which take turns: address, program and the user that it names.

    Whoever invents users gets more turns, but no other client loses its own.
    """
    peer = request.client.host if request.client else ""
    address = client_address(peer, request.headers.getlist("x-forwarded-for"))
    return "\n".join((address, request.headers.get("user-agent", ""), str(body.get("user", ""))))


async def read_body(request: HttpRequest) -> bytes:
    """The body, of which at most MAX_BODY_BYTES are kept in memory.

    Raises ApiError for another content type than JSON and for a longer body.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise ApiError(415, "the body must be application/json", param="Content-Type")
    parts = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
        elif size > DISCARD_BYTES:
            break
    if size > MAX_BODY_BYTES:
        message = f"the body is longer than {MAX_BODY_BYTES} bytes: shorten it"
        raise ApiError(413, message, headers={"Connection": "close"})
    return b"".join(parts)


async def on_api_error(request: HttpRequest, error: Exception) -> Response:
    """An error that a route raised for the client."""
    assert isinstance(error, ApiError)
    return Response(error.body(), error.status, error.headers, "application/json")


async def on_http_error(request: HttpRequest, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    missing = _OTHER_APIS.get(request.url.path, "this path does not exist")
    messages = {
        404: f"{missing}: {_ROUTES_THAT_WORK}",
        405: "this path does not support the method",
    }
    message = messages.get(error.status_code, "the request failed")
    api_error = ApiError(error.status_code, message, headers=dict(error.headers or {}))
    return await on_api_error(request, api_error)


async def on_disconnect(request: HttpRequest, error: Exception) -> Response:
    """The client has disconnected, so nothing is sent."""
    return Response(status_code=408)


async def on_exception(request: HttpRequest, error: Exception) -> Response:
    """A bug. The traceback goes to the server's terminal and not to the client."""
    return await on_api_error(request, ApiError(500, "internal error of the server"))


def _json(value: object, status: int = 200) -> Response:
    return Response(encode_json(value), status, media_type="application/json")
