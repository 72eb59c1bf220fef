"""Adapters: what is trained and reported, that they really train, and that merging changes nothing."""

import json

import pytest
import torch
from sentence_transformers import SentenceTransformer

from config import ConfigError
from trainer import print_lora_info, setup_lora_model
from trainer.dropout import SharedDropout
from trainer.lora import adapter_matrices, adapters_off, merged_copy
from trainer.loss import contrastive_loss

QUERIES = ["query: 대한민국의 수도는?", "query: 물의 화학식은?", "query: 한글을 만든 사람은?", "query: 가장 높은 산은?"]
PASSAGES = ["passage: 서울특별시", "passage: 산소와 수소, H2O", "passage: 세종대왕", "passage: 에베레스트 8848 m"]
ALL_LINEAR = ["query", "key", "value", "dense"]


def embed(model: SentenceTransformer, texts: list[str]) -> torch.Tensor:
    return model(model.preprocess(texts))["sentence_embedding"]


def batch_loss(model: SentenceTransformer) -> torch.Tensor:
    return contrastive_loss(embed(model, QUERIES), embed(model, PASSAGES))


def train_steps(model: SentenceTransformer, steps: int) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        batch_loss(model).backward()
        optimizer.step()


@pytest.fixture
def adapted(toy_model, toy_config):
    """The toy model with adapters on every linear layer, after a few real steps."""
    torch.manual_seed(0)
    model = setup_lora_model(toy_model, toy_config(lora_target_modules=ALL_LINEAR, gradient_checkpointing=False))
    model.train()
    train_steps(model, 3)
    return model


# ------------------------------------------------------------------------------------------------------------
# What is trained


def test_only_the_adapters_are_trainable_one_pair_for_each_layer_and_target(toy_model, toy_config):
    base = {name: parameter.clone() for name, parameter in toy_model.named_parameters()}
    model = setup_lora_model(toy_model, toy_config())
    assert model is toy_model
    names = [
        f"encoder.layer.{layer}.attention.self.{target}.lora_{matrix}"
        for layer in (0, 1)
        for target in ("query", "key", "value")
        for matrix in "AB"
    ]
    assert [name for name, _ in adapter_matrices(model)] == names
    assert {p for _, p in adapter_matrices(model)} == {p for p in model.parameters() if p.requires_grad}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) == len(base)


def test_dense_layers_get_adapters_where_they_are_named(adapted):
    names = {name for name, _ in adapter_matrices(adapted)}
    # layers × matrices × (query, key, value and three dense); the pooler, which mean pooling does not read, has none
    assert len(names) == 2 * 2 * (3 + 3)
    assert all(parameter.grad is not None for _, parameter in adapter_matrices(adapted))
    assert "encoder.layer.1.attention.output.dense.lora_B" in names
    assert "encoder.layer.0.intermediate.dense.lora_A" in names


def test_the_trainable_share_is_printed(toy_model, toy_config, capsys):
    base = sum(p.numel() for p in toy_model.parameters())
    model = setup_lora_model(toy_model, toy_config(lora_r=4, lora_alpha=32))
    print_lora_info(model)
    trained = 2 * 3 * 2 * 4 * 32  # layers × targets × matrices × rank × width
    share = f"{100 * trained / (base + trained):.2f}%"
    assert capsys.readouterr().out == (
        f"LoRA: rank 4, alpha 32, dropout 0.1, targets key, query, value; "
        f"trains {trained:,} of {base + trained:,} parameters ({share})\n"
    )


def test_the_share_of_e5_small_is_19_hundredths_of_a_percent(toy_config):
    # The real shapes, without the memory: 12 layers of width 384, rank 8 on query, key and value.
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        encoder = BertModel(
            BertConfig(
                vocab_size=250_037,
                hidden_size=384,
                num_hidden_layers=12,
                num_attention_heads=12,
                intermediate_size=1536,
                max_position_embeddings=512,
            )
        )
        base = sum(p.numel() for p in encoder.parameters())
        model = setup_lora_model(_Shell(encoder), toy_config())
    trained = sum(p.numel() for _, p in adapter_matrices(model))
    assert trained == 221_184
    assert f"{trained / (base + trained):.2%}" == "0.19%"


