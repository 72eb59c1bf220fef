"""What every test shares: the repository on the path, no network, one thread, and a toy model that trains in seconds."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before the first import of huggingface_hub or tokenizers, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_four_bit import BYTES
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from config import PROMPTS, TrainingConfig

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# Toy tensors gain nothing from a second thread, and lose much where other processes want the core.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: a random BERT of width 32 that reads characters, E5's pooling and prompts."""
    folder = tmp_path_factory.mktemp("toy")
    encoder = folder / "encoder"
    tokenizer = _character_tokenizer()
    tokenizer.save_pretrained(str(encoder))
    settings = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.1,  # wide enough that random texts lie apart
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(settings).save_pretrained(str(encoder))
    model = SentenceTransformer(
        modules=[Transformer(str(encoder)), Pooling(32, "mean"), Normalize()],
        device="cpu",
        prompts=dict(PROMPTS),
    )
    model.max_seq_length = 128
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture
def toy_model(toy_model_dir: Path) -> SentenceTransformer:
    """The toy model, freshly loaded on the CPU."""
    return SentenceTransformer(str(toy_model_dir), device="cpu", local_files_only=True)


@pytest.fixture
def toy_config(tmp_path: Path) -> Callable[..., TrainingConfig]:
    """Settings on the CPU that write under tmp_path only; keyword arguments change any of them."""

    def make(**changes: Any) -> TrainingConfig:
        settings = {
            "output_dir": str(tmp_path / "model"),
            "log_dir": str(tmp_path / "logs"),
            "num_workers": 0,
            "device": "cpu",
            "precision": "fp32",  # whatever this CPU has
        }
        return TrainingConfig(**settings | changes)

    return make


@pytest.fixture
def trainer_with_adapters(toy_model_dir: Path) -> Callable[[TrainingConfig], Any]:
    """Settings → a trainer of the toy model, in training mode, whose adapters are not zero as fresh ones are."""
    from trainer import EmbeddingTrainer, setup_lora_model
    from trainer.lora import adapter_matrices

    def make(config: TrainingConfig) -> EmbeddingTrainer:
        torch.manual_seed(0)
        model = setup_lora_model(SentenceTransformer(str(toy_model_dir), device="cpu"), config)
        for name, matrix in adapter_matrices(model):
            if name.endswith("lora_B"):  # zero at first: the gradient of A would be zero too
                torch.nn.init.normal_(matrix, std=0.1)
        trainer = EmbeddingTrainer(model, config)
        trainer.model.train()
        return trainer

    return make


@pytest.fixture
def in_child() -> Callable[..., int]:
    """Function → the exit status of a forked process that runs it (its return value, 0 for None, 1 for an exception);
    minus the signal's number where it was killed.

    The child begins warm: imports and the toy model are there. What it patches is gone with it.
    """

    def run(function: Callable[[], int | None], meanwhile: Callable[[int], None] | None = None) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = function() or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        if meanwhile is not None:
            meanwhile(child)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run


@pytest.fixture
def read_texts() -> Callable[[SentenceTransformer], list[str]]:
    """Model → a list that grows with every text that the model reads from now on, prefix included."""

    def listen(model: SentenceTransformer) -> list[str]:
        texts: list[str] = []

        def note(_module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            # A row is one text and its padding, or many texts one behind the other: each begins with [CLS].
            for row in arguments[0].tolist():
                tokens = model.tokenizer.convert_ids_to_tokens(row)
                for text in "".join(token for token in tokens if token not in ("[SEP]", "[PAD]")).split("[CLS]"):
                    texts.extend([text] if text else [])

        (embeddings,) = (m for name, m in model.named_modules() if name.endswith("word_embeddings"))
        embeddings.register_forward_pre_hook(note)
        return texts

    return listen


@pytest.fixture
def read_events() -> Callable[[str | Path], EventAccumulator]:
    """Run folder or log folder with one run → everything TensorBoard would show of it."""

    def read(folder: str | Path) -> EventAccumulator:
        (events,) = Path(folder).rglob("events.out.tfevents.*")
        return EventAccumulator(str(events.parent), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}).Reload()

    return read


def _character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: printable ASCII and the 2,350 common Hangul syllables."""
    ascii_characters = [chr(code) for code in range(0x20, 0x7F)]
    rows, columns = range(0xB0, 0xC9), range(0xA1, 0xFF)  # of the Hangul block of EUC-KR
    hangul = [bytes([row, column]).decode("euc-kr") for row in rows for column in columns]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *ascii_characters, *hangul])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """A tiny file as the 4-bit copy's."""
    file = tmp_path / "tiny.bin"
    file.write_bytes(BYTES)
    return file


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder that is made of it."""
    from trainer.four_bit import convert_e5s1

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.bin").write_bytes(BYTES)
    convert_e5s1(folder / "tiny.bin", folder / "model")
    return folder / "model"
