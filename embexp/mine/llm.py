"""What an LLM is asked: questions on passages, whether a passage answers a question, a question in other words.

The miner of conf/miner/llm.yaml, the judge of the funnel, and the paraphrases of the test set. `client` does the
asking, `answers` the reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from embexp.errors import UserError
from embexp.mine.answers import parse, truth
from embexp.mine.client import Client
from embexp.mine.passages import Mined, Question, Wanted, hashed
from embexp.mine.prompts import Prompt
from embexp.service.request import Request, Schema

KINDS = {
    "question": "a natural question, as a person would ask it",
    "keywords": "a keyword query of two to six words, as typed into a search box",
    "problem": (
        "a problem or wish as someone would put it who does not know the passage's terms: described in other words "
        "than the passage's"
    ),
}
EXAMPLE = "A question in the style that is wanted, on another text: {}"
ITEM_TOKENS, ANSWER_TOKENS = 70, 20  # of one item with its span and of what is around them, for the dry run
JUDGEMENT = ("answered", "answers", "answer", "verdict")


def _object(**properties: Any) -> dict[str, Any]:
    """A JSON schema of an object as OpenAI's strict mode wants it: every key required, none beside them."""
    closed = {"additionalProperties": False, "required": list(properties)}
    return {"type": "object", "properties": properties, **closed}


TEXT = {"type": "string"}
ITEMS = Schema(
    "questions_1",
    _object(
        items={
            "type": "array",
            "items": _object(kind={"type": "string", "enum": list(KINDS)}, question=TEXT, span=TEXT),
        }
    ),
)
VERDICT = Schema("verdict_1", _object(answered={"type": "boolean"}))
PARAPHRASE = Schema("paraphrase_1", _object(question=TEXT))


class LLMMiner:
    """Asks for the questions of each passage in one call. Answers without a question of use are in `problems`."""

    asks_llm = True

    def __init__(self, *, prompt: Mapping[str, str], client: Client, example: str | None = None) -> None:
        """prompt: system and user, with {passage} and {kinds}, and {title}, {count} and {example} if wanted.

        example: a question in the wanted style. Raises UserError for a prompt that can't be filled.
        """
        self._prompt = Prompt(prompt, needs=("passage", "kinds"), knows=("title", "count", "example"))
        self._client = client
        self._example = EXAMPLE.format(example.strip()) if example and example.strip() else ""

    def requests(self, wanted: Iterable[Wanted]) -> Iterator[Request]:
        """What `mine` asks, for an estimate. Raises UserError for a kind that is not in KINDS."""
        for each in wanted:
            unknown = [kind for kind in each.kinds if kind not in KINDS]
            if unknown or not each.kinds:
                raise UserError(f"kinds={list(each.kinds)}: an LLM is asked for one or more of {', '.join(KINDS)}")
            system, user = self._prompt.filled(
                {
                    "passage": each.passage.text,
                    "title": each.passage.title,
                    "kinds": "\n".join(f"{place}. {kind}: {KINDS[kind]}" for place, kind in enumerate(each.kinds, 1)),
                    "count": str(len(each.kinds)),
                    "example": self._example,
                }
            )
            expected = ANSWER_TOKENS + ITEM_TOKENS * len(each.kinds)
            yield Request(each.passage.id, system, user, ITEMS, expected, subject=each)

    def mine(self, wanted: Sequence[Wanted]) -> Iterator[Mined]:
        """Make questions of these passages, as their answers come.

        Passages whose call failed, or was not made since the client stopped, are left out: the next run asks them.
        """
        for request, answer in self._client.ask(self.requests(wanted), what="questions", total=len(wanted)):
            each: Wanted = request.subject
            parsed = parse(answer.text, kinds=each.kinds, finish=answer.finish, refusal=answer.refusal)
            questions = (Question(item.question, each.passage.id, item.kind, item.span) for item in parsed.items)
            yield Mined(each.passage, tuple(questions), parsed.problems)


class LLMJudge:
    """Asks of each pair whether the passage answers the question: one call a pair, so that none is ever paid twice."""

    def __init__(self, *, client: Client, prompt: Mapping[str, str]) -> None:
        """prompt: system and user, with {question} and {passage}. Raises UserError for one that can't be filled."""
        self._client = client
        self._prompt = Prompt(prompt, needs=("question", "passage"))

    def requests(self, pairs: Iterable[tuple[str, str]]) -> Iterator[Request]:
        """What `answers` asks, for an estimate: each pair once."""
        for question, passage in dict.fromkeys(pairs):
            system, user = self._prompt.filled({"question": question, "passage": passage})
            about = hashed(question, passage)
            yield Request(about, system, user, VERDICT, ANSWER_TOKENS, temperature=0.0, subject=(question, passage))

    def answers(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """For each (question, passage's whole text): yes, no, or None where no judgement could be had."""
        distinct = len(dict.fromkeys(pairs))
        asked = self._client.ask(self.requests(pairs), what="judgements", total=distinct)
        said = {request.subject: truth(answer.text, JUDGEMENT) for request, answer in asked}
        return [said.get(pair) for pair in pairs]


class Paraphraser:
    """Asks for each question in other words. problems: how often an answer gave none, by name."""

    def __init__(self, *, client: Client, prompt: Mapping[str, str]) -> None:
        """prompt: system and user, with {question}. Raises UserError for one that can't be filled."""
        self.problems: Counter[str] = Counter()
        self._client = client
        self._prompt = Prompt(prompt, needs=("question",))

    def requests(self, questions: Mapping[str, str]) -> Iterator[Request]:
        """What `paraphrase` asks, for an estimate."""
        for name, text in questions.items():
            system, user = self._prompt.filled({"question": text})
            yield Request(name, system, user, PARAPHRASE, ANSWER_TOKENS + ITEM_TOKENS // 2, subject=name)

    def paraphrase(self, questions: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """(id, the question in other words) as they come; those without a usable answer are left out and counted."""
        for request, answer in self._client.ask(self.requests(questions), what="paraphrases", total=len(questions)):
            parsed = parse(answer.text, kinds=("question",), finish=answer.finish, refusal=answer.refusal)
            self.problems.update(parsed.problems)
            if parsed.items:
                yield request.subject, parsed.items[0].question
