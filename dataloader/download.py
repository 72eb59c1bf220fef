"""KorQuAD as its authors publish it: fetched, resumed where it stopped, and checked byte for byte.

    python -m dataloader.download                                  # 2.1's training archives, to ./data/KorQuAD
    python -m dataloader.download --version 1.0 --split dev        # one JSON file, to ./data/KorQuAD_1.0_dev
    python -m dataloader.download --base-url https://mirror/path --root /data/KorQuAD

Each file is received as NAME.part and gets its name only when its git blob hash is the one in korquad_blobs.json; a
run that was cut off goes on from the bytes in NAME.part. Exit status: 0, 1 where files failed, 2 for wrong arguments,
130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from config import DEFAULT_DATASET_ROOT, print_any_text
from dataloader.loader import DAMAGED_ARCHIVE

logger = logging.getLogger(__name__)

BASE_URL = "https://raw.githubusercontent.com/korquad/korquad.github.io/master"
# Path in the official repository → git's hash of the content (`git ls-tree -r master dataset`).
BLOBS_FILE = Path(__file__).with_name("korquad_blobs.json")

CONNECTIONS = 4
TIMEOUT = 30.0  # seconds without a byte until a connection counts as lost
RETRY_WAITS = (1.0, 3.0)  # seconds before each further attempt that follows one without progress
CHUNK = 1 << 16
LARGEST_FILE = 100 << 20  # GitHub takes no larger file into a repository: whatever is longer is something else
LARGEST_EXPANSION = 100  # times the archive's size; JSON with HTML in it packs to a tenth or so
_TEMPORARY = {408, 429, 500, 502, 503, 504}

LICENCE = """\
KorQuAD {version} by LG CNS, from https://github.com/korquad/korquad.github.io (https://korquad.github.io)
Licence: CC BY-ND 2.0 KR, https://creativecommons.org/licenses/by-nd/2.0/kr/
         Use it and pass it on unchanged, naming its source; changed copies must not be passed on."""


class DownloadError(RuntimeError):
    """What failed, where, what was kept and how to go on. `temporary`: the next attempt may succeed."""

    def __init__(self, message: str, temporary: bool = False) -> None:
        super().__init__(message)
        self.temporary = temporary


# --- all files ------------------------------------------------------------------------------------------------


def published(version: str, split: str) -> dict[str, str]:
    """Path in the official repository → git blob hash, for "2.1" or "1.0" and "train" or "dev"."""
    start = {"2.1": f"dataset/KorQuAD_2.1/{split}/", "1.0": f"dataset/KorQuAD_v1.0_{split}."}[version]
    blobs = json.loads(BLOBS_FILE.read_text(encoding="utf-8"))
    return {path: sha1 for path, sha1 in blobs.items() if path.startswith(start)}


def default_root(version: str, split: str) -> Path:
    """One folder holds one dataset, so that training never reads a mixture: 2.1's training set is the default one."""
    suffix = ("" if version == "2.1" else f"_{version}") + ("" if split == "train" else f"_{split}")
    return Path(DEFAULT_DATASET_ROOT + suffix)


def download(blobs: dict[str, str], root: Path, base_url: str = BASE_URL) -> list[Path]:
    """Put the files `blobs` names (see `published`) into `root`, several at a time; returns their paths there.

    Files that are there already are checked and not fetched again. Raises DownloadError that lists every file that
    failed, after all others are complete; KeyboardInterrupt leaves what was received for the next call.
    """
    targets = {path: root / PurePosixPath(path).name for path in blobs}
    stop = threading.Event()
    failures = []
    with _alone_in(root):
        pool = ThreadPoolExecutor(CONNECTIONS)
        futures = {pool.submit(fetch, f"{base_url}/{path}", targets[path], blobs[path], stop): path for path in blobs}
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc="Files", unit="file", disable=None):
                target = targets[futures[future]]
                try:
                    future.result()
                except DownloadError as error:
                    failures.append(f"{target.name}: {error} {_kept(target)}")
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    if failures:
        raise DownloadError(
            f"{len(failures)} of {len(blobs)} files failed:\n  " + "\n  ".join(sorted(failures)) + "\n"
            f"{len(blobs) - len(failures)} are complete in {root}. The same command goes on from there."
        )
    return list(targets.values())


@contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Make `root` and hold it against a second run, which would write into the same partial files.

    A folder made here that stays empty is removed: training would take it for a dataset.
    """
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = _lock(root)
    except OSError as error:
        raise DownloadError(f"{root} cannot be used: {error.strerror}. Choose another folder with --root.") from None
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)  # and with it the lock
        if made:
            with suppress(OSError):  # not empty
                root.rmdir()


def _lock(folder: Path) -> int | None:
    """A handle that holds the folder's lock until it is closed; None on Windows, which has no such lock."""
    if sys.platform == "win32":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise DownloadError(f"another run is downloading to {folder}. Let it finish, or stop it.") from None
    return handle


# --- one file -------------------------------------------------------------------------------------------------


