"""The model as one ONNX graph, smaller and faster on a CPU; kept beside the model, in MODEL/onnx/PRECISION-VOCABULARY.

    model.onnx       input_ids, attention_mask: (batch, length) int64 -> embeddings: (batch, D) float32, of length 1
    tokenizer.json   with the pieces of the vocabulary
    export.json      what else the encoder needs, and which model this was made from

int8: the weights of the matrix products are int8, one scale an output; their inputs become uint8 as they come, one scale a
tensor (onnxruntime's dynamic quantisation). A few inputs of the feed-forward products are tens of times larger than the rest
and would take the range from all others: one in 24 stays in float32, in a small product of its own, as in LLM.int8()
(arXiv:2208.07339), but chosen once, by the largest values that the texts of `_CALIBRATION` bring about. The table of
token embeddings is int8 with one scale a row.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InferenceError
from search.fingerprint import model_fingerprint, model_state
from search.vocabulary import VOCABULARIES, trim_tokenizer

if TYPE_CHECKING:  # only the making of an export needs these
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

PRECISIONS = ("int8", "float32")
_FORMAT = 2
_OPSET = 17  # the first with LayerNormalization; later ones spell GELU so that onnxruntime does not fuse it with its bias
_OUTLIERS = 24  # one in so many inputs of a feed-forward product stays in float32
_FAITHFUL = {"int8": 0.99, "float32": 0.9999}  # least cosine to the model itself, on the calibration texts

_CALIBRATION = {
    "query": (
        "한글을 만든 사람은 누구인가?",
        "1988년 서울 올림픽은 언제 열렸나요?",
        "DNA의 이중 나선 구조를 밝힌 과학자는?",
    ),
    "document": (
        "세종대왕",
        "1,947m",
        "2002년 6월 25일",
        "한라산은 제주도 한가운데에 솟은 화산으로, 높이는 해발 1,947미터이다.",
        "경복궁은 1395년에 지어진 조선의 으뜸 궁궐로, 서울 종로구에 있다. 임진왜란 때 불탄 뒤 270여 년이 지난 "
        "1867년에야 다시 세워졌으며, 오늘날에는 '국립고궁박물관'과 국립민속박물관이 함께 자리한다.",
        "빛은 진공에서 1초에 약 299,792 km를 나아간다. 이 값은 c로 적으며, 아인슈타인의 식 E = mc²에도 나온다. "
        "소리는 공기 속에서 1초에 약 340 m를 나아가므로, 번개가 친 뒤 한참 지나서야 천둥소리가 들린다.",
        "컴퓨터(computer)는 명령에 따라 자료를 처리하는 기계이다. 1946년 미국 펜실베이니아 대학교에서 만든 ENIAC은 "
        "진공관 약 18,000개를 썼고 무게가 30톤에 이르렀다. 이후 트랜지스터와 집적 회로가 나오면서 크기는 작아지고 "
        "속도는 빨라졌다. 오늘날의 스마트폰은 그때의 컴퓨터보다 수백만 배 빠르다.",
    ),
}


def export_folder(model_path: Path, precision: str, vocabulary: str) -> Path:
    """Where an export is kept. Raises InferenceError (a precision or vocabulary that there is not)."""
    for name, value, choices in (("precision", precision, PRECISIONS), ("vocabulary", vocabulary, VOCABULARIES)):
        if value not in choices:
            raise InferenceError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    return model_path / "onnx" / f"{precision}-{vocabulary}"


def is_current(folder: Path, model_path: Path) -> bool:
    """Whether an export is whole and of the model as it is now. Reads the model only where its files' times changed."""
    try:
        made = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in made["sizes"].items())
        if not whole or made["format"] != _FORMAT:
            return False
        return made["model_state"] == _state(model_path) or made["fingerprint"] == model_fingerprint(model_path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _state(model_path: Path) -> list[list[Any]]:
    """`model_state` as JSON gives it back."""
    return [[os.path.relpath(path, model_path), size, changed] for path, size, changed in model_state(model_path)]


def export_model(model: SentenceTransformer, model_path: Path, precision: str, vocabulary: str) -> Path:
    """Export a model that was loaded from `model_path` in float32 on the CPU; its prompts are settled. Takes about a minute.

    The folder appears whole or not at all; of two processes at once the later one's stays.

    Raises:
        InferenceError: a package is missing, the folder cannot be written, or the model cannot be exported.
    """
    folder = export_folder(model_path, precision, vocabulary)
    check_packages()
    logger.info("Exporting the model to %s, once; this takes a minute", folder)
    state, fingerprint = _state(model_path), model_fingerprint(model_path)
    try:
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            settings = _write(model, made, precision, vocabulary)
            sizes = {file.name: file.stat().st_size for file in made.iterdir()}
            settings |= {"format": _FORMAT, "fingerprint": fingerprint, "model_state": state, "sizes": sizes}
            (made / "export.json").write_text(json.dumps(settings, ensure_ascii=False, indent=1), encoding="utf-8")
            _put_in_place(made, folder, Path(scratch) / "old")
    except OSError as error:
        raise InferenceError(
            f"The export cannot be written to {folder}: {error}. Free 1 GB there, or copy the model elsewhere."
        ) from error
    return folder


def check_packages() -> None:
    """Raise InferenceError where a package is missing that the making of an export needs."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise InferenceError(
            f"The backend onnx cannot be used: {error}. Install it: pip install -r requirements-search.txt"
        ) from None


def _put_in_place(made: Path, folder: Path, old: Path) -> None:
    with suppress(FileNotFoundError):  # nothing there, or another process has just moved it
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was faster, with the same content
            raise


# -----------------------------------------------------------------------------------------------------------
# The graph


def _write(model: SentenceTransformer, made: Path, precision: str, vocabulary: str) -> dict[str, Any]:
    """Write model.onnx and tokenizer.json; return what the encoder has to know beside them."""
    import torch

    content = json.loads(model.tokenizer.backend_tokenizer.to_str())
    content["truncation"] = content["padding"] = None
    of_prompts = {number for prompt in model.prompts.values() for number in model.tokenizer(prompt or "")["input_ids"]}
    content, kept = trim_tokenizer(content, vocabulary, of_prompts)
    if kept is None and vocabulary != "full":
        logger.info("The tokenizer is not a Unigram model: its whole vocabulary stays")
    (made / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    smaller = copy.deepcopy(model).eval()
    encoder: Any = smaller[0].auto_model
    with torch.no_grad():
        if precision == "int8":
            _split_outliers(smaller, encoder)
        _replace_embeddings(encoder, kept, precision)
        _export_graph(smaller, encoder, made / "model.onnx")
    if precision == "int8":
        _quantise(made / "model.onnx")
    settings = {
        "precision": precision,
        "vocabulary": "full" if kept is None else vocabulary,
        "prompts": dict(model.prompts),
        "max_seq_length": model.max_seq_length,
        "dimension": model.get_embedding_dimension(),
        "pad_id": _new_number(model.tokenizer.pad_token_id, kept) or 0,
        "unknown_id": _new_number(model.tokenizer.unk_token_id, kept),
    }
    _check_faithful(model, made, settings)
    return settings


def _new_number(old: int | None, kept: list[int] | None) -> int | None:
    return old if old is None or kept is None else kept.index(old)


def _split_outliers(model: SentenceTransformer, encoder: Any) -> None:
    """Put a `SplitLinear` in the place of each feed-forward product: of each linear layer that widens or narrows."""
    import torch
    from torch import nn

    largest: dict[Any, torch.Tensor] = {}

    def note(layer: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        magnitudes = inputs[0].abs().flatten(0, -2).amax(0)  # (in,)
        largest[layer] = torch.maximum(largest.get(layer, magnitudes), magnitudes)

    places = [
        (parent, name, layer)
        for parent in encoder.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear) and layer.in_features != layer.out_features
    ]
    hooks = [layer.register_forward_pre_hook(note) for _, _, layer in places]
    for prompt, texts in _CALIBRATION.items():
        model.encode(list(texts), prompt_name=prompt, show_progress_bar=False)
    for hook in hooks:
        hook.remove()
    for parent, name, layer in places:
        if layer in largest:
            count = -(-layer.in_features // _OUTLIERS)
            setattr(parent, name, _split_linear(layer, largest[layer].topk(count).indices.sort().values))


def _split_linear(layer: Any, outliers: torch.Tensor) -> torch.nn.Module:
    """The same linear layer as two products: of the inputs `outliers`, and of all others."""
    import torch
    from torch import nn

    class SplitLinear(nn.Module):
        keep: torch.Tensor
        outliers: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            keep = torch.ones(layer.in_features)
            keep[outliers] = 0
            weight = layer.weight.T  # (in, out)
            self.register_buffer("outliers", outliers)
            self.register_buffer("keep", keep)
            self.weight = nn.Parameter((weight * keep[:, None]).contiguous())
            self.outlier_weight = nn.Parameter(weight[outliers].contiguous())
            self.bias = layer.bias

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            others = (x * self.keep) @ self.weight
            others = others if self.bias is None else others + self.bias  # first: the quantised product takes it in
            return others + x.index_select(-1, self.outliers) @ self.outlier_weight

    return SplitLinear()


def _replace_embeddings(encoder: Any, kept: list[int] | None, precision: str) -> None:
    """Leave the rows of the pieces that are kept; in int8, one scale a row."""
    import torch
    from torch import nn

    class Int8Embedding(nn.Module):
        def __init__(self, weight: torch.Tensor) -> None:
            super().__init__()
            scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127  # (V, 1)
            self.register_buffer("rows", (weight / scale).round().to(torch.int8))
            self.register_buffer("scale", scale)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.rows[ids].float() * self.scale[ids]  # type: ignore[operator, index]

    weight = encoder.get_input_embeddings().weight
    weight = weight if kept is None else weight[kept]
    encoder.set_input_embeddings(Int8Embedding(weight) if precision == "int8" else nn.Embedding.from_pretrained(weight))


def _export_graph(model: SentenceTransformer, encoder: Any, file: Path) -> None:
    """All modules of the model and an L2 norm as one graph.

    torch's TorchScript exporter: its graph is as fast as the newer exporter's, from the same modules, and made several
    times faster.
    """
    import torch
    from torch import nn

    class Embedder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(model)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            for stage in self.stages:
                features = stage(features)
            return nn.functional.normalize(features["sentence_embedding"], dim=-1)  # (batch, D)

    if not all(getattr(module, "include_prompt", True) for module in model):
        raise InferenceError("The model leaves its prompt out of the mean, which an export cannot: use the backend torch.")
    encoder.set_attn_implementation("eager")  # onnxruntime fuses the plain products better than torch's one operator
    ids = torch.ones((2, 7), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    tokens = {0: "batch", 1: "length"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing keeps Python's branches: `_check_faithful` looks at the result
        torch.onnx.export(
            Embedder().eval(),
            (ids, mask),
            str(file),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["input_ids", "attention_mask"],
            output_names=["embeddings"],
            dynamic_axes={"input_ids": tokens, "attention_mask": tokens, "embeddings": {0: "batch"}},
        )


def _quantise(file: Path) -> None:
    """Products with constant weights → int8, except those of the outliers."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    graph = onnx.load(file)
    add_pre_process_metadata(graph)  # otherwise it advises a step that changes nothing here
    with _quiet_root_logger():
        quantize_dynamic(
            graph,
            file,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=[
                node.name for node in graph.graph.node if any("outlier_weight" in name for name in node.input)
            ],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )


@contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """onnxruntime's quantiser reports every product to the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(level)


def _check_faithful(model: SentenceTransformer, made: Path, settings: dict[str, Any]) -> None:
    """Raise InferenceError where the export embeds the calibration texts otherwise than the model."""
    from search.encoder import OnnxEncoder

    exported, tokenizer = OnnxEncoder(made, settings), model.tokenizer.backend_tokenizer
    for prompt, calibration in _CALIBRATION.items():
        # A smaller vocabulary may split English words otherwise: that is not the graph's doing.
        texts = [text for text in calibration if exported.tokenizer.encode(text).tokens == tokenizer.encode(text).tokens]
        expected = model.encode(texts, prompt_name=prompt, normalize_embeddings=True, show_progress_bar=False)
        cosine = float((exported.encode(texts, prompt) * expected).sum(axis=1).min())
        if not cosine >= _FAITHFUL[settings["precision"]]:
            raise InferenceError(
                f"The export as {settings['precision']} changes the embeddings (cosine {cosine:.4f}): use the backend torch."
            )
