"""eda/korquad_analysis.py on a dataset small enough to count by hand."""

import json
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader import DatasetError, load_entire_dataset
from eda import korquad_analysis as eda

ROOT = Path(__file__).resolve().parents[1]


def article(context: str, *qas: tuple) -> dict:
    """A KorQuAD 2.1 article; each of `qas` is a question and its answer as the file has it."""
    listed = [{"id": i, "question": question, "answer": answer} for i, (question, answer) in enumerate(qas)]
    return {"title": "t", "url": "u", "context": context, "qas": listed}


# Cleaned contexts: 가나다라 (4), 서울 시 (4). Questions: 9, 8, 5 and 10 characters.
# Cleaned answers: 한강 (2), 1394년 (5), none, 삼 백 (3).
FIRST = article(
    "<p>가나다라</p>",
    ("강은 무엇인가?!", {"text": '<a href="x">한강</a>', "answer_start": 0}),
    ("몇 년 언제지?", {"text": "1394년", "answer_start": 0}),
    ("산은요 ?", {"text": "<br>", "answer_start": 0}),
)
SECOND = article(
    "서울&nbsp;시",
    ("누가 그를 불렀나?", [{"text": "<p> </p>"}, {"text": "<table><tr><td>삼</td><TD>백</TD></tr></table>"}]),
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, content in enumerate((FIRST, SECOND)):
        folder = tmp_path / "data" / f"KorQuAD_2.1_train_0{number}"
        folder.mkdir(parents=True)
        text = json.dumps({"version": "KorQuAD_2.1", "data": [content]}, ensure_ascii=False)
        (folder / "a.json").write_text(text, encoding="utf-8")
    return tmp_path / "data"


def analysed(root: Path) -> dict:
    dataset = load_entire_dataset(root, verbose=False)
    return eda.analyse(dataset, eda.measure_dataset(dataset["articles"], verbose=False))


# --- numbers --------------------------------------------------------------------------------------------------


def test_totals_count_files_articles_pairs_and_what_is_empty(root):
    assert analysed(root)["totals"] == {
        "files": 2,
        "articles": 2,
        "contexts": 2,
        "qa_pairs": 4,
        "empty": {"questions": 0, "answers": 1, "contexts": 0},
    }


def test_lengths_are_those_of_the_cleaned_texts(root):
    lengths = analysed(root)["lengths"]
    questions = lengths["questions"]
    assert (questions["count"], questions["min"], questions["max"], questions["mean"]) == (4, 5, 10, 8.0)
    assert questions["median"] == 8.5
    # 2, 3, 5: the mean is 10 / 3; p25 lies halfway between 2 and 3, p75 between 3 and 5
    assert lengths["answers"] == {
        "count": 3,
        "mean": 3.33,
        "median": 3.0,
        "min": 2,
        "max": 5,
        "p25": 2.5,
        "p75": 4.0,
        "p90": 4.6,
        "p95": 4.8,
        "p99": 4.96,
    }
    assert lengths["contexts"]["mean"] == 4.0
    assert lengths["contexts_source"]["max"] == len("<p>가나다라</p>") == 11


def test_question_words_and_their_shares(root):
    found = analysed(root)["question_words"]
    assert found["questions"] == 4
    counts = {word: entry["count"] for word, entry in found["words"].items() if entry["count"]}
    assert counts == {"무엇": 1, "몇": 1, "언제": 1, "누구": 1}
    assert found["words"]["누구"]["share"] == 0.25
    assert found["none"] == {"count": 1, "share": 0.25}


def test_markup_of_the_answers_that_count(root):
    """Of the list the second answer counts, since the first has no text; upper and lower case are one element."""
    markup = analysed(root)["answer_markup"]
    assert (markup["count"], markup["share"]) == (3, 0.75)
    assert {name: n["count"] for name, n in markup["elements"].items()} == {"a": 1, "br": 1, "table": 1, "td": 1, "tr": 1}


def test_statistics_are_of_the_whole_dataset_however_it_is_cut():
    """The median of 1, 2, 3 | 4, 100 is 3; the medians of the parts, 2 and 52, would never give it."""
    articles = [article("c", ("왜?", "가" * length)) for length in (1, 2, 3, 4, 100)]
    loaded = [{**one, "paragraphs": [one["context"]]} for one in articles]
    whole, parts = eda.measure(loaded), eda.measure(loaded[:3])
    parts.add(eda.measure(loaded[3:]))
    assert parts == whole
    assert eda.length_statistics(parts.lengths["answers"])["median"] == 3


def test_worker_processes_give_the_same_measurements(root, monkeypatch):
    articles = load_entire_dataset(root, verbose=False)["articles"]
    monkeypatch.setattr(eda, "SMALL_JOB_CHARACTERS", 0)
    monkeypatch.setattr(eda, "ARTICLES_PER_TASK", 1)
    assert eda.measure_dataset(articles, num_workers=2, verbose=False) == eda.measure(articles)


def test_korquad_1_paragraphs_are_its_contexts(tmp_path):
    qa = {"id": "1", "question": "어디?", "answers": [{"text": "서울", "answer_start": 0}]}
    paragraphs = [{"context": "서울", "qas": [qa]}, {"context": "부산이다", "qas": [qa, qa]}]
    file = tmp_path / "v1.json"
    file.write_text(json.dumps({"version": "v1", "data": [{"title": "t", "paragraphs": paragraphs}]}), encoding="utf-8")
    analysis = analysed(file)
    assert (analysis["totals"]["articles"], analysis["totals"]["contexts"], analysis["totals"]["qa_pairs"]) == (1, 2, 3)
    assert analysis["lengths"]["contexts"]["mean"] == 3.0
    assert analysis["question_words"]["words"]["어디"]["count"] == 3
    assert analysis["answer_markup"]["count"] == 0


def test_no_lengths_give_no_numbers():
    statistics = eda.length_statistics([])
    assert statistics.pop("count") == 0
    assert set(statistics.values()) == {None}


def test_a_dataset_without_questions_is_an_error():
    dataset = {"files": ["f"], "versions": [""], "articles": [], "total_files": 1}
    with pytest.raises(DatasetError, match="hold no question"):
        eda.analyse(dataset, eda.Measurements())


# --- question words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("수도는 무엇인가?", {"무엇"}),
        ("그것은 뭐라고 하는가", {"무엇"}),
        ("무슨 일을 했나?", {"무엇"}),
        ("몇년도에 태어났나?", {"몇"}),
        ("며칠간 열렸는가?", {"몇"}),
        ("언제부터 언제까지 살았나?", {"언제"}),
        ("누가 누구에게 주었나?", {"누구"}),
        ("'누구'의 책인가?", {"누구"}),
        ("어디에서 열렸나?", {"어디"}),
        ("왜 떠났는가?", {"왜"}),
        ("그 까닭은 왜인가?", {"왜"}),
        ("어떻게 만들었나?", {"어떻게"}),
        ("어느나라 사람인가?", {"어느"}),
        ("어떠한 뜻인가?", {"어떤"}),
        ("높이는 얼마나 되는가?", {"얼마"}),
        ("누가 언제 어떤 배를 탔나?", {"누구", "언제", "어떤"}),
        # no question word, or one inside another word, or one that asks nothing
        ("이 책을 쓴 사람은?", set()),
        ("스튜어느틑 누구도 모르는 것은?", set()),
        ("역사 왜곡에 맞선 이는?", set()),
        ("언제나 볼 수 있는 것은?", set()),
        ("어디에도 없는 나라는?", set()),
        ("몇몇 주에서 쓰는 말은?", set()),
        ("누가복음을 쓴 사람은?", set()),
        ("어느새 사라진 것은?", set()),
        ("", set()),
    ],
)
def test_question_words_by_example(question, words):
    assert eda.find_question_words(question) == words
    assert eda.find_question_words(unicodedata.normalize("NFD", question)) == words