def fetch(url: str, target: Path, sha1: str, stop: threading.Event) -> None:
    """Bring the file at `url` to `target`, complete and verified, or not at all. Raises DownloadError."""
    part = _part(target)
    try:
        if target.exists():
            _check_present(target, sha1)
            return
        resumed = part.exists()
        _receive_with_patience(url, part, stop)
        found = git_blob_sha1(part)
        if found == sha1:
            _check_archive(part, target)
            part.replace(target)
            logger.info("%s: complete, %s", target.name, _megabytes(target.stat().st_size))
            return
        part.unlink()
    except OSError as error:  # of the disk: those of the network are DownloadErrors by now
        raise DownloadError(_disk_trouble(error)) from None
    if not resumed:
        raise DownloadError(
            f"{url} serves another file: its git blob hash is {found}, the published one {sha1}."
            " Try again later, or name a mirror with --base-url."
        )
    logger.warning("%s: what was kept of it does not fit what the server has; starting over", target.name)
    fetch(url, target, sha1, stop)


def git_blob_sha1(path: Path) -> str:
    """Git's name for a file's content: the SHA-1 of `blob SIZE`, a NUL byte and the content (`git hash-object`)."""
    with path.open("rb") as file:
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_present(target: Path, sha1: str) -> None:
    if git_blob_sha1(target) != sha1:
        raise DownloadError(f"{target} is there but is not the published file; it stays as it is. Move it away.")
    logger.info("%s: already there", target.name)


def _check_archive(archive: Path, target: Path) -> None:
    """Remove and refuse a .zip that would write outside its folder, or fill the disk, once unpacked."""
    if target.suffix != ".zip":
        return
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
        trouble = _hostile(members, archive.stat().st_size)
    except DAMAGED_ARCHIVE as error:
        trouble = f"is not a .zip archive ({error})"
    if trouble:
        archive.unlink()
        raise DownloadError(f"the archive {trouble}; it is refused. Name another source with --base-url.")


def _hostile(members: list[zipfile.ZipInfo], archive_size: int) -> str:
    """What is wrong with an archive's members; "" where nothing is."""
    for member in members:
        path = PureWindowsPath(member.filename)  # knows both separators, and drives
        if path.anchor or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
            return f"holds a member that leads out of its folder, {member.filename!r}"
    size = sum(member.file_size for member in members)
    if size > LARGEST_EXPANSION * archive_size:
        return f"would unpack to {_megabytes(size)}, over {LARGEST_EXPANSION} times its size"
    return ""


# --- the connection -------------------------------------------------------------------------------------------


def _receive_with_patience(url: str, part: Path, stop: threading.Event) -> None:
    """`_receive`, again after each temporary failure until as many in a row as RETRY_WAITS has brought nothing new."""
    longest, in_vain = _size(part), 0
    while True:
        try:
            return _receive(url, part, stop)
        except DownloadError as error:
            size = _size(part)
            in_vain = 0 if size > longest else in_vain + 1
            longest = max(longest, size)
            hopeless = not error.temporary or in_vain > len(RETRY_WAITS)
            if hopeless or stop.wait(RETRY_WAITS[max(in_vain - 1, 0)]):
                raise


def _receive(url: str, part: Path, stop: threading.Event) -> None:
    """Bring `part` to the end of the file at `url`: its rest where the server has ranges, else all of it anew."""
    response = _open(url, _size(part))
    if response is None:  # nothing beyond what is here: the hash decides
        return
    with response:
        start, total = _extent(response, part)
        chunks = _chunks(response, stop)
        if not start:
            head = next(chunks, b"")
            _refuse_impostor(head, url)
            chunks = chain([head], chunks)
            if _size(part):
                logger.warning("%s: the server cannot resume; starting over", part.stem)
        if total > LARGEST_FILE:
            raise DownloadError(_too_long(url))
        # The partial file is touched only now: an answer that is refused does not cost what an earlier run received.
        received = _write(chunks, part, start, total)
    if received > LARGEST_FILE:
        part.unlink()
        raise DownloadError(_too_long(url))
    if received < total:
        text = f"the connection to {url} ended after {_megabytes(received)} of {_megabytes(total)}."
        raise DownloadError(text, temporary=True)


def _write(chunks: Iterator[bytes], part: Path, start: int, total: int) -> int:
    """Put the chunks at byte `start` of `part`, where it ends; returns its new size."""
    with part.open("ab" if start else "wb") as file, _bar(part.stem, start, total) as bar:
        for chunk in chunks:
            file.write(chunk)
            file.flush()  # what Ctrl-C or a full disk leaves is the true beginning of the file
            bar.update(len(chunk))
            if file.tell() == total or file.tell() > LARGEST_FILE:
                break
        os.fsync(file.fileno())
        return file.tell()


