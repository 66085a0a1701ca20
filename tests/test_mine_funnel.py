"""The filter: what each stage drops and why, and what it must not drop."""

from dataclasses import replace

import numpy as np
import pytest

from embexp.errors import UserError
from embexp.mine.duplicates import without_duplicates
from embexp.mine.funnel import Funnel, complete, is_quoted
from embexp.mine.passages import Mined, Passage, Question
from embexp.mine.round_trip import RoundTrip, Search
from embexp.mine.standalone import leans_on
from tests.tiny import tiny_transformer

# ten passages; each is the only one with its three names
NAMES = [f"{a}{b}" for a in ("ma", "te", "ko", "ru", "si") for b in ("lo", "pin")]
PASSAGES = {
    f"p{i}": Passage(
        f"The {name}x keeps its {name}y in a {name}z.", f"{name}.md", (name, f"Part {i}"), given_id=f"p{i}"
    )
    for i, name in enumerate(NAMES)
}
ALL = Funnel(round_trip=RoundTrip(top=1))


class Says:
    """A judge that gives these answers, in order, and remembers what it was asked."""

    def __init__(self, *answers):
        self.left, self.asked = list(answers), []

    def answers(self, pairs):
        self.asked += pairs
        return [self.left.pop(0) for _ in pairs]


def question(place=0, text=None, *, kind="question", span=None, **fields):
    name = NAMES[place]
    text = f"Where is the {name}y of {name}x kept?" if text is None else text
    return Question(text, f"p{place}", kind, f"keeps its {name}y" if span is None else span, **fields)


def sift(*questions, funnel=ALL, judge=None, passages=PASSAGES, problems=()):
    mined = [Mined(passages[each.passage], (each,)) for each in questions]
    mined += [Mined(next(iter(passages.values())), (), problems)]
    return funnel.sift(iter(mined), passages, judge=judge)


def dropped(sifted):
    return [(each.question.text, each.stage) for each in sifted.rejected]


def test_every_stage_drops_what_it_is_for_and_counts_what_is_left():
    good = [question(place) for place in range(3)]
    found = sift(
        *good,
        question(0, "Where is the maloy of malox kept"),
        question(4, "What does this passage say?"),
        question(5, span="keeps its treasure"),
        question(6, "Is rupiny kept in rupinz at night?", span="keeps its"),
        question(7, "Who paints tepiny, kolox and rulox blue?", span="keeps its rupiny"),
        judge=Says(True, True, True, False, True),
        problems=("truncated", "truncated", "refused"),
    )
    assert dict(found.counts) == {
        "parsed": 8,
        "not a duplicate": 7,
        "stands alone": 6,
        "span in the passage": 5,
        "answerable": 4,
        "round trip": 3,
    }
    assert [each.stage for each in found.rejected] == list(found.counts)[1:]
    assert found.kept == tuple(good)
    assert found.problems == {"truncated": 2, "refused": 1}
    assert all(each.reason for each in found.rejected)


def test_stages_that_are_off_are_not_counted_and_keep_everything():
    bad = [question(0, "What does this passage say?", span="nothing"), question(1, "benefits", span="")]
    off = Funnel(near_duplicate=None, stands_alone=False, span=False, round_trip=None)
    found = sift(*bad, bad[0], question(2, bad[0].text, span="?"), funnel=off)
    assert found.counts == {"parsed": 4, "not a duplicate": 3}
    assert dropped(found) == [(bad[0].text, "not a duplicate")]  # the very same, on the same passage


# --- duplicates ----------------------------------------------------------------------------------------------------


def test_the_first_of_two_questions_in_the_same_words_stays():
    found = sift(question(0), question(0, "where is the  MALOY of malox kept"))
    assert [each.text for each in found.kept] == ["Where is the maloy of malox kept?"]


def test_the_first_of_two_nearly_the_same_stays():
    first = "How long does the tallow archive keep the yearly ledgers of branch offices?"
    found = sift(question(0, first), question(0, first.replace("keep the", "keep")), funnel=Funnel())
    assert [each.text for each in found.kept] == [first]


def test_questions_that_differ_in_a_number_are_not_the_same():
    texts = [
        "How do I install the tallow archive 2.4 on a server?",
        "How do I install the tallow archive 2.5 on a server?",
    ]
    assert [each.text for each in sift(*(question(0, text) for text in texts), funnel=Funnel()).kept] == texts


@pytest.mark.parametrize(("second", "kept"), [(0, 1), (1, 2)])
def test_questions_on_two_passages_that_differ_in_a_name_are_not_the_same(second, kept):
    text = "Why does nothing reach the {} archive from outside although its machine is up?"
    found = sift(question(0, text.format("malo")), question(second, text.format("mala")), funnel=Funnel())
    assert len(found.kept) == kept


def test_questions_on_two_passages_that_differ_in_small_words_are_the_same():
    text = "How long does the tallow archive keep the yearly ledgers of branch offices"
    found = sift(question(0, text), question(1, f"{text} then"), funnel=Funnel())
    assert [each.text for each in found.kept] == [text]


