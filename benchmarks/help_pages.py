"""Korean help pages → a retrieval set in BEIR's layout: which section stands under which heading?

    apt-get download libreoffice-help-ko && dpkg -x libreoffice-help-ko_*.deb FOLDER          # a package of Debian's
    cd FOLDER/usr/share/libreoffice/help/ko/text
    python …/benchmarks/help_pages.py scalc simpress sdraw smath --out help_validation             # to choose settings by
    python …/benchmarks/help_pages.py swriter shared sbasic schart sdatabase --out help_held_out   # looked at afterwards
    python evaluate.py MODEL --data help_held_out --split test

Another kind of text than Wikipedia, and another kind of query than a question: what a model that was trained on KorQuAD has
lost shows here. A query is a heading with at least --least Hangul syllables, a document the text under it, without the
heading. Sections with equal headings are all relevant; sections that are not in Korean are left out. Nothing of the pages is
kept in this repository.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataloader import clean_html_text

_HEADING = re.compile(r"<h[1-4]\b[^>]*>(.*?)</h[1-4]>", re.DOTALL | re.IGNORECASE)
_LEAST_TEXT = 60  # characters of a section that says something
_LEAST_KOREAN = 0.3  # of a section's characters; Korean with its spaces and some terms has .5 to .7


def sections(page: str) -> list[tuple[str, str]]:
    """(heading, text under it) of a page."""
    parts = _HEADING.split(page)  # text, heading, text, heading, text …
    return [
        (" ".join(clean_html_text(heading).split()), " ".join(clean_html_text(text).split()))
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _hangul(text: str) -> int:
    return len(re.findall("[가-힣]", text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="help pages as .html")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--least", type=int, default=4, help="Hangul syllables of a heading")
    parser.add_argument("--characters", type=int, default=380, help="of a section; the rest is left out")
    options = parser.parse_args()
    texts: dict[str, set[str]] = {}  # heading → sections
    for file in sorted(file for folder in options.folders for file in folder.rglob("*.html")):
        for heading, text in sections(file.read_text(encoding="utf-8", errors="replace")):
            text = text[: options.characters]
            if len(text) < _LEAST_TEXT or _hangul(text) < _LEAST_KOREAN * len(text):
                continue
            if _hangul(heading) >= options.least:
                texts.setdefault(heading, set()).add(text)
    documents = {text: f"d{n}" for n, text in enumerate(sorted(set().union(*texts.values())))}
    options.out.joinpath("qrels").mkdir(parents=True, exist_ok=True)
    for name, rows in (
        ("queries", ((f"q{n}", heading) for n, heading in enumerate(texts))),
        ("corpus", ((name, text) for text, name in documents.items())),
    ):
        lines = (json.dumps({"_id": key, "text": text}, ensure_ascii=False) for key, text in rows)
        options.out.joinpath(f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    relevant = [f"q{n}\t{documents[text]}\t1" for n, found in enumerate(texts.values()) for text in sorted(found)]
    options.out.joinpath("qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *relevant]) + "\n", "utf-8")
    print(json.dumps({"queries": len(texts), "documents": len(documents), "relevant": len(relevant)}))


if __name__ == "__main__":
    main()
