"""dataloader.download against a server on the loopback that misbehaves in every way a real one can."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dataloader import download as module
from dataloader.download import DownloadError, default_root, download, git_blob_sha1, main, published

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = "dataset/KorQuAD_2.1/train/"


def archive(members: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def noise(size: int) -> bytes:
    return random.Random(0).randbytes(size)


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


# Three archives of some 300 kB, larger than one chunk.
FILES = {f"KorQuAD_2.1_train_0{i}.zip": archive({f"korquad2.1_train_{i}.json": noise(300_000)}) for i in range(3)}
NAME, CONTENT = next(iter(FILES.items()))
HALF = len(CONTENT) // 2


class Handler(BaseHTTPRequestHandler):
    """Answers as `server.manners` says for the file's name; properly, with ranges, where that says nothing."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.server.asked.append((name, self.headers.get("Range")))
        with contextlib.suppress(ConnectionError):
            self.server.manners.get(name, Handler.properly)(self)

    def log_message(self, *_: object) -> None:
        pass

    def content(self) -> bytes:
        return self.server.files[self.path.removeprefix("/" + FOLDER)]

    def start(self) -> int:
        """The first byte asked for."""
        return int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])

    def answer(self, status: int, body: bytes, announced: int | None = None, **headers: str) -> None:
        """Send `body`; where more is `announced` the connection ends too early."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if announced is None else announced))
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def properly(self, limit: int | None = None, cut: int | None = None) -> None:
        """With ranges, of `limit` bytes at most; `cut`: the connection ends after so many bytes."""
        content, start = self.content(), self.start()
        if start and start >= len(content):
            return self.answer(416, b"", Content_Range=f"bytes */{len(content)}")
        body = content[start:][:limit]
        if not self.headers.get("Range"):
            return self.answer(200, body[:cut], len(body))
        extent = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        return self.answer(206, body[:cut], len(body), Content_Range=extent)

    def without_ranges(self) -> None:
        self.answer(200, self.content())


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.manners: dict[str, Callable[[Handler], None]] = {}
        self.asked: list[tuple[str, str | None]] = []  # file name, Range header

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self, name: str = NAME) -> list[str | None]:
        return [wanted for asked, wanted in self.asked if asked == name]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "RETRY_WAITS", (0.0, 0.0))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "new" / "KorQuAD"


@pytest.fixture
def run(server: Server, root: Path, tmp_path: Path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command with the server's files as the published ones → exit status, stdout, stderr."""
    facts = tmp_path / "blobs.json"
    monkeypatch.setattr(module, "BLOBS_FILE", facts)

    def command(*names: str, argv: tuple[str, ...] = ()) -> tuple[int, str, str]:
        wanted = names or tuple(FILES)
        facts.write_text(json.dumps({FOLDER + name: blob(server.files[name]) for name in wanted}))
        status = main(["--root", str(root), "--base-url", server.url, *argv])
        return status, *capsys.readouterr()

    return command


def begin(root: Path, content: bytes, name: str = NAME) -> Path:
    """What an earlier run left of a file."""
    root.mkdir(parents=True, exist_ok=True)
    part = root / f"{name}.part"
    part.write_bytes(content)
    return part


