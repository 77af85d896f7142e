"""Which texts an embedder can read, told by their script alone: cheap, and certain where it says no."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

# Languages of each script, by the first word of its letters' Unicode names; all others are written in LATIN.
_SCRIPTS = {
    "ARABIC": "ar fa ur ps ku ug sd",
    "ARMENIAN": "hy",
    "BENGALI": "bn as",
    "CJK": "zh ja ko",
    "CYRILLIC": "ru uk be bg mk sr kk ky tg mn tt",
    "DEVANAGARI": "hi mr ne sa",
    "ETHIOPIC": "am ti",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he yi",
    "HIRAGANA": "ja",
    "KANNADA": "kn",
    "KATAKANA": "ja",
    "KHMER": "km",
    "LAO": "lo",
    "MALAYALAM": "ml",
    "MYANMAR": "my",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
_NOT_LATIN = frozenset(" ".join(_SCRIPTS.values()).split()) - {"sr", "ku"}
SAMPLE = 1000


def unread_script(text: str, languages: Sequence[str]) -> str | None:
    """The script that most letters of the text are in, if none of the languages is written in it; else None.

    No languages mean any. A text without letters is readable.
    """
    letters = Counter(_script(c) for c in text[:SAMPLE] if c.isalpha())
    if not languages or not letters:
        return None
    foreign = Counter({script: n for script, n in letters.items() if not _writes(script, languages)})
    if 2 * foreign.total() <= letters.total():
        return None
    script = foreign.most_common(1)[0][0]
    return "Han" if script == "CJK" else script.capitalize()


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").split(" ")[0].split("-")[0]
    return name if name in _SCRIPTS else "LATIN"


def _writes(script: str, languages: Sequence[str]) -> bool:
    if script == "LATIN":
        return any(language not in _NOT_LATIN for language in languages)
    return not set(_SCRIPTS[script].split()).isdisjoint(languages)
