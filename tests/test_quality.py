"""The rows that benchmarks/quality.py trains: their settings exist, and its table is the mean over seeds."""

import sys

import pytest
import yaml

import train
from benchmarks import quality, variants
from config import TrainingConfig, read_recipe
from dataloader.batches import TokenisedPairs
from dataloader.examples import PairExample
from trainer import EmbeddingTrainer

ROWS = yaml.safe_load(quality.ROWS_FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_settings_that_exist(name):
    settings = dict(ROWS[name])
    recipe, variant = settings.pop("recipe", None), settings.pop("variant", None)
    assert TrainingConfig(**(read_recipe(quality.REPOSITORY / recipe) if recipe else {}) | settings)
    assert variant is None or variant in [*variants.LOSSES, *variants.EXAMPLES]
    assert all(isinstance(quality._text(value), str) for value in settings.values())


def test_a_line_of_the_table_by_hand():
    runs = [
        {"row": "x", "seconds": seconds, "answers_tuned": answers, "answers_interval": [answers - 0.1, answers + 0.1]}
        | {"paragraphs_tuned": 0.8, "paragraphs_interval": [0.7, 0.9]}
        for seconds, answers in ((10, 0.2), (20, 0.3))
    ]
    assert quality.table_row(runs) == (
        "| x | 2 | 0.250 [0.150, 0.350]; seeds 0.200–0.300 | 0.800 [0.700, 0.900]; seeds 0.800–0.800 | 15 |"
    )


OBJECTIVES = {"gaps": "sentence", "titles": "sentence", "keyword_windows": "window"}
OBJECTIVES |= dict.fromkeys(("neighbours", "rest_of_paragraph"), "inverse_cloze")


@pytest.mark.parametrize("name", [*variants.LOSSES, *variants.EXAMPLES])
def test_a_variant_trains(name, toy_model_dir, tmp_path, monkeypatch):
    seen = []
    step = EmbeddingTrainer._training_step
    monkeypatch.setattr(train, "prepare_training_data", train.prepare_training_data)  # put back afterwards, as these are:
    for method in ("_backward_in_pieces", "_compute_contrastive_loss", "_setup_optimizer_and_scheduler"):
        monkeypatch.setattr(EmbeddingTrainer, method, getattr(EmbeddingTrainer, method))
    for method in ("__init__", "collate"):
        monkeypatch.setattr(TokenisedPairs, method, getattr(TokenisedPairs, method))
    monkeypatch.setattr(EmbeddingTrainer, "_training_step", lambda *args: seen.append(step(*args)) or seen[-1])
    settings = {
        "model_name": toy_model_dir,
        "dataset_root": quality.REPOSITORY / "data" / "sample",
        "output_dir": tmp_path / "m",
    }
    settings |= {
        "log_dir": "",
        "train_split": 0.97,
        "max_samples": 16,
        "max_seq_length": 32,
        "num_workers": 0,
        "num_epochs": 1,
    }
    settings |= {
        "batch_size": 8,
        "objective": f"answer,context,{OBJECTIVES.get(name, 'window')}",
        "article_group": "answer=8",
    }
    monkeypatch.setattr(sys, "argv", ["variants.py", name, *(f"--{key}={value}" for key, value in settings.items())])
    assert variants.main() == 0
    assert seen and all(loss.isfinite() for loss in seen)


def example(kind, query, passage, answer="세종", guid="1"):
    return PairExample(guid, ["query: " + query, "passage: " + passage], kind, answer, 0)


def test_the_examples_of_variants_by_hand():
    sentence, window = "한글은 세종이 만들었다.", "옛날이다. 한글은 세종이 만들었다. 끝이다."

    def texts(changed):
        return [tuple(one.texts) for one in changed]

    assert texts(variants.gaps([example("sentence", "누가?", sentence)])) == [
        ("query: 한글은 이 만들었다.", "passage: 세종")
    ]
    assert variants.gaps([example("sentence", "누가?", "세종이 있다.")]) == []  # too little is left to ask with
    assert texts(variants.keyword_windows([example("window", "누가?", window)])) == [("query: 세종", "passage: " + window)]
    articles = {"articles": [{"title": "훈민_정음"}]}
    assert texts(variants.titles([example("sentence", "누가?", sentence)], articles, None)) == [
        ("query: 누가?", "passage: 훈민 정음")
    ]
    context = example("context", "누가?", "하나다. 둘이다. 셋이다. 넷이다. 다섯이다. 여섯이다. 일곱이다.")
    for change, passage in (
        ("neighbours", "둘이다. 셋이다.  다섯이다. 여섯이다."),
        ("rest_of_paragraph", "하나다. 둘이다. 셋이다.  다섯이다. 여섯이다. 일곱이다."),
    ):
        cloze = example("inverse_cloze", "넷이다.", "셋이다. 다섯이다.")
        assert texts(variants.EXAMPLES[change]([context, cloze]))[1] == ("query: 넷이다.", "passage: " + passage)
    long = example("answer", "가 나 다 라 마 바 사 아 자 차", "세종")
    copies = variants.words_left_out([long, context])
    assert len(copies) == 5 and len({one.texts[0] for one in copies[:4]}) > 1
    assert all(set(one.texts[0].split()) <= set(long.texts[0].split()) for one in copies[:4])


def test_the_words_of_a_question_by_hand():
    texts = ["query: 나폴레옹이 1812년에 침공한 도시는 어디인가?", "passage: 모스크바"]
    words = variants._words_of(PairExample("1", texts, "answer", "모스크바", 0))
    ones = ["나폴레옹", "1812년", "침공한", "도시"]
    assert set(words) == {
        *ones,
        "나폴레옹이 1812년",
        "1812년에 침공한",
        "침공한 도시",
        "나폴레옹이 1812년에 침공한",
        "1812년에 침공한 도시",
    }
    texts = ["query: 세종의 아버지 태종은 누구의 아들?", "passage: 태종"]  # the answer itself, and what asks, is left out
    assert set(variants._words_of(PairExample("2", texts, "answer", "태종", 0))) == {"세종", "아버지", "세종의 아버지"}
