"""Loading KorQuAD 2.1 at its real size: this loader against the plain way, and against merely reading the bytes.

    python benchmarks/make_korquad21.py /tmp/kq --files 6
    python benchmarks/load_speed.py /tmp/kq --workers 2 --rounds 3

The plain way is a pool of processes that `json.load` a file each and send back what they read. Ways alternate in one run on
the same files; each time is that of a fresh process, workers started included, imports of the process itself not. Prints one
JSON line: of each way the median seconds, MB/s, and the peak of memory in MB, in the parent and in all processes together
(resident, sampled; pages of shared libraries count in each); and the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = os.sysconf("SC_PAGE_SIZE")
WAYS = ("read", "plain", "pairs", "windows", "cached")


def read_bytes(path: str) -> int:
    """The least that any loader does."""
    with open(path, "rb") as file:
        return len(file.read())


def load_plainly(path: str) -> Any:
    """What one would write first."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def measure_here(way: str, root: str, workers: int) -> None:
    """Load once in this process and print its seconds."""
    if way in ("read", "plain"):
        files = [str(file) for file in sorted(Path(root).glob("*/*.json"))]
        started = time.perf_counter()
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            loaded: Any = pool.map(read_bytes if way == "read" else load_plainly, files, chunksize=1)
    else:
        sys.path.insert(0, str(REPOSITORY))
        from dataloader import load_cached_dataset, load_entire_dataset

        started = time.perf_counter()
        if way == "cached":
            loaded = load_cached_dataset(root, workers, verbose=False, fields="windows")
        else:
            loaded = load_entire_dataset(root, workers, verbose=False, fields=way)
    print(time.perf_counter() - started, len(loaded))


def measure(way: str, root: Path, workers: int) -> tuple[float, float, float]:
    """Seconds, MB of the parent and MB of all processes at their peaks, of one way in a fresh process."""
    command = [sys.executable, __file__, str(root), "--workers", str(workers), "--measure", way]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = [0.0, 0.0]
    watch = threading.Thread(target=_watch, args=(process, peaks))
    watch.start()
    output = process.communicate()[0]
    watch.join()
    if process.returncode:
        raise RuntimeError(f"{way}: ended with status {process.returncode}")
    return float(output.split()[0]), peaks[0], peaks[1]


def _watch(process: subprocess.Popen, peaks: list[float]) -> None:
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError, ValueError):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            parent = _resident(process.pid)
            peaks[0] = max(peaks[0], _peak(process.pid))
            peaks[1] = max(peaks[1], parent + sum(map(_resident, children)))
        time.sleep(0.01)


def _resident(pid: int | str) -> float:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6
    return 0.0


def _peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def compare(root: Path, workers: int, rounds: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """All ways in turn, `rounds` times; the cache is this benchmark's own and written before."""
    files = sorted(root.glob("*/*.json"))
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        measure("cached" if "cached" in ways else "read", root, workers)
        taken: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                taken[way].append(measure(way, root, workers))
    rows = {way: [statistics.median(column) for column in zip(*runs, strict=True)] for way, runs in taken.items()}
    result: dict[str, Any] = {"files": len(files), "megabytes": round(megabytes), "workers": workers, "rounds": rounds}
    for way, (seconds, parent, total) in rows.items():
        speed = {"seconds": round(seconds, 2), "mb_per_s": round(megabytes / seconds)}
        result[way] = speed | {"parent_mb": round(parent), "total_mb": round(total)}
    for way in ("pairs", "windows", "cached"):
        if way in rows and "plain" in rows:
            result[f"{way}_times_faster"] = round(rows["plain"][0] / rows[way][0], 2)
            result[f"{way}_parent_memory_ratio"] = round(rows[way][1] / rows["plain"][1], 3)
        if way in rows and "read" in rows:
            result[f"{way}_seconds_over_reading"] = round(rows[way][0] / rows["read"][0], 2)
    return result


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Loading speed and memory at KorQuAD 2.1's size.", allow_abbrev=False)
    parser.add_argument("root", type=Path, help="a folder that make_korquad21.py wrote")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_here(options.measure, str(options.root), options.workers)
    else:
        print(json.dumps(compare(options.root, options.workers, options.rounds, tuple(options.ways))))


if __name__ == "__main__":
    main()
