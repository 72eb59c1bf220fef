"""The real script on toy models: which articles are asked, what models have seen, files, and messages."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from matplotlib import image

import evaluate
from config import TrainingConfig
from dataloader import load_cached_dataset, window_size
from dataloader.pairs import split_articles
from trainer.ranking import METRICS, RANKING_METRICS

SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample"


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Prepared pairs are not kept in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def few_articles(tmp_path_factory) -> Path:
    """One file of 20 articles of the sample."""
    data = json.loads(next(SAMPLE.glob("*_00/*.json")).read_text(encoding="utf-8"))
    data["data"] = data["data"][:20]
    file = tmp_path_factory.mktemp("data") / "few.json"
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture
def run(toy_model_dir, tmp_path, monkeypatch, capsys, caplog):
    """Run the script in tmp_path: (status, stdout, stderr and log)."""
    monkeypatch.chdir(tmp_path)

    def go(*options: object) -> tuple[int, str, str]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            status = evaluate.main([str(option) for option in [*options, "--device", "cpu"]])
        printed = capsys.readouterr()
        return status, printed.out, printed.err + caplog.text

    return go


@pytest.fixture
def trained(toy_model_dir, tmp_path):
    """Name → a model's folder as train.py leaves it, trained on `data`."""

    def make(name: str, data: Path, **settings) -> Path:
        folder = tmp_path / name
        shutil.copytree(toy_model_dir, folder)
        config = TrainingConfig(dataset_root=str(data), model_name=str(toy_model_dir), max_seq_length=128, **settings)
        config.save(folder / "training_config.json")
        return folder

    return make


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


# --- what is asked --------------------------------------------------------------------------------------------


def test_a_model_on_its_own_data_is_asked_what_was_held_out(run, trained, few_articles, toy_model_dir, tmp_path):
    trained("한글", few_articles, train_split=0.6, split_seed=3)
    trained("other", few_articles, train_split=0.6, split_seed=4)
    status, out, err = run("한글/", "other", "--data", few_articles, "--json", "result.json", "--figure", "figure.png")
    assert status == 0, err
    result = read(tmp_path / "result.json")
    assert "the 8 held_out articles of 20 (train_split 0.6, val_split 0.05, split_seed 3)" in out
    assert (result["train_split"], result["split_seed"], result["base_model"]["name"]) == (0.6, 3, str(toy_model_dir))
    for task, found in result["tasks"].items():
        assert found["resampled"] == "8 articles"
        assert {label: list(metrics) for label, metrics in found["models"].items()} == {
            "BM25": list(RANKING_METRICS),
            **{label: list(METRICS) for label in ("base", "한글", "other")},
        }
        pairs = [(each["model"], each["against"]) for each in found["differences"]]
        assert pairs == [("한글", "base"), ("other", "base"), ("other", "한글")]
        # The base model reads as many tokens as training did, and these texts are shorter: the same weights, all three.
        for each in found["differences"]:
            assert each["word"] == "NO CLEAR CHANGE" and each["difference"]["mrr@10"] == pytest.approx(0, abs=1e-6)
        value = found["models"]["한글"]["mrr@10"]
        assert 0 < value < 1 and f"NO CLEAR CHANGE on {task}, 한글 against base: MRR@10 {value:.3f} → {value:.3f}" in out
    unseen = result["seen_in_training"]["한글"]
    assert (unseen["articles"], unseen["questions"]) == (0, 0) and f"\n{unseen['note']}\n" in out
    seen = result["seen_in_training"]["other"]
    assert 0 < seen["articles"] < 8 and seen["questions"] > 0
    assert f"NO FAIR TEST: other has seen {seen['articles']} of the 8 articles (by title) and {seen['questions']}" in out
    assert image.imread(tmp_path / "figure.png").std() > 0.05  # something is drawn


def test_all_of_other_data_is_asked_and_what_is_not_known_is_said(run, trained, few_articles, tmp_path):
    trained("elsewhere", tmp_path / "gone")
    status, out, _ = run("elsewhere", "--data", few_articles, "--json", "result.json")
    assert status == 0 and "few.json, all 20 articles; base: " in out
    assert "elsewhere: whether it has seen this in training is not known (its training data, " in out
    assert read(tmp_path / "result.json")["seen_in_training"]["elsewhere"]["articles"] is None


def test_a_copy_of_the_training_data_is_recognised_by_its_titles(run, trained, few_articles, tmp_path):
    copy = shutil.copy(few_articles, tmp_path / "copy.json")
    trained("model", few_articles, train_split=0.6)
    _, out, _ = run("model", "--data", copy)
    assert "all 20 articles" in out
    assert "NO FAIR TEST: model has seen 12 of the 20 articles (by title) and " in out


