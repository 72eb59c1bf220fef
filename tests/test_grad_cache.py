"""GradCache: the gradients of a batch in one piece, from micro-batches, dropout on."""

import numpy as np
import pytest
import torch
from sentence_transformers import InputExample

from trainer import EmbeddingTrainer
from trainer.grad_cache import cached_backward, cut_micro_batches, deal_micro_batches
from trainer.lora import adapter_matrices
from trainer.packing import RowForm, pack, row_length
from trainer.trainer import TrainingError

SYLLABLES = "가나다라마바사아자차카타파하거너더러머버서어저처커터퍼허"


def pairs(count: int, seed: int = 0) -> list[InputExample]:
    random = np.random.default_rng(seed)
    texts = ["".join(random.choice(list(SYLLABLES), size)) for size in random.integers(1, 40, 2 * count)]
    return [InputExample(texts=["query: " + q, "passage: " + p]) for q, p in zip(texts[::2], texts[1::2], strict=True)]


@pytest.fixture
def make_trainer(trainer_with_adapters, toy_config):
    def make(**changes) -> EmbeddingTrainer:
        settings = {"log_dir": "", "max_seq_length": 48, "lora_dropout": 0.3, "encoder_dropout": 0.2}
        return trainer_with_adapters(toy_config(**settings | changes))

    return make


def gradients(trainer) -> dict[str, torch.Tensor]:
    return {name: matrix.grad.clone() for name, matrix in adapter_matrices(trainer.model)}


def one_graph_and_micro_batches(trainer, examples: list[InputExample]):
    """Loss and gradients of the examples in float64, twice: of one graph over all pieces, and as the trainer has them."""
    trainer.model.double()
    batch = trainer._tokenised(examples)
    pieces = trainer._micro_batches(batch["lengths"])
    assert len(pieces) > 1
    in_order = torch.from_numpy(np.argsort(np.concatenate(pieces))).to(trainer.device)

    # One graph over all: each piece draws its dropout masks in turn, as the cached way does.
    torch.manual_seed(5)
    whole = torch.cat([trainer._embed(batch["tokens"], batch["lengths"], piece) for piece in pieces])[in_order]
    expected_loss = trainer._loss(None, *whole.split(len(examples)), batch["mask"])
    expected_loss.backward()
    expected = gradients(trainer)
    trainer.model.zero_grad()

    torch.manual_seed(5)
    loss = trainer._backward_in_pieces(batch, None, torch.amp.GradScaler(trainer.device.type, init_scale=1.0))
    return (expected_loss.detach(), expected), (loss, gradients(trainer))


@pytest.mark.parametrize("micro_batch_size", [16, 7, 1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_one_piece_batch_with_dropout(make_trainer, micro_batch_size, checkpointing):
    trainer = make_trainer(micro_batch_size=micro_batch_size, gradient_checkpointing=checkpointing)
    (expected_loss, expected), (loss, found) = one_graph_and_micro_batches(trainer, pairs(64))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12)


def test_without_dropout_micro_batches_change_nothing(make_trainer):
    found = []
    for micro_batch_size in (64, 4):
        trainer = make_trainer(micro_batch_size=micro_batch_size, lora_dropout=0, encoder_dropout=0)
        trainer.model.double()
        trainer._backward_in_pieces(trainer._tokenised(pairs(32)), None, torch.amp.GradScaler("cpu", init_scale=1.0))
        found.append(gradients(trainer))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-8, atol=1e-12)


def test_fp16_with_a_scaler_gives_scaled_gradients_of_the_fp32_size(make_trainer):
    found = []
    for precision, scale in (("fp32", 1.0), ("fp16", 1024.0)):
        trainer = make_trainer(micro_batch_size=2, precision=precision, lora_dropout=0, encoder_dropout=0)
        trainer._backward_in_pieces(trainer._tokenised(pairs(16)), None, torch.amp.GradScaler("cpu", init_scale=scale))
        found.append(torch.cat([g.flatten() / scale for g in gradients(trainer).values()]))
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.999
    assert found[1].norm() / found[0].norm() == pytest.approx(1, abs=0.02)


def test_masks_are_drawn_anew_for_the_next_batch(make_trainer):
    trainer = make_trainer(micro_batch_size=2)
    batch, scaler = trainer._tokenised(pairs(16)), torch.amp.GradScaler("cpu", init_scale=1.0)
    losses = [trainer._backward_in_pieces(batch, None, scaler).item() for _ in range(2)]
    assert losses[0] != losses[1]


def test_micro_batches_by_hand():
    # Padded to the longest: 2, 3, 3 are 9 tokens and a fourth, 7, would make 28 of 10.
    pieces = cut_micro_batches(torch.tensor([7, 3, 2, 3, 30]), 10)
    assert [sorted(piece.tolist()) for piece in pieces] == [[1, 2, 3], [0], [4]]
    assert [piece.tolist() for piece in cut_micro_batches(torch.tensor([4]), 1)] == [[0]]