class _Shell(torch.nn.Module):
    """The one place of a SentenceTransformer that setup_lora_model touches: `model[0].model`."""

    def __init__(self, encoder: torch.nn.Module):
        super().__init__()
        self.model = encoder

    def __getitem__(self, index: int) -> "_Shell":
        return self


def test_a_fresh_adapter_changes_no_embedding(toy_model, toy_config):
    before = toy_model.encode(PASSAGES)
    after = setup_lora_model(toy_model, toy_config()).encode(PASSAGES)
    assert (before == after).all()


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_encoder_s_own_dropout_is_that_of_the_settings(toy_model, toy_config, rate):
    model = setup_lora_model(toy_model, toy_config(encoder_dropout=rate, lora_dropout=0.25))
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    assert set(rates.values()) == {rate}
    shared = {module for module in model.modules() if isinstance(module, SharedDropout)}
    assert [module.p for module in shared] == [0.25, 0.25]  # one a layer, for its query, key and value
    model.train()
    first, second = (embed(model, QUERIES) for _ in range(2))  # fresh adapters add nothing
    assert torch.equal(first, second) == (rate == 0)


def test_shared_dropout_gives_one_mask_to_all_sharers_of_an_input_and_lets_go_of_it():
    dropout, x = SharedDropout(0.5, sharers=3), torch.ones(64, 8)
    first, second, third = (dropout(x) for _ in range(3))
    assert first is second is third
    assert set(first.unique().tolist()) == {0.0, 2.0}  # inverted dropout: what is kept is divided by 1 - p
    assert 0.3 < (first == 0).float().mean() < 0.7
    assert dropout._source is None and dropout._dropped is None
    assert not torch.equal(dropout(x), first)  # the next block of calls draws anew
    assert not torch.equal(dropout(x.clone()), dropout(x))
    assert dropout.eval()(x) is x


def test_query_key_and_value_of_a_layer_share_their_dropout(toy_model, toy_config):
    model = setup_lora_model(toy_model, toy_config(lora_dropout=0.25))
    for layer in model[0].model.get_base_model().encoder.layer:
        attention = layer.attention.self
        assert attention.query.lora_dropout["default"] is attention.value.lora_dropout["default"]
        assert attention.key.lora_dropout["default"] is attention.value.lora_dropout["default"]


def test_print_lora_info_without_adapters_says_what_to_call(toy_model):
    with pytest.raises(ValueError, match=r"call setup_lora_model\(model, config\) first"):
        print_lora_info(toy_model)


def test_unknown_targets_are_all_named_beside_those_that_exist(toy_model, toy_config):
    with pytest.raises(ConfigError) as caught:
        setup_lora_model(toy_model, toy_config(lora_target_modules=["query", "q_proj", "ery", "LayerNorm"]))
    assert caught.value.problems == [
        f"--lora_target_modules: the model has no linear layer '{name}'; it has dense, key, query, value"
        for name in ("q_proj", "ery", "LayerNorm")
    ]
    assert all(p.requires_grad for p in toy_model.parameters())  # the model is as it was


def test_the_pooler_takes_no_adapter(toy_model, toy_config):
    with pytest.raises(ConfigError, match=r"no linear layer 'pooler.dense'"):
        setup_lora_model(toy_model, toy_config(lora_target_modules=["pooler.dense"]))


def test_adapters_are_attached_once_only(toy_model, toy_config):
    model = setup_lora_model(toy_model, toy_config())
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        setup_lora_model(model, toy_config())


# ------------------------------------------------------------------------------------------------------------
# They train, with gradient checkpointing on and off


