"""eda/korquad_analysis.py on a dataset small enough to count by hand."""

import base64
import itertools
import json
import math
import os
import pickle
import random
import re
import subprocess
import sys
import unicodedata
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader import DatasetError, clean_html_text, get_all_json_files, load_json_file
from eda import collisions, counted, figures, measure, model_tokenizer, report, tables
from eda import korquad_analysis as eda
from eda.model_tokenizer import TokenizerSource

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


NO_TOKENIZER = TokenizerSource("m", None, "there is none")


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch):
    """Looking for the model takes a process that imports torch: only the tests of that do it."""
    monkeypatch.setattr(eda, "find_tokenizer", lambda name: NO_TOKENIZER)


def measured(root: Path, tokenizer: TokenizerSource = NO_TOKENIZER, workers: int = 1) -> tuple[dict, measure.Measurements]:
    return measure.measure_files(get_all_json_files(root), workers, tokenizer.file, verbose=False)


def analysed(root: Path, tokenizer: TokenizerSource = NO_TOKENIZER, max_seq_length: int = 256) -> dict:
    return eda.analyse(*measured(root, tokenizer), tokenizer, max_seq_length)


def of_pairs(*pairs: tuple[str, str], **more) -> measure.Measurements:
    qas = [{"question": question, "answer": answer} for question, answer in pairs]
    return measure.measure([{"paragraphs": [], "qas": qas, **more}])


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
    whole, parts = measure.measure(loaded), measure.measure(loaded[:3])
    parts.add(measure.measure(loaded[3:]))
    assert parts == whole
    assert eda.length_statistics(parts.lengths["answers"])["median"] == 3


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
    statistics = counted.length_statistics({})
    assert statistics.pop("count") == 0
    assert set(statistics.values()) == {None}


def test_a_dataset_without_questions_is_an_error():
    dataset = {"files": ["f"], "versions": [""], "total_files": 1}
    with pytest.raises(DatasetError, match="hold no question"):
        eda.analyse(dataset, measure.Measurements())


# --- files in workers -----------------------------------------------------------------------------------------


def test_worker_processes_give_the_same_measurements(root, monkeypatch, toy_tokenizer):
    monkeypatch.setattr(measure, "SMALL_JOB_BYTES", 0)
    assert measured(root, toy_tokenizer, workers=2) == measured(root, toy_tokenizer, workers=1)


def test_a_worker_sends_back_numbers_and_never_a_text(root):
    """Every text of the set holds a syllable that no question word, kind, element or file name has."""
    (one, _) = get_all_json_files(root)
    one.write_text(one.read_text("utf-8").replace("강", "뷁"), "utf-8")
    sent = pickle.dumps(measure.measure_file(one))
    assert "뷁".encode() not in sent
    assert len(sent) < 2500


def test_one_file_at_a_time_is_held(root, monkeypatch):
    """A file is loaded only when the one before was added up and let go."""
    held: weakref.WeakSet = weakref.WeakSet()
    most = []

    def load(file):
        loaded = _Loaded(load_json_file(file))
        held.add(loaded)
        most.append(len(held))
        return loaded

    monkeypatch.setattr(measure, "load_json_file", load)
    measure.measure_files(get_all_json_files(root), 1, verbose=False)
    assert most == [1, 1]


class _Loaded(dict):
    """A dict that can be referred to weakly."""

    __hash__ = object.__hash__


def test_broken_files_are_all_named_or_left_out(root, tmp_path, caplog):
    files = [*get_all_json_files(root), tmp_path / "gone.json", tmp_path / "torn.json"]
    files[3].write_text('{"data": [')
    with pytest.raises(
        DatasetError, match=r"2 of 4 files cannot be used:\n.*gone.json.*\n.*torn.json: line 1, column"
    ) as raised:
        measure.measure_files(files, 1, verbose=False)
    assert "--skip_bad_files" in str(raised.value)
    dataset, found = measure.measure_files(files, 1, skip_bad_files=True, verbose=False)
    assert (dataset["total_files"], len(dataset["skipped"]), found.qa_pairs) == (2, 2, 4)
    assert "torn.json" in caplog.text
    with pytest.raises(DatasetError, match="Nothing could be read"):
        measure.measure_files(files[2:], 1, skip_bad_files=True, verbose=False)


