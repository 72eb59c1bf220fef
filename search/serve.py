"""A small web page: type a question, see what each model answers.

One page drawn on this side by Python's own HTTP server: a form, no scripts, nothing from elsewhere. `/?q=…` can be kept as a
link. `/search.json?q=…` gives the same answers to programs.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from search.compare import Engine, compare, moved_sign
from search.errors import InferenceError

logger = logging.getLogger(__name__)

_PAGE = Path(__file__).with_name("page.html")
_LONGEST_QUESTION = 1000  # characters
_HEADERS = {
    # Nothing may run or be loaded, whatever a passage holds.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class SearchServer(ThreadingHTTPServer):
    """Serves the page until it is stopped: `serve_forever`, `shutdown`.

    Args:
        engines: name → engine; a column each.
        passages: where all of them search.
        examples: questions offered on the page.
        host, port: where to listen. Port 0 takes a free one; `url` says which.

    Raises:
        InferenceError: the address cannot be listened at.
    """

    daemon_threads = True

    def __init__(
        self,
        engines: Mapping[str, Engine],
        passages: Sequence[str],
        examples: Sequence[str] = (),
        top_k: int = 5,
        host: str = "127.0.0.1",
        port: int = 8080,
    ):
        self._engines, self._passages, self._examples, self._top_k = engines, list(passages), examples, top_k
        self._one_at_a_time = threading.Lock()
        self._template = Template(_PAGE.read_text(encoding="utf-8"))
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InferenceError(
                f"Cannot listen at {host}:{port}: {error}. Choose another with --host and --port."
            ) from None
        self.url = f"http://{host}:{self.server_address[1]}/"
        if not _is_own_machine(host):
            logger.warning("Everyone who reaches %s can search: there is no password", self.url)

    def answer(self, question: str) -> dict[str, Any]:
        """What `compare` returns for one question. Raises InferenceError (empty, too long, and as the search)."""
        if len(question) > _LONGEST_QUESTION:
            raise InferenceError(f"The question has {len(question):,} characters: at most {_LONGEST_QUESTION:,} are taken.")
        with self._one_at_a_time:  # the models use all cores for one
            return compare(self._engines, [question], self._passages, self._top_k)[0]

    def page(self, question: str, answer: Mapping[str, Any] | None, error: str = "") -> str:
        """The page as HTML."""
        results = "".join(_column(name, found) for name, found in answer["results"].items()) if answer else ""
        links = "".join(f'<a href="/?q={quote(text)}">{escape(text)}</a>' for text in self._examples)
        return self._template.substitute(
            question=escape(question),
            examples=f'<nav aria-label="예시 질문">{links}</nav>' if links else "",
            results=f'<div class="columns">{results}</div>' if results else "",
            error=f'<p class="error" role="alert">{escape(error)}</p>' if error else "",
            count=f"{len(self._passages):,}",
        )


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer
    server_version, sys_version = "korquad-e5", ""

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path not in ("/", "/search.json"):
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", "There is no such page.\n")
        question = parse_qs(address.query, errors="replace").get("q", [""])[0].strip()
        as_json = address.path == "/search.json"
        status, answer, error = HTTPStatus.OK, None, ""
        if question or as_json:
            try:
                answer = self.server.answer(question)
            except InferenceError as problem:
                status, error = HTTPStatus.BAD_REQUEST, str(problem)
        if as_json:
            content = json.dumps({"error": error} if error else answer, ensure_ascii=False)
            return self._send(status, "application/json", content)
        return self._send(status, "text/html", self.server.page(question, answer, error))

    def _send(self, status: HTTPStatus, kind: str, content: str) -> None:
        data = content.encode("utf-8", errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _column(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(_item(result) for result in results)
    return f"<section><h2>{escape(name)}</h2><ol>{items}</ol></section>"


def _item(result: Mapping[str, Any]) -> str:
    text = str(result["passage"])
    begin, end = result.get("span", (0, len(text)))
    before, after = "… " if begin else "", " …" if end < len(text) else ""
    sign = moved_sign(result)
    kind = {"▲": "up", "▼": "down", "n": "new"}.get(sign[:1], "")
    moved = f'<span class="moved {kind}">{sign}</span>' if sign else ""
    score = max(min(float(result["score"]), 1.0), 0.0)
    return (
        f'<li><div class="head"><b>{result["rank"]}</b>{moved}'
        f'<meter min="0" max="1" value="{score:.4f}"></meter><span class="score">{result["score"]:.3f}</span></div>'
        f"<p>{before}{escape(text[begin:end])}{after}</p></li>"
    )


def _is_own_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
