"""Writes a dataset of KorQuAD 2.1's real shape and size from whatever KorQuAD JSON there is.

    python benchmarks/make_korquad21.py /tmp/kq --files 6                   # from the embedded sample: 6 × 134 MB
    python benchmarks/make_korquad21.py /tmp/kq --files 38 --source KorQuAD_v1.0_dev.json
    python benchmarks/make_korquad21.py /tmp/kq --files 6 --zip             # as published: archives

The published training set is 38 files of about 134 MB: some 950 pages each, 2.2 questions a page, every page twice, as
`context` (tags without attributes) and as `raw_html`. Each page written here is a source page between the bodies of
others, long enough for the real sizes; offsets of answers stay true. Questions repeat once the source has no new ones.
The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import html
import io
import random
import sys
import zipfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from config import SAMPLE_DATASET_ROOT
from dataloader import get_all_json_files, load_json_file

FILE_BYTES = 134_000_000
ARTICLE_BYTES = 141_000  # in UTF-8, both copies of the page: 5 GB over 36,000 articles
CONTEXT_SHARE = 0.3  # of an article's bytes; the rest is the copy with all attributes
QUESTIONS_A_PAGE = 2.2


class Body(NamedTuple):
    """What stands between <body> and </body>, in both versions."""

    context: str
    raw: str


class Page(NamedTuple):
    """A source page, cut where other pages' bodies may be put in: before, body, after; and its questions."""

    title: str
    before: Body
    body: Body
    after: Body
    qas: list[dict[str, Any]]


def read_pages(source: str | Path) -> list[Page]:
    """The pages with questions of KorQuAD files; raises what `load_json_file` raises, ValueError where there are none."""
    files = get_all_json_files(source)
    articles = [article for file in files for article in load_json_file(file, keep_raw_html=True)["articles"]]
    pages = [_page(article if article["context"] else _as_page(article)) for article in articles if article["qas"]]
    if not pages:
        raise ValueError(f"{source}: no article with questions to make pages of")
    return pages


def _page(article: dict[str, Any]) -> Page:
    context = _cut(article["context"])
    raw = _cut(article["raw_html"] or article["context"])
    before, body, after = (Body(*parts) for parts in zip(context, raw, strict=True))
    return Page(article["title"], before, body, after, article["qas"])


def _cut(page: str) -> tuple[str, str, str]:
    start = page.find("<body")
    start = page.find(">", start) + 1 if start >= 0 else 0
    end = page.rfind("</body>", start)
    end = end if end >= 0 else len(page)
    return page[:start], page[start:end], page[end:]


def _as_page(article: dict[str, Any]) -> dict[str, Any]:
    """An article of KorQuAD 1.0 as one page; its answers move along."""
    context, starts = "<!DOCTYPE html>\n<html><head></head><body>", {}
    for paragraph in article["paragraphs"]:
        starts[paragraph] = len(context) + len("<p>")
        context += f"<p>{html.escape(paragraph, quote=False)}</p>\n"
    qas = []
    for qa in article["qas"]:
        answer = qa["answer"][0] if isinstance(qa["answer"], list) else qa["answer"]
        start = starts[qa["context"]] + len(html.escape(qa["context"][: answer["answer_start"]], quote=False))
        qas.append(qa | {"answer": {"text": html.escape(answer["text"], quote=False), "answer_start": start}})
    return article | {"context": context + "</body></html>\n", "raw_html": "", "qas": qas}


def write_articles(pages: Sequence[Page], seed: int) -> Iterator[bytes]:
    """Articles as JSON, one after the other without end."""
    chance = random.Random(seed)
    ids, used = count(1), [0] * len(pages)
    for number in count():
        index = number % len(pages)
        page = pages[index]
        n_questions = int(QUESTIONS_A_PAGE) + (chance.random() < QUESTIONS_A_PAGE % 1)
        qas = [page.qas[(used[index] + i) % len(page.qas)] for i in range(min(n_questions, len(page.qas)))]
        used[index] += n_questions
        size = ARTICLE_BYTES * chance.lognormvariate(-0.18, 0.6)  # mean 1: some pages are many times the median
        yield msgspec.json.encode(_article(page, qas, pages, size, ids, chance))