def test_a_worker_that_dies_is_an_error_that_says_what_to_do(root, monkeypatch):
    monkeypatch.setattr(measure, "SMALL_JOB_BYTES", 0)
    monkeypatch.setattr(measure, "measure_file", _die)
    with pytest.raises(RuntimeError, match=r"2 of 2 files were left\. Use fewer --workers"):
        measure.measure_files(get_all_json_files(root), 2, verbose=False)


def _die(*_):
    os._exit(3)


# --- counted lengths ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.lists(st.floats(0, 100), min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_percentiles_of_counted_lengths_are_those_of_the_listed_ones(lengths, percents):
    assert counted.percentiles(Counter(lengths), percents) == pytest.approx(np.percentile(lengths, percents).tolist())


def test_truncation_counts_texts_and_tokens():
    """Of 10, 20, 20 and 50 tokens, at 20 one text loses 30 of 100."""
    found = counted.truncation({10: 1, 20: 2, 50: 1}, limit=20)
    assert found == {"count": 1, "share": 0.25, "tokens_cut_share": 0.3}


# --- kinds of answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("한강", "word"),
        ("1945년 8월 15일", "word"),
        ("2018.5 ~ 2018.", "word"),
        ("액체 바다", "word"),
        ("<td>332cm</td>", "word"),
        ("<li><a>인제대학교</a> 상계백병원</li>", "word"),
        ("상(祥)<br/>휴(休)", "word"),
        ("<b>센터백</b>은 상당한 집중력을 요하는 포지션이다.", "sentence"),
        ("시즌이 끝난 뒤에 은퇴했다", "sentence"),
        ('그는 "그래도 지구는 돈다."', "sentence"),
        ("<td>그는 시즌이 끝난 뒤에 은퇴했다.</td>", "sentence"),
        ("IDS는 그것을 평가한다. IDS는 또한 감시한다.", "paragraph"),
        ("<p>짧다</p>", "paragraph"),
        ("<p>두 가지가 있다.</p><ul><li>하나</li><li>둘</li></ul>", "paragraph"),
        ("<h3>역사</h3><p>길다.</p>", "paragraph"),
        ("<TABLE><tr><td><ul><li>하나</li></ul></td></tr></TABLE>", "table"),
        ("<td>하나</td><td>둘</td>", "table"),
        ("<ul><li><p>하나</p></li></ul>", "list"),
        ("<dd>하나</dd>\n<dd>둘</dd>", "list"),
        ("<a>하나</a></dd>\n<dd>둘</dd>", "word"),
    ],
)
def test_kinds_by_example(source, kind):
    for text in (source, unicodedata.normalize("NFD", source)):
        assert measure.answer_kind(text, clean_html_text(text)) == kind


def test_every_answer_with_text_is_of_one_kind(root):
    """한강, 1394년 and a table; <br> has no text."""
    kinds = analysed(root)["answer_kinds"]
    assert kinds["answers"] == 3
    assert {name: n["count"] for name, n in kinds["kinds"].items() if n["count"]} == {"word": 2, "table": 1}
    assert sum(n["share"] for n in kinds["kinds"].values()) == pytest.approx(1, abs=1e-5)


# --- duplicates -----------------------------------------------------------------------------------------------


def test_duplicates_disregard_case_space_marks_and_unicode_form():
    found = of_pairs(
        ("누구?", "1945년"),
        ("누구", unicodedata.normalize("NFD", "1945 년")),  # the same question and answer as the first
        ("누가?", "1945년."),
        ("왜?", "U.N."),
        ("왜요?", "un"),
        ("어디?", "..."),
        ("언제?", "?"),  # nothing but marks: these differ
        ("", "1945년"),  # no pair
        ("무엇?", ""),
    )
    duplicates = {name: counted.occurrence_statistics(found.occurrences(name)) for name in measure.HASHED}
    assert {name: (n["texts"], n["distinct"], n["repeated"]["count"]) for name, n in duplicates.items()} == {
        "questions": (7, 6, 2),
        "answers": (7, 4, 5),
        "answers_as_written": (7, 7, 0),
        "pairs": (7, 6, 2),
    }
    assert duplicates["answers"]["most_frequent"] == 3
    assert {times: n["count"] for times, n in duplicates["answers"]["by_occurrences"].items() if n["count"]} == {
        "1": 2,
        "2": 2,
        "3–5": 3,
    }


