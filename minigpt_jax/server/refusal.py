"""What the server says when it does not do as it was asked: one exception, in the shape that OpenAI's clients know."""

from minigpt_jax.server.answers import encoded

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Refusal(Exception):
    """An answer with `status`, a message for a person, the offending parameter and a code for programs, where there are such."""

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
        self.status, self.message, self.param, self.code, self.headers = (
            status,
            message,
            param,
            code,
            headers or {},
        )

    def body(self) -> bytes:
        """{"error": {...}} as JSON."""
        type = _TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return encoded(
            {
                "error": {
                    "message": self.message,
                    "type": type,
                    "param": self.param,
                    "code": self.code,
                }
            }
        )
