import io
import json
import socket
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from embexp.errors import UserError
from embexp.mine.documents import read
from embexp.mine.passages import Document, Passage

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def texts(place: Path) -> dict[str, str]:
    return {document.name: document.text for document in read([str(place)]).documents}


def text_of(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return texts(folder)[name]


def reason(folder: Path, name: str, content: str | bytes) -> str:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "other.txt").write_text("Something that can be read.")
    return read([str(folder)]).unreadable[name]


def pdf(pages: list[list[str]], *, encrypted: bool = False) -> bytes:
    """A PDF by hand: a font, and on each page lines from top to bottom."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for lines in pages:
        drawn = "".join(f"1 0 0 1 72 {740 - 24 * row} Tm ({line}) Tj " for row, line in enumerate(lines))
        stream = f"BT /F1 12 Tf {drawn}ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        kids.append(len(objects) + 1)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
    objects[1] = f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(f'{kid} 0 R' for kid in kids)}] >>"
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    key = "ab" * 32
    lock = (
        f" /Encrypt << /Filter /Standard /V 1 /R 2 /O <{key}> /U <{key}> /P -4 >> /ID [<00> <00>]" if encrypted else ""
    )
    trailer = f"trailer << /Size {len(objects) + 1} /Root 1 0 R{lock} >>\nstartxref\n{len(out)}\n%%EOF"
    return out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


def docx(*paragraphs: tuple[str, str]) -> bytes:
    """A DOCX by hand: (style, text) for each paragraph."""
    body = "".join(
        f'<w:p><w:pPr><w:pStyle w:val="{style}"/></w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>'
        for style, text in paragraphs
    )
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{types}"><Default Extension="xml" ContentType="application/xml"/><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        )
        file.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{relations}"><Relationship Id="r1" Type="{office}" Target="word/document.xml"/>'
            "</Relationships>",
        )
        file.writestr("word/document.xml", f"<w:document {W}><w:body>{body}</w:body></w:document>")
    return packed.getvalue()


def test_names_are_paths_within_the_folder_with_slashes_in_sorted_order(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("b/deep/z.md", "b/a.txt", "c.md", "B.md"):
        (tmp_path / name).write_text(name)
    assert list(texts(tmp_path)) == ["B.md", "b/a.txt", "b/deep/z.md", "c.md"]


def test_hidden_files_and_folders_and_office_locks_are_skipped(tmp_path):
    (tmp_path / ".git").mkdir()
    for name in (".git/readme.md", ".hidden.md", "~$open.docx", "seen.md"):
        (tmp_path / name).write_text("text")
    found = read([str(tmp_path)])
    assert ([document.name for document in found.documents], found.unreadable) == (["seen.md"], {})


def test_a_loop_of_links_is_walked_once_and_a_broken_link_reported(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text("text")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in" / "self")
    (tmp_path / "gone.md").symlink_to(tmp_path / "nothing.md")
    found = read([str(tmp_path)])
    assert [document.name for document in found.documents] == ["in/a.md"]
    assert found.unreadable == {"gone.md": "a link to nothing", "in/self": "a link to nothing"}


def test_a_glob_a_folder_and_a_file_name_each_file_once(tmp_path, monkeypatch):
    (tmp_path / "docs" / "in").mkdir(parents=True)
    for name in ("docs/a.md", "docs/in/b.md", "docs/in/.c.md", "docs/in/d.txt"):
        (tmp_path / name).write_text("text")
    monkeypatch.chdir(tmp_path)
    assert [found.name for found in read(["docs/**/*.md"]).documents] == ["a.md", "in/b.md"]
    assert [found.name for found in read(["docs/in/d.txt", "docs"]).documents] == ["a.md", "d.txt", "in/b.md"]
    assert [found.name for found in read(["docs/*"]).documents] == ["a.md", "in/b.md", "in/d.txt"]


def test_equal_names_of_two_places_stay_apart_and_the_first_keeps_its_own(tmp_path):
    for folder in ("x/docs", "y/docs", "z/docs"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.md").write_text(f"In {folder}.")
    found = read([str(tmp_path / folder) for folder in ("y/docs", "x/docs", "z/docs")])
    assert {document.name: document.text for document in found.documents} == {
        "a.md": "In y/docs.",
        "docs/a.md": "In x/docs.",
        "docs/a.md (2)": "In z/docs.",
    }


def test_a_place_that_names_nothing_is_an_error_and_all_are_listed(tmp_path):
    with pytest.raises(UserError) as error:
        read([str(tmp_path / "no"), str(tmp_path / "*.md")])
    assert len(error.value.problems) == 2
    assert "names no file or folder" in error.value.problems[1]


def test_nothing_readable_at_all_is_an_error_with_the_reasons(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "b.md").write_text("  \n")
    with pytest.raises(UserError, match=r"a.png: files ending in .png are not read, b.md: empty"):
        read([str(tmp_path)])
    with pytest.raises(UserError, match="no files"):
        read([])


def test_unknown_endings_are_counted_under_one_reason(tmp_path):
    for name in ("1.png", "2.PNG", "3.png", "code.py", "LICENSE", "a.md"):
        (tmp_path / name).write_text("text")
    assert read([str(tmp_path)]).unreadable == {
        "*.png (3 files)": "files ending in .png are not read",
        "LICENSE": "without an ending",
        "code.py": "files ending in .py are not read",
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.md", "", "empty"),
        ("a.md", "---\ntitle: [\n---\n", "empty"),
        ("a.txt", b"\x00\x01\x02binary", "binary"),
        ("a.pdf", "no pdf", "not a PDF file"),
        ("a.pdf", b"%PDF-1.4\n1 0 obj\n<< /Type /Cat", "damaged"),
        ("a.pdf", pdf([["Secret words"]], encrypted=True), "encrypted"),
        ("a.pdf", pdf([[]]), "scanned pages"),
        ("a.docx", docx(("", "text"))[:300], "torn, or not a DOCX file"),
        ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "encrypted, or in the format of old Office"),
        ("a.pptx", docx(("", "text")), "damaged"),
        ("a.jsonl", '{"text": "a"}\nno json\n', "line 2 is not JSON"),
        ("a.jsonl", '{"step": 1, "loss": 2.5}\n', "no column text or passage; it has step, loss"),
        ("a.jsonl", '{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n', "passage id '1' in it stands for two texts"),
        ("a.jsonl", '{"text": 5}\n', "line 1: column text is 5, not a text"),
        ("a.csv", 'text\n"open\n', "can't be read"),
        ("a.csv", "text\n", "empty"),
        ("a.parquet", "no parquet", "is not a Parquet file"),
    ],
)
def test_a_file_that_gives_no_text_is_listed_with_the_reason(tmp_path, name, content, words):
    found = reason(tmp_path, name, content)
    assert words in found
    assert str(tmp_path) not in found


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("embexp.mine.formats.UNPACKED", 1000)
    assert reason(tmp_path, "a.docx", docx(("", "much " * 500))) == "unpacks to more than a gigabyte"


def test_markdown_stays_as_it_is_without_its_front_matter(tmp_path):
    assert (
        text_of(tmp_path, "a.md", "---\nlayout: page\n---\n\n# One\n\n`a_b`  \r\n\r\n---\n") == "# One\n\n`a_b`\n\n---"
    )
    assert text_of(tmp_path, "b.md", "---\n\nA rule first.\n") == "---\n\nA rule first."


@pytest.mark.parametrize("front", ['---\ntitle: "Set up: now"\ntags: [x]\n---\n', '+++\ntitle = "Set up: now"\n+++\n'])
def test_the_title_of_the_front_matter_is_the_heading_that_is_missing(tmp_path, front):
    shell = "```\n# a comment\n```"
    assert text_of(tmp_path, "a.md", f"{front}{shell}\n") == f"# Set up: now\n\n{shell}"
    assert text_of(tmp_path, "a.md", f"{front}# Another\n") == "# Another"
    assert text_of(tmp_path, "a.md", f"{front}## Set up\n") == "## Set up"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Größe".encode("utf-8-sig"), "Größe"),
        ("Größe".encode("utf-16"), "Größe"),
        ("Die Größe der Übung beträgt vier Meter, und es regnet.".encode("cp1252"), "Die Größe der Übung"),
        ("The price is £5 – “quoted” text – it’s fine.".encode("cp1252"), "£5 – “quoted” text – it’s"),
        ("Все люди рождаются свободными и равными в своем достоинстве.".encode("cp1251"), "Все люди рождаются"),
        (
            "すべての人間は、生まれながらにして自由であり、尊厳と権利とについて平等である。".encode("cp932"),
            "すべての人間は、",
        ),
    ],
)
def test_text_is_utf8_or_the_likeliest_encoding(tmp_path, data, text):
    assert text in text_of(tmp_path, "a.txt", data)


def test_a_web_page_gives_its_main_content_without_menus(tmp_path):
    page = """<html><head><title>Guide - Acme</title><script>track()</script></head><body>
    <nav><a href="/">Home</a><nav>inner</nav></nav><div role="navigation">Menu</div><main>
    <h1>Set snake_case up <a class="headerlink" href="#x">¶</a></h1><p>Use <code>a_b * c</code> and
    <a href="x.html">the tool</a>. <img src="http://nowhere.invalid/a.png" alt="A picture"></p>
    <ul><li><a href="one.html">One</a></li></ul>
    <p>Takes:</p><ul><li><code>to</code> <a href="n.html">number</a></li><li>How long it waits</li></ul>
    <dl><dt><a href="#o">--out</a></dt><dd>Where it goes.</dd></dl>
    <pre># no heading\n\nx = 1</pre><p hidden>secret</p><button>Copy</button>
    </main><footer>Terms<nav>in it</nav></footer></body></html>"""
    assert text_of(tmp_path, "a.html", page) == (
        "# Set snake_case up\n\nUse `a_b * c` and\nthe tool. A picture\n\n* [One](.)\n\n"
        "Takes:\n\n* `to` number\n* How long it waits\n\n"
        "--out\n:   Where it goes.\n\n```\n# no heading\n\nx = 1\n```"
    )


def test_a_page_without_a_heading_has_its_title_as_one(tmp_path):
    page = "<title>Opening hours</title><body><p>From nine to five.</p></body>"
    assert text_of(tmp_path, "a.htm", page) == "# Opening hours\n\nFrom nine to five."


def test_a_page_says_its_own_encoding(tmp_path):
    page = '<html><head><meta charset="iso-8859-2"></head><body><p>Zażółć gęślą jaźń.</p></body></html>'
    assert text_of(tmp_path, "a.html", page.encode("iso-8859-2")) == "Zażółć gęślą jaźń."


def test_code_that_holds_a_fence_gets_a_longer_one(tmp_path):
    page = "<h1>Doc</h1><pre><code>```\n# not a heading\n```</code></pre><h2>Next</h2><p>Text.</p>"
    assert text_of(tmp_path, "a.html", page) == "# Doc\n\n~~~~\n```\n# not a heading\n```\n~~~~\n\n## Next\n\nText."


def test_a_very_deep_page_is_read(tmp_path):
    page = "<div>" * 3000 + "At the bottom." + "</div>" * 3000
    assert text_of(tmp_path, "a.html", page) == "At the bottom."


RESTRUCTURED = """\
:orphan:

