"""Makes pseudo-queries without any LLM: a passage's heading, or one of its sentences, which then leaves the passage.

That is the inverse cloze task (Lee et al., 2019): the sentence must find what it was taken from, 90 % of the time
without its own words. Passages beside it in its section are to be found too, as two spans of a text are in Contriever
(Izacard et al., 2022): a sentence is seldom about its own passage alone. Named by conf/miner; what is chosen for a
passage depends on its section alone, so documents that are added later change nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embexp.errors import UserError
from embexp.mine.pace import told
from embexp.mine.passages import Mined, Passage, Question, Wanted, hashed
from embexp.mine.standalone import leans_on

KINDS = ("heading", "sentence")
GAP = "\0"  # stands where a span was
LEAST_LEFT = 8  # terms that must remain of a passage
TOO_LITTLE = "no sentence that says enough"
# cut off at the start of a sentence, which is understood without the one before then
LINKS = re.compile(
    r"^(?:however|therefore|thus|hence|moreover|furthermore|in addition|additionally|also|besides|consequently"
    r"|as a result|for example|for instance|in contrast|by contrast|similarly|finally|first|second|third|then|note that"
    r"|and|but|so)\b,?\s+(?=\w)",
    re.IGNORECASE,
)
# what speaks of the sentence before
DANGLING = re.compile(
    r"^(?:it|its|they|their|them|he|she|his|her|this|these|those|that|such|both|the (?:former|latter|same)|here"
    r"|otherwise|er|sie|es|dies\w*|il|elle|ils|elles|cela|ces?|esto|estos?|estas?|eso|ello)\b",
    re.IGNORECASE,
)
MARKUP = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)|<[^<>\s][^<>]*>|(?<!\w)[*_~]{1,3}|[*_~]{1,3}(?!\w)|`")
LINE_MARK = re.compile(r"^\s*(?:[-*+>|#]+|\d+[.)])\s+")
CODE_LINE = re.compile(r"^\s*(?:>>>|\$ |\.\.\. |[|`~]{3}|\||</?\w+)|^(?: {4}|\t)\S")
WITHOUT_BLANKS = re.compile("[\u0e00-\u0e7f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


class SentenceMiner:
    """Pseudo-queries from headings and salient sentences; no model, no network, the same every time."""

    asks_llm = False

    def __init__(
        self,
        *,
        client: object = None,
        language: str = "en",
        cloze: float = 0.9,
        reach: int = 1,
        headings: bool = True,
        words: tuple[int, int] | list[int] = (5, 45),
    ) -> None:
        """Say what counts as a query. Raises UserError for values out of range.

        | parameter | meaning                                                                                        |
        |-----------|------------------------------------------------------------------------------------------------|
        | client    | not used: the other miner's                                                                    |
        | language  | of the documents (ISO 639-1), for where sentences end                                          |
        | cloze     | the share of queries whose words leave the passage that is trained on (Lee et al.: 0.9)        |
        | reach     | a query also stands for this many passages before and after its own, under the same headings   |
        | headings  | whether a section's heading is a query for its passages                                        |
        | words     | the fewest and most words of a sentence                                                        |
        """
        del client
        if not 0 <= cloze <= 1:
            raise UserError(f"miner.cloze={cloze} must be a share from 0 to 1")
        if reach < 0:
            raise UserError(f"miner.reach={reach} must be a whole number from 0 up")
        if len(words) != 2 or not 1 <= words[0] <= words[1]:
            raise UserError(f"miner.words={list(words)} must be the fewest and the most words of a sentence: [5, 45]")
        self._language, self._cloze, self._reach = language, cloze, reach
        self._headings, self._words = headings, tuple(words)

    def requests(self, wanted: Sequence[Wanted]) -> tuple[()]:
        """Nothing: no language model is asked."""
        del wanted
        return ()

    def mine(self, wanted: Sequence[Wanted]) -> Iterator[Mined]:
        """As many queries for each passage as kinds are wanted, or fewer where it says too little.

        The kind keywords gives a sentence's content words, the others the sentence.
        """
        sections: dict[tuple[str, ...], list[Passage]] = defaultdict(list)
        for each in wanted:
            sections[(each.passage.document, *each.passage.headings)].append(each.passage)
        for passages in sections.values():
            passages.sort(key=lambda passage: passage.position)
        for each in told("making questions of passages", wanted):
            passage = each.passage
            section = sections[(passage.document, *passage.headings)]
            near = [one for one in section if abs(one.position - passage.position) <= self._reach]
            yield self._of_passage(each, [one for one in near if one is not passage], leads=section[0] is passage)

    def _of_passage(self, wanted: Wanted, near: Sequence[Passage], *, leads: bool) -> Mined:
        passage, count = wanted.passage, len(wanted.kinds)
        also = tuple(one.id for one in near)
        questions: list[Question] = []
        # where one query is wanted it is a heading for half of the passages
        if leads and self._headings and (count > 1 or _share("heading", passage.id) < 0.5):
            query = heading_query(passage.headings)
            if query is not None:
                cloze = self._leaves(passage, query)
                questions.append(Question(query, passage.id, "heading", passage.title, cloze, also))
        found = self._sentences(passage, near)
        left = len(terms(passage.text))
        for kind in wanted.kinds[len(questions) :]:
            while found:
                span, query = found.pop(0)
                leaves = self._leaves(passage, query)
                rest = left - len(terms(query)) if leaves else left
                if rest >= max(LEAST_LEFT, len(terms(passage.text)) // 2):
                    left = rest
                elif near:  # what is beside it is found by more than its own words
                    leaves = False
                else:
                    continue
                text = _content_words(query) if kind == "keywords" else query
                questions.append(Question(text, passage.id, "sentence", span, leaves, also))
                break
        return Mined(passage, tuple(questions), (TOO_LITTLE,) * (count - len(questions)))

    def _leaves(self, passage: Passage, query: str) -> bool:
        return _share("cloze", passage.id, query) < self._cloze

    def _sentences(self, passage: Passage, near: Sequence[Passage]) -> list[tuple[str, str]]:
        """The passage's sentences that can be queries, as they stand in it and as queries; the most salient first."""
        around = Counter(terms(" ".join([passage.title, passage.text, *(one.text for one in near)])))
        found = []
        for place, span in enumerate(_spans(passage.text, self._language)):
            query = _as_query(span)
            own = terms(query)
            if self._words[0] <= len(own) <= self._words[1] and _is_prose(query) and leans_on(query) is None:
                found.append((-_salience(own, around), place, span, query))
        return [(span, query) for _, _, span, query in sorted(found)]