def test_the_same_words_on_passages_of_one_section_are_one_question_with_two_answers():
    passages = {key: replace(PASSAGES["p0"], text=f"Part {key} about maloy.", given_id=key) for key in "abcd"}
    asked = [
        Question("What is maloy?", key, "question", "about maloy", also=also)
        for key, also in (("a", ()), ("b", ("d",)), ("c", ("a",)))
    ]
    found = sift(*asked, passages=passages, funnel=Funnel())
    assert [(each.passage, each.also) for each in found.kept] == [("a", ("b", "d", "c"))]
    assert dropped(found) == [("What is maloy?", "not a duplicate")] * 2


def test_the_same_words_on_other_documents_name_neither_and_all_go():
    found = sift(question(0, "How is it installed on Linux?"), question(1, "how is it installed on linux"), question(2))
    assert [each.passage for each in found.kept] == ["p2"]
    assert {each.reason for each in found.rejected} == {"asked in the same words of 2 documents or sections"}


# --- stands alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "What does this section recommend?",
        "According to the passage, how often are keys rotated?",
        "How often are keys rotated according to the author?",
        "Which ports are listed in the above paragraph?",
        "Which ports are mentioned above?",
        "What does the article say about keys?",
        "What is shown in Figure 2?",
        "How does it work?",
        "What are the main benefits?",
        "Why is that important?",
        "What is its default port?",
        "How can they be renewed each year?",
        "Was empfiehlt dieses Kapitel laut dem Text?",
        "Wie funktioniert das?",
        "Que dit l'auteur dans ce paragraphe ?",
        "¿Qué recomienda el manual en este documento?",
        "根据本文，密钥多久轮换一次？",
    ],
)
def test_questions_that_lean_on_their_page_are_found(text):
    assert leans_on(text)


@pytest.mark.parametrize(
    "text",
    [
        "What is this keyword used for in C++?",
        "How do I use `this` in JavaScript?",
        "What does the text property of a label do?",
        "According to the author field, how are books sorted?",
        "What does it mean when the light blinks red?",
        "Is it safe to delete the spool folder?",
        "How long does it take to reindex a shelf?",
        "How does the scheduler know that it is full?",
        "How do I number the sections of a document?",
        "What type does this text field accept?",
        "Who is the author of Moby-Dick?",
        "Which section of the form holds the address?",
        "What is the Document Object Model?",
        "retention period ledger",
        "Wie rotiere ich den Archivschlüssel?",
        "Comment changer la clé d'archive ?",
        "归档密钥多久轮换一次？",
    ],
)
def test_good_questions_that_look_like_it_stay(text):
    assert leans_on(text) is None


# --- span ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "text"),
    [
        ("keys are rotated", "Archive Keys  are\nrotated weekly."),
        ("“keys” are 'rotated'", 'Archive "keys" are ‘rotated’ weekly.'),
        ("keys are rotated", "Archive **keys** are [rotated](https://t.example/a) `weekly`."),
        ("**keys** are rotated", "Archive keys are <b>rotated</b> weekly."),
        ("archive ... weekly", "Archive keys are rotated weekly."),
        ("encrypted ledgers", "the en-\ncrypted ledgers"),
        ("密钥轮换", "归档密钥轮换每周一次。"),
        ("ﬁle", "the file"),
        ("8443", "port 8443"),
    ],
)
def test_a_span_is_found_whatever_its_dress(span, text):
    assert is_quoted(span, text)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        ("keys are not rotated", "Archive keys are rotated weekly."),
        ("weekly ... archive", "Archive keys are rotated weekly."),
        ("key", "Archive keys are rotated weekly."),
        ("rotated are keys", "Archive keys are rotated weekly."),
        ("...", "Archive ... weekly."),
        ("", "Archive keys"),
    ],
)
def test_words_that_are_not_in_the_passage_together_and_in_order_are_no_span(span, text):
    assert not is_quoted(span, text)


def test_a_span_may_stand_in_the_title_and_pseudo_queries_need_none():
    found = sift(question(0, span="malo"), question(1, kind="sentence", span="whatever"), funnel=Funnel())
    assert len(found.kept) == 2


# --- judge ---------------------------------------------------------------------------------------------------------


def test_the_judge_reads_the_whole_passage_and_is_not_asked_about_pseudo_queries():
    judge = Says(True)
    found = sift(question(0), question(1, kind="heading"), judge=judge)
    assert judge.asked == [(question(0).text, PASSAGES["p0"].whole)]
    assert len(found.kept) == 2


def test_a_question_that_the_judge_has_no_word_for_stays_and_is_counted():
    found = sift(question(0), question(1), judge=Says(None, False))
    assert [each.passage for each in found.kept] == ["p0"]
    assert found.problems == {"the judge gave no judgement, so they stayed": 1}


# --- round trip ----------------------------------------------------------------------------------------------------


def test_the_place_counts_other_passages_that_score_as_high_or_higher():
    # maloy is in p0 alone; "keeps" and "its" are in all ten, so they tie
    asked = [question(0), question(3, "keeps its"), question(4, "nothing here")]
    assert Search.over(asked, PASSAGES).by_keywords() == {asked[0].id: 1, asked[1].id: 10, asked[2].id: 10}


