"""The page and its endpoint: answers, markup in passages, bad input; and the page in a real browser."""

import html
import http.client
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from inference import E5KorQuADInference
from search import InferenceError
from search.compare import Comparison
from search.serve import LONGEST_QUERY, SearchServer

HOSTILE = "<b>굵게</b><img src=x onerror=\"document.title='broken'\">"
PASSAGES = ["서울은 수도이다.", "한라산은 제주도에 있다.", HOSTILE, "가나다 " * 60]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def engine(toy_model_dir: Path) -> E5KorQuADInference:
    engine = E5KorQuADInference(toy_model_dir, device="cpu")
    engine.build_index(PASSAGES)
    return engine


@pytest.fixture
def server(engine: E5KorQuADInference) -> Iterator[SearchServer]:
    class Backwards:
        """Tells the two sides apart: the same results in the other order."""

        def search(self, query: str, *, top_k: int) -> list[dict[str, Any]]:
            return engine.search(query, top_k=top_k)[::-1]

    with SearchServer("127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve, args=(Comparison(engine, Backwards()).ask,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: SearchServer, path: str) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()
    finally:
        connection.close()


def test_answers_of_both_models(server: SearchServer, engine: E5KorQuADInference) -> None:
    status, headers, body = get(server, f"/search?q={quote(' 산은? ')}&top_k=4")
    assert status == 200 and headers["Content-Type"] == "application/json; charset=utf-8"
    answer = json.loads(body)
    assert answer["query"] == "산은?" and answer["tuned"] == answer["base"][::-1]
    for shown, found in zip(answer["base"], engine.search("산은?", top_k=4), strict=True):
        assert (shown["rank"], shown["score"], shown["id"]) == (found["rank"], found["score"], found["id"])
        begin, end = found.get("span", (0, None))
        assert shown["text"].strip("…") == found["passage"][begin:end]
    assert HOSTILE in [shown["text"] for shown in answer["base"]]
    assert len(json.loads(get(server, "/search?q=a")[2])["base"]) == 4  # five are asked for without top_k


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(server: SearchServer) -> None:
    for path in ("/", "/?q=a"):
        status, headers, page = get(server, path)
        assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.endswith("</html>\n") and "://" not in page
        assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/search", 400, "The question is empty"),
        ("/search?q=%20", 400, "The question is empty"),
        ("/search?q=%ff", 400, "not UTF-8"),
        ("/search?q=a&top_k=0", 400, "top_k must be a whole number from 1 to 50, not '0'"),
        ("/search?q=a&top_k=51", 400, "not '51'"),
        ("/search?q=a&top_k=%C2%B2", 400, "not '²'"),
        ("/search?q=a&top_k=" + "9" * 5000, 400, "not '99999999999999999999'"),
        (f"/search?q={quote('가') * (LONGEST_QUERY + 1)}", 414, "has 501 characters; at most 500"),
        ("/../etc/passwd", 404, "There is only / and /search"),
        ("/page.html", 404, "There is only"),
    ],
)
def test_bad_input_gets_a_plain_message(server: SearchServer, path: str, status: int, message: str) -> None:
    got, _, body = get(server, path)
    assert got == status and message in json.loads(body)["error"]


def test_the_longest_query_is_answered_and_a_longer_address_refused(server: SearchServer) -> None:
    assert get(server, f"/search?q={quote('가') * LONGEST_QUERY}")[0] == 200
    assert get(server, "/search?q=" + "a" * 70_000)[0] == 414


def test_what_fails_in_the_model_is_said(server: SearchServer) -> None:
    def fail(query: str, top_k: int) -> dict[str, Any]:
        raise InferenceError("The memory is full.")

    server.ask = fail
    status, _, body = get(server, "/search?q=a")
    assert status == 500 and json.loads(body) == {"error": "The memory is full."}


def test_a_failed_request_leaves_no_traceback(server: SearchServer, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(query: str, top_k: int) -> dict[str, Any]:
        raise ConnectionResetError

    good, server.ask = server.ask, fail
    with pytest.raises(http.client.RemoteDisconnected):
        get(server, "/search?q=a")
    server.ask = good
    assert get(server, "/search?q=a")[0] == 200
    assert capfd.readouterr().err == ""


def test_only_this_machine_unless_told_otherwise(server: SearchServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/"


def test_addresses_that_cannot_be_listened_on(server: SearchServer) -> None:
    for host, port in (("127.0.0.1", server.server_address[1]), ("256.0.0.1", 0), ("192.0.2.1", 0), ("a" * 70, 0)):
        with pytest.raises(InferenceError, match=f"Cannot listen on {re.escape(host)}, port {port}: .* --port"):
            SearchServer(host, port)


def open_in_browser(address: str, profile: Path) -> str:
    """The page as it is once its scripts have run."""
    command = [
        str(BROWSER), "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom", address,
    ]  # fmt: skip
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.insert(1, "--no-sandbox")  # which root cannot have
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert shown.returncode == 0, shown.stderr
    return shown.stdout


def column(page: str, side: str) -> list[str]:
    """The passages in a column, as they are read."""
    (items,) = re.findall(rf'<ol id="{side}">(.*?)</ol>', page, flags=re.S)
    return [html.unescape(text) for text in re.findall(r'<span class="text">(.*?)</span>', items, flags=re.S)]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
def test_in_a_browser(server: SearchServer, engine: E5KorQuADInference, tmp_path: Path) -> None:
    page = open_in_browser(f"{server.url}?q={quote('산은?')}&top_k=4", tmp_path / "profile")
    answer = json.loads(get(server, f"/search?q={quote('산은?')}&top_k=4")[2])
    assert column(page, "base") == [shown["text"] for shown in answer["base"]]
    assert column(page, "tuned") == column(page, "base")[::-1]
    assert all(f'<span class="score">{shown["score"]:.3f}</span>' in page for shown in answer["base"])
    assert '<div id="sides">' in page
    # Markup in a passage is text: no such element, and its script did not run.
    assert HOSTILE in column(page, "base") and "<img" not in page and "<title>broken" not in page

    page = open_in_browser(f"{server.url}?q={quote('산은?')}&top_k=0", tmp_path / "profile")
    assert "top_k must be a whole number from 1 to 50" in page and '<div id="sides" hidden="">' in page
