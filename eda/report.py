"""The analysis as one HTML file that needs nothing else: tables, and figures embedded as SVG."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

from eda.figures import percent
from eda.tables import Table, make_tables, shown_versions

# Part of the analysis → heading, and what it is good for.
_SECTIONS = {
    "totals": ("Contents", ""),
    "lengths": ("Length in characters", "What a reader sees, after the markup is gone. Long tails have a logarithmic axis."),
    "tokens": (
        "Length in tokens",
        "What the model reads. It never sees what lies beyond <code>max_seq_length</code>; texts that are cut are red.",
    ),
    "answer_kinds": (
        "Kinds of answers",
        "Words and phrases teach the model types of answers; sentences, paragraphs, tables and lists teach it passages.",
    ),
    "duplicates": (
        "Duplicates",
        "Years, names and numbers are the answer of many questions. A question asked twice with the same answer teaches"
        " nothing new.",
    ),
    "collisions": (
        "In-batch collisions",
        "In a batch every other pair's answer counts as wrong. Where it is the same answer, that is a false negative.",
    ),
    "question_words": ("Question words", "What the questions ask for."),
    "answer_markup": ("Markup in the answers", "What cleaning has to deal with."),
}
_ALTERNATIVES = {
    "lengths": "Histograms of the lengths of questions, answers and contexts in characters",
    "tokens": "Histograms of the lengths in tokens, with max_seq_length",
    "answer_kinds": "Bars: the share of each kind of answer",
    "duplicates": "Bars: how often the same question and the same answer occur",
    "collisions": "Curve: the chance that a batch holds an answer twice, over its size",
    "question_words": "Bars: the share of questions with each question word",
    "answer_markup": "Bars: the share of answers with each HTML element",
}

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #22303c; --soft: #5c6b78; --line: #dde4ea; --accent: #3b6ea5; --paper: #fff; --ground: #f4f6f8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.6
    system-ui, "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR", "Noto Sans CJK KR", NanumGothic, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.soft, .notes { color: var(--soft); }
nav { margin: 1rem 0 1.5rem; font-size: .92rem; }
nav a { color: var(--accent); text-decoration: none; margin-right: 1.1rem; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.4rem 1.6rem; margin: 1.1rem 0; }
section li { margin: .3rem 0; max-width: 46rem; }
.short ul { margin: .4rem 0 0; padding-left: 1.2rem; }
img { display: block; max-width: 100%; height: auto; margin: .75rem 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--soft); border-bottom: 2px solid var(--line); vertical-align: bottom; }
th, td { padding: .32rem .6rem; text-align: right; white-space: nowrap; }
td { border-bottom: 1px solid var(--line); }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { padding-left: 0; }
th.left, td.left { text-align: left; white-space: normal; }
td:first-child { white-space: nowrap; }
.notes { font-size: .85rem; margin: .7rem 0 0; max-width: none; }
code { font-size: .92em; }
@media print { body { background: none; } section { break-inside: avoid; border: 0; padding: 0; } nav { display: none; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="soft">$subtitle</p>
<nav>$links</nav>
<section class="short"><h2>In short</h2>$summary</section>
$sections
</main>
</body>
</html>
""")


def build_report(analysis: dict[str, Any], rendered: Mapping[str, Mapping[str, bytes]]) -> str:
    """The whole page: `analysis` as sentences and tables, `rendered` the figures by the same names."""
    files = analysis["dataset"]["files"]
    named = files[0] if len(files) == 1 else f"{files[0]} … {files[-1]}"
    return _PAGE.substitute(
        title="What is in this KorQuAD dataset",
        subtitle=f"{len(files):,} file{'s' if len(files) > 1 else ''}, version {escape(shown_versions(analysis))}: "
        f"<code>{escape(named)}</code>",
        links=" ".join(f'<a href="#{name}">{heading}</a>' for name, (heading, _) in _SECTIONS.items()),
        summary="<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in summarise(analysis)) + "</ul>",
        sections="\n".join(
            _section(name, table, rendered.get(name, {}).get("svg")) for name, table in make_tables(analysis).items()
        ),
    )


def summarise(analysis: dict[str, Any]) -> list[str]:
    """What to know before training, a sentence each."""
    totals, lengths = analysis["totals"], analysis["lengths"]
    sentences = [f"{totals['articles']:,} articles hold {totals['qa_pairs']:,} questions."]
    if lengths["answers"]["count"]:
        answers, contexts = lengths["answers"], lengths["contexts"]
        sentences.append(
            f"Half of the answers have at most {answers['median']:,.0f} characters, one in twenty has"
            f" {answers['p95']:,.0f} or more; the median context has {contexts['median'] or 0:,.0f}."
        )
    kinds = sorted(analysis["answer_kinds"]["kinds"].items(), key=lambda item: -item[1]["count"])
    sentences.append(
        "Answers by kind: " + ", ".join(f"{name} {percent(n['share'])}" for name, n in kinds if n["count"]) + "."
    )
    sentences.append(_truncation_sentence(analysis["tokens"]))
    repeated = analysis["duplicates"]["answers"]["repeated"]["share"]
    asked_twice = analysis["duplicates"]["pairs"]
    sentences.append(
        f"{percent(repeated)} of the answers are the answer of another question too;"
        f" {asked_twice['texts'] - asked_twice['distinct']:,} pairs repeat one that is already there, question and answer."
    )
    chances = [(size, n["chance"]) for size, n in analysis["collisions"]["batches"].items() if n["chance"] is not None]
    if chances:
        listed = ", ".join(f"{percent(chance)} of batches of {size}" for size, chance in chances)
        sentences.append(f"The same answer stands twice in {listed}.")
    return sentences


def _truncation_sentence(tokens: dict[str, Any]) -> str:
    if "left_out" in tokens:
        return f"Lengths in tokens are left out, there is no tokenizer: {tokens['left_out']}"
    cut = {name: n["truncated"]["share"] for name, n in tokens["texts"].items() if n["count"]}
    shares = ", ".join(f"{percent(share)} of the {name}" for name, share in cut.items())
    return f"At max_seq_length {tokens['max_seq_length']} the model does not see the end of {shares or 'no text'}."


def _section(name: str, table: Table, figure: bytes | None) -> str:
    heading, purpose = _SECTIONS[name]
    parts = [f'<section id="{name}"><h2>{heading}</h2>']
    if purpose:
        parts.append(f'<p class="soft">{purpose}</p>')
    if figure is not None:
        source = base64.b64encode(figure).decode("ascii")
        parts.append(f'<img src="data:image/svg+xml;base64,{source}" alt="{escape(_ALTERNATIVES[name])}">')
    if table.rows:
        parts.append(_table(table))
    if table.notes:
        parts.append('<p class="notes">' + "<br>".join(map(escape, table.notes)) + "</p>")
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    def row(cells: list[str], element: str) -> str:
        sides = [' class="left"' if column in table.left else "" for column in range(len(cells))]
        marked = (f"<{element}{side}>{escape(cell)}</{element}>" for cell, side in zip(cells, sides, strict=True))
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f'<div class="scroll"><table><thead>{row(table.header, "th")}</thead>\n<tbody>{body}</tbody></table></div>'
