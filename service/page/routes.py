"""`/` and the page's files. The page needs no key; the calls it makes ask for one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Response

FOLDER = "/page/"
# Nothing from elsewhere, nothing inline, no frame around it.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_router() -> APIRouter:
    """A route for each file, read now; `index.html` stands at `/`."""
    router = APIRouter(include_in_schema=False)
    for entry in files("service.page").iterdir():
        kind = _TYPES.get(PurePath(entry.name).suffix)
        if kind is not None:
            path = "/" if entry.name == "index.html" else f"{FOLDER}{entry.name}"
            router.add_api_route(path, _answer(entry.read_bytes(), kind), methods=["GET"])
    return router


def _answer(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, headers=_HEADERS, media_type=media_type)

    return answer
