"""Packing: the same embeddings and gradients as the padded way, with less padding."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from trainer import projection as projection_module
from trainer.dropout import fast_dropout
from trainer.encoder import PackedEncoder, can_pack
from trainer.lora import setup_lora_model
from trainer.loss import contrastive_loss
from trainer.packing import RowForm, _best_fill, _group_borders, _layout, _longest_fill, pack

TEXTS = ["짧다", "조금 더 긴 글이다", "이것은 세 번째 글이며 앞의 글보다 더 길다", "넷", "다섯 번째", "끝"]
CPU = torch.device("cpu")


def flat_tokens(model, texts):
    ids = model.tokenizer(texts)["input_ids"]
    return torch.tensor([token for row in ids for token in row]), torch.tensor([len(row) for row in ids])


def trainable_gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("tile", [0, 6, 16, 100], ids=["no tiles", "some tiles", "tiles", "one tile"])
@pytest.mark.parametrize("group_cost", [0, 4, 10_000], ids=["no padding", "some groups", "one group"])
def test_embeddings_equal_the_padded_ones(toy_model, group_cost, tile):
    toy_model.double().eval()
    padded = toy_model(toy_model.tokenizer(TEXTS, padding=True, return_tensors="pt"))["sentence_embedding"]
    packed = PackedEncoder(toy_model)(
        pack(*flat_tokens(toy_model, TEXTS), CPU, form=RowForm((tile,), group_cost=group_cost))
    )
    torch.testing.assert_close(packed, padded, rtol=0, atol=1e-12)


QKV = ["query", "key", "value"]
ALL_LINEAR = [*QKV, "attention.output.dense", "intermediate.dense", "output.dense"]


@pytest.mark.parametrize(
    ("targets", "checkpointing"),
    [(QKV, False), (QKV, True), (ALL_LINEAR, False), (ALL_LINEAR, True), (["query"], False), (["query", "value"], False)],
)
@pytest.mark.parametrize("lora_dropout", [0, 0.5], ids=["inside the weights", "beside them"])
def test_gradients_equal_the_padded_ones_in_float64(
    toy_model_dir, toy_config, monkeypatch, targets, checkpointing, lora_dropout
):
    from sentence_transformers import SentenceTransformer

    monkeypatch.setattr(projection_module, "keep_mask", lambda shape, *_: torch.ones(shape, dtype=torch.uint8))
    monkeypatch.setattr(projection_module, "kept_factor", lambda threshold: 1.0)

    found = []
    for packed in (False, True):
        torch.manual_seed(1)
        model = SentenceTransformer(str(toy_model_dir), device="cpu")
        config = toy_config(
            gradient_checkpointing=checkpointing,
            lora_dropout=lora_dropout if packed else 0,
            encoder_dropout=0,
            lora_target_modules=targets,
        )
        setup_lora_model(model, config).double().train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first: the gradient of A would be zero too
                torch.nn.init.normal_(parameter, std=0.1)
        if packed:
            embeddings = PackedEncoder(model)(pack(*flat_tokens(model, TEXTS), CPU))
        else:
            embeddings = model(model.tokenizer(TEXTS, padding=True, return_tensors="pt"))["sentence_embedding"]
        contrastive_loss(embeddings[:3], embeddings[3:]).backward()
        found.append(trainable_gradients(model))
    assert any(gradient.abs().max() > 1e-3 for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["_AdapterBeside", "_AdaptedLinear"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_gradients_of_an_adapter_are_those_of_its_output(form, blocks):
    torch.manual_seed(0)
    dropout = (100, None) if form == "_AdapterBeside" else ()
    shapes = {"source": (5, 6), "weight": (4, 6), "bias": (4,), "down": (2, 6), "up": (blocks, 4 // blocks, 2 // blocks)}
    source, weight, bias, down, up = (torch.randn(*shape, dtype=torch.float64) for shape in shapes.values())

    def output(source, down, up):
        torch.manual_seed(1)  # one mask for all
        matrices = (down, up, down.detach(), up.detach())
        return getattr(projection_module, form).apply(source, weight, bias, *matrices, *dropout)

    learned = [tensor.requires_grad_() for tensor in (source, down, up)]
    assert torch.autograd.gradcheck(output, learned)
    torch.manual_seed(1)
    thinned = fast_dropout(source, 100 / 256) if dropout else source
    expected = source @ weight.T + bias + thinned @ down.T @ torch.block_diag(*up).T
    torch.testing.assert_close(output(source, down, up), expected)


@pytest.mark.parametrize("lora_dropout", [0.0, 0.2])
def test_what_is_computed_again_drops_the_same(toy_model_dir, toy_config, lora_dropout):
    from sentence_transformers import SentenceTransformer

    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = SentenceTransformer(str(toy_model_dir), device="cpu")
        dropout = {"lora_dropout": lora_dropout, "encoder_dropout": 0.2}
        setup_lora_model(model, toy_config(gradient_checkpointing=checkpointing, **dropout)).double().train()
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        for seed in (2, 2, 3):
            torch.manual_seed(seed)
            embeddings = PackedEncoder(model)(pack(*flat_tokens(model, TEXTS), CPU))
            contrastive_loss(embeddings[:3], embeddings[3:]).backward()
            found.append(torch.cat([gradient.flatten() for gradient in trainable_gradients(model).values()]))
            model.zero_grad()
    for again in (1, 3, 4):
        torch.testing.assert_close(found[again], found[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[5], found[2], rtol=1e-9, atol=1e-12)
    assert (found[2] - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("tile", [0, 3, 4, 32])
def test_every_token_stands_once_and_padding_is_marked(tile):
    tokens, lengths = torch.arange(100, 111), torch.tensor([5, 1, 3, 2])
    batch = pack(tokens, lengths, CPU, form=RowForm((tile,), group_cost=2))
    kept = batch.real.numpy()
    assert sorted(batch.input_ids[0].numpy()[kept]) == list(range(100, 111))
    starts = [0, 5, 6, 9]
    for token, position, sequence in zip(
        batch.input_ids[0][batch.real], batch.position_ids[0][batch.real], batch.sequence[batch.real], strict=True
    ):
        assert token == 100 + starts[sequence] + position
    assert sum(group.size * group.length for group in batch.groups) == batch.input_ids.shape[1]
    assert [group.start for group in batch.groups] == list(
        np.cumsum([0, *(group.size * group.length for group in batch.groups)])[:-1]
    )


def test_groups_by_hand():
    # Lengths 3, 3, 4, 9. One group: 4 · 9 = 36 tokens. Cut before the 9: 3 · 4 + 9 = 21. Cut everywhere: 6 + 4 + 9 = 19.
    lengths = np.array([3, 3, 4, 9])
    assert _group_borders(lengths, 0) == [(0, 2), (2, 3), (3, 4)]
    assert _group_borders(lengths, 3) == [(0, 3), (3, 4)]
    assert _group_borders(lengths, 16) == [(0, 4)]
    assert _group_borders(lengths[:0], 16) == []


def test_tiles_by_hand():
    # Into tiles of 8: 6, and 2 beside it; 5, and 3; then 1 in a tile of its own. 9 is too long.
    tokens, lengths = torch.arange(26), torch.tensor([1, 3, 9, 5, 2, 6])
    short, long = pack(tokens, lengths, CPU, form=RowForm((8,))).groups
    assert (short.start, short.size, short.length) == (0, 3, 8) and (long.start, long.size, long.length) == (24, 1, 9)
    batch = pack(tokens, lengths, CPU, form=RowForm((8,)))
    rows = torch.where(batch.real, batch.sequence, -1)[:24].view(3, 8).tolist()
    assert rows == [[5] * 6 + [4] * 2, [3] * 5 + [1] * 3, [0] + [-1] * 7]
    assert short.mask[:, 0].sum(dim=(1, 2)).tolist() == [36 + 4, 25 + 9, 1 + 49] and long.mask is None


def test_a_tile_takes_what_fills_it_best():
    # 7 leaves 9, which 5 + 4 fill and the longest, 6, would not; 6 then leaves 10, which 4 + 3 + 3 fill.
    sizes = [3, 3, 4, 4, 5, 6, 7]
    ((tiles, length),) = _layout(tuple(sizes), RowForm((16,)))
    assert length == 16 and [[sizes[number] for number in members] for members in tiles] == [[7, 4, 5], [6, 3, 3, 4]]
    assert _best_fill(9, {6: 1, 5: 1, 4: 2, 3: 2}) == [4, 5]
    assert _best_fill(10, {6: 1, 3: 1}) == [3, 6] and _best_fill(2, {6: 1, 3: 1}) == [] and _best_fill(8, {2: 3}) == [2] * 3


def test_the_way_that_needs_fewer_tiles_is_taken():
    # What fills tiles of 16 best: 8 + 6 + 2, 7 + 7, 7 + 5, and 5 is left. The longest: 8 + 7, 7 + 7 + 2, 6 + 5 + 5.
    sizes = [2, 5, 5, 6, 7, 7, 7, 8]
    ((tiles, _),) = _layout(tuple(sizes), RowForm((16,)))
    assert sorted(sorted(sizes[number] for number in members) for members in tiles) == [[2, 7, 7], [5, 5, 6], [7, 8]]
    assert _longest_fill(9, {6: 1, 4: 2, 3: 2}) == [6, 3] and _longest_fill(1, {2: 1}) == []


@given(st.integers(0, 30), st.dictionaries(st.integers(1, 12), st.integers(0, 3), max_size=4))
def test_no_other_choice_leaves_less_room(room, counts):
    counts = dict(sorted(counts.items(), reverse=True))
    chosen = _best_fill(room, counts)
    assert all(chosen.count(size) <= counts[size] for size in chosen)
    choices = itertools.product(*(range(count + 1) for count in counts.values()))
    sums = (sum(size * count for size, count in zip(counts, choice, strict=True)) for choice in choices)
    assert sum(chosen) == max(total for total in sums if total <= room)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(0, 40))
def test_tiles_hold_every_sequence_once_and_at_most_one_is_half_empty(sizes, tile):
    groups = _layout(tuple(sizes), RowForm((tile,)))
    assert sorted(number for tiles, _ in groups for members in tiles for number in members) == list(range(len(sizes)))
    for tiles, length in groups:
        filled = [sum(sizes[number] for number in members) for members in tiles]
        assert max(filled) <= length
        if length <= tile:
            assert sum(2 * tokens <= length for tokens in filled) <= 1


def groups_of(sizes, **form):
    lengths = torch.tensor(sizes)
    groups = pack(torch.arange(int(lengths.sum())), lengths, CPU, form=RowForm(**form)).groups
    return [(group.size, group.length) for group in groups]


def test_the_tile_length_of_the_least_work_is_chosen():
    # Two of 20 share a tile of 40, none one of 32.
    assert groups_of([20] * 6, tiles=(32, 40, 48)) == [(3, 40)]
    # 64 + 64 tokens without padding, but 66 · 2 is a row of 160 where rows are multiples of 32.
    assert groups_of([33, 33, 31, 31], tiles=(66, 64), row_multiple=32) == [(2, 64)]
    # A length of 36 holds all as one group of 4 · 36 = 144 tokens; 32 gives 3 · 32 + 36 = 132 and a group more.
    assert groups_of([36, 32, 32, 32], tiles=(32, 36), group_cost=16) == [(4, 36)]
    assert groups_of([36, 32, 32, 32], tiles=(32, 36), group_cost=4) == [(3, 32), (1, 36)]
    # Much longer tiles would save a few tokens of padding and cost more in attention.
    assert groups_of([30] * 30, tiles=(32, 900)) == [(30, 32)]


def test_one_sequence_and_equal_lengths_need_no_mask(toy_model):
    for texts in (["하나"], ["가나", "다라", "마바"]):
        batch = pack(*flat_tokens(toy_model, texts), CPU, form=RowForm((0 if len(texts) > 1 else 32,)))
        assert [group.mask for group in batch.groups] == [None]


def test_the_models_own_encode_is_unchanged(toy_model):
    toy_model.eval()
    before = toy_model.encode(TEXTS)
    PackedEncoder(toy_model)
    np.testing.assert_allclose(toy_model.encode(TEXTS), before, atol=1e-6)


@pytest.mark.parametrize("targets", [["query"], QKV, ALL_LINEAR])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_16_bits_are_near_float32_and_their_row_is_filled_up(toy_model_dir, toy_config, kind, targets):
    from sentence_transformers import SentenceTransformer

    torch.manual_seed(1)
    model = SentenceTransformer(str(toy_model_dir), device="cpu")
    setup_lora_model(model, toy_config(lora_dropout=0, encoder_dropout=0, lora_target_modules=targets)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    encoder, found = PackedEncoder(model), []
    for enabled in (False, True):
        batch = pack(*flat_tokens(model, TEXTS), CPU, form=RowForm(row_multiple=32 if enabled else 1))
        with torch.autocast("cpu", dtype=kind, enabled=enabled):
            embeddings = encoder(batch)
        assert embeddings.dtype == torch.float32
        contrastive_loss(embeddings[:3], embeddings[3:]).backward()
        found.append(torch.cat([gradient.flatten() for gradient in trainable_gradients(model).values()]))
        model.zero_grad()
    assert batch.input_ids.shape[1] % 32 == 0
    assert {copy.dtype for copy in encoder.copies()} <= {kind, torch.float32}
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.99 and not torch.equal(*found)


def test_weights_that_change_are_read_anew(toy_model):
    toy_model.eval()
    encoder, batch = PackedEncoder(toy_model), pack(*flat_tokens(toy_model, TEXTS), CPU)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        before = encoder(batch)
        assert torch.equal(encoder(batch), before)
        toy_model[0].model.encoder.layer[0].output.dense.weight.mul_(2)
        assert not torch.equal(encoder(batch), before)


def test_adapters_off_is_the_base_model(toy_model_dir, toy_config):
    from sentence_transformers import SentenceTransformer

    from trainer.lora import adapters_off

    model = SentenceTransformer(str(toy_model_dir), device="cpu")
    batch = pack(*flat_tokens(model, TEXTS), CPU)
    base = PackedEncoder(model)(batch)
    setup_lora_model(model, toy_config()).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned = PackedEncoder(model)
    assert not torch.allclose(tuned(batch), base, atol=1e-3)
    with adapters_off(model):
        torch.testing.assert_close(tuned(batch), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [None, torch.bfloat16])
def test_adapters_that_are_merged_into_the_weights_count(toy_model, kind):
    """PEFT merges behind the back of what tells that a tensor has changed."""
    toy_model[0].model = get_peft_model(toy_model[0].model, LoraConfig(target_modules=QKV, lora_dropout=0))
    for name, parameter in toy_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    toy_model.eval()
    encoder, batch = PackedEncoder(toy_model), pack(*flat_tokens(toy_model, TEXTS), CPU)
    with torch.no_grad(), torch.autocast("cpu", dtype=kind, enabled=kind is not None):
        before = encoder(batch)
        toy_model[0].model.merge_adapter()
        torch.testing.assert_close(encoder(batch), before, rtol=0, atol=1e-5 if kind is None else 0.02)
        with toy_model[0].model.disable_adapter():
            assert (encoder(batch) - before).abs().max() > 0.05


def test_training_follows_an_evaluation_in_inference_mode(toy_model_dir, toy_config):
    from sentence_transformers import SentenceTransformer

    model = setup_lora_model(SentenceTransformer(str(toy_model_dir), device="cpu"), toy_config())
    encoder, batch = PackedEncoder(model), pack(*flat_tokens(model, TEXTS), CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.inference_mode():
            encoder(batch)
        embeddings = encoder(batch)
    embeddings.sum().backward()
    assert trainable_gradients(model)


@pytest.mark.parametrize("different", [{"rank_pattern": {"query": 2}}, {"alpha_pattern": {"query": 64}}, {"use_dora": True}])
def test_adapters_of_another_kind_are_not_left_out(toy_model, different):
    """Of unequal ranks or strengths in one block, or no plain LoRA: as PEFT itself computes them."""
    toy_model[0].model = get_peft_model(toy_model[0].model, LoraConfig(target_modules=QKV, lora_dropout=0, **different))
    for name, parameter in toy_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    toy_model.eval()
    found = PackedEncoder(toy_model)(pack(*flat_tokens(toy_model, TEXTS), CPU)).detach()
    np.testing.assert_allclose(found, toy_model.encode(TEXTS), atol=1e-5)
    with toy_model[0].model.disable_adapter():
        assert np.abs(toy_model.encode(TEXTS) - found.numpy()).max() > 1e-2


def test_models_of_another_build_are_not_packed(toy_model):
    assert can_pack(toy_model)
    toy_model[1].include_prompt = False  # pooling that leaves tokens out
    assert not can_pack(toy_model)
    with pytest.raises(ValueError, match="packing needs"):
        PackedEncoder(toy_model)
