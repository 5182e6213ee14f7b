"""The routes: a body becomes requests to the engine, and what the engine writes becomes an answer, whole or in pieces."""

import asyncio
import base64
import hashlib
import re
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from minigpt_jax import __version__, chat
from minigpt_jax.errors import InputError
from minigpt_jax.sampling import SamplingParams, sampling_params
from minigpt_jax.server import schema
from minigpt_jax.server.answers import Shape, encoded
from minigpt_jax.server.engine import Busy, Closed, Engine, Job, Piece, Token, check_prompt
from minigpt_jax.server.refusal import Refusal
from minigpt_jax.tokenizer import CHAT_VOCAB, END_OF_TEXT

BODY = 10**6  # bytes of a request
READ_ON = (
    16 * BODY
)  # of a larger one, before it is cut off: who has not finished sending does not hear a refusal
COMPLETION_TOKENS = 16  # unless max_tokens says otherwise, as in OpenAI's API
T = TypeVar("T")


@dataclass
class Order:
    """A request understood: what to ask of the engine, and how the answer will look."""

    jobs: list[Job]
    shape: Shape
    stream: bool
    prompt_tokens: int


class App:
    """The handlers, and what they share."""

    def __init__(self, engine: Engine, name: str):
        """`name`: what the model is called."""
        self._engine, self._name, self._started = engine, name, int(time.time())
        self._config, self._tokenizer = engine.config, engine.tokenizer
        self._longest = int(engine.tokenizer.byte_lengths().max())
        self._page = files("minigpt_jax.server").joinpath("page.html").read_text(encoding="utf-8")
        self._policy = policy(self._page)

    def routes(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", self.page),
            Route("/health", self.health),
            Route("/openapi.json", self.openapi),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat_completions, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
        ]
        handlers = {
            Refusal: refused,
            HTTPException: unknown,
            ClientDisconnect: gone,
            Exception: failed,
        }
        return Starlette(routes=routes, exception_handlers=handlers)

    async def page(self, request: Request) -> Response:
        """The chat page."""
        return Response(
            self._page, media_type="text/html", headers={"Content-Security-Policy": self._policy}
        )

    async def health(self, request: Request) -> Response:
        """Whether the server works, and how fast."""
        numbers = self._engine.health()
        alive = numbers.pop("alive")
        status = "ok" if alive else "failed"
        return _json(
            {"status": status, **numbers, "tasks": len(asyncio.all_tasks())}, 200 if alive else 503
        )

    async def openapi(self, request: Request) -> Response:
        """The description of the API."""
        return _json(schema.description(__version__))

    async def models(self, request: Request) -> Response:
        """The one model, in a list."""
        return _json({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        """The one model."""
        self._check_name(request.path_params["name"])
        return _json(self._described())

    async def chat_completions(self, request: Request) -> Response:
        """The answer to a conversation."""
        body = await read_body(request)
        return await self._answer(request, await asyncio.to_thread(self._understand_chat, body))

    async def completions(self, request: Request) -> Response:
        """How a text, or several, go on."""
        body = await read_body(request)
        return await self._answer(
            request, await asyncio.to_thread(self._understand_completion, body)
        )

    def _described(self) -> dict:
        c = self._config
        own = {
            "context": c.context,
            "chat": c.vocab_size >= CHAT_VOCAB,
            "vocab_size": c.vocab_size,
            "parameters": c.parameters,
        }
        return {
            "id": self._name,
            "object": "model",
            "created": self._started,
            "owned_by": "minigpt-jax",
            **own,
        }

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise Refusal(
                404,
                f"there is one model here, {self._name!r}",
                param="model",
                code="model_not_found",
            )

    def _understand_chat(self, raw: bytes) -> Order:
        body = schema.read(raw, schema.CHAT)
        self._check_name(body.get("model", self._name))
        if self._config.vocab_size < CHAT_VOCAB:
            raise Refusal(
                400,
                "this model was not finetuned and cannot chat: use /v1/completions",
                param="model",
            )
        if "top_logprobs" in body and not body.get("logprobs"):
            raise Refusal(400, "top_logprobs: needs logprobs true", param="top_logprobs")
        messages = [
            chat.Message(role=_role(m["role"]), content=_text(m["content"]))
            for m in body["messages"]
        ]
        self._check_length(sum(len(m["content"]) for m in messages), "messages")
        try:
            prompt = chat.prompt(messages, self._tokenizer)
        except chat.BadConversation as error:
            raise Refusal(400, f"messages: {error}", param="messages") from None
        room = self._config.context - len(prompt)
        limit = body.get("max_completion_tokens", body.get("max_tokens", max(room, 1)))
        logprobs = body.get("top_logprobs", 0) if body.get("logprobs") else None
        return self._order(body, [prompt], "messages", limit, logprobs, chat=True)

    def _understand_completion(self, raw: bytes) -> Order:
        body = schema.read(raw, schema.COMPLETION)
        self._check_name(body.get("model", self._name))
        if body.get("best_of", 1) not in (1, body.get("n", 1)):
            raise Refusal(400, "best_of: not supported, unless equal to n", param="best_of")
        given = body["prompt"]
        prompts = (
            given
            if isinstance(given, list) and given and not isinstance(given[0], int)
            else [given]
        )
        limit = body.get("max_tokens", COMPLETION_TOKENS)
        return self._order(
            body, [self._ids(p) for p in prompts], "prompt", limit, body.get("logprobs"), chat=False
        )

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            self._check_length(len(prompt), "prompt")
            return [END_OF_TEXT, *self._tokenizer.encode(prompt)]
        if max(prompt) >= self._config.vocab_size:
            raise Refusal(
                400, f"prompt: token ids go from 0 to {self._config.vocab_size - 1}", param="prompt"
            )
        return prompt

    def _check_length(self, letters: int, param: str) -> None:
        """Before anything is encoded: no token is longer than the longest."""
        if letters > self._config.context * self._longest:
            raise Refusal(
                400,
                f"{param}: {letters} letters are more than a context of {self._config.context} tokens can hold: shorten it",
                param=param,
                code="context_length_exceeded",
            )

    def _order(
        self,
        body: dict,
        prompts: list[list[int]],
        param: str,
        limit: int,
        logprobs: int | None,
        *,
        chat: bool,
    ) -> Order:
        """What both kinds of requests have in common."""
        n = body.get("n", 1)
        if n * len(prompts) > schema.MAX_ANSWERS:
            raise Refusal(
                400,
                f"n: {n} answers to {len(prompts)} prompts are more than {schema.MAX_ANSWERS}",
                param="n",
            )
        for prompt in prompts:
            try:
                check_prompt(prompt, self._config)
            except InputError as error:
                raise Refusal(
                    400, f"{param}: {error}", param=param, code="context_length_exceeded"
                ) from None
        stop = body.get("stop", [])
        asked = {
            "max_tokens": min(limit, self._config.context),
            "stop": [stop] if isinstance(stop, str) else stop,
            "logprobs": logprobs,
        }
        seed = body.get(
            "seed", secrets.randbits(32)
        )  # counts up over all answers: the same prompt several times is several samples
        each = enumerate(prompt for prompt in prompts for _ in range(n))
        jobs = [
            Job(prompt, self._sampling(body, (seed + i) % 2**32), **asked) for i, prompt in each
        ]
        if "stream_options" in body and not body.get("stream"):
            raise Refusal(400, "stream_options: needs stream true", param="stream_options")
        usage = bool(body.get("stream_options", {}).get("include_usage"))
        shape = Shape(
            self._name,
            self._tokenizer,
            chat=chat,
            logprobs=logprobs is not None,
            include_usage=usage,
        )
        return Order(jobs, shape, body.get("stream", False), sum(map(len, prompts)))

    def _sampling(self, body: dict, seed: int) -> SamplingParams:
        given = {
            name: body[name] for name in ("top_p", "min_p", "repetition_penalty") if name in body
        }
        temperature, top_k = body.get("temperature", 1.0), body.get("top_k", 0)
        # Below the smallest steps of f32 a division by the temperature overflows; the most likely token is the limit.
        given["temperature"] = temperature if temperature >= 1e-4 else 0.0
        given["top_p"] = max(given.get("top_p", 1.0), 1e-6)
        vocab = self._config.vocab_size
        return sampling_params(
            1, self._config, seed=seed, top_k=top_k if 0 < top_k < vocab else None, **given
        )

    async def _answer(self, request: Request, order: Order) -> Response:
        answers = Answers(self._engine, order.jobs)
        if order.stream:
            return EventStream(order, answers)
        try:
            return _json(await unless_gone(request.receive, whole(order, answers)))
        finally:
            answers.close()


class Answers:
    """What the engine writes for some jobs, as it comes. Whoever makes one closes it."""

    def __init__(self, engine: Engine, jobs: Sequence[Job]):
        """Raises Refusal when the engine takes no more."""
        loop, self._engine, self.count = asyncio.get_running_loop(), engine, len(jobs)
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        if len(jobs) > engine.queue + engine.slots:
            raise Refusal(
                400,
                f"{len(jobs)} answers are more than this server ever holds ({engine.queue + engine.slots}): ask for fewer",
                param="n",
            )
        try:
            self._tickets = engine.submit(
                jobs,
                lambda i, piece: loop.call_soon_threadsafe(self._pieces.put_nowait, (i, piece)),
            )
        except Busy:
            raise Refusal(
                429,
                "too many requests are waiting: try again",
                code="queue_full",
                headers={"Retry-After": "2"},
            ) from None
        except Closed:
            raise Refusal(503, "the engine has stopped", headers={"Retry-After": "10"}) from None

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(which answer, what is added to it) until all have ended. Raises Refusal (503) if the engine stops before."""
        left = self.count
        while left:
            index, piece = await self._pieces.get()
            if piece.reason == "closed":
                raise Refusal(503, "the server stopped before the answer was complete")
            left -= piece.reason is not None
            yield index, piece

    def close(self) -> None:
        """Nothing more is wanted."""
        self._engine.cancel(self._tickets)


async def whole(order: Order, answers: Answers) -> dict:
    """All answers, when they are complete."""
    texts, reasons = [""] * answers.count, [""] * answers.count
    tokens: list[list[Token]] = [[] for _ in range(answers.count)]
    async for index, piece in answers.pieces():
        texts[index] += piece.text
        tokens[index] += piece.tokens
        reasons[index] = piece.reason or ""
    return order.shape.whole(texts, tokens, reasons, order.prompt_tokens)


async def events(order: Order, answers: Answers) -> AsyncIterator[bytes]:
    """The same, as server-sent events."""
    for opening in order.shape.opening(answers.count):
        yield opening
    letters, tokens = [0] * answers.count, 0
    try:
        async for index, piece in answers.pieces():
            yield b"".join(order.shape.piece(index, piece, letters[index]))
            letters[index] += order.shape.letters(piece.tokens)
            tokens += len(piece.tokens)
    except Refusal as refusal:
        yield b"data: " + refusal.body() + b"\n\n"
        return
    yield b"".join(order.shape.closing(order.prompt_tokens, tokens))


class EventStream(Response):
    """A stream that ends the moment its reader does."""

    media_type = "text/event-stream"

    def __init__(self, order: Order, answers: Answers):
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._order, self._answers = order, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for piece in events(self._order, self._answers):
                if piece:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        try:
            await unless_gone(receive, write())
        except ClientDisconnect:
            pass
        finally:
            self._answers.close()


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Raises ClientDisconnect, with `work` cancelled, as soon as the client goes away."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    watch, job = asyncio.create_task(gone()), asyncio.create_task(work)
    try:
        await asyncio.wait((watch, job), return_when=asyncio.FIRST_COMPLETED)
        if job.done():
            return job.result()
        raise ClientDisconnect
    finally:
        watch.cancel()
        job.cancel()
        await asyncio.gather(watch, job, return_exceptions=True)


async def read_body(request: Request) -> bytes:
    """The body. Raises Refusal for one that is no JSON by its own account, or too long; of that, no more than BODY is ever held."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refusal(415, "the body must be application/json", param="Content-Type")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size <= BODY:
            parts.append(part)
        elif size > READ_ON:
            break
    if size > BODY:
        raise Refusal(413, f"the body is longer than {BODY} bytes", headers={"Connection": "close"})
    return b"".join(parts)


def policy(page: str) -> str:
    """A content security policy under which the page's own script and style run, and nothing else does."""

    def hashes(tag: str) -> str:
        contents = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        return (
            " ".join(
                f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
                for text in contents
            )
            or "'none'"
        )

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _role(role: str) -> str:
    return "system" if role == "developer" else role


def _text(content: str | list[dict]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _json(value: object, status: int = 200) -> Response:
    return Response(encoded(value), status, media_type="application/json")


async def refused(request: Request, refusal: Exception) -> Response:
    """What a route would not do."""
    assert isinstance(refusal, Refusal)
    return Response(
        refusal.body(), refusal.status, headers=refusal.headers, media_type="application/json"
    )


async def unknown(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    says = {404: "there is nothing here", 405: "not with this method"}.get(
        error.status_code, "refused"
    )
    return await refused(
        request, Refusal(error.status_code, says, headers=dict(error.headers or {}))
    )


async def gone(request: Request, error: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=408)


async def failed(request: Request, error: Exception) -> Response:
    """A mistake of ours: the traceback goes to the server's own terminal and nowhere else."""
    return await refused(request, Refusal(500, "the server made a mistake"))
