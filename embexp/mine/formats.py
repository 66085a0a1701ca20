"""Turns the bytes of one file into Markdown, by its ending. Called by `documents`; knows nothing of folders.

Files are only read: no address is fetched, no macro, script or plugin runs, nothing that a file refers to is opened.
HTML and office files go through markitdown's converters, called directly, so that the ending alone decides which.
"""

from __future__ import annotations

import codecs
import io
import logging
import re
import tomllib
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from embexp.mine.restructured import html_of
from embexp.mine.sections import headings

# those that knowledge bases are written in, tried in this order when several fit: a short text gives little to go by
ENCODINGS = ["cp1252", "cp1250", "cp1251", "koi8_r", "cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp1253", "cp1254",
             "cp1255", "cp1256", "iso8859_2"]  # fmt: skip
BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
FRONT_MATTER = re.compile(r"\A(---|\+\+\+)[ \t]*\n(.*?)\n(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
AS_WRITTEN = {"escape_asterisks": False, "escape_underscores": False}  # snake_case stays as it is read
HELD = "\ue000"  # around the number of something that is put back later; of no meaning in any text
UNPACKED = 2**30  # an office file that unpacks to more bytes is taken for a bomb
OLD_OFFICE = b"\xd0\xcf\x11\xe0"  # the container of .doc and .ppt, and of encrypted .docx and .pptx
NO_CONTENT = {"script", "style", "template", "nav", "footer", "button", "svg", "iframe"}
TITLES = {"h1", "h2", "h3", "h4", "h5", "h6", "dt", "th"}
LINES = {*TITLES, "ul", "ol", "table", "p", "dd", "div", "section", "article", "body"}


class Unreadable(Exception):
    """Why a file gives no text, in a few words."""


def decoded(data: bytes) -> str:
    """The text of a file: UTF-8, UTF-16 with its mark, else the likeliest of the common encodings."""
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            return data.removeprefix(mark if encoding == "utf-8" else b"").decode(encoding, errors="replace")
    if b"\0" in data[:65536]:
        raise Unreadable("binary")
    try:
        return data.decode()
    except UnicodeDecodeError:
        from charset_normalizer import from_bytes

    found = list(from_bytes(data, cp_isolation=ENCODINGS))
    if not found:
        raise Unreadable("neither UTF-8 nor another encoding that is known")

    def rank(match: Any) -> tuple[float, float, int]:
        named = min(ENCODINGS.index(name) for name in match.could_be_from_charset)
        return round(match.chaos, 1), -round(match.coherence, 1), named

    return str(min(found, key=rank))


def _markdown(data: bytes) -> str:
    """Markdown as it stands; front matter is left out, but its title stands for a heading that is missing."""
    text = cleaned(decoded(data))
    front = FRONT_MATTER.match(text)
    if front is None:
        return text
    return _titled(text[front.end() :].strip("\n"), _title(front[2], toml=front[1] == "+++"))


def _title(front_matter: str, *, toml: bool) -> str | None:
    import yaml

    try:
        fields = tomllib.loads(front_matter) if toml else yaml.safe_load(front_matter)
    except (tomllib.TOMLDecodeError, yaml.YAMLError):
        return None
    title = fields.get("title") if isinstance(fields, dict) else None
    return title if isinstance(title, str) else None


def _titled(text: str, title: str | None) -> str:
    """The text under the title that its file gives it, unless it opens with one of its own."""
    one_line = " ".join((title or "").split())
    found = headings(text)
    known = any(level == 1 for level, _ in found) or (found and found[0][1].lower() in one_line.lower())
    return text if known or not one_line else f"# {one_line}\n\n{text}"


def _html(data: bytes) -> str:
    try:
        return from_html(decoded(data) if data.startswith(tuple(BOMS)) else data.decode())
    except UnicodeDecodeError:
        from bs4 import UnicodeDammit

        logging.getLogger("bs4.dammit").setLevel(logging.ERROR)  # remarks about single characters
        return from_html(UnicodeDammit(data, is_html=True).unicode_markup or decoded(data))  # the page's own word


def from_html(page: str) -> str:
    """A page's main content as Markdown, without menus and scripts; links in prose become their words."""
    from bs4 import BeautifulSoup
    from markitdown.converters import HtmlConverter

    soup = BeautifulSoup(page.replace(HELD, ""), "html.parser")
    title = soup.title.get_text() if soup.title else None
    main = soup.find("main") or soup.find(attrs={"role": "main"}) or soup.find("body") or soup
    if not main.get_text(strip=True):
        main = soup.find("body") or soup
    for part in main.find_all(_has_no_content):
        part.decompose()
    for span in main.find_all("span", class_="literal"):  # docutils' word for code
        span.name = "code"
    for image in main.find_all("img"):
        image.replace_with(image.get("alt") or "")
    _unwrap_links(main)
    fenced = []  # code that holds a fence itself needs a longer one than the converter sets
    for code in main.find_all("pre"):
        if "```" in code.get_text():
            fenced.append(code.get_text().strip("\n"))
            code.replace_with(f"{HELD}{len(fenced) - 1}{HELD}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # very deep nesting gives plain text, with a warning
        markdown = HtmlConverter().convert_string(str(main), **AS_WRITTEN).markdown
    held = re.compile(rf"\s*{HELD}(\d+){HELD}\s*")
    markdown = held.sub(lambda number: f"\n\n~~~~\n{fenced[int(number[1])]}\n~~~~\n\n", markdown)
    return _titled(cleaned(markdown), title)


def _has_no_content(tag: Any) -> bool:
    return tag.name in NO_CONTENT or tag.get("role") in ("navigation", "search") or tag.has_attr("hidden")


def _unwrap_links(main: Any) -> None:
    """Links stay, without address, in lists and lines that are mostly links, so that the chunker knows a menu."""
    shares: dict[int, float] = {}
    for link in main.find_all("a"):
        above = list(takewhile(lambda tag: tag is not main, link.parents))
        lists = [tag for tag in above if tag.name in ("ul", "ol", "table")]
        line = next((tag for tag in [*lists[-1:], *above] if tag.name in LINES), main)
        if id(line) not in shares:
            linked = sum(len(inner.get_text()) for inner in line.find_all("a"))
            shares[id(line)] = linked / max(1, len(line.get_text()))
        if not re.search(r"\w", link.get_text()):
            link.decompose()  # the sign beside a heading
        elif shares[id(line)] < 0.5 or any(tag.name in TITLES for tag in above):  # a title links to itself
            link.unwrap()
        else:
            link.attrs = {"href": "."} if link.get("href") else {}


def _office(converter: str, ending: str) -> Callable[[bytes], str]:
    def convert(data: bytes) -> str:
        from markitdown import StreamInfo, converters

        if data.startswith(OLD_OFFICE):
            raise Unreadable("encrypted, or in the format of old Office versions")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as packed:
                if sum(part.file_size for part in packed.infolist()) > UNPACKED:
                    raise Unreadable("unpacks to more than a gigabyte")
        except zipfile.BadZipFile:
            raise Unreadable(f"torn, or not a {ending[1:].upper()} file") from None
        kind = getattr(converters, converter)()
        text = kind.convert(io.BytesIO(data), StreamInfo(extension=ending), **AS_WRITTEN).markdown
        text = re.sub(r"<!-- Slide number: \d+ -->", "", text)
        return cleaned(re.sub(r"!\[([^\]\n]*)\]\(([^)\n]*)\)", _picture_words, text))

    return convert


def _picture_words(picture: re.Match[str]) -> str:
    """A picture's description; not the name that a program gave it ("Picture 3", "image.png")."""
    named = re.sub(r"\W", "", picture[1]) + ".jpg" == picture[2]
    return "" if named or re.fullmatch(r"\S+\.\w{3,4}", picture[1]) else picture[1]


def _pdf(data: bytes) -> str:
    from markitdown import StreamInfo
    from markitdown.converters import PdfConverter
    from pdfminer.pdfdocument import PDFPasswordIncorrect

    if b"%PDF" not in data[:1024]:
        raise Unreadable("not a PDF file")
    logging.getLogger("pdfminer").setLevel(logging.ERROR)  # remarks about fonts and colours
    try:
        text = PdfConverter().convert(io.BytesIO(data), StreamInfo(extension=".pdf")).markdown
    except PDFPasswordIncorrect:
        raise Unreadable("encrypted") from None
    if text.count("(cid:") > len(text.split()) / 10:
        raise Unreadable("its fonts do not say which letters they show")
    if not text.strip():
        raise Unreadable("no text in it; scanned pages must go through text recognition first")
    return cleaned(_joined_pages(text.split("\f")))


def _joined_pages(pages: list[str]) -> str:
    """The pages as one text, without the lines that head or foot most of them; words cut at a line's end are joined."""
    split = [[line for line in page.splitlines() if line.strip()] for page in pages]
    edges = Counter(_edge(line) for lines in split for line in {*lines[:1], *lines[-1:]})
    least = max(3, len([lines for lines in split if lines]) / 2)
    kept = []
    for page, lines in zip(pages, split, strict=True):
        text = page.strip("\n ")
        for line in (lines[:1], lines[-1:]):
            if line and edges[_edge(line[0])] >= least:
                text = text.removeprefix(line[0].strip()).removesuffix(line[0].strip()).strip("\n ")
        kept.append(text)
    text = "\n\n".join(text for text in kept if text)
    text = re.sub(r"(?<=[a-z,-])\n\n(?=[a-z])", "\n", text)  # a sentence that goes on on the next page
    return re.sub(r"(?<=[^\W\d_])-\n(?=[a-z])", "", text)


def _edge(line: str) -> str:
    return re.sub(r"\d+", "0", line.strip())


def cleaned(text: str) -> str:
    """Unix line ends, no blanks at the end of lines, no control characters, no halves of surrogate pairs."""
    text = re.sub(r"\r\n?|\u2028|\u2029", "\n", text).encode("utf-8", "replace").decode()
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ufeff\ufffe\uffff]", " ", text)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).strip("\n")


def _plain(data: bytes) -> str:
    """A text file as it stands."""
    return cleaned(decoded(data))


def _restructured(data: bytes) -> str:
    return from_html(html_of(_plain(data)))


FORMATS: dict[str, Callable[[bytes], str]] = {
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mdx"), _markdown),
    **dict.fromkeys((".txt", ".text"), _plain),
    **dict.fromkeys((".rst", ".rest"), _restructured),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _html),
    ".pdf": _pdf,
    ".docx": _office("DocxConverter", ".docx"),
    ".pptx": _office("PptxConverter", ".pptx"),
}