@pytest.mark.parametrize("checkpointing", [True, False])
def test_adapters_and_loss_move(toy_model, toy_config, checkpointing):
    torch.manual_seed(0)
    model = setup_lora_model(toy_model, toy_config(gradient_checkpointing=checkpointing))
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = {name: p.detach().clone() for name, p in adapter_matrices(model)}
    model.eval()
    before = batch_loss(model).item()
    model.train()
    train_steps(model, 30)
    model.eval()
    after = batch_loss(model).item()
    assert after < 0.8 * before
    for name, parameter in adapter_matrices(model):
        assert (parameter - start[name]).abs().max() > 1e-4, name
    for name, parameter in model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]), name


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(toy_model_dir, toy_config):
    gradients, calls = {}, {}
    for checkpointing in (True, False):
        toy = SentenceTransformer(str(toy_model_dir), device="cpu", config_kwargs=_NO_DROPOUT)
        torch.manual_seed(0)
        model = setup_lora_model(toy, toy_config(gradient_checkpointing=checkpointing, lora_dropout=0))
        for _, parameter in adapter_matrices(model):
            torch.nn.init.normal_(parameter, std=0.1)  # B starts at zero, and A would have no gradient
        counter = _count_calls(model)
        model.train()
        batch_loss(model).backward()
        gradients[checkpointing] = {name: p.grad for name, p in adapter_matrices(model)}
        calls[checkpointing] = counter[0]
    assert calls == {True: 4, False: 2}  # query and passage, each once more in the backward pass
    for name, gradient in gradients[False].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[True][name], gradient, rtol=1e-5, atol=1e-8)


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _count_calls(model: SentenceTransformer) -> list[int]:
    counter = [0]

    def count(*_):
        counter[0] += 1

    (last_value,) = (m for name, m in model.named_modules() if name.endswith("layer.1.attention.self.value"))
    last_value.register_forward_pre_hook(count)
    return counter


# ------------------------------------------------------------------------------------------------------------
# Merging


def test_the_merged_copy_gives_the_same_embeddings_and_has_no_adapter(adapted):
    adapted.eval()
    merged = merged_copy(adapted)
    wanted, found = adapted.encode(PASSAGES), merged.encode(PASSAGES)
    assert abs(wanted - found).max() < 1e-5
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert type(merged[0].model).__name__ == "BertModel"


def test_merging_leaves_the_original_as_it_was_and_trainable(adapted):
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in adapted.named_parameters()}
    merged = merged_copy(adapted)
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1], name
    adapted.train()
    train_steps(adapted, 1)
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, before[name][0]) != parameter.requires_grad, name


def test_merging_without_adapters_is_an_error(toy_model):
    with pytest.raises(ValueError, match="has no LoRA adapters"):
        merged_copy(toy_model)


def test_the_saved_adapter_names_the_published_model_and_not_a_folder(toy_model, toy_config, tmp_path):
    model = setup_lora_model(toy_model, toy_config(lora_r=2, lora_alpha=6))
    model[0].model.save_pretrained(str(tmp_path), save_embedding_layers=False)
    text = (tmp_path / "adapter_config.json").read_text()
    saved = json.loads(text)
    assert saved["base_model_name_or_path"] == "intfloat/multilingual-e5-small"
    assert (saved["r"], saved["lora_alpha"], saved["lora_dropout"], saved["bias"]) == (2, 6, 0.1, "none")
    assert sorted(saved["target_modules"]) == ["key", "query", "value"]
    assert "/tmp" not in text


# ------------------------------------------------------------------------------------------------------------
# Switching off


def test_with_the_adapters_off_embeddings_are_the_base_models_bit_for_bit(toy_model_dir, toy_config):
    base = SentenceTransformer(str(toy_model_dir), device="cpu")
    untouched = base.encode(PASSAGES)
    model = setup_lora_model(base, toy_config(lora_target_modules=ALL_LINEAR, gradient_checkpointing=True))
    model.train()
    train_steps(model, 3)
    model.eval()
    tuned = model.encode(PASSAGES)
    with adapters_off(model):
        assert (model.encode(PASSAGES) == untouched).all()
    assert (model.encode(PASSAGES) == tuned).all()
    assert abs(tuned - untouched).max() > 1e-3
