"""Does a question stand alone, or does it lean on the page that its writer had open? Called by `funnel`.

Somebody who searches has no passage before them: "What does this section recommend?" and "How does it work?" find
nothing. The rules know English best and some of German, French, Spanish, Chinese and Japanese. They are wary, since a
good question that is lost costs more than a bad one that stays: the judge and the round trip come after.
"""

from __future__ import annotations

import re

PAGE = r"(?:document|passage|text|article|paragraph|(?:sub-?)?section|excerpt|extract|chapter|snippet|abstract)s?"
WRITER = r"(?:authors?|writers?|speakers?|narrator)"
SAYS = (
    r"(?:sa(?:y|id)|mention|describe|state|explain|discuss|recommend|suggest|claim|argue|conclude|imply|implie|advise"
    r"|mean by)(?:s|ed|d)?"
)
SHOWN = r"(?:mentioned|described|listed|shown|given|discussed|stated|quoted|outlined|explained)"
# "this text?" points at the page, "this text field" does not: what follows must not be a noun
FOLLOWS = (
    rf"(?:{SAYS}|about|and|or|as|to|for|on|is|are|was|were|that|do|does|the|an?|we|you|i|it|how|what|which|who|why"
    r"|when)\b"
)
ENDS = rf"(?=\s*(?:[?.!,;:)\"']|$|{FOLLOWS}))"
LAST = r"(?=\s*(?:[?.!,]|$))"
POINTING = r"(?:this|these|the (?:given|above|following|present|provided|preceding|previous|quoted))"
REFERENCES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b{POINTING} {PAGE}\b{ENDS}",
        rf"\b(?:according to|based on) (?:the|this|that) (?:{PAGE}|{WRITER}){LAST}",
        rf"\bin the (?:passage|text|article|excerpt|extract|snippet|abstract){LAST}",
        rf"\b(?:the|this|that) (?:{PAGE}|{WRITER}) {SAYS}\b",
        rf"\b{SHOWN} (?:in|by) (?:the|this|that) (?:{PAGE}|{WRITER}){LAST}",
        rf"\b{SHOWN} (?:above|below|earlier|previously|here)\b",
        r"\bthe (?:above|aforementioned)\b(?!-)",
        r"\b(?:in|does|do|see|from) (?:the )?(?:table|figure|fig\.|listing|example) (?:\d+(?:\.\d+)*|above|below)\b",
        r"\b(?:in|laut|aus|nach) (?:diesem|dem (?:obigen|vorliegenden|folgenden)) "
        r"(?:dokument|text|textabschnitt|abschnitt|absatz|artikel|kapitel|auszug)\b",
        rf"\blaut (?:dem|der) (?:dokument|text|abschnitt|absatz|artikel|autor|autorin|verfasser){LAST}",
        r"\b(?:dans|selon|d'après) (?:ce|cet|cette) (?:document|texte|passage|article|paragraphe|section|extrait)\b",
        rf"\b(?:selon|d'après) (?:le |l')(?:texte|passage|paragraphe|auteur|article|extrait){LAST}",
        r"\b(?:en|según) est[ea] (?:documento|texto|pasaje|artículo|párrafo|sección|apartado)\b",
        rf"\bsegún el (?:texto|pasaje|artículo|párrafo|autor){LAST}",
        r"(?:本文|该文|这篇文章|本文档|这段文字|上述|上文|この文書|この文章|本文書|上記の)",
    )
]
ASKS = "what which who whom whose when where why how is are was were do does did can could should would will has have"
PRONOUNS = "it its it's itself they them their theirs he she him his her hers this that these those"
# words that name nothing that could be searched for: alone, or before a pronoun, they leave open what is meant
NAMELESS = f"""
{ASKS}
had may might must been be being get gets got a an the of to in on at by for from with without and or but if so as
than then also exactly actually really often long much many far soon not n't don't doesn't i you we one my your our
any some all kind kinds sort type types way ways part parts point time times there here main benefit benefits purpose
advantages disadvantages role meaning name reason reasons result results effect effects cause causes difference
differences example examples step steps detail details thing things summary happens happen use used uses using work
works mean means done help helps important necessary different fix change called about me tell explain describe please
more like
wie was warum wann wo wozu wer ist sind funktioniert macht bedeutet passiert geht es das dies er sie man damit genau
kann ich der die und
comment pourquoi quand où qui que quoi à est ce c'est qu'est ça cela il elle marche fonctionne sert le la les y
qué cómo por para cuándo dónde quién es son funciona sirve hace esto eso ello se el
"""
asks, pronouns, nameless = (frozenset(words.split()) for words in (ASKS, PRONOUNS, NAMELESS))
# "Is it safe to ...": here it stands for what comes after
COMES_AFTER = re.compile(
    r"\bit(?:'s)?\s+(?:(?:is|was|be|so|more|really|even|always|ever|usually|make|still)\s+)*"
    r"(?:possible|impossible|safe|necessary|ok|okay"
    r"|worth|better|best|wise|bad|good|normal|legal|allowed|common|likely|important|easy|easier|hard|harder|difficult"
    r"|useful|advisable|recommended|required|mandatory|enough|sense|mean|means|take|takes|cost|costs|matter|matters"
    r"|hurt|called)\b(?=.*\b(?:to|that|if|when|whether|without|with|before|after|for)\b|\s+\w+ing\b)",
    re.IGNORECASE,
)


def leans_on(text: str) -> str | None:
    """Why a question, or a query of keywords, does not stand alone; None where it does."""
    plain = " ".join(text.replace("’", "'").split())
    for pattern in REFERENCES:
        if found := pattern.search(plain):
            return f"points at the text: {found.group(0)!r}"
    words = re.findall(r"\w+(?:'\w+)?", plain.lower())
    if all(word in nameless or word in pronouns for word in words):
        return "names nothing to search for"
    pronoun = _dangling(plain, words)
    return f"nothing before {pronoun!r} that it could stand for" if pronoun else None


def _dangling(text: str, words: list[str]) -> str | None:
    """The first pronoun of a question with nothing before it that it could stand for."""
    if words[0] not in asks or COMES_AFTER.search(text):
        return None
    for word in words:
        if word in pronouns:
            # "this keyword" names something; "it" never does
            return None if word in ("this", "that", "these", "those") else word
        if word not in nameless:
            return None
    return None
