"""A layer that is computed again: the same gradients and random numbers, and nothing kept but its inputs."""

import pytest
import torch

from trainer.recompute import recomputed

KEPT = 0.5


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Dropout(KEPT), torch.nn.Linear(8, 6)
    ).double()


def gradients(layer, inputs, again, draws=True):
    """The loss, and the gradients of the layer's parameters and of the inputs, which are the layer's input and a factor."""
    torch.manual_seed(1)
    inputs = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]

    def run(hidden, factor):
        return layer(hidden) * factor

    output = recomputed(run, draws, *inputs) if again else run(*inputs)
    loss = output.square().sum()
    layer.zero_grad()
    loss.backward()
    return loss.detach(), [tensor.grad for tensor in (*layer.parameters(), *inputs)], torch.get_rng_state()


@pytest.mark.parametrize("learns", [(True, True), (True, False), (False, True), (False, False)])
def test_gradients_and_random_numbers_are_those_of_a_layer_that_is_kept(layer, learns):
    hidden, factor = torch.randn(3, 6).double(), torch.randn(6).double()
    inputs = [tensor.requires_grad_(wanted) for tensor, wanted in zip((hidden, factor), learns, strict=True)]
    (loss, expected, state), (again_loss, found, again_state) = (gradients(layer, inputs, again) for again in (False, True))
    torch.testing.assert_close(again_loss, loss, rtol=0, atol=0)
    torch.testing.assert_close(again_state, state, rtol=0, atol=0)  # what is drawn after the step is the same, too
    assert [gradient is None for gradient in found] == [gradient is None for gradient in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    assert max(gradient.abs().max() for gradient in expected if gradient is not None) > 0.1


def test_without_a_word_that_it_draws_the_masks_would_be_others(layer):
    hidden, factor = torch.randn(3, 6).double().requires_grad_(), torch.ones(6).double()
    _, expected, _ = gradients(layer, [hidden, factor], again=False)
    _, found, _ = gradients(layer, [hidden, factor], again=True, draws=False)
    assert (found[-2] - expected[-2]).abs().max() > 1e-3


def test_only_the_inputs_are_kept(layer):
    hidden, kept = torch.randn(3, 6).double().requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.data_ptr()) or tensor, lambda tensor: tensor
    ):
        recomputed(layer, True, hidden)
    assert kept == [hidden.data_ptr()]


def test_the_random_numbers_go_on_where_they_were_when_computing_again_fails(layer):
    fails = []

    def run(hidden):
        if fails:
            torch.rand(5)
            raise torch.OutOfMemoryError("no room")
        return layer(hidden)

    output = recomputed(run, True, torch.randn(3, 6).double())
    fails.append(True)
    state = torch.get_rng_state()
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        output.sum().backward()
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)


def test_a_backward_pass_under_autocast_computes_what_the_forward_pass_did(layer):
    hidden = torch.randn(3, 6)
    layer = layer.float()
    kinds = []

    def run(hidden):
        output = layer(hidden)
        kinds.append(output.dtype)
        return output

    output = recomputed(run, True, hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output.sum().backward()
    assert kinds == [torch.float32, torch.float32]