def test_dealt_micro_batches_by_hand():
    # Tiles of 9: 2, 3, 8 take two of them (2 and 3 share one), 3, 7, 9 three.
    sizes = torch.tensor([7, 3, 9, 2, 3, 8])
    assert [piece.tolist() for piece in deal(sizes, 64)] == [[3, 1, 4, 0, 5, 2]]
    assert [sorted(sizes[piece].tolist()) for piece in deal(sizes, 27)] == [[2, 3, 8], [3, 7, 9]]
    assert [sorted(sizes[piece].tolist()) for piece in deal(sizes, 18)] == [[2, 7], [3, 8], [3, 9]]
    assert [piece.tolist() for piece in deal(sizes, 1)] == [[3], [1], [4], [0], [5], [2]]
    assert [piece.tolist() for piece in deal(torch.tensor([4]), 1)] == [[0]]


def deal(sizes: torch.Tensor, max_tokens: int) -> list[np.ndarray]:
    return deal_micro_batches(sizes, max_tokens, lambda lengths: row_length(lengths, RowForm((9,))))


@pytest.mark.parametrize("form", [RowForm(), RowForm((64,)), RowForm((64, 80, 96))], ids=["32 bits", "GPU", "16 bits"])
def test_a_dealt_micro_batch_holds_what_it_may_and_little_padding(form):
    # As questions and answers are: many just over half a tile, which sorted slices would give a tile each.
    sizes = torch.from_numpy(np.random.default_rng(0).integers(4, 70, 4000))
    for max_tokens in (200, 4096, 30_000):
        pieces = deal_micro_batches(sizes, max_tokens, lambda lengths: row_length(lengths, form))
        assert sorted(np.concatenate(pieces)) == list(range(4000))
        offsets = [sizes[piece] for piece in pieces]
        rows = [pack(torch.zeros(int(s.sum()), dtype=torch.int32), s, torch.device("cpu"), form=form) for s in offsets]
        assert max(row.input_ids.shape[1] for row in rows) <= max_tokens
        if max_tokens > 1000:
            assert sum(row.input_ids.shape[1] for row in rows) < 1.1 * sizes.sum()


def test_the_caller_scales_the_loss_once():
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    calls = []

    def backward(loss):
        calls.append(loss)
        (10 * loss).backward()

    pieces = [torch.tensor([[1.0]]), torch.tensor([[3.0]])]
    loss = cached_backward(lambda x: x * weight, pieces, lambda e: e.pow(2).sum(), backward, torch.device("cpu"))
    # (2·1)² + (2·3)² = 40; d/dw of w²·(1 + 9) = 20·w = 40, ten times.
    assert loss.item() == 40 and len(calls) == 1
    assert weight.grad.item() == 400


def test_out_of_memory_halves_the_micro_batch_and_loses_nothing(make_trainer, caplog):
    data = pairs(16)
    plain = make_trainer(micro_batch_size=64, lora_dropout=0, encoder_dropout=0, learning_rate=1e-2)
    tight = make_trainer(micro_batch_size=64, lora_dropout=0, encoder_dropout=0, learning_rate=1e-2)
    embed, refused = tight._packed_encoder, []

    def embed_what_fits(batch):
        if batch.input_ids.shape[1] > 300:
            refused.append(batch.input_ids.shape[1])
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return embed(batch)

    tight._packed_encoder = embed_what_fits
    for trainer in (plain, tight):
        trainer.model.double()  # AdamW's first steps follow the sign of a gradient, however small
        optimizer, _, scaler = trainer._setup_optimizer_and_scheduler(10)
        for step in range(2):
            trainer._training_step(data[8 * step : 8 * step + 8], None, optimizer, scaler)
    assert refused and "Out of memory: from here on at most" in caplog.text
    assert "the batch stays" in caplog.text
    for (_, expected), (_, found) in zip(adapter_matrices(plain.model), adapter_matrices(tight.model), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * 1e-2)  # a step moves 1e-2


def test_after_out_of_memory_the_same_masks_are_drawn_as_without_it(make_trainer):
    interrupted, plain = (make_trainer(micro_batch_size=64) for _ in range(2))
    embed, calls = interrupted._packed_encoder, []

    def embed_but_at_first(batch):
        embedded = embed(batch)  # it has drawn its masks
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return embedded

    interrupted._packed_encoder = embed_but_at_first
    for trainer in (interrupted, plain):
        plain._max_tokens = interrupted._max_tokens  # halved by now
        optimizer, _, scaler = trainer._setup_optimizer_and_scheduler(10)
        torch.manual_seed(5)
        trainer._backward(trainer._tokenised(pairs(8)), None, optimizer, scaler)
    assert len(calls) > 2
    expected = gradients(plain)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(interrupted).items())


def test_out_of_memory_with_a_single_text_ends_in_a_message(make_trainer):
    trainer = make_trainer()

    def never(batch):
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    trainer._packed_encoder = never
    optimizer, _, scaler = trainer._setup_optimizer_and_scheduler(10)
    with pytest.raises(TrainingError, match=r"out of memory with a single text of .*lower --max_seq_length"):
        trainer._training_step(pairs(8), None, optimizer, scaler)