# --- collisions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("occurrences", [[3, 1, 1], [2, 2, 2, 1], [5], [1] * 7, [4, 3, 2, 1], [1, 1], [1]])
def test_collisions_agree_with_every_possible_batch(occurrences):
    answers = [answer for answer, times in enumerate(occurrences) for _ in range(times)]
    for size in range(1, len(answers) + 1):
        batches = list(itertools.combinations(answers, size))
        chance = sum(len(set(batch)) < size for batch in batches) / len(batches)
        hit = sum(batch.count(answer) > 1 for batch in batches for answer in batch) / len(batches) / size
        assert collisions.collision_chance(occurrences, size) == pytest.approx(chance, abs=1e-9)
        assert collisions.row_collision_share(occurrences, size) == pytest.approx(hit, abs=1e-9)
    assert collisions.same_answer_chance(occurrences) == pytest.approx(
        collisions.collision_chance(occurrences, 2) if len(answers) > 1 else 0, abs=1e-9
    )


@given(st.lists(st.integers(1, 6), min_size=2, max_size=7), st.data())
@settings(max_examples=40, deadline=None)
def test_collisions_agree_with_exact_fractions(occurrences, data):
    """Batches without a collision, counted in whole numbers as the coefficient of x^B in Π (1 + n x)."""
    size = data.draw(st.integers(1, sum(occurrences)))
    ways = [1]
    for n in occurrences:
        ways = [a + n * b for a, b in zip([*ways, 0], [0, *ways], strict=True)]
    different = ways[size] if size < len(ways) else 0
    expected = 1 - different / math.comb(sum(occurrences), size)
    assert collisions.collision_chance(occurrences, size) == pytest.approx(expected, abs=1e-9)


