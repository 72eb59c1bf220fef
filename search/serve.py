"""One small page in the browser: a question, and the answers of base and tuned model side by side.

GET /                      the page
GET /search?q=…&top_k=…    the answers as JSON: {"query": …, "base": [{"rank", "score", "id", "text"}, …], "tuned": […]};
                           where there is none {"error": …}, with status 400, 404, 414 or 500
"""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from search.compare import SIDES, best_window
from search.errors import InferenceError

logger = logging.getLogger(__name__)

LONGEST_QUERY = 500  # characters
LARGEST_TOP_K = 50

_PAGE = Path(__file__).with_name("page.html")
# Nothing from elsewhere, even if a passage ever got into the page as markup.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"

Ask = Callable[[str, int], Mapping[str, Any]]


class SearchServer(ThreadingHTTPServer):
    """Holds its port from the start, and answers once `serve` has something to ask.

    Args:
        host: the address to listen on; "127.0.0.1" is reached from this machine only.
        port: 0 takes a free one.

    Raises:
        InferenceError: the port is in use, or the address cannot be listened on.
    """

    daemon_threads = True
    allow_reuse_port = False

    def __init__(self, host: str, port: int):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise InferenceError(
                f"Cannot listen on {host}, port {port}: {reason}. Choose another --port, or another --host."
            ) from None
        self.ask: Ask | None = None

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}/" if ":" in str(host) else f"http://{host}:{port}/"  # type: ignore[str-bytes-safe]

    def serve(self, ask: Ask) -> None:
        """Answer with `ask`(query, top_k), which gives what `Comparison.ask` gives, until `shutdown` or Ctrl-C."""
        self.ask = ask
        self.serve_forever()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Mostly a browser that closed the page before its answer came.
        logger.info("A request from %s failed: %r", client_address[0], sys.exception())


class _Refused(Exception):
    """A request that is not answered: status, and a message for the person who asked."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer
    timeout = 30  # seconds that a client may take to say what it wants

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path == "/":
            self._send(HTTPStatus.OK, "text/html", _PAGE.read_bytes())
            return
        status, content = HTTPStatus.OK, {}
        try:
            if address.path != "/search":
                raise _Refused(HTTPStatus.NOT_FOUND, "There is only / and /search?q=…")
            content = self._search(*_read_question(address.query))
        except _Refused as refused:
            status, content = refused.status, {"error": str(refused)}
        except InferenceError as error:
            status, content = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)}
        self._send(status, "application/json", json.dumps(content, ensure_ascii=False).encode())

    def _search(self, query: str, top_k: int) -> dict[str, Any]:
        assert self.server.ask is not None  # requests wait in the port's queue until `serve`
        answer = self.server.ask(query, top_k)
        return {"query": query} | {side: [_shown(result) for result in answer[side]] for side in SIDES}

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _read_question(parameters: str) -> tuple[str, int]:
    try:
        given = dict(parse_qsl(parameters, keep_blank_values=True, errors="strict"))
    except ValueError:  # UnicodeDecodeError is one
        raise _Refused(HTTPStatus.BAD_REQUEST, "The question is not UTF-8.") from None
    query = given.get("q", "").strip()
    if not query:
        raise _Refused(HTTPStatus.BAD_REQUEST, "The question is empty: ask one.")
    if len(query) > LONGEST_QUERY:
        raise _Refused(
            HTTPStatus.REQUEST_URI_TOO_LONG,
            f"The question has {len(query):,} characters; at most {LONGEST_QUERY} are read. Shorten it.",
        )
    top_k = given.get("top_k", "5")
    if not (top_k.isascii() and top_k.isdigit() and len(top_k) < 4 and 1 <= int(top_k) <= LARGEST_TOP_K):
        raise _Refused(
            HTTPStatus.BAD_REQUEST, f"top_k must be a whole number from 1 to {LARGEST_TOP_K}, not {top_k[:20]!r}."
        )
    return query, int(top_k)


def _shown(result: Mapping[str, Any]) -> dict[str, Any]:
    return {"rank": result["rank"], "score": result["score"], "id": result["id"], "text": best_window(result)}
