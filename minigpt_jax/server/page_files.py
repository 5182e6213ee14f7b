"""The files of the chat page, read once: no other file can be served, whatever a path says."""

from importlib.resources import files
from pathlib import PurePosixPath

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

INDEX = "index.html"
# Of the own server only, and nothing that stands in the page itself: text that the model or a user
# wrote cannot become script or style.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Written out, because the types that Python knows depend on the machine.
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


class PageFiles:
    """The routes of the page: `/`, and `/page/NAME` for its scripts and styles."""

    def __init__(self):
        folder = files("minigpt_jax.server").joinpath("page")
        self._contents = {
            file.name: file.read_bytes()
            for file in folder.iterdir()
            if PurePosixPath(file.name).suffix in _MEDIA_TYPES
        }

    def routes(self) -> list[Route]:
        """What app.py adds to its routes."""
        return [Route("/", self.index), Route("/page/{name}", self.file)]

    async def index(self, request: Request) -> Response:
        """The chat page."""
        return self._response(INDEX, {"Content-Security-Policy": POLICY})

    async def file(self, request: Request) -> Response:
        """A script or a style of the page."""
        name = request.path_params["name"]
        if name == INDEX or name not in self._contents:
            raise HTTPException(404)
        return self._response(name, {})

    def _response(self, name: str, headers: dict[str, str]) -> Response:
        media_type = _MEDIA_TYPES[PurePosixPath(name).suffix]
        return Response(self._contents[name], headers=headers, media_type=media_type)