def test_collisions_of_a_large_set_agree_with_the_guide():
    """docs/ADVANCED.md gives short formulas: its own code is run here, on years and names that occur once."""
    text = (ROOT / "docs" / "ADVANCED.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    guide: dict = {}
    exec(next(block for block in blocks if "def batch_collision_chance" in block), guide)
    occurrences = list(Counter(guide["keys"]).values())
    assert collisions.same_answer_chance(occurrences) == pytest.approx(guide["same"])
    for size in (16, 64):
        assert collisions.collision_chance(occurrences, size) == pytest.approx(
            guide["batch_collision_chance"](guide["same"], size), abs=0.02
        )
    exec(next(block for block in blocks if "def answer_key" in block).split("def false_negative_mask")[0], guide)
    for answer in ("1945 년", "Ｕ.Ｎ.", "...", "서울-부산", unicodedata.normalize("NFD", "한강")):
        assert measure.text_key(answer) == guide["answer_key"](answer)


def test_collisions_agree_with_random_batches():
    generator = random.Random(0)
    occurrences = [1] * 300 + [2] * 40 + [12, 20]
    answers = [answer for answer, times in enumerate(occurrences) for _ in range(times)]
    trials = [generator.sample(answers, 16) for _ in range(4000)]
    chance = sum(len(set(batch)) < 16 for batch in trials) / len(trials)
    assert collisions.collision_chance(occurrences, 16) == pytest.approx(chance, abs=0.03)


@pytest.mark.parametrize("size", [2, 16, 1024, 50_000, 60_000])
def test_collisions_hold_at_full_size(size):
    """60,000 answers: certain beyond as many, never less for a larger batch, and no overflow on the way."""
    occurrences = np.concatenate([np.ones(50_000, int), np.arange(1, 10_000) % 40 + 1])
    chance, larger = (collisions.collision_chance(occurrences, n) for n in (size, size + 1))
    assert 0 <= chance <= larger + 1e-9 <= 1 + 2e-9
    assert (larger == 1) == (size >= 1024)


@pytest.mark.parametrize("size", [0, 4])
def test_a_batch_that_the_pairs_cannot_fill_is_refused(size):
    with pytest.raises(ValueError, match="give 1 to 3, the number of pairs"):
        collisions.collision_chance([2, 1], size)
    with pytest.raises(ValueError, match="give 1 to 3"):
        collisions.row_collision_share([2, 1], size)


def test_batches_larger_than_the_dataset_have_no_numbers(root):
    """Three pairs have both texts; 16 are asked for."""
    found = analysed(root)["collisions"]
    assert (found["pairs"], found["same_answer_chance"], list(found["batches"])) == (3, 0.0, ["16", "64", "256", "1024"])
    assert set(found["batches"]["16"].values()) == {None}


def test_collision_numbers_of_seventeen_pairs():
    """One answer twice among 17: a batch of 16 leaves out one pair, and holds both copies unless it is one of these."""
    found = of_pairs(*((f"왜 {i}?", f"답{max(i, 1)}") for i in range(17)))
    dataset = {"files": ["f"], "versions": [], "total_files": 1}
    numbers = eda.analyse(dataset, found)["collisions"]
    assert numbers["batches"]["16"]["chance"] == pytest.approx(15 / 17)
    assert numbers["batches"]["16"]["same_answer_pairs"] == pytest.approx(15 / 17)
    assert numbers["batches"]["16"]["rows_hit_share"] == pytest.approx(2 * 15 / 17 / 16)
    assert numbers["same_to_the_letter"] == 1.0
    assert numbers["batches"]["64"]["chance"] is None


# --- tokens ---------------------------------------------------------------------------------------------------


@pytest.fixture
def toy_tokenizer(toy_model_dir: Path) -> TokenizerSource:
    """One token a character, [CLS] before and [SEP] behind."""
    found = model_tokenizer.locate_tokenizer(str(toy_model_dir))
    assert found.file is not None, found.note
    return found


def test_tokens_are_those_that_the_model_reads(root, toy_tokenizer):
    """Questions of 9, 8, 5 and 10 characters after "query: "; answers of 2, 5 and 3 after "passage: "."""
    found = analysed(root, toy_tokenizer, max_seq_length=17)["tokens"]
    questions, answers = found["texts"]["questions"], found["texts"]["answers"]
    assert (questions["count"], questions["min"], questions["max"]) == (4, 5 + 9, 10 + 9)
    assert questions["truncated"] == {"count": 2, "share": 0.5, "tokens_cut_share": round(3 / 68, 6)}
    assert (answers["min"], answers["max"], answers["truncated"]["count"]) == (2 + 11, 5 + 11, 0)
    assert found["texts"]["paragraphs"]["count"] == 0  # pages are cut to windows
    assert found["max_seq_length"] == 17


def test_tokens_of_korquad_1_paragraphs(tmp_path, toy_tokenizer):
    paragraph = {
        "context": "서울" * 300,
        "qas": [{"id": "1", "question": "어디?", "answers": [{"text": "서울", "answer_start": 0}]}],
    }
    file = tmp_path / "v1.json"
    file.write_text(json.dumps({"version": "v1", "data": [{"title": "t", "paragraphs": [paragraph]}]}), encoding="utf-8")
    paragraphs = analysed(file, toy_tokenizer, max_seq_length=256)["tokens"]["texts"]["paragraphs"]
    assert (paragraphs["max"], paragraphs["truncated"]["count"]) == (600 + 11, 1)


def test_the_tokenizer_counts_uncut_and_unpadded_texts(toy_tokenizer, tmp_path):
    """A tokenizer.json may carry the truncation and padding it was saved with."""
    tokenizer = model_tokenizer.load_tokenizer(toy_tokenizer.file)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    model_tokenizer.load_tokenizer.cache_clear()
    again = model_tokenizer.load_tokenizer(str(file))
    assert list(model_tokenizer.token_lengths(again, ["가", "가" * 100] * 600)) == [3, 102] * 600


def test_a_model_that_cannot_be_found_leaves_the_tokens_out(root, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(eda, "find_tokenizer", model_tokenizer.locate_tokenizer)
    options = ["--dataset_root", str(root), "--output_dir", str(tmp_path / "out"), "--model_name", "nobody/no-such-model"]
    assert eda.main(options) == 0
    assert "lengths in tokens are left out: No source has 'nobody/no-such-model'" in caplog.text
    assert "left out, no tokenizer: No source has" in capsys.readouterr().out
    assert "No source has" in (tmp_path / "out" / "korquad_analysis.html").read_text("utf-8")


@pytest.mark.parametrize(("content", "message"), [(None, "tokenizer.json"), ("{", "cannot be read")])
def test_a_folder_whose_tokenizer_is_of_no_use(tmp_path, content, message):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    found = model_tokenizer.locate_tokenizer(str(tmp_path))
    assert found.file is None
    assert message in found.note


def test_the_tokenizer_is_found_in_a_process_of_its_own(toy_model_dir, toy_tokenizer):
    assert model_tokenizer.find_tokenizer(str(toy_model_dir)) == toy_tokenizer


# --- the report -----------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """What a page asks for, shows and leaves open."""

    def __init__(self, page: str):
        super().__init__()
        self.sources: list[str] = []
        self.text, self.open = "", [""]
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "action") and value]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(root, toy_tokenizer) -> Iterator[_Page]:
    dataset, found = measured(root, toy_tokenizer)
    analysis = eda.analyse({**dataset, "files": ["<b>가.json"]}, found, toy_tokenizer)
    yield _Page(report.build_report(analysis, figures.render_figures(analysis, found)))