@pytest.mark.parametrize("entry", eda.QUESTION_WORDS, ids=lambda entry: entry.meaning)
def test_every_form_is_found(entry):
    assert all(entry.word in eda.find_question_words(f"그때 {form} 했나?") for form in entry.forms)


# --- markup ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "elements"),
    [("3 < 5 > 2", []), ("<나무>", []), ("<b", []), ("</td>", ["td"]), ("<h2 class='a'>x</h2><br/>", ["br", "h2"])],
)
def test_what_counts_as_markup(answer, elements):
    found = eda.measure([{"paragraphs": [], "qas": [{"question": "q", "answer": answer}]}])
    assert sorted(found.elements) == elements
    assert found.answers_with_markup == bool(elements)


@pytest.mark.parametrize("hostile", ["<", "<a", "</", "a<b ", "<a <"])
def test_search_for_tags_takes_linear_time(hostile):
    assert eda._TAG.findall(hostile * 200_000) == []
    assert eda._TAG.findall("<" + "a" * 1_000_000) == []


# --- tables ---------------------------------------------------------------------------------------------------


def test_tables_show_the_numbers(root, capsys):
    eda.print_analysis(analysed(root))
    printed = capsys.readouterr().out
    assert "answers without text      1" in printed
    assert "any markup        3  75.0 %" in printed
    assert "누구 (who)                1  25.0 %  누구 누가 누군 누굴" in printed