def listing(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# --- a server with manners ------------------------------------------------------------------------------------


def test_all_files_arrive_verified_under_their_names(run, root):
    status, out, err = run()
    assert status == 0, err
    assert {path.name: path.read_bytes() for path in root.iterdir()} == FILES
    assert "CC BY-ND 2.0 KR" in out and "https://github.com/korquad/korquad.github.io" in out
    assert all(f"  {name}\n" in out for name in FILES)
    assert out.splitlines()[-1] == f"Train: python train.py --dataset_root {root}"


def test_complete_files_are_checked_but_not_fetched_again(run, server, caplog):
    caplog.set_level("INFO")
    assert run()[0] == 0
    asked = len(server.asked)
    assert run()[0] == 0
    assert len(server.asked) == asked and f"{NAME}: already there" in caplog.messages


def test_several_at_a_time(run, server):
    together = threading.Barrier(len(FILES), timeout=20)  # breaks, and the test fails, unless all are asked for at once

    def wait_for_the_others(handler: Handler) -> None:
        together.wait()
        handler.properly()

    server.manners = dict.fromkeys(FILES, wait_for_the_others)
    assert run()[0] == 0


def test_what_an_earlier_run_left_is_completed_by_range(run, root, server):
    begin(root, CONTENT[:HALF])
    assert run()[0] == 0
    assert (root / NAME).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={HALF}-"]


def test_a_partial_file_that_was_complete_needs_no_bytes(run, root, server):
    begin(root, CONTENT)
    assert run(NAME)[0] == 0
    assert listing(root) == [NAME] and server.ranges() == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("left", [noise(HALF), CONTENT + b"more"], ids=["other bytes", "too long"])
def test_a_partial_file_of_something_else_costs_one_more_request(run, root, server, left):
    begin(root, left)
    assert run(NAME)[0] == 0
    assert (root / NAME).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={len(left)}-", None]


# --- a server without -----------------------------------------------------------------------------------------


def test_a_connection_that_breaks_again_and_again_is_continued(run, root, server):
    server.manners[NAME] = lambda handler: handler.properly(cut=50_000)
    assert run(NAME)[0] == 0
    assert (root / NAME).read_bytes() == CONTENT
    assert server.ranges() == [None, *(f"bytes={at}-" for at in range(50_000, len(CONTENT), 50_000))]


def test_answers_shorter_than_asked_for_are_joined(run, root, server):
    begin(root, CONTENT[:100_000])
    server.manners[NAME] = lambda handler: handler.properly(limit=90_000)
    assert run(NAME)[0] == 0
    assert (root / NAME).read_bytes() == CONTENT


def test_a_lost_network_keeps_what_came_and_goes_on_next_time(run, root, server):
    def lose(handler: Handler) -> None:
        if handler.start():
            handler.connection.close()
        else:
            handler.properly(cut=HALF)

    server.manners[NAME] = lose
    status, out, err = run()
    part = root / f"{NAME}.part"
    assert status == 1 and "Train:" not in out
    assert f"1 of 3 files failed:\n  {NAME}: no connection to 127.0.0.1:" in err
    assert f"Kept: {HALF:,} bytes in {part}." in err and "2 are complete" in err and "goes on from there" in err
    assert listing(root) == sorted([part.name, *(set(FILES) - {NAME})])
    assert part.read_bytes() == CONTENT[:HALF]

    server.manners.clear()
    assert run()[0] == 0
    assert server.ranges()[-1] == f"bytes={HALF}-"
    assert {path.name: path.read_bytes() for path in root.iterdir()} == FILES


def test_no_server_at_all_leaves_no_folder(run, root, server):
    server.server_close()
    status, _, err = run()
    assert status == 1 and "3 of 3 files failed" in err and "Connection refused" in err
    assert "Nothing of it was kept." in err
    assert not root.exists()  # which training would take for a dataset


def test_a_silent_server_counts_as_lost(run, server, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    silence = threading.Event()
    server.manners[NAME] = lambda _: silence.wait(20)
    status, _, err = run(NAME)
    silence.set()
    assert status == 1 and "timed out" in err
    assert len(server.ranges()) == 3


def test_missing_at_the_server(run, root, server):
    server.manners[NAME] = lambda handler: handler.answer(404, b"<html>no such page</html>")
    status, _, err = run()
    assert status == 1
    assert f"{NAME}: {server.url}/{FOLDER}{NAME} answers 404 Not Found." in err and "--base-url" in err
    assert len(server.ranges()) == 1  # asking again would not help
    assert listing(root) == sorted(set(FILES) - {NAME})


def test_a_server_that_is_overloaded_for_a_moment(run, server):
    def first_refuse(handler: Handler) -> None:
        handler.properly() if len(server.ranges()) > 2 else handler.answer(503, b"")

    server.manners[NAME] = first_refuse
    assert run(NAME)[0] == 0


def test_a_server_that_stays_overloaded(run, server):
    server.manners[NAME] = lambda handler: handler.answer(503, b"")
    status, _, err = run(NAME)
    assert status == 1 and "answers 503 Service Unavailable. Try again later." in err
    assert len(server.ranges()) == 3


def test_a_server_without_ranges_starts_over(run, root, server, caplog):
    begin(root, CONTENT[:HALF])
    server.manners[NAME] = Handler.without_ranges
    assert run(NAME)[0] == 0
    assert (root / NAME).read_bytes() == CONTENT
    assert f"{NAME}: the server cannot resume; starting over" in caplog.messages


def test_a_server_without_ranges_that_always_breaks_off(run, root, server):
    server.manners[NAME] = lambda handler: handler.answer(200, CONTENT[:HALF], len(CONTENT))
    status, _, err = run(NAME)
    assert status == 1 and f"ended after {HALF / 1e6:.1f} MB of {len(CONTENT) / 1e6:.1f} MB" in err
    assert f"Kept: {HALF:,} bytes" in err
    assert len(server.ranges()) == 4  # the first brings something new, three more do not


@pytest.mark.parametrize("extent", ["bytes 0-9/10", "none", f"bytes {HALF + 1}-{len(CONTENT) - 1}/{len(CONTENT)}"])
def test_another_range_than_asked_for_is_not_appended(run, root, server, extent):
    def answer_wrongly(handler: Handler) -> None:
        if handler.start():
            handler.answer(206, CONTENT[HALF + 1 :], Content_Range=extent)
        else:
            handler.properly(cut=HALF if len(server.asked) == 1 else None)

    server.manners[NAME] = answer_wrongly
    assert run(NAME)[0] == 0
    assert (root / NAME).read_bytes() == CONTENT
    assert server.ranges() == [None, f"bytes={HALF}-", None]


def test_a_truncated_answer_of_unknown_length(run, root, server):
    def chunked(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        whole = handler.server.ranges().count(None) > 1
        for piece in (CONTENT[:HALF], CONTENT[HALF:])[: 2 if whole else 1]:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        handler.wfile.write(b"0\r\n\r\n" if whole else b"ff\r\ntorn")
        handler.close_connection = True

    server.manners[NAME] = chunked
    # The second request asks for the rest and the answer is cut again; with the partial file gone it is whole.
    assert run(NAME)[0] == 1
    (root / f"{NAME}.part").unlink()
    assert run(NAME)[0] == 0 and (root / NAME).read_bytes() == CONTENT


def test_a_hash_that_does_not_match(run, root, server):
    other = archive({"korquad2.1_train_0.json": b"{}"})
    server.manners[NAME] = lambda handler: handler.answer(200, other)
    status, _, err = run()
    assert status == 1
    assert f"{NAME}: {server.url}/{FOLDER}{NAME} serves another file" in err
    assert blob(other) in err and blob(CONTENT) in err and "Nothing of it was kept." in err and "--base-url" in err
    assert listing(root) == sorted(set(FILES) - {NAME})


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 81234567\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (POINTER, "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Please log in</body></html>", "is a web page in place of the file"),
        (b"\xef\xbb\xbf\r\n <HTML>" + b" " * 100_000, "is a web page in place of the file"),
    ],
    ids=["pointer", "page", "long page"],
)
def test_something_in_the_files_place_is_recognised_and_costs_nothing(run, root, server, body, words):
    part = begin(root, CONTENT[:HALF])
    server.manners[NAME] = lambda handler: handler.answer(200, body)
    server.files[NAME] = body  # even where the published hash is the pointer's own
    status, _, err = run(NAME)
    assert status == 1 and f"{NAME}: {server.url}/{FOLDER}{NAME} {words}" in err
    assert f"Kept: {HALF:,} bytes in {part}." in err and part.read_bytes() == CONTENT[:HALF]


def test_a_server_that_announces_too_much(run, root, server):
    part = begin(root, CONTENT[:HALF])
    server.manners[NAME] = lambda handler: handler.answer(200, CONTENT, announced=10**12)
    status, _, err = run(NAME)
    assert status == 1 and "is longer than any published file" in err
    assert part.read_bytes() == CONTENT[:HALF]


def test_a_server_that_never_ends(run, root, server, monkeypatch):
    def pour(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        while True:  # until the reader hangs up
            handler.wfile.write(b"{" * 100_000)

    monkeypatch.setattr(module, "LARGEST_FILE", 1_000_000)
    server.manners[NAME] = pour
    status, _, err = run(NAME)
    assert status == 1 and "is longer than any published file (1.0 MB)" in err and "Nothing of it was kept." in err
    assert not root.exists()


# --- archives that are the published ones, and yet refused ------------------------------------------------------


def linked(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (archive({"fine.json": b"{}", "/etc/passwd": b"x"}), "leads out of its folder, '/etc/passwd'"),
        (archive({"a/../../b.json": b"x"}), "leads out of its folder, 'a/../../b.json'"),
        (archive({"..\\b.json": b"x"}), "leads out of its folder"),
        (archive({"C:/b.json": b"x"}), "leads out of its folder, 'C:/b.json'"),
        (archive({linked("link"): b"/etc"}), "leads out of its folder, 'link'"),
        (archive({"zeros.json": bytes(1_000_000)}), "would unpack to 1.0 MB, over 100 times its size"),
        (b"PK\x03\x04 and no more", "is not a .zip archive"),
        (CONTENT[:HALF], "is not a .zip archive"),
    ],
    ids=["absolute", "parent", "backslash", "drive", "link", "bomb", "no archive", "half an archive"],
)
def test_hostile_archives_are_refused(run, root, server, content, words):
    server.files[NAME] = content
    status, _, err = run(NAME)
    assert status == 1 and f"{NAME}: the archive " in err and words in err and "it is refused" in err
    assert not root.exists()


def test_names_with_dots_are_no_way_out(run, root, server):
    server.files[NAME] = archive({"folder/korquad..2.1.json": noise(10), "folder/": b""})
    assert run(NAME)[0] == 0


# --- this side of the connection ------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(run, root):
    root.mkdir(parents=True)
    (root / f"{NAME}.part").symlink_to("/dev/full")
    status, _, err = run()
    assert status == 1 and f"{NAME}: cannot be written: No space left on device" in err and "Make room" in err
    assert sorted(set(FILES) - {NAME}) == [name for name in listing(root) if not name.endswith(".part")]


def test_a_file_of_that_name_which_is_another_stays(run, root, server):
    root.mkdir(parents=True)
    (root / NAME).write_bytes(b"mine")
    status, _, err = run()
    assert status == 1 and f"{root / NAME} is there but is not the published file" in err
    assert (root / NAME).read_bytes() == b"mine" and server.ranges() == []


def test_a_folder_that_cannot_be_made(run, root):
    root.parent.write_bytes(b"a file")
    status, _, err = run()
    assert status == 1 and f"{root} cannot be used" in err and "--root" in err


def test_a_second_run_into_the_same_folder_waits_its_turn(server, root):
    blobs = {FOLDER + NAME: blob(CONTENT)}
    first_asked, go_on = threading.Event(), threading.Event()

    def hold(handler: Handler) -> None:
        first_asked.set()
        go_on.wait(20)
        handler.properly()

    server.manners[NAME] = hold
    first = threading.Thread(target=download, args=(blobs, root, server.url))
    first.start()
    try:
        assert first_asked.wait(20)
        with pytest.raises(DownloadError, match="another run is downloading to"):
            download(blobs, root, server.url)
    finally:
        go_on.set()
        first.join()
    assert (root / NAME).read_bytes() == CONTENT and len(server.asked) == 1
    assert download(blobs, root, server.url) == [root / NAME]


def test_ctrl_c_keeps_what_came_and_does_not_wait_for_a_silent_server(server, root):
    half_sent, over = threading.Event(), threading.Event()

    def stall(handler: Handler) -> None:
        handler.answer(200, CONTENT[:HALF], len(CONTENT))
        half_sent.set()
        over.wait(60)

    server.manners = {Path(path).name: stall for path in published("2.1", "train")}
    command = [sys.executable, "-m", "dataloader.download", "--root", str(root), "--base-url", server.url]
    # In a shell's background Ctrl-C is ignored, and so by all that is started there.
    was = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, was)
    try:
        part = root / f"{NAME}.part"
        assert half_sent.wait(60)
        for _ in range(600):
            if part.exists() and part.stat().st_size == HALF:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)  # less than the time-out of the connection
    finally:
        over.set()
        process.kill()
    assert process.returncode == 130, err
    assert part.read_bytes() == CONTENT[:HALF]
    assert f"Stopped. {root} keeps what was received; the same command goes on from there." in err
    assert "Traceback" not in err and "Licence: CC BY-ND 2.0 KR" in out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--version", "3.0"], "invalid choice"),
        (["--split", "test"], "invalid choice"),
        (["--vers", "2.1"], "unrecognized arguments"),
        (["--base-url", "ftp://127.0.0.1/x"], "must be a plain http"),
        (["--base-url", "127.0.0.1/x"], "must be a plain http"),
        (["--base-url", "http://127.0.0.1:99999/x"], "must be a plain http"),
        (["--base-url", "http://127.0.0.1/a b"], "must be a plain http"),
        (["--base-url", "http://127.0.0.1/?x=1"], "must be a plain http"),
        (["--root", ""], "must name a folder"),
        (["--root", __file__], "is a file, not a folder"),
    ],
)
def test_wrong_arguments(argv, words, capsys):
    with pytest.raises(SystemExit) as raised:
        main(argv)
    assert raised.value.code == 2 and words in capsys.readouterr().err


