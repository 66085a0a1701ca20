"""What models write becomes items, whole and alone; what they say around them never does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings, strategies as st

from embexp.mine.answers import (
    EMPTY,
    NO_QUESTION,
    NOTHING,
    REFUSED,
    TOO_MANY,
    TRUNCATED,
    UNPARSABLE,
    Item,
    Parsed,
    parse,
    tidy,
    truth,
)

KINDS = ("question", "keywords", "problem")
WHAT = Item("question", "What is a heap?", "A heap is a tree.")
WORDS = Item("keywords", "heap tree order", "parents come first")
STUCK = Item("problem", "My queue returns the wrong job", "the smallest is popped")
ALL = (WHAT, WORDS, STUCK)
OBJECTS = [{"kind": item.kind, "question": item.question, "span": item.span} for item in ALL]
WHOLE = json.dumps({"items": OBJECTS})
PIPES = "\n".join(f"{item.kind}|{item.question}|{item.span}" for item in ALL)
NAMED = "{'kind': 'question', 'question': 'What is a heap?', 'span': 'A heap is a tree.',}"


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        json.dumps(OBJECTS),
        json.dumps({"items": OBJECTS}, indent=2),
        json.dumps({"result": {"questions": OBJECTS}}),
        f"```json\n{WHOLE}\n```",
        f"```\n{WHOLE}",
        f"Sure! Here are three questions:\n\n{WHOLE}\n\nLet me know if you would like more.",
        f"<think>Should I write [3] {{items}}? {json.dumps(OBJECTS[:1])}</think>{WHOLE}",
        "\n".join(json.dumps(each) for each in OBJECTS),
        ",\n".join(json.dumps(each) for each in OBJECTS),
        WHOLE.replace("}]}", "},]}"),
        WHOLE.replace('"items": [', '"items" [', 1),  # the outer object is broken, the items are not
        "\ufeff" + WHOLE,
        WHOLE.replace('"question":', '"Query":').replace('"span"', '"Answer"').replace('"kind"', '"type"'),
        str(OBJECTS),
        str(OBJECTS[:1])[:-1] + ", " + str(OBJECTS[1:])[1:-1] + ",]",
        json.dumps({item.kind: {"question": item.question, "span": item.span} for item in ALL}),
        PIPES,
        f"Here are three questions:\n{PIPES}\n\nI hope these help!",
        "\n".join(f"{place}. {line}" for place, line in enumerate(PIPES.splitlines(), 1)),
        "\n".join(f"- **{line}**" for line in PIPES.splitlines()),
        "| kind | question | span |\n|---|:---:|---|\n" + "\n".join(f"| {line} |" for line in PIPES.splitlines()),
        "kind|question|answer span\n" + PIPES.replace("|", " | "),
        "```\n" + PIPES + "\n```",
        "\n".join(f'**{i.kind.title()}:** {i.question}\n**Answer:** "{i.span}"\n' for i in ALL),
        "\n".join(f"{n}. {i.kind}: {i.question}\n   Span: {i.span}" for n, i in enumerate(ALL, 1)),
    ],
)
def test_three_items_are_found_in_whatever_form_they_come(text):
    assert parse(text, kinds=KINDS) == Parsed(ALL)


def test_whole_items_are_saved_from_an_answer_that_was_cut_off_anywhere():
    ends = [WHOLE.index("}") + 1, WHOLE.index("}", WHOLE.index("}") + 1) + 1]
    for cut in range(1, len(WHOLE) - 3):
        whole = sum(cut >= end for end in ends)
        assert parse(WHOLE[:cut], kinds=KINDS, finish="length") == Parsed(ALL[:whole], (TRUNCATED,)), WHOLE[:cut]


def test_one_broken_item_costs_only_itself():
    broken = [{"kind": "keywords", "span": "here"}, {"kind": "keywords", "question": "  ", "span": "x"}]
    for each in broken:
        text = json.dumps({"items": [OBJECTS[0], each, OBJECTS[2]]})
        assert parse(text, kinds=KINDS) == Parsed((WHAT, STUCK), (NO_QUESTION,))
    torn = WHOLE.replace('"heap tree order"', '"heap "tree" order"')
    assert parse(torn, kinds=KINDS).items == (WHAT, STUCK)


def test_an_unknown_kind_becomes_the_one_of_its_place():
    changed = [{**OBJECTS[0], "kind": "trivia"}, {**OBJECTS[1], "kind": None}, {**OBJECTS[2], "kind": "question"}]
    kinds = [item.kind for item in parse(json.dumps(changed), kinds=KINDS).items]
    assert kinds == ["question", "keywords", "question"]
    assert [item.kind for item in parse(json.dumps(changed), kinds=("problem",) * 3).items] == ["problem"] * 3
    named = json.dumps([{**OBJECTS[0], "kind": "Keyword query"}])
    assert parse(named, kinds=KINDS).items[0].kind == "keywords"


def test_more_than_was_asked_for_is_dropped_and_counted():
    assert parse(WHOLE, kinds=("question", "keywords")) == Parsed((WHAT, WORDS), (TOO_MANY,))
    assert parse(WHOLE, kinds=("keywords",)) == Parsed((WORDS,), (TOO_MANY,))
    assert parse(WHOLE, kinds=("problem", "problem")).items == (Item("problem", WHAT.question, WHAT.span), STUCK)
    ten = json.dumps([{**OBJECTS[0], "question": f"What is {n}?"} for n in range(10)])
    assert len(parse(ten, kinds=("question",) * 10).items) == 10


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", EMPTY),
        (" \n", EMPTY),
        ("<think>Three questions about heaps: what", EMPTY),
        ("The passage is about heaps.", UNPARSABLE),
        ("Sure!", UNPARSABLE),
        ("Sure! Here are three questions:", UNPARSABLE),
        ("Here are three questions:\n1. Here's a question:\n", UNPARSABLE),
        ("What would you like me to do?", UNPARSABLE),
        ("{}", NOTHING),
        ('{"items": []}', NOTHING),
        ("```json\n[]\n```", NOTHING),
        ("I'm sorry, I can't help with that.", REFUSED),
        ("I’m sorry, but I cannot assist with this request.", REFUSED),
        ("As an AI language model, I am not able to do so.", REFUSED),
        ("Sorry, that is not possible.", REFUSED),
        ("Es tut mir leid, dabei kann ich nicht helfen.", REFUSED),
        ("抱歉，我无法回答。", REFUSED),
    ],
)
def test_an_answer_without_an_item_has_its_reason(text, problem):
    assert parse(text, kinds=KINDS) == Parsed((), (problem,))


def test_a_refusal_that_the_server_names_or_that_stands_in_an_item_is_one():
    assert parse("", kinds=KINDS, refusal="I can't do that") == Parsed((), (REFUSED,))
    assert parse("", kinds=KINDS, finish="content_filter") == Parsed((), (REFUSED,))
    item = [{"kind": "question", "question": "I'm sorry, but I can't assist with that request.", "span": ""}]
    assert parse(json.dumps(item), kinds=KINDS) == Parsed((), (REFUSED,))


@pytest.mark.parametrize(
    "problem",
    [
        "I can't log in after the update",
        "I cannot create a new account",
        "Sorry page appears instead of my order",
        "OK button does nothing",
        "Here maps shows the wrong street",
        "404: page not found",
        "2.5 GHz processor runs at 1 GHz",
        "3.x migration fails",
        "sure-grip boots slip",
        "a|b|c lines are not split",
        'a field named "question" is lost',
    ],
)
def test_a_problem_that_sounds_like_a_refusal_or_a_preamble_is_kept(problem):
    text = json.dumps({"items": [{"kind": "problem", "question": problem, "span": "s"}]})
    assert parse(text, kinds=("problem",)) == Parsed((Item("problem", problem, "s"),))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Here's a question: What is a heap?", "What is a heap?"),
        ("Sure! Here is the query: What is a heap?", "What is a heap?"),
        ("Hier sind drei Fragen:", ""),
        ("Here are three questions:", ""),
        ("Certainly!", ""),
        ("1. What is a heap?", "What is a heap?"),
        ("2) **What is a heap?**", "What is a heap?"),
        ("Q1: What is a heap?", "What is a heap?"),
        ("Question 2: “What is a heap?”", "What is a heap?"),
        ("- What is\n  a   heap?", "What is a heap?"),
        ("1.什么是堆？", "什么是堆？"),
        ('What is "a" and what is "b"', 'What is "a" and what is "b"'),
    ],
)
def test_numbering_labels_and_preambles_are_taken_off_a_question(written, expected):
    assert tidy(written) == expected


def test_numbered_questions_without_spans_are_read_and_loose_prose_is_not():
    text = "Here are two questions.\n1. What is a heap?\n2. How is it built?\nThese cover the passage. Is that fine?"
    assert [item.question for item in parse(text, kinds=KINDS).items] == ["What is a heap?", "How is it built?"]
    for text in ("Prose with a|pipe and more of it|or two in it", "x^2|y|z", "What is a pipe|nobody knows"):
        assert parse(text, kinds=KINDS) == Parsed((), (UNPARSABLE,))
    assert parse("trivia|What is a heap?|A tree", kinds=KINDS).items == (Item("question", "What is a heap?", "A tree"),)
    assert parse("What is a heap?|A tree", kinds=KINDS).items == (Item("question", "What is a heap?", "A tree"),)


def test_the_schema_or_the_form_repeated_by_a_model_is_no_item():
    schema = {"type": "object", "properties": {"kind": {"type": "string"}, "question": {"type": "string"}}}
    assert parse(json.dumps(schema), kinds=KINDS) == Parsed((), (UNPARSABLE,))
    form = '{"items": [{"kind": "question", "question": "...", "span": "..."}]}'
    assert parse(form, kinds=KINDS) == Parsed((), (NO_QUESTION,))


def test_texts_in_lists_are_questions_only_where_they_are_meant():
    assert [i.question for i in parse('["What is a?", "What is b?"]', kinds=KINDS).items] == [
        "What is a?",
        "What is b?",
    ]
    assert [i.question for i in parse('{"questions": ["What is a?"]}', kinds=KINDS).items] == ["What is a?"]
    noted = json.dumps({"notes": ["a note", "another"], "items": OBJECTS})
    assert parse(noted, kinds=KINDS) == Parsed(ALL)
    assert parse('question|What does ["x"] mean?|a list', kinds=KINDS).items[0].question == 'What does ["x"] mean?'
    numbered = '{"question_1": "What is a?", "question_2": "What is b?"}'
    assert [i.question for i in parse(numbered, kinds=KINDS).items] == ["What is a?", "What is b?"]


def test_an_apostrophe_in_single_quotes_does_not_end_a_text():
    text = "{'kind': 'question', 'question': 'What's a heap?', 'span': 'it's a tree',}"
    assert parse(text, kinds=KINDS).items == (Item("question", "What's a heap?", "it's a tree"),)
    assert parse(f"[{NAMED}, {NAMED}]", kinds=KINDS).items == (WHAT, WHAT)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"answered": true}', True),
        ('```json\n{"answered": "No"}\n```', False),
        ("Yes, it does.", True),
        ("**No.** The passage is about trees.", False),
        ('{"Verdict": "yes"', None),
        ('[{"answer": false}]', False),
        ("It depends", None),
        ("Not really", None),
        ("", None),
        ("<think>Yes? No.</think>no", False),
    ],
)
def test_a_yes_or_no_is_read_and_nothing_else_is_guessed(text, expected):
    assert truth(text, ("answered", "answer", "verdict")) is expected


PIECES = st.sampled_from(
    ['{"', '"}', "[", "]", "{", "}", ":", ",", '"question"', '"kind"', '"span"', "'", "\\", "|", "\n", "1. ", "```json",
     "<think>", "</think>", "null", "1e999", "What is a heap?", "Question:", "Sure! ", "**", "\x00", "\ud800", "日本"]
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=40).map("".join)), st.sampled_from(["stop", "length", "other"]))
def test_no_text_makes_the_parser_raise_and_every_item_has_words_and_a_known_kind(text, finish):
    parsed = parse(text, kinds=KINDS, finish=finish)
    assert len(parsed.items) <= 3
    assert parsed.items or parsed.problems
    assert all(item.kind in KINDS and item.question == " ".join(item.question.split()) != "" for item in parsed.items)
    truth(text, ("answered",))


WORD = st.text("abcdeghinorstuäß7ж中", min_size=2, max_size=8)
TEXTS = st.lists(WORD, min_size=2, max_size=8).map(lambda words: "tell " + " ".join(words))
SIGNS = st.lists(st.one_of(WORD, st.sampled_from(['"', "{", "}", "[", "]", "|", "'", "\\", ",", ":"])), min_size=1)
MADE = st.lists(st.builds(Item, st.sampled_from(KINDS), TEXTS, SIGNS.map(" ".join)), min_size=1, max_size=5)
WRAPS = ["{}", "```json\n{}\n```", "Here you go:\n{}\nI hope this helps!", "<think>{{</think>\n{}", "\n\n{}  "]


@settings(max_examples=300, deadline=None)
@given(MADE, st.sampled_from(WRAPS), st.sampled_from([None, 2]), st.booleans())
def test_what_is_written_as_json_is_read_back_whatever_signs_are_in_it(items, wrap, indent, ascii_only):
    objects = [{"kind": item.kind, "question": item.question, "span": item.span} for item in items]
    text = wrap.format(json.dumps({"items": objects}, indent=indent, ensure_ascii=ascii_only))
    assert parse(text, kinds=[item.kind for item in items]) == Parsed(tuple(items))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds(Item, st.sampled_from(KINDS), TEXTS, TEXTS), min_size=1, max_size=5), st.booleans())
def test_what_is_written_in_pipes_is_read_back(items, numbered):
    lines = [f"{item.kind}|{item.question}|{item.span}" for item in items]
    text = "\n".join(f"{place}. {line}" if numbered else line for place, line in enumerate(lines, 1))
    assert parse(text, kinds=[item.kind for item in items]) == Parsed(tuple(items))


@pytest.mark.parametrize("sign", ["[", "{", '{"a":', '{"', "[1,", "'{", "|\n", "1. ", "\\"])
def test_an_endless_answer_is_read_in_bounded_time(sign):
    import time

    start = time.perf_counter()
    parse(sign * 500_000, kinds=KINDS)
    assert time.perf_counter() - start < 3