def _open(url: str, start: int) -> HTTPResponse | None:
    """The server's answer, from byte `start` on if it can; None where the file has no more bytes than that."""
    headers = {"User-Agent": "dataloader.download"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and start:
            return None
        temporary = error.code in _TEMPORARY
        advice = "Try again later." if temporary else "Is --base-url right? It is what stands before /dataset/."
        raise DownloadError(f"{url} answers {error.code} {error.reason}. {advice}", temporary) from None
    except (OSError, HTTPException) as error:
        raise DownloadError(_network_trouble(url, error), temporary=True) from None


def _extent(response: HTTPResponse, part: Path) -> tuple[int, int]:
    """Where in the file the answer starts, and the size of the whole file, 0 if the server does not say."""
    if response.status != 206:
        return 0, response.length or 0
    size = _size(part)
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != size:
        part.unlink(missing_ok=True)
        raise DownloadError(f"the server answered another range than byte {size} and after.", temporary=True)
    return size, 0 if match[2] == "*" else int(match[2])


def _chunks(response: HTTPResponse, stop: threading.Event) -> Iterator[bytes]:
    """The body as it comes. The first chunk is long enough to tell what the file is."""
    try:
        chunk = response.read(256)
        while chunk:
            if stop.is_set():
                raise DownloadError("stopped.")
            yield chunk
            chunk = response.read1(CHUNK)
    except (OSError, HTTPException) as error:
        raise DownloadError(_network_trouble(response.url, error), temporary=True) from None


def _refuse_impostor(head: bytes, url: str) -> None:
    if head.startswith(b"version https://git-lfs"):
        raise DownloadError(
            f"{url} is a Git LFS pointer, a note that stands in the file's place. Name a mirror with the files themselves"
            " with --base-url."
        )
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise DownloadError(
            f"{url} is a web page in place of the file, as a login or an error gives. Open it in a browser to see what it"
            " says, or name a mirror with --base-url."
        )


# --- words ----------------------------------------------------------------------------------------------------


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _kept(target: Path) -> str:
    part = _part(target)
    return f"Kept: {_size(part):,} bytes in {part}." if _size(part) else "Nothing of it was kept."


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _bar(name: str, start: int, total: int) -> tqdm:
    return tqdm(initial=start, total=total or None, desc=name, unit="B", unit_scale=True, leave=False, disable=None)


def _too_long(url: str) -> str:
    return f"{url} is longer than any published file ({_megabytes(LARGEST_FILE)}). Is --base-url right?"


def _network_trouble(url: str, error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return f"no connection to {urlsplit(url).netloc}, or it was lost ({str(reason) or type(reason).__name__})."


def _disk_trouble(error: OSError) -> str:
    advice = "Make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
    where = f" ({error.filename})" if error.filename else ""
    return f"cannot be written: {error.strerror}{where}. {advice}, or choose another folder with --root."


# --- command line ---------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    print_any_text()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = _parse(argv)
    root = options.root or default_root(options.version, options.split)
    print_licence(options.version, options.base_url)
    try:
        with logging_redirect_tqdm():
            files = download(published(options.version, options.split), root, options.base_url)
    except DownloadError as error:
        print(f"\nError: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. {root} keeps what was received; the same command goes on from there.", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT
    print_result(files, root, options.split)
    return 0


def print_licence(version: str, base_url: str) -> None:
    """Print whose data this is, on which terms, and where it comes from this time."""
    print(LICENCE.format(version=version))  # noqa: T201
    print(f"Fetching from {base_url}\n", flush=True)  # noqa: T201


def print_result(files: Sequence[Path], root: Path, split: str) -> None:
    """Print what lies where, and the command that uses it."""
    command = "train.py" if split == "train" else "eda/korquad_analysis.py"
    size = _megabytes(sum(file.stat().st_size for file in files))
    print(f"\nIn {root}, each with its published hash ({size}):")  # noqa: T201
    for file in files:
        print(f"  {file.name}")  # noqa: T201
    if files[0].suffix == ".zip":
        print("They can stay zipped: the loader reads archives.")  # noqa: T201
    print(f"{'Train' if split == 'train' else 'Look at it'}: python {command} --dataset_root {shlex.quote(str(root))}")  # noqa: T201


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dataloader.download",
        description="Fetch KorQuAD from its official repository, resume what was cut off, and check every file.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", choices=["2.1", "1.0"], default="2.1", help="(default: %(default)s)")
    parser.add_argument("--split", choices=["train", "dev"], default="train", help="(default: %(default)s)")
    parser.add_argument(
        "--root",
        type=_folder,
        metavar="DIR",
        help="where to (default: ./data/KorQuAD; _1.0 is added for that version and _dev for that split, because one"
        " folder holds one dataset)",
    )
    parser.add_argument(
        "--base-url",
        type=_base_url,
        default=BASE_URL,
        metavar="URL",
        help="a mirror: what stands before /dataset/KorQuAD_2.1/… (default: %(default)s)",
    )
    return parser.parse_args(argv)


def _folder(text: str) -> Path:
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("must name a folder")
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, not a folder")
    return Path(text)


def _base_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port or address that is none
        usable = False
    if not usable or not re.fullmatch(r"[!-~]+", text) or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"must be a plain http:// or https:// address, not {text!r}")
    return text.rstrip("/")


if __name__ == "__main__":
    status = main()
    if status == 128 + signal.SIGINT:
        sys.stdout.flush()
        os._exit(status)  # a thread that waits for a silent server would hold the exit up; what it wrote is on disk
    sys.exit(status)
