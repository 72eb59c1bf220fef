"""Attention of a packed row: as torch's own of each sequence, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from trainer import attention as attention_module
from trainer import dropout as dropout_module
from trainer.attention import attention, attention_by_kernel
from trainer.dropout import MaskRow
from trainer.packing import RowForm, pack

HEADS, WIDTH = 3, 4
SCALING = WIDTH**-0.5


def packed(lengths, row_multiple=1, tile=0):
    tokens = torch.arange(sum(lengths))
    form = RowForm((tile,), row_multiple, group_cost=4)
    return pack(tokens, torch.tensor(lengths), torch.device("cpu"), form=form)


def random_qkv(batch, kind=torch.float64):
    torch.manual_seed(3)
    return torch.randn(batch.input_ids.shape[1], 3 * HEADS * WIDTH, dtype=torch.float64).to(kind).requires_grad_()


def by_torch(qkv, batch):
    """Each sequence by itself, without padding; zero where there is none."""
    output = torch.zeros(len(qkv), HEADS * WIDTH, dtype=qkv.dtype)
    for sequence in batch.sequence.unique():
        rows = ((batch.sequence == sequence) & batch.real).nonzero()[:, 0]
        query, key, value = qkv[rows].view(1, len(rows), 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=SCALING)
        output = output.index_put((rows,), mixed.transpose(1, 2).reshape(len(rows), -1))
    return output


@pytest.mark.parametrize("at_once", [1, 10**6], ids=["a sequence at a time", "a group at once"])
@pytest.mark.parametrize("row_multiple", [1, 32])
@pytest.mark.parametrize("tile", [0, 8, 16, 64])
@pytest.mark.parametrize("compute", [attention, attention_by_kernel], ids=["CPU", "GPU"])
def test_output_and_gradient_are_those_of_each_sequence_alone(monkeypatch, compute, at_once, row_multiple, tile):
    monkeypatch.setattr(attention_module, "_SCORES_AT_ONCE", at_once)
    batch = packed([5, 9, 2, 8, 5, 9, 1], row_multiple, tile)
    qkv = random_qkv(batch)
    real = batch.real[:, None].double()
    direction = torch.randn(len(qkv), HEADS * WIDTH, dtype=torch.float64) * real  # nothing reads what padding gives
    found, expected = compute(qkv, batch.groups, HEADS, SCALING, 0.0), by_torch(qkv, batch)
    torch.testing.assert_close(found * real, expected, rtol=0, atol=1e-14)
    (of_found,) = torch.autograd.grad(found, qkv, direction)
    (of_expected,) = torch.autograd.grad(expected, qkv, direction)
    torch.testing.assert_close(of_found, of_expected, rtol=0, atol=1e-14)


def test_padding_behind_the_groups_gives_and_gets_zero():
    batch = packed([3, 4], row_multiple=16)
    qkv = random_qkv(batch)
    output = attention(qkv, batch.groups, HEADS, SCALING)
    output.sum().backward()
    assert batch.input_ids.shape[1] == 16
    assert not output[8:].any() and not qkv.grad[8:].any()
    assert output[:8].all()


@pytest.mark.parametrize("tile", [0, 8])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_is_the_slope_of_the_output_with_its_dropout_masks(dropout, tile):
    batch = packed([3, 5, 4], tile=tile)

    def with_fixed_masks(qkv):
        torch.manual_seed(7)
        return attention(qkv, batch.groups, HEADS, SCALING, dropout) * batch.real[:, None]

    assert torch.autograd.gradcheck(with_fixed_masks, random_qkv(batch))
    torch.manual_seed(8)
    other = attention(random_qkv(batch), batch.groups, HEADS, SCALING, dropout) * batch.real[:, None]
    assert torch.equal(with_fixed_masks(random_qkv(batch)), other) == (dropout == 0)


def test_masks_come_from_the_row_and_the_gradient_knows_them(monkeypatch):
    batch = packed([5] * 4)
    scores = HEADS * 5**2  # of one sequence: the row has masks for two at once, and a third of one more
    row = MaskRow(4 * scores + 50)
    monkeypatch.setattr(dropout_module, "_random_bytes", lambda count: pytest.fail("drawn beside the row"))

    def with_fixed_masks(qkv):
        torch.manual_seed(7)
        return attention(qkv, batch.groups, HEADS, SCALING, 0.3, row)

    assert torch.autograd.gradcheck(with_fixed_masks, random_qkv(batch))
    whole = attention(random_qkv(batch), batch.groups, HEADS, SCALING)
    assert (with_fixed_masks(random_qkv(batch)) - whole).abs().max() > 0.01


def test_dropout_keeps_the_mean():
    batch = packed([20] * 4)
    qkv = random_qkv(batch).detach()
    torch.manual_seed(0)
    mean = torch.stack([attention(qkv, batch.groups, HEADS, SCALING, 0.2) for _ in range(2000)]).mean(dim=0)
    torch.testing.assert_close(mean, attention(qkv, batch.groups, HEADS, SCALING), rtol=0, atol=0.1)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_short_sequences_of_16_bits_are_computed_in_float32(kind):
    batch = packed([6, 7, 7])
    qkv = random_qkv(batch, kind)
    exact = attention(qkv.float(), batch.groups, HEADS, SCALING)
    found = attention(qkv, batch.groups, HEADS, SCALING)
    assert found.dtype == kind
    torch.testing.assert_close(found, exact.to(kind), rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [[70, 80], [5, 30, 20, 40, 9]], ids=["long", "in tiles"])
def test_long_rows_of_bf16_are_near_float32(lengths):
    batch = packed(lengths, tile=64)
    found, gradients = [], []
    for kind in (torch.bfloat16, torch.float32):
        qkv = random_qkv(batch, torch.bfloat16).detach().to(kind).requires_grad_()
        output = attention(qkv, batch.groups, HEADS, SCALING) * batch.real[:, None]
        output.float().square().sum().backward()
        found.append(output.detach().float().flatten())
        gradients.append(qkv.grad.float().flatten())
    for approximate, exact in (found, gradients):
        assert not torch.equal(approximate, exact)
        assert F.cosine_similarity(approximate, exact, dim=0) > 0.9999
