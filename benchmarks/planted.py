"""Questions with planted faults about an invented product, for `funnel.py`: each says what is wrong with it, if it is.

The product does not exist; its knowledge base is made from templates. The questions that templates make are checked
against those written by hand, which are harder: good ones that look bad and bad ones that look good.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from embexp.mine.passages import Passage, Question

PARTS = (
    "Tallow Quern Hasp Marl Sedge Withy Bodkin Cresset Fettle Gimlet Ingot Jorum Kestrel Lathe Mullion Newel Oriel "
    "Plinth Rasp Spindle"
)
# topic -> (heading, text, a question, its span, keywords, a problem in other words than the text's)
TOPICS = {
    "install": (
        "Installing {part}",
        "{part} is set up with the command {low}ctl init on every {noun} host. The installer asks for a licence file "
        "and writes its settings to /etc/{low}/{noun}.toml. Setup ends with a self-check that takes {a} seconds.",
        "Where does the {part} installer write its settings?",
        "writes its settings to /etc/{low}/{noun}.toml",
        "{low} {noun} installer settings file",
        "I just put {part} on a fresh machine and want to know where my choices ended up",
    ),
    "ports": (
        "Ports of {part}",
        "{part} listens on port {a} for {noun} traffic and on port {b} for metrics. Both can be moved with the option "
        "listen in the {noun} block. A firewall must let port {a} through.",
        "Which port does {part} use for {noun} traffic?",
        "listens on port {a} for {noun} traffic",
        "{low} {noun} port firewall",
        "nothing reaches {part} from outside although the machine is up",
    ),
    "retention": (
        "Retention in {part}",
        "{part} keeps every {noun} for {a} days and then moves it to cold storage. The retention period is set with "
        "keep_days; {b} is the longest that is accepted. Shortening it does not delete what is in cold storage.",
        "How many days does {part} keep a {noun} before cold storage?",
        "keeps every {noun} for {a} days",
        "{low} keep_days {noun} cold storage",
        "old stuff vanished from {part} and we need it longer",
    ),
    "keys": (
        "Keys of {part}",
        "The {noun} key of {part} is renewed with {low}ctl rekey. During renewal reads go on and writes wait for up to "
        "{a} seconds. The old key stays valid for {b} hours, so that late readers are not cut off.",
        "How long does the old {noun} key of {part} stay valid after renewal?",
        "The old key stays valid for {b} hours",
        "{low} rekey {noun} validity",
        "our secret for {part} leaked and has to be replaced without an outage",
    ),
    "errors": (
        "Error {low}-{a}",
        "{part} reports {low}-{a} when a {noun} arrives twice. The second copy is dropped and counted in the metric "
        "{low}_{noun}_twice. It is harmless unless more than {b} come within an hour.",
        "What does error {low}-{a} of {part} mean?",
        "reports {low}-{a} when a {noun} arrives twice",
        "{low}_{noun}_twice metric",
        "{part} complains about the same thing over and over, is that bad",
    ),
    "limits": (
        "Limits of {part}",
        "A single {part} node takes up to {a} {noun} requests per second. Beyond that requests wait in a queue of {b} "
        "places and are then refused with status 429. More nodes raise the limit in step.",
        "How many {noun} requests per second can one {part} node take?",
        "takes up to {a} {noun} requests per second",
        "{low} {noun} rate limit 429",
        "customers get turned away by {part} at peak hours",
    ),
    "backup": (
        "Backing up {part}",
        "A backup of {part} holds its {noun} index and its settings, never the spool. It is made nightly {a} minutes "
        "past one and kept on {b} disks. A restore needs the same major version.",
        "Does a backup of {part} hold the spool?",
        "holds its {noun} index and its settings, never the spool",
        "{low} nightly backup {noun} index",
        "the disk of our {part} box died, what can I get back",
    ),
    "upgrade": (
        "Upgrading {part}",
        "{part} {a} reads data of version {b} and rewrites each {noun} when it is next touched. Downgrades are not "
        "possible after the first rewrite. Stop the {noun} workers before the upgrade and start them last.",
        "Can {part} {a} read {noun} data of version {b}?",
        "reads data of version {b}",
        "{low} upgrade {noun} workers order",
        "we moved {part} to the new release and want to go back",
    ),
}
NOUNS = (
    "ledger parcel docket ticket reading voucher manifest packet invoice sample waybill claim roster token bulletin "
    "transcript quota permit stanza vessel"
)

# written by hand: (text, fault or None); None is a good question
BY_HAND_GOOD = [
    "What is this keyword used for in C++?",
    "How do I refer to `this` inside a {part} hook written in JavaScript?",
    "What does the text property of a {noun} label hold?",
    "According to the author column, who wrote a {noun}?",
    "What does it mean when the {part} lamp blinks red?",
    "Is it safe to delete the spool folder of {part}?",
    "How long does it take to reindex one {noun} shelf?",
    "How does {part} know that its queue is full?",
    "Can I number the sections of a {noun} document?",
    "What type does the given_name field of a {noun} accept?",
    "How do I add a table of contents to a {noun} report?",
    "Which section of the {noun} form holds the address?",
    "Why does {part} say that the disk is full when it is not?",
    "What happens to a {noun} if the node that holds it dies?",
    "How do I export a {noun} document as PDF?",
    "What is the difference between a passage and a paragraph in the {part} index?",
    "Where can I see which article numbers a {noun} has?",
    "Do I have to stop {part} before I back it up?",
    "What is the context menu of the {noun} list for?",
    "How do authors sign a {noun} in {part}?",
    "Is there a limit to how long they may be kept, the {noun} files of {part}?",
    "When should I use {part} instead of a cron job?",
    "How can a customer tell that their {noun} has arrived?",
    "Why is above average load no problem for {part}?",
    "What do I write in the abstract of a {noun} paper?",
    "Can {part} read that many {noun} files at once?",
    "Who is told when a {noun} that nobody asked for comes in?",
    "Wie erneuere ich den {noun}-Schlüssel von {part}?",
    "Comment changer le port de {part} ?",
    "¿Cómo se cambia el puerto de {part}?",
    "{part} 429",
    "this->{noun} null pointer {part}",
]
BY_HAND_LEANING = [
    "What does this section recommend?",
    "According to the passage, how often are keys renewed?",
    "What is the author's advice on upgrades?",
    "Which two options are described above?",
    "What are the steps mentioned in the text?",
    "How does it work?",
    "What is its default port?",
    "Why should they be stopped first?",
    "What happens next?",
    "Which of the two is faster?",
    "What does the passage say about retention?",
    "In the given context, what does spool mean?",
    "What problem does the writer describe?",
    "How many are accepted at most?",
    "What is the longest that is accepted?",
    "As stated in the document, when is the backup made?",
    "Who should read this chapter?",
    "What is this about?",
    "Can you summarise the text?",
    "What are the key takeaways?",
    "Does that apply to Windows as well?",
    "Why is this not recommended?",
    "What is shown in Table 3?",
    "What is the topic of this document?",
    "What does the example above do?",
    "How is this different from the earlier version?",
    "What must be done before?",
    "Which command is used for that?",
    "What is the purpose of this paragraph?",
    "Under what condition is it harmless?",
    "Was passiert laut dem Text danach?",
    "Worum geht es in diesem Abschnitt?",
    "Wie funktioniert das?",
    "De quoi parle ce document ?",
    "Selon l'auteur, que faut-il faire ?",
    "¿Qué se recomienda en este texto?",
    "¿Para qué sirve esto?",
    "根据本文，应该怎么做？",
]
LEANING = [
    "According to the {page}, how long is a {noun} kept?",
    "What does this {page} say about the {noun} of {part}?",
    "Which {noun} limit is mentioned in the {page}?",
    "How is the {noun} described above renewed?",
    "What does the author recommend for {part}?",
    "Based on the {page}, can {part} be downgraded?",
    "How many of them does it take per second?",
    "Why does it drop the second copy of a {noun}?",
    "What is their {noun} used for?",
    "In this {page}, which port is used for the {noun}?",
]
PAGES = ["text", "passage", "document", "section", "article", "excerpt"]
VAGUE = [
    "What should administrators look at before they begin?",
    "How can performance be improved?",
    "Which settings are recommended for large companies?",
    "What do experts say on security?",
    "What is best practice for teams?",
    "How does the company treat its customers?",
]


@dataclass(frozen=True)
class Planted:
    """A question and its fault: the name of the stage that should drop it, or None for a good one."""

    question: Question
    fault: str | None
    by_hand: bool = False


def knowledge(seed: int = 0) -> dict[str, Passage]:
    """Twenty parts with eight passages each, a document per part."""
    rng = random.Random(seed)
    passages = {}
    for part, noun in zip(PARTS.split(), NOUNS.split(), strict=True):
        for position, (topic, (heading, text, *_)) in enumerate(TOPICS.items()):
            names = _names(part, noun, rng)
            key = f"{part}-{topic}"
            headings = (f"{part} handbook", heading.format(**names))
            passages[key] = Passage(text.format(**names), f"{part}.md", headings, position, given_id=key)
            _NAMES[key] = names
    return passages


_NAMES: dict[str, dict[str, str]] = {}


def _names(part: str, noun: str, rng: random.Random) -> dict[str, str]:
    a, b = rng.sample(range(11, 9999), 2)
    return {"part": part, "low": part.lower(), "noun": noun, "a": str(a), "b": str(b)}


def questions(passages: dict[str, Passage], seed: int = 0) -> list[Planted]:
    """About 800 questions, good and bad, in a random order in which every duplicate comes after its original."""
    rng = random.Random(seed)
    first, later = [], []
    keys = list(passages)
    for key in keys:
        first += [Planted(question, None) for question in _good(key)]
    good = [each.question for each in first]
    for original in rng.sample([question for question in good if question.kind == "question"], 70):
        later.append(Planted(_changed(original, _again(original.text, rng)), "not a duplicate"))
    for key in rng.sample(keys, 30):
        text = _REWORDED[key.partition("-")[2]].format(**_NAMES[key])
        later.append(Planted(_question(key, text), "not a duplicate", by_hand=True))
    for key in rng.sample(keys, 60):
        names = _NAMES[key] | {"page": rng.choice(PAGES)}
        first.append(Planted(_question(key, rng.choice(LEANING).format(**names)), "stands alone"))
    drawn = rng.sample(keys, 110)
    for key in drawn[:70]:
        text = _ANSWERED[key.partition("-")[2]].format(**_NAMES[key])
        span = _not_there(_question(key, text), passages, rng)
        first.append(Planted(Question(text, key, "question", span), "span in the passage"))
    for key in drawn[70:]:  # asked of a passage of another document
        other = rng.choice([one for one in keys if passages[one].document != passages[key].document])
        text = _ANSWERED[key.partition("-")[2]].format(**_NAMES[key])
        first.append(Planted(_question(other, text), "round trip"))
    for key in rng.sample(keys, 70):
        asked_of = rng.choice([other for other in TOPICS if not key.endswith(f"-{other}")])
        text = _UNANSWERED[asked_of].format(**_NAMES[key])
        first.append(Planted(_question(key, text), "answerable"))
    for number, key in enumerate(rng.sample(keys, 30)):
        first.append(Planted(_question(key, f"{VAGUE[number % 6][:-1]}, question {number}?"), "round trip"))
    for text in BY_HAND_GOOD:
        key = rng.choice(keys)
        asked = text.format(**_NAMES[key])
        passage = passages[key]
        made = Passage(f"{asked} Here is what to know of it. {passage.text}", f"hand {key}", passage.headings,
                       given_id=f"hand-{len(passages)}")  # fmt: skip
        passages[made.id] = made
        first.append(Planted(Question(asked, made.id, "question", "Here is what to know of it"), None, True))
    for text in BY_HAND_LEANING:
        first.append(Planted(_question(rng.choice(keys), text), "stands alone", True))
    rng.shuffle(first)
    return first + later


_ANSWERED = {  # by its passage, so that only the span is at fault
    "install": "How many seconds does the self-check take when {part} is set up on a {noun} host?",
    "ports": "With which option in the {noun} block is {part} moved to another port?",
    "retention": "What is the largest keep_days that {part} accepts for a {noun}?",
    "keys": "Do writes to {part} wait while its {noun} key is renewed?",
    "errors": "How many {low}-{a} of {part} within an hour are no longer harmless?",
    "limits": "With what status does {part} refuse {noun} requests once its queue is full?",
    "backup": "On how many disks is the nightly {noun} backup of {part} kept?",
    "upgrade": "Should the {noun} workers be started first or last when {part} is upgraded?",
}
_REWORDED = {  # what the questions of TOPICS ask, in other words
    "install": "In which file does the installer of {part} put its settings?",
    "ports": "What port is used for {noun} traffic by {part}?",
    "retention": "After how many days does {part} move a {noun} to cold storage?",
    "keys": "For how long is {part}'s old {noun} key still valid once it was renewed?",
    "errors": "What's the meaning of {part}'s error {low}-{a}?",
    "limits": "What number of {noun} requests can a single {part} node handle per second?",
    "backup": "Is the spool part of a {part} backup?",
    "upgrade": "Is {part} {a} able to read version {b} {noun} data?",
}
_UNANSWERED = {
    "install": "Which operating systems does {part} run on besides {noun} hosts?",
    "ports": "Does {part} speak QUIC on its {noun} port?",
    "retention": "Who may change how long {part} keeps a {noun}?",
    "keys": "Which cipher protects the {noun} key of {part}?",
    "errors": "How do I silence warnings about a {noun} in {part}?",
    "limits": "How much memory does a {part} node need for {noun} requests?",
    "backup": "Can a {part} backup with its {noun} index be encrypted?",
    "upgrade": "When does support for the {noun} workers of {part} end?",
}


def _good(key: str) -> list[Question]:
    part, topic = key.split("-")
    del part
    _, _, text, span, keywords, problem = (one.format(**_NAMES[key]) for one in TOPICS[topic])
    return [
        Question(text, key, "question", span),
        Question(keywords, key, "keywords", span),
        Question(problem, key, "problem", span),
    ]


def _question(key: str, text: str) -> Question:
    """A question with a span that is in its passage."""
    return Question(text, key, "question", TOPICS[key.partition("-")[2]][3].format(**_NAMES[key]))


def _changed(question: Question, text: str) -> Question:
    return Question(text, question.passage, question.kind, question.span)


def _again(text: str, rng: random.Random) -> str:
    """The same question in the same words or nearly."""
    words = text.rstrip("?").split()
    ways = [text.lower(), f"{text.rstrip('?')} ?", f"{text[0].lower()}{text[1:]}", f"{text} Thanks",
            " ".join(word for place, word in enumerate(words) if word != "the") + " then?",
            text.replace("How ", "So how ").replace("Which ", "And which ").replace("What ", "So what ")]  # fmt: skip
    return rng.choice([way for way in ways if way != text])


def _not_there(question: Question, passages: dict[str, Passage], rng: random.Random) -> str:
    """Words that are not in the passage: invented, another passage's, or changed in one word."""
    words = question.span.split()
    other = rng.choice([one for one in passages.values() if one.id != question.passage and one.id in _NAMES])
    changed = [*words]
    changed[rng.randrange(len(words))] = rng.choice(["seldom", "weekly", "thirteen", "users"])
    return rng.choice(["as is written in the manual", other.text.split(". ")[0], " ".join(changed), ""])
