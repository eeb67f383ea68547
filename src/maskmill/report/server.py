"""The viewer's HTTP server: the standard library's, on this machine only."""

import json
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from maskmill.errors import UserError
from maskmill.report.shell import STATIC
from maskmill.report.viewer import Viewer
from maskmill.storage.originals import MissingOriginal

HOST = "127.0.0.1"
SCRIPTS = ("viewer", "stage", "draw", "rle", "list", "panel")
PAGES = {
    "/": ("viewer.html", "text/html; charset=utf-8"),
    "/viewer.css": ("viewer.css", "text/css; charset=utf-8"),
    "/tokens.css": ("tokens.css", "text/css; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in SCRIPTS},
}
POLICY = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"


class Server(ThreadingHTTPServer):
    """One thread for each connection; a browser that hangs up is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def serve(viewer: Viewer, port: int) -> ThreadingHTTPServer:
    """A server that is bound; `serve_forever` makes it answer. Port 0: a free one. UserError: the port is taken."""
    try:
        return Server((HOST, port), handler(viewer))
    except OSError as e:
        raise UserError(f"--port {port} cannot be used ({e.strerror}): give another, or 0 for a free one") from e


def handler(viewer: Viewer) -> type[BaseHTTPRequestHandler]:
    """The handler of one build."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            if not is_local_name(self.headers.get("Host", "")):
                return self.send(HTTPStatus.FORBIDDEN, b"this viewer answers to localhost only", "text/plain")
            try:
                body, kind = answer(viewer, address.path, dict(parse_qsl(address.query, keep_blank_values=True)))
            except KeyError as e:
                return self.fail(HTTPStatus.NOT_FOUND, f"nothing here: {e}")
            except (UserError, MissingOriginal, ValueError) as e:
                return self.fail(HTTPStatus.UNPROCESSABLE_ENTITY, str(e))
            except Exception as e:  # a file that is gone or broken: the page says so, and can go on
                words = f"the build cannot be read: {type(e).__name__}: {' '.join(str(e).split())[:300]}"
                return self.fail(HTTPStatus.INTERNAL_SERVER_ERROR, words)
            self.send(HTTPStatus.OK, body, kind)

        def fail(self, status: HTTPStatus, words: str) -> None:
            self.send(status, json.dumps({"error": words}).encode(), "application/json")

        def send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")  # the next build's viewer has the same address and ids
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not news."""

    return Handler


def is_local_name(host: str) -> bool:
    """Whether a Host header names this machine: another name would be a foreign page that was pointed here."""
    return host.rpartition(":")[0] in ("127.0.0.1", "localhost") or host in ("127.0.0.1", "localhost")


def answer(viewer: Viewer, path: str, query: dict[str, str]) -> tuple[bytes, str]:
    """Body and content type. KeyError: there is no such page, or a parameter is missing."""
    if path in PAGES:
        name, kind = PAGES[path]
        return (STATIC / name).read_bytes(), kind
    if path == "/pixels":
        return viewer.pixels(query["unit"], query["id"], small=query.get("size") == "small"), "image/jpeg"
    return json.dumps(api(viewer, path, query), ensure_ascii=False).encode(), "application/json"


def api(viewer: Viewer, path: str, query: dict[str, str]) -> dict[str, Any]:
    """The JSON answers."""
    if path == "/api/build":
        return viewer.about()
    if path == "/api/shelf":
        start = viewer.shelves.number(query["unit"]) if "unit" in query else int(query["start"])
        return viewer.shelves.shelf(start, query["filter"])
    if path == "/api/find":
        return viewer.shelves.find(query["words"], int(query["start"]), query["filter"])
    if path == "/api/image":
        return viewer.image(query["unit"], query["id"], query["filter"])
    if path == "/api/refilter":
        return viewer.refilter(query["unit"], query["id"], json.loads(query["settings"]))
    raise KeyError(path)