@pytest.mark.parametrize("objective", ["answer", "keyword=1,context=1"])
def test_what_max_samples_left_out_was_not_seen(run, trained, few_articles, tmp_path, objective):
    copy = shutil.copy(few_articles, tmp_path / "copy.json")
    config = TrainingConfig(train_split=0.6, max_samples=5, objective=objective, max_seq_length=128)
    trained("model", few_articles, train_split=0.6, max_samples=5, objective=objective)
    dataset = load_cached_dataset(few_articles, 0, verbose=False, window=window_size(config))
    training, validation, _ = split_articles(20, config)
    first = [(index, qa["question"]) for index in training for qa in dataset["articles"][index]["qas"]][:5]
    expected = {question for _, question in first}
    expected |= {qa["question"] for index in validation for qa in dataset["articles"][index]["qas"]}
    run("model", "--data", copy, "--json", "result.json")
    seen = read(tmp_path / "result.json")["seen_in_training"]["model"]
    assert seen["questions"] == len(expected) < 20
    assert seen["articles"] == len({index for index, _ in first}) + len(validation) == 2
    assert seen["note"].startswith("NO FAIR TEST: model has seen 2 of the 20 articles (by title) and ")


def test_the_command_line_decides_about_the_split(run, trained, few_articles, toy_model_dir):
    trained("model", few_articles, train_split=0.6)
    assert "all 20 articles" in run("model", "--data", few_articles, "--split", "all")[1]
    assert (
        "the 5 held_out articles of 20 (train_split 0.75," in run("model", "--data", few_articles, "--train_split", ".75")[1]
    )
    with_seed = run("base", "--base", toy_model_dir, "--data", few_articles, "--split_seed", "7")[1]
    assert "the 2 held_out articles of 20 (train_split 0.9, val_split 0.05, split_seed 7)" in with_seed
    assert "no interval: only 2 articles" not in with_seed  # no difference, no sentence
    assert "no interval where there are fewer than 6 to resample (2 articles)" in with_seed


def test_the_base_model_has_one_row(run, few_articles, toy_model_dir, tmp_path):
    status, out, _ = run("base", toy_model_dir, "--base", toy_model_dir, "--data", few_articles, "--json", "result.json")
    assert status == 0 and "against" not in out
    assert list(read(tmp_path / "result.json")["tasks"]["answers"]["models"]) == ["BM25", "base"]


def test_a_sample_of_the_questions_is_said(run, few_articles, toy_model_dir):
    out = run("base", "--base", toy_model_dir, "--data", few_articles, "--max_queries", "12")[1]
    assert "question → answers: 12 questions (a sample of " in out


def test_a_model_that_is_not_of_this_repository(run, few_articles, toy_model, toy_model_dir, tmp_path):
    toy_model.prompts = {}
    toy_model.save(str(tmp_path / "bare"), create_model_card=False)
    status, out, err = run("bare", "--base", toy_model_dir, "--data", few_articles, "--json", "result.json")
    assert status == 0 and "bare stores no prompts: using 'query: ' and 'passage: '" in err
    assert "bare: what it was trained on is not known" in out
    found = read(tmp_path / "result.json")["tasks"]["answers"]["models"]
    assert found["bare"] == pytest.approx(found["base"], abs=1e-5)


# --- BEIR -----------------------------------------------------------------------------------------------------


