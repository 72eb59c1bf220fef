"""The table of two models, and one question at a time."""

import threading
import time
from typing import Any

import pytest

from search.compare import Comparison, best_window, print_comparison


def result(rank: int, passage: str, **more: Any) -> dict[str, Any]:
    return {"rank": rank, "passage": passage, "score": 0.9 - rank / 10, "id": str(rank), **more}


def test_each_side_is_its_own_model() -> None:
    class Model:
        def __init__(self, name: str) -> None:
            self.name = name

        def search(self, query: str, *, top_k: int) -> list[dict[str, Any]]:
            return [{"passage": f"{self.name} {query} {top_k}"}]

    assert Comparison(Model("b"), Model("t")).ask("q", 3) == {
        "query": "q",
        "base": [{"passage": "b q 3"}],
        "tuned": [{"passage": "t q 3"}],
    }


def test_threads_ask_one_after_another() -> None:
    class Model:
        inside = most = 0

        def search(self, query: str, *, top_k: int) -> list[dict[str, Any]]:
            Model.inside += 1
            Model.most = max(Model.most, Model.inside)
            time.sleep(0.005)
            Model.inside -= 1
            return []

    comparison = Comparison(Model(), Model())
    threads = [threading.Thread(target=comparison.ask, args=("q", 1)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Model.most == 1


def test_the_table_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    # 47 columns: 22 for each side, 11 of them rank and score, so that 11 are left: five syllables, or eleven letters.
    answer = {"query": "q?", "base": [result(1, "가나다라마바"), result(2, "b")], "tuned": [result(1, "abcdefghijk")]}
    print_comparison(answer, 47)
    assert capsys.readouterr().out.splitlines() == [
        "q?",
        "base" + " " * 19 + "│ tuned",
        " 1  0.800  가나다라마  │  1  0.800  abcdefghijk",
        "           바" + " " * 10 + "│",
        " 2  0.700  b" + " " * 11 + "│",
    ]


def test_what_the_table_leaves_out_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    # 44 letters are four full lines of 11: three are shown, the last letter gives way to the mark.
    for text, last in (("a" * 33, "a" * 11), ("a" * 34, "a" * 10 + "…"), ("가" * 16, "가" * 5 + "…")):
        print_comparison({"query": "q", "base": [result(1, text)], "tuned": []}, 47)
        lines = capsys.readouterr().out.splitlines()[2:]
        assert len(lines) == 3 and lines[-1].split("│")[0].strip() == last


def test_decomposed_hangul_and_line_breaks_keep_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    decomposed = "\u1112\u1161\u11ab\n글"  # 한, as macOS writes it
    print_comparison({"query": "q", "base": [result(1, decomposed)], "tuned": []}, 47)
    assert capsys.readouterr().out.splitlines()[2] == " 1  0.800  한 글       │"


def test_a_long_passage_is_shown_by_its_best_window() -> None:
    assert best_window(result(1, "abcdef", span=(2, 4))) == "…cd…"
    assert best_window(result(1, "abcdef", span=(0, 4))) == "abcd…"
    assert best_window(result(1, "abcdef", span=(2, 6))) == "…cdef"
    assert best_window(result(1, "abcdef")) == "abcdef"