def test_it_runs_without_torch():
    code = "import sys; sys.modules['torch'] = None; from dataloader.download import main; main(['--help'])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "--base-url" in result.stdout, result.stderr


# --- facts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name"),  # from `git hash-object`
    [(b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"), (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a")],
)
def test_git_blob_hash(tmp_path, content, name):
    (tmp_path / "file").write_bytes(content)
    assert git_blob_sha1(tmp_path / "file") == name


def test_published_files():
    assert [Path(path).name for path in published("2.1", "train")] == [f"KorQuAD_2.1_train_{i:02}.zip" for i in range(13)]
    assert [Path(path).name for path in published("2.1", "dev")] == ["KorQuAD_2.1_dev_00.zip", "KorQuAD_2.1_dev_01.zip"]
    assert list(published("1.0", "train")) == ["dataset/KorQuAD_v1.0_train.json"]
    assert published("1.0", "dev") == {"dataset/KorQuAD_v1.0_dev.json": "6849d8c79140447018f5701a0453835c96608a07"}
    hashes = json.loads(module.BLOBS_FILE.read_text())
    assert len(set(hashes.values())) == 17 and all(re.fullmatch("[0-9a-f]{40}", sha1) for sha1 in hashes.values())


def test_one_folder_holds_one_dataset():
    roots = {(version, split): str(default_root(version, split)) for version in ("2.1", "1.0") for split in ("train", "dev")}
    assert roots == {
        ("2.1", "train"): os.path.join("data", "KorQuAD"),
        ("2.1", "dev"): os.path.join("data", "KorQuAD_dev"),
        ("1.0", "train"): os.path.join("data", "KorQuAD_1.0"),
        ("1.0", "dev"): os.path.join("data", "KorQuAD_1.0_dev"),
    }


@pytest.mark.parametrize("split", ["train", "dev"])
def test_version_1_0_is_one_json_file(server, root, monkeypatch, tmp_path, capsys, split):
    content = b'{"version": "KorQuAD_v1.0", "data": []}'
    monkeypatch.setattr(Handler, "content", lambda _: content)
    monkeypatch.setattr(module, "published", lambda *_: {f"dataset/KorQuAD_v1.0_{split}.json": blob(content)})
    monkeypatch.chdir(tmp_path)
    assert main(["--version", "1.0", "--split", split, "--base-url", server.url]) == 0
    folder = default_root("1.0", split)
    assert (tmp_path / folder / f"KorQuAD_v1.0_{split}.json").read_bytes() == content
    command = "Train: python train.py" if split == "train" else "Look at it: python eda/korquad_analysis.py"
    assert capsys.readouterr().out.endswith(f"{command} --dataset_root {folder}\n")