def test_report_needs_nothing_but_itself(page):
    embedded = [source for source in page.sources if not source.startswith("#")]
    assert len(embedded) == len(FIGURES) + 1  # the tokens
    for source in embedded:
        kind, content = source.split(",")
        assert kind == "data:image/svg+xml;base64"
        assert not re.search(rb"<text|(?:href|src)=\"(?!#)", base64.b64decode(content))  # text is drawn, nothing is fetched
    assert page.open == [""]


def test_report_shows_the_tables_and_escapes_what_it_shows(page):
    for shown in ("누구 (who)", "Duplicates", "max_seq_length 256", "<b>가.json", "begins with a list (<ul>"):
        assert shown in page.text


def test_same_numbers_give_the_same_report(root):
    dataset, found = measured(root)
    analysis = eda.analyse(dataset, found)
    first, second = (report.build_report(analysis, figures.render_figures(analysis, found)) for _ in range(2))
    assert first == second


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
    assert measure.find_question_words(question) == words
    assert measure.find_question_words(unicodedata.normalize("NFD", question)) == words


@pytest.mark.parametrize("entry", measure.QUESTION_WORDS, ids=lambda entry: entry.meaning)
def test_every_form_is_found(entry):
    assert all(entry.word in measure.find_question_words(f"그때 {form} 했나?") for form in entry.forms)


# --- markup ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "elements"),
    [("3 < 5 > 2", []), ("<나무>", []), ("<b", []), ("</td>", ["td"]), ("<h2 class='a'>x</h2><br/>", ["br", "h2"])],
)
def test_what_counts_as_markup(answer, elements):
    found = of_pairs(("q", answer))
    assert sorted(found.elements) == elements
    assert found.answers_with_markup == bool(elements)


@pytest.mark.parametrize("hostile", ["<", "<a", "</", "a<b ", "<a <"])
def test_search_for_tags_takes_linear_time(hostile):
    assert measure._TAG.findall(hostile * 200_000) == []
    assert measure._TAG.findall("<" + "a" * 1_000_000) == []


@pytest.mark.parametrize("hostile", ["가.", "가. ", "가)", "가.)", ".", "다", ") ", "<td>", "</li><li>"])
def test_kinds_are_told_apart_in_linear_time(hostile):
    assert measure.answer_kind(hostile * 100_000, hostile * 100_000 + "\n") in measure.ANSWER_KINDS