@pytest.fixture
def beir(tmp_path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    texts = ["서울은 수도이다.", "한라산은 산이다.", "고래는 포유류이다."]
    for name, prefix in (("corpus", "d"), ("queries", "q")):
        lines = [json.dumps({"_id": f"{prefix}{i}", "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for split, n in (("test", 3), ("dev", 2)):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in range(n))]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_folder_in_beir_s_layout(run, beir, trained, few_articles, tmp_path):
    trained("model", few_articles)
    status, out, err = run("model", "--data", beir, "--json", "result.json")
    assert status == 0, err
    result = read(tmp_path / "result.json")
    assert "question → documents: 3 questions, 3 documents, 3 questions" in out and "train_split" not in result
    assert result["tasks"]["documents"]["models"]["BM25"]["recall@1"] == 1
    assert "model has seen 0 of the 3 questions in training." in out
    assert "question → documents: 2 questions, 3 documents" in run("model", "--data", beir, "--split", "dev")[1]


def test_what_the_questions_say_is_left_out(run, beir, toy_model_dir, tmp_path):
    """Each question is its document: nothing right is ranked. A shorter document that a question says is not right."""
    options = ["base", "--base", toy_model_dir, "--data", beir, "--json", "result.json"]
    with (beir / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps({"_id": "d3", "text": "서울"}, ensure_ascii=False))
    assert "LEFT OUT" not in run(*options)[1] and "left_out" not in read(tmp_path / "result.json")
    status, out, err = run(*options, "--skip_in_query")
    assert status == 0, err
    assert "LEFT OUT of documents: 4 documents that stand in a question, 3 of them its right ones." in out
    result = read(tmp_path / "result.json")
    assert (result["left_out"]["documents"]["documents"], result["left_out"]["documents"]["right"]) == (4, 3)
    for model in ("BM25", "base"):
        assert result["tasks"]["documents"]["models"][model]["recall@100"] == 0


def test_a_broken_file_is_named_or_skipped(run, few_articles, toy_model_dir, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(few_articles, folder)
    (folder / "broken.json").write_text('{"data": [')
    asked = ("base", "--base", toy_model_dir, "--data", folder)
    status, out, err = run(*asked)
    assert (status, out) == (1, "") and "broken.json: line 1" in err and "without them: --skip_bad_files." in err
    status, out, err = run(*asked, "--skip_bad_files")
    assert status == 0 and "all 20 articles" in out and "broken.json: line 1" in err


# --- what a user can get wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["base", "--data", "no/such"], 1, "Error: --data no/such does not exist (looked in "),
        (["base", "--data", "{few}", "--split", "test"], 1, "--split is 'test': give one of held_out, validation, all"),
        (["base", "--data", "{few}", "--train_split", "2"], 2, "--train_split: must be above 0 and below 1, not 2"),
        (
            ["base", "--data", "{few}", "--split", "validation", "--val_split", "0"],
            1,
            "no question in its validation articles",
        ),
        (["base", "--data", "{none}"], 1, "none.json holds no question with an answer. Give other --data."),
        (["base", "--data", "{beir}", "--split", "train"], 1, "the splits there are: dev, test"),
        (["base", "--data", "{beir}", "--split_seed", "1"], 1, "without articles to split: leave out --split_seed"),
        (["{toy}", "{toy}/", "--data", "{few}"], 1, "is named twice"),
        (["BM25", "--data", "{few}"], 1, "BM25 has its row anyway"),
        (["no/such-model", "--data", "{few}"], 1, "No source has 'no/such-model'"),
        (["{few}", "--data", "{few}"], 1, "few.json' is neither a folder"),
        (["base", "--base", "no/such-base", "--data", "{few}"], 1, "No source has 'no/such-base'"),
    ],
)
def test_what_a_user_can_get_wrong_ends_in_a_message(
    run, options, status, said, few_articles, beir, toy_model_dir, tmp_path
):
    (none := tmp_path / "none.json").write_text('{"data": []}')
    filled = [option.format(few=few_articles, beir=beir, toy=toy_model_dir, none=none) for option in options]
    base = [] if "--base" in filled else ["--base", toy_model_dir]
    found, out, err = run(*filled, *base)
    assert (found, out) == (status, "") and said in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "the following arguments are required: MODEL, --data"),
        (["base", "--data", "x", "--max_queries", "-1"], "must be a whole number of at least 0, not '-1'"),
        (["base", "--data", "x", "--json", "no/such/folder/x.json"], "cannot be written: give a file in a folder"),
        (["base", "--data", "x", "--figure", "."], "cannot be written: give a file in a folder"),
        (["base", "--data", "x", "--json", "link.json"], "link.json cannot be written (No such file or directory): give"),
        (["base", "--data", "x", "--figure", "a" * 300], "cannot be written (File name too long): give another file"),
    ],
)
def test_wrong_options_end_the_program_at_once(options, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link.json").symlink_to("no/such/folder/x.json")
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(options)
    assert said in capsys.readouterr().err


def test_what_may_not_be_written_is_said_at_once_and_nothing_is_left(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("kept.json").write_text("kept")
    assert [evaluate._new_file(name) for name in ("kept.json", "new.json")] == [Path("kept.json"), Path("new.json")]
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"] and Path("kept.json").read_text() == "kept"
    monkeypatch.setattr(evaluate.os, "access", lambda *_: False)  # whoever runs this, root included
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["base", "--data", "x", "--json", "kept.json"])
    assert "kept.json may not be written to: give another file" in capsys.readouterr().err


def test_an_interrupt_ends_in_one_line(run, few_articles, toy_model_dir, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "prepare_retrieval_sets", interrupt)
    assert run("base", "--base", toy_model_dir, "--data", few_articles)[0] == 130


def test_a_defect_keeps_its_traceback(run, few_articles, toy_model_dir, monkeypatch):
    def broken(*_, **__):
        raise ValueError("of the program")

    monkeypatch.setattr(evaluate, "prepare_retrieval_sets", broken)
    with pytest.raises(ValueError, match="of the program"):
        run("base", "--base", toy_model_dir, "--data", few_articles)
