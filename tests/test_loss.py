"""The contrastive loss: worked by hand, and equal to sentence-transformers' MultipleNegativesRankingLoss."""

import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from trainer.loss import contrastive_loss

# Two pairs in the plane whose cosines are exact: rows queries, columns passages.
#   [[1.0, 0.6],
#    [0.0, 0.8]]
QUERIES = [[3.0, 0.0], [0.0, 2.0]]  # lengths 3 and 2: the loss normalises
PASSAGES = [[5.0, 0.0], [0.6, 0.8]]


def pairs(dtype=torch.float64, count=6, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries, passages = torch.randn(2, count, width, generator=generator, dtype=torch.float64).to(dtype)
    return queries.requires_grad_(), passages.requires_grad_()


def test_two_pairs_by_hand():
    loss = contrastive_loss(torch.tensor(QUERIES), torch.tensor(PASSAGES), scale=2.0)
    first = -2.0 + math.log(math.exp(2.0) + math.exp(1.2))
    second = -1.6 + math.log(math.exp(0.0) + math.exp(1.6))
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_the_scale_is_20_where_none_is_given():
    queries, passages = pairs()
    assert contrastive_loss(queries, passages) == contrastive_loss(queries, passages, scale=20.0)
    assert contrastive_loss(queries, passages) != contrastive_loss(queries, passages, scale=19.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("scale", [20.0, 100.0])
def test_value_and_gradient_equal_the_reference(toy_model, dtype, tolerance, scale):
    ours, theirs = pairs(dtype, count=16), pairs(dtype, count=16)
    reference = MultipleNegativesRankingLoss(toy_model, scale=scale)
    loss = contrastive_loss(*ours, scale=scale)
    expected = reference.compute_loss_from_embeddings(list(theirs), torch.arange(16))
    loss.backward()
    expected.backward()
    assert loss.dtype == dtype
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, other.grad, rtol=100 * tolerance, atol=tolerance)


def test_the_gradient_is_the_derivative():
    queries, passages = pairs(count=3, width=4)
    mask = torch.zeros(3, 3, dtype=torch.bool)
    mask[0, 2] = True
    assert torch.autograd.gradcheck(lambda q, p: contrastive_loss(q, p, 5.0, mask), (queries, passages))


# ------------------------------------------------------------------------------------------------------------
# The mask


def test_a_masked_passage_is_no_negative_by_hand():
    mask = torch.tensor([[False, True], [False, False]])
    loss = contrastive_loss(torch.tensor(QUERIES), torch.tensor(PASSAGES), 2.0, mask)
    second = -1.6 + math.log(math.exp(0.0) + math.exp(1.6))
    assert loss.item() == pytest.approx((0.0 + second) / 2, abs=1e-6)  # the first query has no negative left


def test_three_pairs_with_one_passage_twice_by_hand():
    # Queries 0 and 2 have the same answer: neither is the other's negative, and query 1 keeps both.
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    passages = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    mask = torch.tensor([[False, False, True], [False, False, False], [True, False, False]])
    by_hand = [
        -1.0 + math.log(math.exp(1.0) + math.exp(0.0)),
        -1.0 + math.log(math.exp(0.0) + math.exp(1.0) + math.exp(0.0)),
        -0.6 + math.log(math.exp(0.6) + math.exp(0.8)),
    ]
    loss = contrastive_loss(queries, passages, 1.0, mask)
    assert loss.item() == pytest.approx(sum(by_hand) / 3, abs=1e-6)


def test_the_diagonal_is_never_masked():
    queries, passages = pairs()
    everything = torch.ones(6, 6, dtype=torch.bool)
    loss = contrastive_loss(queries, passages, mask=everything)
    assert loss.item() == 0.0  # each query is left with its own passage alone
    diagonal = torch.eye(6, dtype=torch.bool)
    assert contrastive_loss(queries, passages, mask=diagonal) == contrastive_loss(queries, passages)


def test_an_empty_mask_changes_nothing_and_the_caller_s_mask_stays_as_it_is():
    queries, passages = pairs()
    mask = torch.ones(6, 6, dtype=torch.bool)
    contrastive_loss(queries, passages, mask=mask)
    assert mask.all()
    assert contrastive_loss(queries, passages, mask=~mask) == contrastive_loss(queries, passages)


def test_masked_passages_send_no_gradient():
    queries, passages = pairs(count=3)
    mask = ~torch.eye(3, dtype=torch.bool)
    mask[0, 1] = False
    contrastive_loss(queries, passages, mask=mask).backward()
    assert torch.isfinite(passages.grad).all()
    assert queries.grad[0].abs().max() > 0
    assert queries.grad[1:].abs().max() == 0 and passages.grad[2].abs().max() == 0


# ------------------------------------------------------------------------------------------------------------
# Number formats and limits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_at_scale_100_stay_finite_and_close_to_float64(dtype):
    queries, passages = pairs(dtype, count=32, width=64)
    exact = contrastive_loss(queries.detach().double(), passages.detach().double(), scale=100.0)
    with torch.autocast("cpu", dtype=dtype):
        loss = contrastive_loss(queries, passages, scale=100.0)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert torch.isfinite(queries.grad).all() and queries.grad.abs().max() > 0


def test_the_order_of_the_pairs_does_not_matter():
    queries, passages = pairs()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(contrastive_loss(queries[order], passages[order]), contrastive_loss(queries, passages))


def test_the_length_of_the_embeddings_does_not_matter():
    queries, passages = pairs()
    torch.testing.assert_close(contrastive_loss(queries * 1000, passages * 0.001), contrastive_loss(queries, passages))


def test_embeddings_of_length_zero_give_a_finite_loss():
    queries, passages = torch.zeros(2, 3, 4).requires_grad_()
    loss = contrastive_loss(queries, passages)
    assert loss.item() == pytest.approx(math.log(3))


@pytest.mark.parametrize(("first", "second"), [((4, 8), (4, 7)), ((4, 8), (3, 8)), ((8,), (8,)), ((1, 4, 8), (1, 4, 8))])
def test_shapes_that_do_not_fit_are_refused_with_both(first, second):
    with pytest.raises(ValueError) as caught:
        contrastive_loss(torch.zeros(first), torch.zeros(second))
    assert str(first) in str(caught.value) and str(second) in str(caught.value)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\), got \(2, 3\)"):
        contrastive_loss(torch.zeros(2, 4), torch.zeros(2, 4), mask=torch.zeros(2, 3, dtype=torch.bool))