# --- tables ---------------------------------------------------------------------------------------------------


def test_tables_show_the_numbers(root, capsys):
    eda.print_analysis(analysed(root))
    printed = capsys.readouterr().out
    assert "answers without text      1" in printed
    assert "any markup        3  75.0 %" in printed
    assert "누구 (who)                1  25.0 %  누구 누가 누군 누굴" in printed


def test_columns_line_up_with_hangul(capsys):
    tables.print_table("T", ["", "n"], [["무엇", "1"], ["what", "10"]])
    # 무엇 takes four cells of a terminal, as what does
    assert capsys.readouterr().out == "\nT\n       n\n────  ──\n무엇   1\nwhat  10\n"


# --- figures --------------------------------------------------------------------------------------------------


@given(longest=st.integers(1, 10**6), logarithmic=st.booleans())
@settings(max_examples=60, deadline=None)
def test_histogram_bins_hold_whole_numbers_and_cover_all(longest, logarithmic):
    edges = figures.histogram_edges(longest, logarithmic)
    widths = np.diff(edges)
    assert edges[0] == 0.5
    assert edges[-1] > longest
    assert (widths >= 1).all()
    assert (np.diff(widths) >= -1).all() if logarithmic else len(set(widths)) == 1
    assert len(edges) <= 43


# Without a tokenizer there is none of the tokens.
FIGURES = ["lengths", "answer_kinds", "duplicates", "collisions", "question_words", "answer_markup"]


def test_figures_show_hangul(root):
    """A missing glyph is a warning of matplotlib: here an error."""
    assert figures.hangul_font() is not None, "no font with Hangul: pip install -r requirements.txt"
    dataset, found = measured(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rendered = figures.render_figures(eda.analyse(dataset, found), found)
    assert list(rendered) == FIGURES
    assert all(figure["png"].startswith(b"\x89PNG") and b"<svg" in figure["svg"] for figure in rendered.values())


def test_without_a_font_the_figures_do_without_hangul(root, monkeypatch, caplog):
    monkeypatch.setattr(figures, "hangul_font", lambda: None)
    dataset, found = measured(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.render_figures(eda.analyse(dataset, found), found)
    assert "pip install koreanize-matplotlib" in caplog.text


def test_a_font_without_hangul_is_not_taken():
    import matplotlib

    assert not figures._shows_hangul(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    assert not figures._shows_hangul(Path(__file__))


def test_length_axis_is_logarithmic_only_for_a_long_tail():
    found = measure.Measurements()
    found.lengths["questions"] = Counter([20, 30, 40])
    found.lengths["answers"] = Counter([5, 6, 5000])
    scales = [axes.get_xscale() for axes in figures.draw_lengths(found).axes]
    assert scales == ["linear", "log"]


# --- command line ---------------------------------------------------------------------------------------------


def test_main_writes_the_numbers_and_the_figures(root, tmp_path, capsys):
    output = tmp_path / "deep" / "reports"
    assert eda.main(["--dataset_root", str(root), "--workers", "1", "--output_dir", str(output)]) == 0
    names = {"korquad_analysis.html", "korquad_analysis.json", *(f"{name}.png" for name in FIGURES)}
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


def test_an_output_folder_that_cannot_be_made_is_said_before_the_work(tmp_path, capsys):
    (tmp_path / "taken").touch()
    folder = tmp_path / "taken" / "deep"
    assert eda.main(["--dataset_root", "no/such", "--output_dir", str(folder)]) == 1
    said = f"Error: --output_dir {folder}: cannot be written to (Not a directory). Name another folder.\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("command", [["eda/korquad_analysis.py"], ["-m", "eda.korquad_analysis"]])
def test_runs_from_the_repository_root(command, root, tmp_path, toy_model_dir):
    options = ["--dataset_root", str(root), "--output_dir", str(tmp_path / "out"), "--model_name", str(toy_model_dir)]
    done = subprocess.run([sys.executable, *command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (
        json.loads((tmp_path / "out" / "korquad_analysis.json").read_text("utf-8"))["tokens"]["texts"]["questions"]["count"]
        == 4
    )
