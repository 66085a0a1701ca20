"""Pseudo-queries: which words become one, which leave the passage, and what they stand for."""

import pytest

from embexp.errors import UserError
from embexp.mine.passages import Passage, Wanted
from embexp.mine.sentences import SentenceMiner, heading_query, without

HEADINGS = ("Tallow guide", "Rotating the archive key")
FIRST = "The archive key encrypts every ledger that Tallow keeps in cold storage."
SALIENT = "Rotating the archive key makes Tallow encrypt each ledger in cold storage anew."
OTHER = "Operators usually do so on Sundays, when few people are at work in the office."
TEXT = f"{FIRST} {SALIENT} {OTHER}"


def passage(text=TEXT, *, headings=HEADINGS, document="guide.md", position=0):
    return Passage(text, document, headings, position)


def mined(*passages, count=1, **options):
    wanted = [Wanted(one, ("question",) * count) for one in passages]
    return {each.passage: each for each in SentenceMiner(**options).mine(wanted)}


def texts(each):
    return [question.text for question in each.questions]


def test_the_sentence_that_says_most_of_what_is_said_around_it_comes_first():
    # its words archive, key, Tallow, ledger, cold, storage stand in the other sentences and the title; OTHER's do not
    one = passage()
    assert texts(mined(one, headings=False)[one]) == [SALIENT]


def test_a_heading_is_a_query_and_its_span_is_the_title():
    one = passage()
    question = mined(one, count=2)[one].questions[0]
    assert (question.text, question.kind, question.span) == (
        HEADINGS[1],
        "heading",
        "Tallow guide > Rotating the archive key",
    )


def test_cloze_takes_the_sentence_out_of_the_text_and_the_title_with_it():
    assert without(passage(), [SALIENT]) == f"{FIRST} {OTHER}"


def test_nothing_taken_out_leaves_the_passage_whole():
    assert without(passage(), []) == f"Tallow guide > Rotating the archive key\n{TEXT}"


def test_a_title_taken_out_leaves_the_same_words_in_the_text():
    one = passage("The key is long. Key lengths differ.", headings=("Key",))
    assert without(one, ["Key"]) == "The key is long. Key lengths differ."


def test_a_span_is_found_across_line_breaks_and_the_gap_is_closed():
    one = passage("One goes  here.\nTwo stays\nover   lines. Three.\n\n\n\nFour.", headings=())
    assert without(one, ["Two stays over lines."]) == "One goes here.\nThree.\n\nFour."


def test_a_list_item_that_is_gone_leaves_no_mark():
    one = passage("- first thing\n- second thing\n3. third", headings=())
    assert without(one, ["second thing", "third"]) == "- first thing"


def test_a_span_that_is_not_there_changes_nothing_but_the_title():
    assert without(passage(), ["never said"]) == TEXT


def test_about_nine_in_ten_queries_leave_their_passage():
    many = [passage(f"Number {i} is here. {TEXT}", position=i, document=f"{i}.md") for i in range(300)]
    leaving = sum(mined(one, headings=False)[one].questions[0].cloze for one in many)
    assert 255 <= leaving <= 285  # 270, three standard deviations of 5.2 to each side


@pytest.mark.parametrize(("cloze", "expected"), [(0.0, False), (1.0, True)])
def test_the_share_that_leaves_can_be_set(cloze, expected):
    one = passage()
    assert [question.cloze for question in mined(one, count=2, cloze=cloze)[one].questions] == [expected, expected]


def test_a_query_also_stands_for_its_neighbours_under_the_same_headings_only():
    section = [passage(f"Part {i}. {TEXT}", position=i) for i in range(4)]
    elsewhere = passage(position=4, headings=("Tallow guide", "Billing"))
    other = passage(f"Other. {TEXT}", position=2, document="other.md")
    found = mined(*section, elsewhere, other, headings=False)
    assert [set(found[one].questions[0].also) for one in section[:2]] == [
        {section[1].id},
        {section[0].id, section[2].id},
    ]
    assert found[section[3]].questions[0].also == (section[2].id,)
    assert found[elsewhere].questions[0].also == found[other].questions[0].also == ()


def test_reach_zero_stands_for_its_own_passage_alone():
    section = [passage(f"Part {i}. {TEXT}", position=i) for i in range(2)]
    assert mined(*section, reach=0, headings=False)[section[0]].questions[0].also == ()


def test_a_heading_is_asked_of_the_first_passage_of_its_section():
    section = [passage(f"Part {i}. {TEXT}", position=i) for i in range(2)]
    found = mined(*section, count=2)
    assert [[question.kind for question in found[one].questions] for one in section] == [
        ["heading", "sentence"],
        ["sentence", "sentence"],
    ]


def test_other_documents_change_nothing():
    one, two = passage(), passage(f"Part 2. {TEXT}", position=1)
    alone = mined(one, two, count=2)
    more = mined(one, passage("Tallow costs money. It is worth the price of a ledger.", document="b.md"), two, count=2)
    assert [more[each] for each in (one, two)] == [alone[each] for each in (one, two)]


