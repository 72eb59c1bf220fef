"""The cheap dropout drops the right share, keeps the mean, and its gradient has the same mask."""

import pytest
import torch

from trainer.dropout import FastDropout, MaskRow, dropout_and_add, dropped, fast_dropout, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_mean(p):
    torch.manual_seed(0)
    out = fast_dropout(torch.ones(1000, 333), p)
    dropped = (out == 0).double().mean().item()
    assert dropped == pytest.approx(p, abs=1 / 256)  # p is rounded to a multiple of 1/256
    assert out.double().mean().item() == pytest.approx(1, abs=0.01)
    assert len(out.unique()) == 2


def test_nearly_all_dropped_is_not_all():
    torch.manual_seed(0)
    out = fast_dropout(torch.ones(100_000), 0.9999)
    assert 0 < (out != 0).double().mean().item() < 2 / 256 and out.double().mean().item() == pytest.approx(1, abs=0.2)


def test_every_byte_of_a_draw_has_the_same_chance():
    torch.manual_seed(0)
    columns = (fast_dropout(torch.ones(200_000, 8), 0.25) == 0).double().mean(dim=0)
    assert columns.tolist() == pytest.approx([0.25] * 8, abs=0.006)  # six standard deviations of 200,000 draws


def test_gradient_has_the_mask_of_the_output():
    x = torch.ones(64, 9, requires_grad=True)  # not a multiple of eight values
    out = fast_dropout(x, 0.5)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())


def test_the_generator_decides_the_mask():
    x = torch.ones(100)
    torch.manual_seed(1)
    first, second = fast_dropout(x, 0.5), fast_dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(fast_dropout(x, 0.5), first) and not torch.equal(first, second)


def test_the_module_is_silent_in_evaluation_and_at_zero():
    x = torch.ones(100)
    assert FastDropout(0.5).eval()(x) is x
    assert FastDropout(0.0)(x) is x
    assert (FastDropout(0.5)(x) == 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_number_formats_stay(dtype):
    assert fast_dropout(torch.ones(10, dtype=dtype), 0.1).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_dropped_by_hand(dtype):
    kept = torch.tensor([[0, 0, 1], [1, 0, 1]], dtype=torch.uint8)
    source = torch.tensor([[1.5, -2.0, -3.0], [4.0, 7.0, -0.25]], dtype=dtype)
    expected = torch.tensor([[0.0, 0.0, -3.0], [4.0, 0.0, -0.25]], dtype=dtype)
    assert torch.equal(dropped(source, kept), expected)
    assert torch.equal(dropped(source.T, kept.T), expected.T)  # of any layout


@pytest.mark.parametrize("threshold", [1, 26, 255])
def test_bytes_below_the_threshold_drop(monkeypatch, threshold):
    words = torch.arange(256, dtype=torch.uint8).view(torch.int64)  # every byte once
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, *_: self.copy_(words[: len(self)]))
    kept = keep_mask((2, 5, 25), threshold).flatten()  # 250 values, no multiple of eight
    assert kept.tolist() == [0] * min(threshold, 250) + [1] * (250 - threshold if threshold < 250 else 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropout_and_sum_at_once(dtype):
    torch.manual_seed(0)
    source = torch.randn(40, 7, dtype=dtype, requires_grad=True)
    residual = torch.randn(40, 7, dtype=torch.float64 if dtype == torch.float64 else torch.float32, requires_grad=True)
    direction = torch.randn_like(residual)
    results = []
    for compute in (
        lambda: fast_dropout(source, 0.3).to(residual.dtype) + residual,
        lambda: dropout_and_add(source, residual, 0.3),
    ):
        torch.manual_seed(1)
        found = compute()
        results.append((found, *torch.autograd.grad(found, (source, residual), direction)))
    close = {"rtol": 0.01, "atol": 0.01} if dtype == torch.bfloat16 else {}
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, **close)
    assert torch.equal(dropout_and_add(source, residual, 0.0), source.to(residual.dtype) + residual)


def test_masks_of_a_row_are_its_stretches():
    torch.manual_seed(0)
    row = MaskRow(100_000)
    masks = [keep_mask((50, 100), 64, row) for _ in range(200)]
    bytes_ = row._bytes.tolist()
    whole = bytes(int(value >= 64) for value in bytes_)
    places = [whole.find(bytes(mask.flatten().tolist())) for mask in masks]
    assert min(places) >= 0 and len(set(places)) > 190 and min(places) < 2_000 and max(places) > 93_000
    assert torch.stack(masks).double().mean().item() == pytest.approx(0.75, abs=0.01)
    # Another share, from the same bytes, which stay.
    assert keep_mask((50_000,), 200, row).double().mean().item() == pytest.approx(56 / 256, abs=0.01)
    assert row._bytes.tolist() == bytes_


def test_a_mask_that_a_row_is_too_short_for_is_drawn():
    row = MaskRow(999)
    kept = keep_mask((5, 100), 128, row)
    assert kept.shape == (5, 100) and not row._masks and 150 < kept.sum().item() < 350


def test_the_generator_decides_a_row_and_its_places():
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        row = MaskRow(1000)
        found.append(torch.stack([keep_mask((100,), 128, row) for _ in range(3)]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert not torch.equal(found[0][0], found[0][1])