def heading_query(headings: Sequence[str]) -> str | None:
    """The last heading as somebody would type it, with the one above where it is short; None if that says too little.

    Numbers in front go, and the words of a name such as `queue.Queue.put_nowait` are set apart.
    """
    plain = [" ".join(_as_query(re.sub(r"^\s*[\d.]+\s+", "", heading)).split()) for heading in headings]
    parts = [_words_of_names(heading) for heading in plain if heading]
    if not parts:
        return None
    query = parts[-1] if len(terms(parts[-1])) >= 3 else " ".join(dict.fromkeys(parts[-2:]))
    return query if len(terms(query)) >= 2 else None


def without(passage: Passage, spans: Sequence[str]) -> str:
    """The passage's text without these spans and without its title, its white space mended; whole where there are none.

    Spans are found whatever the white space between their words; one that is not in the text changes nothing. The title
    goes with any span: were it gone from the passages of heading queries alone, a model would learn to tell these from
    the others by that and nothing else (measured: benchmarks/README.md).
    """
    if not spans:
        return passage.whole
    text = passage.text
    for span in spans:
        if span.split() and span.split() != passage.title.split():
            text = re.sub(r"\s+".join(map(re.escape, span.split())), GAP, text)
    text = re.sub(rf"(?m)^({GAP}[ \t]*)+", "", text)
    lines = [re.sub(rf"[ \t]*{GAP}[ \t]*|(?<=\S)[ \t]{{2,}}", " ", line).rstrip() for line in text.split("\n")]
    lines = [line for line in lines if not re.fullmatch(r"\s*(?:[-*+>]|\d+[.)])", line)]  # marks of items that are gone
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def terms(text: str) -> list[str]:
    """The words of a text in small letters; pairs of characters where a script has no blanks between words."""
    found: list[str] = []
    for word in re.findall(r"\w+", text.casefold()):
        if WITHOUT_BLANKS.search(word):
            found += [word[place : place + 2] for place in range(max(1, len(word) - 1))]
        else:
            found.append(word)
    return found


def _salience(own: Sequence[str], around: Mapping[str, int]) -> float:
    """How much a sentence says of what is said around it.

    Words count by their length, which tells content words from others in any language about as well as their frequency
    in a corpus does, and does not change when documents are added.
    """
    counts = Counter(own)
    mass = sum(_weight(term) * math.log1p(max(0, around[term] - count)) for term, count in counts.items())
    return mass / math.sqrt(len(counts) + 1)


def _weight(term: str) -> int:
    if WITHOUT_BLANKS.search(term):
        return 4
    return 0 if len(term) < 4 or term.isdigit() else len(term)


def _spans(text: str, language: str) -> Iterator[str]:
    """Sentences as they stand in the text; no code, tables or headings."""
    from sentencex import segment

    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+[.)])\s)", text):
        lines = block.split("\n")
        if any(CODE_LINE.match(line) for line in lines) or re.match(r"\s*#+\s", block):
            continue
        start = LINE_MARK.match(block)
        for sentence in segment(language, block[start.end() :] if start else block):
            if sentence.strip():
                yield sentence.strip()


def _as_query(span: str) -> str:
    """Without markup, line breaks and the word that links it to the sentence before."""
    plain = " ".join(MARKUP.sub(lambda found: found.group(1) or "", span).split())
    cut = LINKS.sub("", plain)
    return cut[:1].upper() + cut[1:] if cut != plain else plain


def _is_prose(query: str) -> bool:
    """Whether it is mostly words, and understood without the sentence before."""
    letters = sum(character.isalpha() or character == " " for character in query)
    return letters >= 0.75 * len(query) and not DANGLING.match(query) and "://" not in query


def _content_words(query: str) -> str:
    words = [word for word in re.findall(r"[\w'’-]+", query) if len(word) > 3 and not word.isdigit()]
    return " ".join(words) if len(words) >= 3 else query


def _words_of_names(text: str) -> str:
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=\w)[._](?=[^\W\d_])|(?<=\w)_+|_+(?=\w)|\(\)", " ", text)
    return " ".join(apart.split())


def _share(*parts: Any) -> float:
    """A number from 0 to 1 that depends on these texts alone."""
    return int(hashed(*parts), 16) / 16**16