@pytest.mark.parametrize(("top", "kept"), [(1, 0), (2, 1)])
def test_the_passage_must_be_among_the_first_so_many(top, kept):
    asked = question(0, "Is tepiny kept in tepinz or malox?", span="keeps its")  # p3 has two of the words, p0 one
    assert len(sift(asked, funnel=Funnel(round_trip=RoundTrip(top=top))).kept) == kept


def test_a_passage_with_the_same_text_counts_as_found():
    twins = {**PASSAGES, "p0": replace(PASSAGES["p3"], document="twin.md", given_id="p0")}
    found = sift(question(0, "Is tepiny kept in tepinz?", span="tepiny"), passages=twins)
    assert [each.passage for each in found.kept] == ["p0"]
    assert found.easy == {found.kept[0].id}


def test_a_further_passage_of_a_question_counts_as_found():
    assert sift(question(0, "Is tepiny kept in tepinz?", span="keeps its", also=("p3",))).kept


def test_problems_are_given_a_longer_list_by_keywords_and_none_when_a_judge_says_yes():
    funnel = Funnel(round_trip=RoundTrip(top=1, top_reworded=2))
    second = question(0, "Is tepiny kept in tepinz or malox?", kind="problem", span="keeps its")
    tenth = question(1, "nothing of the sort", kind="problem", span="keeps its")
    assert [each.passage for each in sift(second, tenth, funnel=funnel).kept] == ["p0"]
    assert [each.passage for each in sift(second, tenth, funnel=funnel, judge=Says(True, True)).kept] == ["p0", "p1"]
    assert [each.passage for each in sift(second, tenth, funnel=funnel, judge=Says(None, None)).kept] == ["p0"]


def test_a_cloze_question_must_find_its_passage_without_its_own_words():
    words = PASSAGES["p0"].text
    stays = question(0, words, kind="sentence", span=words)
    leaves = replace(stays, cloze=True)
    assert sift(stays).easy == {stays.id}
    assert sift(leaves).rejected[0].reason == "its passage comes at place 10, after the first 1"


def test_a_model_of_its_own_may_find_what_keywords_do_not(tmp_path):
    model = str(tiny_transformer(tmp_path / "tiny"))
    search = Search.over([question(0)], PASSAGES)
    seen = []

    class Vectors:
        def queries(self, texts):
            return np.eye(10, dtype=np.float32)[[2] * len(texts)]

        def passages(self, texts):
            seen.extend(texts)
            return np.eye(10, dtype=np.float32)

    assert search.by_model(Vectors()) == {question(0).id: 10}  # p2 first, nine tie at zero
    assert seen == [passage.whole for passage in PASSAGES.values()]
    found = sift(question(0, "zzz", span="keeps its"), funnel=Funnel(round_trip=RoundTrip(top=10, model=model)))
    assert found.kept
    with pytest.raises(UserError, match=r"filter.round_trip.model=/nowhere is not a folder"):
        sift(question(0), funnel=Funnel(round_trip=RoundTrip(model="/nowhere")))


def test_questions_that_keywords_have_first_are_called_easy():
    hard = question(1, "Is tepiny kept in tepinz or malopinx?", span="keeps its")
    found = sift(question(0), hard, funnel=Funnel(round_trip=RoundTrip(top=5)))
    assert found.easy == {question(0).id}


def test_nothing_mined_is_sifted_without_complaint():
    assert set(ALL.sift([], PASSAGES, judge=Says()).counts.values()) == {0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Funnel(near_duplicate=1.2), "filter.near_duplicate=1.2"),
        (lambda: RoundTrip(top=0), "filter.round_trip.top=0"),
        (lambda: RoundTrip(top_reworded=0), "filter.round_trip.top_reworded=0"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- completion ----------------------------------------------------------------------------------------------------


def test_completion_adds_what_the_judge_says_answers_too_and_asks_of_nothing_else():
    asked = question(0, "Is tepiny kept in tepinz, or rulox in rulopinz or malox?", also=("p9",))  # p3: 2 words, p6: 2
    pseudo = question(1, kind="sentence")
    judge = Says(False, True)
    assert complete([asked, pseudo], PASSAGES, judge, top=2) == {asked.id: ("p6",)}
    assert [text for _, text in judge.asked] == [PASSAGES["p3"].whole, PASSAGES["p6"].whole]
    assert {text for text, _ in judge.asked} == {asked.text}
    assert complete([pseudo], PASSAGES, Says(), top=2) == {}
    assert complete([asked], PASSAGES, Says(), top=0) == {}


def test_the_same_words_under_two_paths_of_headings_are_asked_of_neither():
    def under(*headings):
        return Passage(f"About {headings[1]}.", "a.md", headings)

    passages = [under("Guide", "Upper", "How it is installed"), under("Guide", "Lower", "How it is installed")]
    asked = [Question("How it is installed", passage.id, "heading", "", also=()) for passage in passages]
    kept, why = without_duplicates(asked, {passage.id: passage for passage in passages}, threshold=0.9)
    assert (kept, len(why)) == ([], 2)
