"""Builds the sample: articles/*.yaml → two KorQuAD_2.1_train_NN folders in KorQuAD 2.1's layout.

    python data/sample/build_sample.py

Each page is written once in two versions: `raw_html` with the attributes of its tags and `context` without them, as
KorQuAD 2 has both. The writer notes where each character of an article lands in both, so answers are located while
the page is written and never searched for afterwards. The same articles give the same bytes.
"""

import html
import json
import re
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

HERE = Path(__file__).resolve().parent
FOLDERS = ("00", "01")
INFOBOX = "인포박스"
LINK = re.compile(r"\[\[([^\[\]]+)\]\]")
# MediaWiki keeps a number and its unit on one line.
BEFORE_UNIT = re.compile(r"(?<=\d) (?=[A-Za-z°%㎢])")


class ArticleError(ValueError):
    """An article that cannot be built; the message names file, title and question."""


class Mark(NamedTuple):
    """A place in both versions of a page, in characters."""

    context: int
    raw: int


class Span(NamedTuple):
    """From one place to another."""

    start: Mark
    end: Mark


class Link(NamedTuple):
    """A link: its characters in the plain text, and the span of the whole element with its tags."""

    start: int
    end: int
    element: Span


@dataclass
class Text:
    """A written piece of text: its plain characters and where each begins and ends."""

    plain: str = ""
    begins: list[Mark] = field(default_factory=list)
    ends: list[Mark] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    def span(self, start: int, end: int) -> Span:
        """The span of plain[start:end]; a link that lies wholly inside comes with its tags.

        Raises:
            ArticleError: If one end lies inside a link and the other outside of it: half an element is no fragment.
        """
        first, last = self.begins[start], self.ends[end - 1]
        for link in self.links:
            if start <= link.start and link.end <= end:
                first = link.element.start if start == link.start else first
                last = link.element.end if end == link.end else last
            elif (link.start < start < link.end or link.start < end < link.end) and not (
                link.start <= start and end <= link.end
            ):
                raise ArticleError(f"the answer cuts through the link [[{self.plain[link.start : link.end]}]]")
        return Span(first, last)


class PageWriter:
    """Writes both versions of a page at once: `context` is `raw` without the attributes of its tags."""

    def __init__(self) -> None:
        self.context = ""
        self.raw = ""

    def mark(self) -> Mark:
        return Mark(len(self.context), len(self.raw))

    def put(self, markup: str) -> None:
        """Markup that is the same in both versions."""
        self.context += markup
        self.raw += markup

    def open(self, tag: str, attributes: str = "") -> None:
        """A start tag; `attributes` as they stand in HTML."""
        self.context += f"<{tag}>"
        self.raw += f"<{tag} {attributes}>" if attributes else f"<{tag}>"

    def element(self, tag: str, text: str, attributes: str = "") -> Text:
        """An element that holds one text with [[links]]."""
        self.open(tag, attributes)
        written = self.text(text)
        self.put(f"</{tag}>")
        return written

    def text(self, source: str) -> Text:
        """Text with [[links]], escaped; its characters and links are noted."""
        written = Text()
        for index, part in enumerate(LINK.split(source)):
            if index % 2:
                self._link(part, written)
            else:
                self._characters(part, written)
        return written

    def _link(self, target: str, written: Text) -> None:
        before, start = self.mark(), len(written.plain)
        self.open("a", f'href="/wiki/{quote(target.replace(" ", "_"))}" title="{html.escape(target)}"')
        self._characters(target, written)
        self.put("</a>")
        written.links.append(Link(start, len(written.plain), Span(before, self.mark())))

    def _characters(self, text: str, written: Text) -> None:
        hard_spaces = {match.start() for match in BEFORE_UNIT.finditer(text)}
        for index, character in enumerate(text):
            written.begins.append(self.mark())
            self.put("&nbsp;" if index in hard_spaces else html.escape(character, quote=False))
            written.ends.append(self.mark())
        written.plain += text


@dataclass
class Page:
    """A written page and where its parts are, by the heading of their section."""

    writer: PageWriter
    texts: dict[str, list[Text]]
    lists: dict[str, Span]
    table: Span

    def locate(self, question: dict[str, str]) -> Span:
        """Where a question's answer is: the infobox, a section's list, or the first occurrence of its text.

        Raises:
            ArticleError: If it is nowhere.
        """
        if question["kind"] == "table":
            return self.table
        section = question["in"]
        if question["kind"] == "list":
            if section not in self.lists:
                raise ArticleError(f"the section {section!r} has no list")
            return self.lists[section]
        for text in self.texts.get(section, []):
            if (at := text.plain.find(question["answer"])) >= 0:
                return text.span(at, at + len(question["answer"]))
        raise ArticleError(f"the answer {question['answer']!r} is not in the section {section!r}")


def write_page(article: dict[str, Any]) -> Page:
    """The page of one article, as MediaWiki frames it."""
    writer = PageWriter()
    title = article["title"]
    _write_head(writer, title)
    table, cells = _write_infobox(writer, title, article["infobox"])
    page = Page(writer, {INFOBOX: cells}, {}, table)
    for index, section in enumerate(article["sections"]):
        if index:  # the first is the lead, which has no heading
            _write_heading(writer, section["heading"])
        lines = [line.strip() for line in section["text"].splitlines() if line.strip()]
        texts = [writer.element("p", line) for line in lines]
        if items := section.get("list"):
            start = writer.mark()
            writer.open("ul")
            texts += [writer.element("li", str(item)) for item in items]
            writer.put("</ul>")
            page.lists[section["heading"]] = Span(start, writer.mark())
        page.texts[section["heading"]] = texts
    _write_foot(writer, title)
    return page