def test_one_query_is_a_heading_for_about_half_of_the_sections():
    many = [passage(f"Number {i} is here. {TEXT}", document=f"{i}.md") for i in range(200)]
    kinds = [mined(one)[one].questions[0].kind for one in many]
    assert 79 <= kinds.count("heading") <= 121  # 100, three standard deviations of 7 to each side


def test_keywords_are_the_sentences_content_words():
    one = passage()
    (each,) = SentenceMiner(headings=False).mine([Wanted(one, ("keywords",))])
    assert texts(each) == ["Rotating archive makes Tallow encrypt each ledger cold storage anew"]
    assert each.questions[0].span == SALIENT


def test_at_most_half_of_a_passage_leaves_it():
    one = passage(headings=())
    each = mined(one, count=3, cloze=1.0)[one]
    assert len(each.questions) == 1  # two of three sentences would leave too little
    assert each.problems == ("no sentence that says enough",) * 2


def test_a_passage_of_one_sentence_stays_whole_and_is_asked_only_beside_another():
    lone = passage(SALIENT, headings=())
    assert mined(lone, cloze=1.0)[lone].questions == ()
    pair = [lone, passage(OTHER, headings=(), position=1)]
    question = mined(*pair, cloze=1.0)[lone].questions[0]
    assert (question.text, question.cloze, question.also) == (SALIENT, False, (pair[1].id,))


@pytest.mark.parametrize(
    "sentence",
    [
        "It also encrypts the archive key of Tallow in cold storage.",
        "These encrypt the archive key of every Tallow ledger.",
        "In this section the archive key of a Tallow ledger is described.",
        "Archive key.",
        "tallow.key(archive=1, ledger=2) == {'cold': 3, 'storage': 4} // 5",
        "See https://tallow.example/archive for the archive key of a ledger.",
        ">>> tallow rotate archive key ledger cold storage now",
        "| archive | key | ledger | cold | storage | Tallow |",
        "archive key " * 30,
    ],
)
def test_what_cannot_be_understood_alone_or_is_no_prose_is_no_query(sentence):
    one = passage(f"{FIRST}\n\n{sentence}\n\n{OTHER}", headings=())
    assert set(texts(mined(one, count=3, cloze=0.0)[one])) == {FIRST, OTHER}


@pytest.mark.parametrize(
    ("sentence", "query"),
    [
        ("However, the archive key of a Tallow ledger expires.", "The archive key of a Tallow ledger expires."),
        ("The **key** of a [Tallow](https://t.example) `ledger` expires.", "The key of a Tallow ledger expires."),
        ("The archive key of\na Tallow ledger\nexpires.", "The archive key of a Tallow ledger expires."),
        ("The archive_key of a Tallow ledger expires.", "The archive_key of a Tallow ledger expires."),
    ],
)  # fmt: skip
def test_a_query_is_plain_and_its_span_is_as_it_stands_in_the_passage(sentence, query):
    one = passage(f"{OTHER} {sentence}", headings=("Archive key of a ledger",))
    question = mined(one, headings=False)[one].questions[0]
    assert (question.text, question.span) == (query, sentence)
    assert question.span in one.text


@pytest.mark.parametrize(
    ("headings", "query"),
    [
        (("Guide", "3.2 How to rotate a key"), "How to rotate a key"),
        (("Tallow", "Installation"), "Tallow Installation"),
        (("Tallow",), None),
        ((), None),
        (("queue.Queue.put_nowait",), "queue Queue put nowait"),
        (("asyncio", "`EventLoop.run_forever()`"), "Event Loop run forever"),
        (("IMAP4.append",), "IMAP4 append"),
        (("Archive", "Archive"), None),
        (("What is new in 3.11",), "What is new in 3.11"),
    ],
)
def test_a_heading_as_somebody_would_type_it(headings, query):
    assert heading_query(headings) == query


def test_sentences_of_a_script_without_blanks_are_found_and_weighed():
    first, second = "归档密钥用于加密所有冷存储账本数据。", "轮换归档密钥后所有冷存储账本将重新加密。"
    one = passage(f"操作员通常在星期日进行这项工作安排。{first}{second}", headings=())
    (question,) = mined(one, language="zh")[one].questions
    assert question.text in (first, second)  # they share words, the sentence before them has none of theirs
    assert without(one, [second]) == f"操作员通常在星期日进行这项工作安排。{first}"


@pytest.mark.parametrize("options", [{"cloze": 1.5}, {"reach": -1}, {"words": [5]}, {"words": [9, 5]}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=f"miner.{next(iter(options))}="):
        SentenceMiner(**options)


def test_no_language_model_is_asked():
    assert SentenceMiner(client=object()).requests([Wanted(passage(), ("question",))]) == ()
    assert not SentenceMiner.asks_llm
