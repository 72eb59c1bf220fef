"""run_tensorboard.sh: what it starts, what it says, and that it starts the real thing."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from tensorboard.summary import Writer

SCRIPT = Path(__file__).resolve().parent.parent / "run_tensorboard.sh"
STUB = "#!/usr/bin/env bash\nprintf 'started\\n'; printf '<%s>\\n' \"$@\"\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a copy of the script, no .venv, logs in the default place, and on its PATH a `tensorboard` that
    prints its arguments."""
    folder = tmp_path / "the house"
    tools = folder / "tools"
    tools.mkdir(parents=True)
    shutil.copy(SCRIPT, folder)
    for name in ("bash", "cat", "dirname", "find"):
        (tools / name).symlink_to(str(shutil.which(name)))
    write_stub(tools / "tensorboard", STUB)
    (folder / "logs" / "tensorboard").mkdir(parents=True)
    (folder / "logs" / "tensorboard" / "events.out.tfevents.1").touch()
    return folder


def write_stub(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(home / "tools"), "PORT": str(free_port()), **settings}
    return subprocess.run(
        ["./run_tensorboard.sh", *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=60
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_defaults_and_what_others_can_read(home: Path) -> None:
    result = run(home, PORT="")
    if result.returncode and "Port 6006 is taken" in result.stderr:
        pytest.skip("port 6006 is in use on this machine")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-3:] == [
        "<--logdir=./logs/tensorboard>",
        "<--host=0.0.0.0>",
        "<--port=6006>",
    ]
    assert "http://localhost:6006\n" in result.stdout
    assert "others on the network can read it" in result.stdout
    assert "HOST=127.0.0.1 ./run_tensorboard.sh" in result.stdout


def test_host_port_and_log_dir_override(home: Path) -> None:
    (home / "logs").rename(home / "other")
    port = free_port()
    result = run(home, HOST="127.0.0.1", PORT=str(port), LOG_DIR="other")
    assert result.stdout.splitlines()[-3:] == ["<--logdir=other>", "<--host=127.0.0.1>", f"<--port={port}>"]
    assert f"http://localhost:{port} (this machine only)\n" in result.stdout
    assert "others on the network" not in result.stdout


@pytest.mark.parametrize(
    ("host", "url"),
    [("192.0.2.7", "http://192.0.2.7:"), ("2001:db8::7", "http://[2001:db8::7]:"), ("::", "http://localhost:")],
)
def test_the_address_of_other_hosts(home: Path, host: str, url: str) -> None:
    assert f"TensorBoard: {url}" in run(home, HOST=host).stdout


def test_the_environment_beside_the_script_comes_first(home: Path) -> None:
    write_stub(home / ".venv" / "bin" / "tensorboard", "#!/usr/bin/env bash\necho from .venv\n")
    assert run(home).stdout.splitlines()[-1] == "from .venv"


def test_logs_are_those_of_the_folder_it_is_run_in(home: Path, tmp_path: Path) -> None:
    shutil.move(home / "logs", tmp_path / "logs")
    environment = {"PATH": str(home / "tools"), "PORT": str(free_port())}
    result = subprocess.run(
        [str(home / "run_tensorboard.sh")], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert "<--logdir=./logs/tensorboard>" in result.stdout, result.stderr


def test_without_tensorboard_it_says_how_to_install(home: Path) -> None:
    (home / "tools" / "tensorboard").unlink()
    result = run(home)
    assert result.returncode == 1
    assert "make tensorboard" in result.stderr and "pip install -r requirements.txt" in result.stderr


def test_missing_folder(home: Path) -> None:
    result = run(home, LOG_DIR="no such folder")
    assert result.returncode == 1 and result.stdout == ""
    assert "no log folder at no such folder" in result.stderr
    assert "python train.py" in result.stderr


def test_folder_without_event_files(home: Path) -> None:
    (home / "logs" / "tensorboard" / "events.out.tfevents.1").unlink()
    (home / "logs" / "tensorboard" / "notes.txt").touch()
    result = run(home)
    assert result.returncode == 1 and result.stdout == ""
    assert "holds no TensorBoard logs yet" in result.stderr and "python train.py" in result.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_taken_port(home: Path, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run(home, HOST=host, PORT=str(port))
    assert result.returncode == 1 and result.stdout == ""
    assert f"Port {port} is taken" in result.stderr
    proposal = re.search(r"PORT=(\d+) \./run_tensorboard\.sh", result.stderr)
    assert proposal and int(proposal[1]) != port


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1", "6006 ", "1+$(touch x)", "999999999999999999999"])
def test_wrong_port(home: Path, port: str) -> None:
    result = run(home, PORT=port)
    assert result.returncode == 1 and result.stdout == ""
    assert f"PORT must be a number from 1 to 65535, not '{port}'" in result.stderr
    assert not (home / "x").exists()


def test_port_with_leading_zeros_is_decimal(home: Path) -> None:
    port = free_port()
    assert run(home, PORT=f"{port:05}").stdout.splitlines()[-1] == f"<--port={port}>"


def test_log_dir_that_looks_like_an_option(home: Path) -> None:
    (home / "logs").rename(home / "-logs")
    assert "<--logdir=./-logs>" in run(home, LOG_DIR="-logs").stdout


def test_help_and_unknown_arguments(home: Path) -> None:
    for option in ("--help", "-h"):
        result = run(home, option)
        assert result.returncode == 0
        assert all(name in result.stdout for name in ("LOG_DIR", "HOST", "PORT", "0.0.0.0", "6006"))
    result = run(home, "--port=1")
    assert result.returncode == 2 and result.stdout == ""
    assert "Unknown argument: --port=1" in result.stderr and "Usage:" in result.stderr


def test_the_real_one_serves_a_folder_with_a_hostile_name_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    log_dir = "logs of today $(touch x) `touch y` ; * 'q'"
    writer = Writer(str(tmp_path / log_dir / "run-1"))
    writer.add_scalar("train/loss", 0.5, 1)
    writer.close()
    port = free_port()
    environment = {**os.environ, "LOG_DIR": log_dir, "HOST": "127.0.0.1", "PORT": str(port)}
    # Where the repository has no .venv, the tensorboard of the Python that runs the tests.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [str(SCRIPT)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert b"<!doctype html>" in fetch(process, f"http://127.0.0.1:{port}/")
        runs: list[str] = []
        for _ in range(60):  # the page is there before the logs are read
            runs = json.loads(fetch(process, f"http://127.0.0.1:{port}/data/runs"))
            if runs:
                break
            time.sleep(0.5)
        assert runs == ["run-1"]
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert f"Logs:        {log_dir}\n" in output
    assert "Traceback" not in output
    assert [entry.name for entry in tmp_path.iterdir()] == [log_dir]


def fetch(process: subprocess.Popen[str], url: str) -> bytes:
    """The page, once the server is up: within a minute."""
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(120):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        try:
            return local.open(url, timeout=10).read()
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")
