"""Errors that a client sees: one exception, in the JSON shape that OpenAI's clients know."""

import json

# Characters of a message and of the name of a field, both of which may repeat what a client sent.
_MAX_SHOWN = 500
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A response with an error status.

    `message` is for a person, `param` is the field or header that is wrong, `code` is for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> bytes:
        """{"error": {...}} as JSON."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": _shortened(self.message),
            "type": _TYPES.get(self.status, default),
            "param": self.param and _shortened(self.param),
            "code": self.code,
        }
        return encode_json({"error": error})


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def encode_json(value: object) -> bytes:
    """JSON in UTF-8. Lone surrogates, which UTF-8 cannot encode, become question marks."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace")