Title
=====

.. toctree::

   other

See :ref:`the guide <guide>` and :py:func:`~os.path.join`.

.. py:function:: open(path, *modes)
   :module: io

   Opens a *file*.

.. deprecated:: 3.2

.. tabs::

   .. tab:: Linux

      Use ``apt_get``.

.. code-block:: python
   :emphasize-lines: 2

   x = 1

.. note::
   :unheard: of

   Keep me.

Sub
---

.. include:: secret.txt
.. csv-table::
   :file: secret.txt
.. raw:: html

   <b>raw</b>

The end.
"""


def test_restructured_text_keeps_the_words_of_unknown_directives_and_roles(tmp_path):
    (tmp_path / "secret.txt").write_text("do not insert")
    text = text_of(tmp_path, "a.rst", RESTRUCTURED)
    assert text.startswith("# Title\n\nSee the guide and os.path.join.\n\n## open(path, *modes)\n\nOpens a *file*.\n\n")
    for words in ("Deprecated since version 3.2", "Linux\n\nUse `apt_get`.", "```\nx = 1\n```", "Keep me.", "## Sub"):
        assert words in text
    assert text.endswith("The end.")
    assert text_of(tmp_path, "b.rst", "No title.") == "No title."


def test_restructured_text_inserts_no_file_and_nothing_raw(tmp_path):
    (tmp_path / "secret.txt").write_text("do not insert")
    text = text_of(tmp_path, "a.rst", RESTRUCTURED)
    for words in ("insert", "secret", "raw", "orphan", "other", "toctree", "Message"):
        assert words not in text


def test_one_restructured_file_changes_nothing_in_the_next(tmp_path):
    (tmp_path / "a.rst").write_text(".. default-role:: math\n\n.. role:: loud(strong)\n\nA `b` and :loud:`c`.\n")
    after = text_of(tmp_path, "b.rst", "The `word` and :loud:`noise` are kept.")
    alone = tmp_path / "alone"
    alone.mkdir()
    assert text_of(alone, "b.rst", "The `word` and :loud:`noise` are kept.") == after


def test_a_pdf_gives_its_text_without_the_lines_that_head_and_foot_its_pages(tmp_path):
    pages = [["Acme Manual", f"The {word} is described here, at some", "length, and more.", f"Page {number} of 4"]
             for number, word in enumerate(("pump", "valve", "gauge", "frame"), start=1)]  # fmt: skip
    text = text_of(tmp_path, "a.pdf", pdf(pages))
    assert "The pump is described here" in text
    assert "The frame is described here" in text
    assert "Acme" not in text
    assert "Page" not in text


def test_a_word_cut_at_the_end_of_a_line_of_a_pdf_is_joined(tmp_path):
    text = text_of(tmp_path, "a.pdf", pdf([["The exam-"], ["ple goes on."]]))
    assert text == "The example goes on."


def test_a_docx_gives_headings_and_text_as_they_are_read(tmp_path):
    content = docx(("Heading1", "Travel"), ("", "Use form_a * b."), ("Heading2", "By train"), ("", "Second class."))
    assert text_of(tmp_path, "a.docx", content) == "# Travel\n\nUse form_a * b.\n\n## By train\n\nSecond class."


def test_a_pptx_gives_titles_text_and_notes_but_no_names_of_pictures(tmp_path):
    from PIL import Image
    from pptx import Presentation

    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "Goals", "Grow the_team\nSpend less"
    slide.shapes.add_picture(image, 0, 0)
    slide.notes_slide.notes_text_frame.text = "Mention the budget."
    deck.save(tmp_path / "a.pptx")
    text = texts(tmp_path)["a.pptx"]
    assert text.replace("\n\n", "\n") == "# Goals\nGrow the_team\nSpend less\n### Notes:\nMention the budget."


def test_ready_passages_keep_their_ids_and_words_as_text(tmp_path):
    (tmp_path / "p.csv").write_text(
        "id,passage,title,document\n001,NA,Codes,d1\n002,2024-01-05,,d1\n1e5,Other text,,d2\n"
    )
    assert read([str(tmp_path)]).passages == (
        Passage("NA", "d1", ("Codes",), 0, "001"),
        Passage("2024-01-05", "d1", (), 1, "002"),
        Passage("Other text", "d2", (), 0, "1e5"),
    )


def test_a_ready_passage_without_a_document_is_one_of_its_own(tmp_path):
    (tmp_path / "corpus.jsonl").write_text(
        json.dumps({"_id": "a", "title": "T", "text": "One."}) + "\n" + json.dumps({"text": "Two.", "_id": None}) + "\n"
    )
    first, second = read([str(tmp_path)]).passages
    assert (first.id, first.headings, first.document) == ("a", ("T",), "corpus.jsonl#a")
    assert (second.id, second.document) == (Passage("Two.", "").id, f"corpus.jsonl#{Passage('Two.', '').id}")


def test_parquet_and_tsv_are_read_like_csv(tmp_path):
    pd.DataFrame({"id": [1, 2], "text": ["One.", None]}).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.tsv").write_text("text\tid\nThree.\t3\n")
    found = read([str(tmp_path)])
    assert [(passage.id, passage.text) for passage in found.passages] == [("1", "One."), ("3", "Three.")]
    assert found.unreadable == {"a.parquet": "rows without text: 1; the others were read"}


def test_an_id_that_stands_for_two_texts_in_two_files_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "text": "One."}\n{"id": 1, "text": "One."}\n')
    assert len(read([str(tmp_path)]).passages) == 1
    (tmp_path / "b.jsonl").write_text('{"id": "1", "text": "Two."}\n')
    with pytest.raises(UserError, match=r"passage id '1' in b.jsonl stands for two texts: 'One.' .* and 'Two.'"):
        read([str(tmp_path)])


def test_half_of_a_surrogate_pair_does_not_break_the_hash(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "odd \\ud800 sign"}\n')
    assert len(read([str(tmp_path)]).passages[0].id) == 16


def test_nothing_is_fetched(tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    address = "http://nowhere.invalid/a"
    (tmp_path / "a.html").write_text(f'<link href="{address}"><iframe src="{address}"></iframe><p>Words.</p>')
    (tmp_path / "b.rst").write_text(f".. image:: {address}\n\n.. csv-table::\n   :url: {address}\n\nWords.\n")
    (tmp_path / "c.md").write_text(f"![Words]({address})")
    assert len(read([str(tmp_path)]).documents) == 3


def test_a_missing_library_is_named_with_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "docutils.core", None)
    (tmp_path / "a.rst").write_text("text")
    with pytest.raises(UserError, match=r"pip install 'embexp\[mine\]'"):
        read([str(tmp_path)])


def test_documents_are_equal_on_every_machine(tmp_path):
    (tmp_path / "Cafe\u0301.md").write_bytes(b"text\r\nmore")
    assert read([str(tmp_path)]).documents == (Document("Caf\u00e9.md", "text\nmore"),)
