"""Low-rank adapters (LoRA, arXiv:2106.09685): attach to a model, report, merge into the weights."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from config import ConfigError, TrainingConfig
from trainer.dropout import FastDropout, SharedDropout

logger = logging.getLogger(__name__)


def setup_lora_model(model: SentenceTransformer, config: TrainingConfig) -> SentenceTransformer:
    """Freeze the model's weights and attach trainable adapters to `config.lora_target_modules`; returns the same model.

    With `config.gradient_checkpointing` the encoder recomputes its activations in the backward pass.

    Raises:
        ConfigError: a target that no linear layer of the model has; the names that exist are listed.
        ValueError: the model has adapters already.
    """
    encoder: Any = model[0].model
    if isinstance(encoder, PeftModel):
        raise ValueError("the model has LoRA adapters already: merge them, or load the base model anew")
    _check_targets(encoder, config.lora_target_modules)
    _set_dropout(encoder, config.encoder_dropout)
    if config.gradient_checkpointing:
        enable_checkpointing(encoder)
    adapter = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT divides it by r; a fraction is fine
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_target_modules),
        exclude_modules=[name for name, _ in encoder.named_modules() if _in_pooler(name)] or None,
        bias="none",
    )
    # `model[0].auto_model` is a read-only view: the encoder is replaced where the module keeps it.
    model[0].model = get_peft_model(encoder, adapter)
    _share_dropout(model[0].model)
    # What is saved names the published base model, not the folder of this machine that it came from.
    model[0].model.peft_config["default"].base_model_name_or_path = config.model_name
    return model


def enable_checkpointing(encoder: Any) -> None:
    """Let the encoder recompute its activations in the backward pass.

    The adapters lie inside the recomputed blocks while the embeddings below are frozen: the re-entrant kind would train
    nothing unless its inputs were made to require gradients.
    """
    encoder.activation_checkpointing_enable({"use_reentrant": False})


def print_lora_info(model: SentenceTransformer) -> None:
    """Print rank, alpha, targets and the trainable share of the parameters."""
    adapter: Any = peft_model_of(model).peft_config["default"]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    targets = ", ".join(sorted(adapter.target_modules))
    print(  # noqa: T201
        f"LoRA: rank {adapter.r}, alpha {adapter.lora_alpha:g}, dropout {adapter.lora_dropout:g}, targets {targets}; "
        f"trains {trainable:,} of {total:,} parameters ({trainable / total:.2%})"
    )


def peft_model_of(model: SentenceTransformer) -> PeftModel:
    """The PEFT model inside. Raises ValueError where setup_lora_model was not called."""
    encoder = model[0].model
    if not isinstance(encoder, PeftModel):
        raise ValueError("the model has no LoRA adapters: call setup_lora_model(model, config) first")
    return encoder


def adapter_matrices(model: SentenceTransformer) -> Iterator[tuple[str, nn.Parameter]]:
    """The trainable matrices under the names of the layers they adapt, such as
    `encoder.layer.0.attention.self.query.lora_A`."""
    for name, parameter in peft_model_of(model).named_parameters():
        if parameter.requires_grad:
            yield name.removeprefix("base_model.model.").removesuffix(".weight").removesuffix(".default"), parameter


def adapter_state(model: SentenceTransformer) -> dict[str, Tensor]:
    """A copy, on the CPU, of the adapter matrices by the names of `adapter_matrices`."""
    return {name: matrix.detach().cpu().clone() for name, matrix in adapter_matrices(model)}


def load_adapter_state(model: SentenceTransformer, state: Mapping[str, Tensor]) -> None:
    """Put copied adapter matrices back. Raises ValueError where they are of other adapters, or of another base model."""
    matrices = dict(adapter_matrices(model))
    wrong = sorted(
        name
        for name in matrices.keys() | state.keys()
        if name not in state or name not in matrices or state[name].shape != matrices[name].shape
    )
    if wrong:
        raise ValueError(f"its adapter is not one of this model: {len(wrong)} matrices differ, such as {wrong[0]}")
    with torch.no_grad():
        for name, matrix in matrices.items():
            matrix.copy_(state[name])


def scaled_adapter(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Matrices of `adapter_state` whose update, B @ A * alpha / r, is `scale` times what it was."""
    return {name: matrix * scale if name.endswith("lora_B") else matrix for name, matrix in state.items()}


def base_fingerprint(model: SentenceTransformer) -> str:
    """SHA-256 over the frozen weights, with their names and shapes: which base model the adapters are for."""
    digest = hashlib.sha256()
    for name, parameter in peft_model_of(model).named_parameters():
        if not parameter.requires_grad:
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def adapters_off(model: SentenceTransformer) -> Iterator[None]:
    """While entered, embeddings are those of the untouched base model, bit for bit."""
    with peft_model_of(model).disable_adapter():
        yield


def merged_copy(model: SentenceTransformer) -> SentenceTransformer:
    """A copy of the model with the adapters added into its weights: an ordinary sentence-transformers model.

    Un-merging would leave rounding errors in the frozen weights, so training goes on with the original, untouched.
    """
    peft_model_of(model)
    merged = copy.deepcopy(model)
    merged[0].model = peft_model_of(merged).merge_and_unload()
    return merged


def _share_dropout(encoder: nn.Module) -> None:
    """Give the adapters of query, key and value in each attention block one dropout; they read the same input."""
    for block in encoder.modules():
        adapters = [
            child
            for name, child in block.named_children()
            if name in ("query", "key", "value") and isinstance(child, LoraLayer)
        ]
        if len(adapters) > 1:
            shared = SharedDropout(getattr(adapters[0].lora_dropout["default"], "p", 0.0), len(adapters))  # or an Identity
            for adapter in adapters:
                adapter.lora_dropout["default"] = shared


def _set_dropout(encoder: nn.Module, probability: float) -> None:
    """Set every dropout of the encoder, to the fast kind; its saved configuration keeps the published value."""
    for parent in list(encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, FastDropout(probability))


def _in_pooler(name: str) -> bool:
    """Mean pooling reads nothing of BERT's pooler: an adapter on its dense layer would never get a gradient."""
    return name.startswith("pooler.")


def _check_targets(encoder: nn.Module, targets: list[str]) -> None:
    linear = {name for name, module in encoder.named_modules() if isinstance(module, nn.Linear) and not _in_pooler(name)}
    # PEFT matches a target against the end of a module's dotted name.
    missing = [t for t in targets if not any(name == t or name.endswith("." + t) for name in linear)]
    if missing:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            [f"--lora_target_modules: the model has no linear layer {t!r}; it has {', '.join(known)}" for t in missing]
        )