def _write_head(writer: PageWriter, title: str) -> None:
    writer.put("<!DOCTYPE html>\n")
    writer.open("html", 'class="client-nojs" lang="ko" dir="ltr"')
    writer.put("<head>")
    writer.open("meta", 'charset="UTF-8"')
    writer.element("title", f"{title} - 표본 백과")
    writer.put('<script>document.documentElement.className="client-js";if(0<1&&1>0){RLCONF={"wgAction":"view"};}</script>')
    writer.put("<style>.infobox{float:right}.infobox>tbody th{text-align:left}</style></head>\n")
    writer.open("body", 'class="mediawiki ltr ns-0 ns-subject"')
    writer.element("h1", title, 'id="firstHeading" class="firstHeading" lang="ko"')
    writer.open("div", 'id="mw-content-text" lang="ko" dir="ltr" class="mw-content-ltr"')
    writer.open("div", 'class="mw-parser-output"')


def _write_infobox(writer: PageWriter, title: str, rows: dict[str, str]) -> tuple[Span, list[Text]]:
    """The table's span and the texts of its value cells."""
    start = writer.mark()
    writer.open("table", 'class="infobox" style="width:22em"')
    writer.put("<tbody><tr>")
    writer.element("th", title, 'colspan="2" class="fn"')
    writer.put("</tr>\n")
    cells = []
    for name, value in rows.items():
        writer.put("<tr>")
        writer.element("th", str(name), 'scope="row"')
        cells.append(writer.element("td", str(value)))
        writer.put("</tr>\n")
    writer.put("</tbody></table>")
    return Span(start, writer.mark()), cells


def _write_heading(writer: PageWriter, heading: str) -> None:
    writer.put("\n<h2>")
    writer.element("span", heading, f'class="mw-headline" id="{html.escape(heading.replace(" ", "_"))}"')
    writer.open("span", 'class="mw-editsection"')
    writer.put("[")
    writer.element("a", "편집", f'href="/w/index.php?action=edit" title="부분 편집: {html.escape(heading)}"')
    writer.put("]</span></h2>\n")


def _write_foot(writer: PageWriter, title: str) -> None:
    writer.put("\n<!-- parser report: <p>not part of the page</p> -->\n</div></div>\n")
    writer.open("div", 'id="footer" role="contentinfo"')
    writer.element("p", f"이 문서는 {title}에 관한 표본이다. 내용 & 꾸밈은 시험용이다.")
    writer.put("</div></body></html>\n")


def build_entry(article: dict[str, Any], ids: "count[int]") -> dict[str, Any]:
    """One article in KorQuAD 2.1's layout.

    Raises:
        ArticleError: If an answer is not where the article says, naming the question.
    """
    page = write_page(article)
    context, raw = page.writer.context, page.writer.raw
    qas = []
    for question in article["questions"]:
        try:
            start, end = page.locate(question)
        except (ArticleError, KeyError) as error:
            reason = f"the key {error} is missing" if isinstance(error, KeyError) else error
            raise ArticleError(f"{article['title']}: {question.get('question')!r}: {reason}") from error
        answer = {
            "text": context[start.context : end.context],
            "answer_start": start.context,
            "html_answer_text": raw[start.raw : end.raw],
            "html_answer_start": start.raw,
        }
        qas.append({"id": f"s{next(ids):05d}", "question": question["question"], "answer": answer})
    url = f"https://example.org/wiki/{quote(article['title'].replace(' ', '_'))}"
    return {"title": article["title"], "url": url, "context": context, "raw_html": raw, "qas": qas}


def load_articles(folder: Path = HERE / "articles") -> list[tuple[Path, dict[str, Any]]]:
    """(file, article) of every YAML file in `folder`, in the order of names and places.

    Raises:
        ArticleError: If a title occurs twice.
    """
    articles: list[tuple[Path, dict[str, Any]]] = []
    seen: dict[str, Path] = {}
    for file in sorted(folder.glob("*.yaml")):
        for article in yaml.safe_load(file.read_text(encoding="utf-8")):
            if (title := article["title"]) in seen:
                raise ArticleError(f"{file}: {title} is in {seen[title].name} too; remove or rename one")
            seen[title] = file
            articles.append((file, article))
    return articles


def build(out: Path = HERE) -> list[Path]:
    """Write the sample's two folders under `out`; the articles go to them in turn.

    Raises:
        ArticleError: If an article cannot be built.
    """
    ids = count(1)
    entries = []
    for file, article in load_articles():
        try:
            entries.append(build_entry(article, ids))
        except ArticleError as error:
            raise ArticleError(f"{file}: {error}") from error
    files = []
    for index, number in enumerate(FOLDERS):
        file = out / f"KorQuAD_2.1_train_{number}" / f"korquad2.1_train_{number}.json"
        content = {"version": f"KorQuAD_2.1_train_{number}", "data": entries[index :: len(FOLDERS)]}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
        files.append(file)
    return files


if __name__ == "__main__":
    for built in build():
        data = json.loads(built.read_text(encoding="utf-8"))["data"]
        pairs = sum(len(entry["qas"]) for entry in data)
        print(f"{built.relative_to(HERE)}: {len(data)} articles, {pairs} questions, {built.stat().st_size:,} bytes")