def _article(
    page: Page, qas: list[dict], pages: Sequence[Page], size: float, ids: Iterator[int], chance: random.Random
) -> dict[str, Any]:
    context_left = size * CONTEXT_SHARE - len("".join([page.before.context, page.body.context]).encode())
    above: list[Body] = []
    below: list[Body] = []
    while context_left > 0:
        filler = chance.choice(pages).body
        (above if chance.random() < 0.5 else below).append(filler)
        context_left -= len(filler.context.encode())
    bodies = [*above, page.body, *below]
    raw = "".join([page.before.raw, *(body.raw for body in bodies)])
    links = _link(page.title) * max(
        0, int((size * (1 - CONTEXT_SHARE) - len(raw.encode())) / len(_link(page.title).encode()))
    )
    shift = sum(len(body.context) for body in above), sum(len(body.raw) for body in above)
    return {
        "title": page.title,
        "url": f"https://example.org/wiki/{quote(page.title)}",
        "context": "".join([page.before.context, *(body.context for body in bodies), page.after.context]),
        "raw_html": raw + links + page.after.raw,
        "qas": [_question(qa, shift, next(ids)) for qa in qas],
    }


def _link(title: str) -> str:
    """The attributes that make `raw_html` the larger copy."""
    attributes = f'href="/wiki/{quote(title)}" class="mw-redirect" title="{html.escape(title)}"'
    return f'<li class="navbox-list"><a {attributes}>{title}</a></li>\n'


def _question(qa: dict[str, Any], shift: tuple[int, int], number: int) -> dict[str, Any]:
    answer: dict[str, Any] = qa["answer"] if isinstance(qa["answer"], dict) else {"text": str(qa["answer"])}
    start = answer.get("answer_start")
    return {
        "question": qa["question"],
        "answer": {
            "text": answer["text"],
            "html_answer_text": answer.get("html_answer_text", answer["text"]),
            "answer_start": start + shift[0] if start is not None else -1,
            "html_answer_start": answer.get("html_answer_start", -1 - shift[1]) + shift[1],
        },
        "id": str(number),
    }


def make(
    out: Path, files: int, source: str | Path, file_bytes: int = FILE_BYTES, seed: int = 0, zipped: bool = False
) -> list[Path]:
    """Write `KorQuAD_2.1_train_NN/korquad2.1_train_NN.json` (or `KorQuAD_2.1_train_NN.zip`) under `out`."""
    articles = write_articles(read_pages(source), seed)
    written = []
    for number in tqdm(range(files), desc="Writing", unit="file", disable=files < 2):
        name = f"KorQuAD_2.1_train_{number:02}"
        member = f"korquad2.1_train_{number:02}.json"
        content = _file(name, articles, file_bytes)
        if zipped:
            written.append(out / f"{name}.zip")
            out.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(written[-1], "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                archive.writestr(member, content.getvalue())
        else:
            written.append(out / name / member)
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            written[-1].write_bytes(content.getvalue())
    return written


def _file(name: str, articles: Iterator[bytes], file_bytes: int) -> io.BytesIO:
    content = io.BytesIO()
    content.write(f'{{"version":"{name}","data":['.encode())
    separator = b""
    while content.tell() < file_bytes:
        content.write(separator + next(articles))
        separator = b","
    content.write(b"]}")
    return content


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Write a dataset of KorQuAD 2.1's real shape and size.", allow_abbrev=False)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--files", type=int, default=6, help="how many; published are 38 (default %(default)s)")
    parser.add_argument(
        "--source", default=SAMPLE_DATASET_ROOT, help="KorQuAD files to take texts from (default: the sample)"
    )
    parser.add_argument("--megabytes", type=float, default=FILE_BYTES / 1e6, help="of each file (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--zip", action="store_true", help="write archives instead of folders")
    options = parser.parse_args()
    for path in make(options.out, options.files, options.source, int(options.megabytes * 1e6), options.seed, options.zip):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
