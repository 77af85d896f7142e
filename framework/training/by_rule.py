"""Questions made without a model: gaps in sentences, what a section says, and questions on the wrong passage.

They are plainer than a person's or a large model's, and cost nothing.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence

from framework.training.asked import Item
from framework.training.passages import SENTENCE, Passage
from framework.training.row_parts import words

GAPS = 3  # of one passage
SENTENCE_WORDS = 6, 40
# What a gap is worth asking for: an amount with the word after it, or a name within the sentence.
GAP = re.compile(
    r"(?<![\w.,])(?:[$€£]\s?)?\d[\d.,:]*\d?(?:\s?%|\s[a-z]{3,})?(?!\w)"
    r"|(?<=[a-z,] )[A-Z][a-z]+(?: (?:of |the )?[A-Z][a-z]+)+(?!\w)"
)


def items_of(passage: Passage, others: Sequence[Passage], seed: int = 0) -> list[Item]:
    """Items of a passage; `others` are passages of other documents, whose gaps it can't fill."""
    dice = random.Random(f"{seed} {passage.key}")
    gaps = list(_gaps(passage))
    dice.shuffle(gaps)
    items = sorted(gaps[:GAPS], key=lambda item: item.start)
    heading = _heading(passage)
    if heading is not None:
        items.append(heading)
    strange = [item for other in others for item in _gaps(other)]
    dice.shuffle(strange)
    own = set(words(passage.text))
    missing = [item for item in strange if not set(words(item.short)) <= own]
    return [*items, *(Item("unanswerable", item.question) for item in missing[:1])]


def _gaps(passage: Passage) -> Iterator[Item]:
    """At most one gap a sentence; what fills it stands in the passage once, so that there is one answer."""
    for sentence in SENTENCE.finditer(passage.text):
        text = " ".join(sentence[0].split())
        if not SENTENCE_WORDS[0] <= len(text.split()) <= SENTENCE_WORDS[1] or text[-1] not in ".!?":
            continue
        for found in GAP.finditer(sentence[0]):
            short = found[0].rstrip(".,:")
            if passage.text.count(short) == 1:
                gapped = sentence[0][: found.start()] + "____" + sentence[0][found.start() + len(short) :]
                start = sentence.start() + found.start()
                yield Item("cloze", f"What belongs in the gap: {' '.join(gapped.split())}", short, start)
                break


def _heading(passage: Passage) -> Item | None:
    """What a section says: its first sentence."""
    name = passage.heading.rpartition(" > ")[2]
    first = next((m for m in SENTENCE.finditer(passage.text) if len(m[0].split()) >= SENTENCE_WORDS[0]), None)
    if not name or first is None or not first[0].rstrip().endswith("."):
        return None
    text = " ".join(first[0].split())
    if len(text.split()) > SENTENCE_WORDS[1]:
        return None
    return Item("heading", f"What is said about {name}?", first[0].rstrip(), first.start(), text)
