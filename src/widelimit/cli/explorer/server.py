"""The page's server: on this machine's loopback address only, for its own page only, with bounded requests."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, final

from widelimit.cli.explorer import pages, pool, uploads, wire
from widelimit.cli.explorer.finite import finite
from widelimit.cli.explorer.scene import scene
from widelimit.cli.explorer.settings import settings
from widelimit.messages import shown

HOST = "127.0.0.1"
MOST_BYTES = 2**20
"""Bytes of a request's body."""
SECONDS = 10.0
"""A client must send the next bytes of its request, and take those of the answer, within this time."""
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/explorer.css": ("explorer.css", "text/css; charset=utf-8"),
    "/data.js": ("data.js", "text/javascript; charset=utf-8"),
    "/drawing.js": ("drawing.js", "text/javascript; charset=utf-8"),
    "/explorer.js": ("explorer.js", "text/javascript; charset=utf-8"),
}
"""Files of the page by the path of a request; there are no others."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Connection": "close",
}
LIMIT, NETWORKS = threading.Lock(), threading.Lock()
"""One scene and one set of finite networks are computed at a time, so that memory and threads are bounded."""


class Refusal(Exception):
    """The request is refused with this status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        Exception.__init__(self, reason)
        self.status, self.reason = status, reason


def answer_scene(body: bytes) -> dict[str, Any]:
    """Answer with the arrays of `scene` for the settings in the body, and the milliseconds that it took."""
    of = settings(_json(body))
    start = time.perf_counter()
    with LIMIT:
        arrays = scene(of)
    return wire.encode(arrays) | {"milliseconds": 1e3 * (time.perf_counter() - start)}


def answer_networks(body: bytes) -> dict[str, Any]:
    """Answer with the arrays of `finite` for the settings and the width in the body."""
    document = _json(body)
    width: Any = document.pop("width", None) if isinstance(document, dict) else None
    of = settings(document)
    if not NETWORKS.acquire(timeout=SECONDS):
        raise Refusal(503, "other networks are being trained; try again when they are done.")
    try:
        arrays = finite(of, width)
    finally:
        NETWORKS.release()
    return wire.encode(arrays, "float32")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is not JSON: {str(error)[:80]}.") from None


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


ANSWERS: dict[str, tuple[str, Callable[[bytes], dict[str, Any]]]] = {
    "/api/scene": ("application/json", answer_scene),
    "/api/networks": ("application/json", answer_networks),
    "/api/table": ("text/csv", uploads.points),
}
"""The type of the body and the function that answers, by the path of a POST request."""


@final
class Handler(BaseHTTPRequestHandler):
    """The handler serves one request, and closes the connection."""

    server_version, sys_version = "widelimit", ""
    timeout = SECONDS

    def __init__(self, connection: socket.socket, address: tuple[str, int], start: dict[str, Any]) -> None:
        self.start = start
        BaseHTTPRequestHandler.__init__(self, connection, address, None)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Serve a file of the page."""
        self._serve(self._file)

    def do_POST(self) -> None:
        """Serve numbers."""
        self._serve(self._numbers)

    def _serve(self, make: Callable[[], tuple[bytes, str]]) -> None:
        """Send what `make` returns, or the reason for a refusal as one line of JSON."""
        status = 200
        try:
            self._refuse_others()
            data, kind = make()
        except Refusal as refusal:
            status, data, kind = refusal.status, _line(refusal.reason), "application/json"
        except (TypeError, ValueError, MemoryError, ArithmeticError) as error:
            status, data, kind = 400, _line(str(error)), "application/json"
        except (ConnectionError, TimeoutError):
            return
        except Exception as error:
            status, data, kind = 500, _line(f"failed: {type(error).__name__}: {error}"), "application/json"
        self._send(status, data, kind)

    def _refuse_others(self) -> None:
        """Refuse requests for another host, or from the page of another one. Raises: Refusal."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in self._names():
            raise Refusal(403, f"this server is not {shown(host)}; open the address that `widelimit explore` printed.")
        if origin is not None and origin not in {f"http://{name}" for name in self._names()}:
            raise Refusal(403, "pages of other origins may not ask this server.")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and self.command != "GET":
            raise Refusal(403, "pages of other sites may not ask this server.")

    def _names(self) -> set[str]:
        port = self.connection.getsockname()[1]
        return {f"{name}:{port}" for name in (HOST, "localhost")}

    def _file(self) -> tuple[bytes, str]:
        if self.path not in FILES:
            raise Refusal(404, f"there is nothing at {shown(self.path)}.")
        name, kind = FILES[self.path]
        return (pages.live(self.start) if name == "index.html" else pages.read(name)), kind

    def _numbers(self) -> tuple[bytes, str]:
        if self.path not in ANSWERS:
            raise Refusal(404, f"there is nothing at {shown(self.path)}.")
        kind, make = ANSWERS[self.path]
        if self.headers.get_content_type() != kind:
            raise Refusal(415, f"the Content-Type of {self.path} is {kind}.")
        return wire.text(make(self._body())) + b"\n", "application/json"

    def _body(self) -> bytes:
        """Read the body. Raises: Refusal: no length, or a body that is too long, of which nothing is read."""
        given = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (given.isascii() and given.isdigit()):
            raise Refusal(411, "say the length of the body in Content-Length.")
        if len(given) > 12 or int(given) > MOST_BYTES:
            raise Refusal(413, f"the body may have {MOST_BYTES} bytes (1 MiB); send a smaller one.")
        body = self.rfile.read(int(given))
        if len(body) < int(given):
            raise Refusal(400, "the body ended before its Content-Length.")
        return body

    def _send(self, status: int, data: bytes, kind: str) -> None:
        with suppress(OSError):
            self.send_response(status)
            for name, value in (HEADERS | {"Content-Type": kind, "Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
            self.connection.shutdown(socket.SHUT_WR)
            if status >= 400:  # a client that still sends would lose the answer
                self.connection.settimeout(0.5)
                for _ in range(64):
                    if not self.connection.recv(pool.LEFT):
                        break

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server itself refuses in the same form."""
        del explain
        self._send(code, _line(message or "the request cannot be read."), "application/json")

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def _line(reason: str) -> bytes:
    """Return one line of JSON, of fewer than 500 characters."""
    return wire.text({"error": " ".join(reason.split())[:400]}) + b"\n"


def listen(port: int) -> socket.socket:
    """Open the port on the loopback address; 0 is any free one. Raises: ValueError: it is taken."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # a port whose last connections still end; elsewhere it would take another's port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"--port {port}: cannot be opened ({error.strerror}); choose another one, or --port 0 for any free port."
        ) from None
    return listener


def run(listener: socket.socket, stop: threading.Event, start: dict[str, Any]) -> None:
    """Serve the page, which starts with these choices, until `stop` is set."""

    def handle(connection: socket.socket, address: tuple[str, int]) -> None:
        with suppress(OSError):
            Handler(connection, address, start)

    pool.serve(listener, handle, stop)