def test_columns_line_up_with_hangul(capsys):
    eda.print_table("T", ["", "n"], [["무엇", "1"], ["what", "10"]])
    # 무엇 takes four cells of a terminal, as what does
    assert capsys.readouterr().out == "\nT\n       n\n────  ──\n무엇   1\nwhat  10\n"


# --- figures --------------------------------------------------------------------------------------------------


@given(longest=st.integers(1, 10**6), logarithmic=st.booleans())
@settings(max_examples=60, deadline=None)
def test_histogram_bins_hold_whole_numbers_and_cover_all(longest, logarithmic):
    edges = eda.histogram_edges(longest, logarithmic)
    widths = np.diff(edges)
    assert edges[0] == 0.5
    assert edges[-1] > longest
    assert (widths >= 1).all()
    assert (np.diff(widths) >= -1).all() if logarithmic else len(set(widths)) == 1
    assert len(edges) <= 43


def test_figures_show_hangul(root, tmp_path):
    """A missing glyph is a warning of matplotlib: here an error."""
    assert eda.hangul_font() is not None, "no font with Hangul: pip install -r requirements.txt"
    dataset = load_entire_dataset(root, verbose=False)
    found = eda.measure(dataset["articles"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = eda.save_figures(eda.analyse(dataset, found), found, tmp_path)
    assert [path.name for path in paths] == ["lengths.png", "question_words.png", "answer_markup.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_without_a_font_the_figures_do_without_hangul(root, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(eda, "hangul_font", lambda: None)
    dataset = load_entire_dataset(root, verbose=False)
    found = eda.measure(dataset["articles"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eda.save_figures(eda.analyse(dataset, found), found, tmp_path)
    assert "pip install koreanize-matplotlib" in caplog.text


def test_a_font_without_hangul_is_not_taken():
    import matplotlib

    assert not eda._shows_hangul(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    assert not eda._shows_hangul(Path(__file__))


def test_length_axis_is_logarithmic_only_for_a_long_tail():
    found = eda.Measurements()
    found.lengths["questions"] = [20, 30, 40]
    found.lengths["answers"] = [5, 6, 5000]
    scales = [axes.get_xscale() for axes in eda.draw_lengths(found).axes]
    assert scales == ["linear", "log"]


# --- command line ---------------------------------------------------------------------------------------------


def test_main_writes_the_numbers_and_the_figures(root, tmp_path, capsys):
    output = tmp_path / "deep" / "reports"
    assert eda.main(["--dataset_root", str(root), "--workers", "1", "--output_dir", str(output)]) == 0
    names = {"korquad_analysis.json", "lengths.png", "question_words.png", "answer_markup.png"}
    assert {path.name for path in output.iterdir()} == names
    assert json.loads((output / "korquad_analysis.json").read_text(encoding="utf-8")) == analysed(root)
    assert "Length in characters" in capsys.readouterr().out


def test_default_is_the_sample_where_korquad_is_absent(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    assert eda._default_root() == str(eda.SAMPLE_DATASET_ROOT)
    assert "using the embedded sample" in caplog.text
    (tmp_path / "data" / "KorQuAD").mkdir(parents=True)
    assert eda._default_root() == eda.DEFAULT_DATASET_ROOT


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{", "line 1, column"), ('{"data": []}', "hold no question")],
)
def test_what_cannot_be_used_is_named(tmp_path, capsys, content, message):
    file = tmp_path / "f.json"
    if content is not None:
        file.write_text(content)
    assert eda.main(["--dataset_root", str(file), "--output_dir", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


def test_output_folder_that_is_a_file(root, tmp_path, capsys):
    file = tmp_path / "taken"
    file.touch()
    assert eda.main(["--dataset_root", str(root), "--output_dir", str(file)]) == 1
    assert "is a file: name a folder" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["eda/korquad_analysis.py"], ["-m", "eda.korquad_analysis"]])
def test_runs_from_the_repository_root(command, root, tmp_path):
    options = ["--dataset_root", str(root), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, *command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "question_words.png").is_file()
