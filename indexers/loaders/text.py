"""Plain text in whatever encoding it comes in."""

from __future__ import annotations

import codecs
import re

from indexers.loaders.extracted import Extracted, Limits, Unreadable

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Characters that no text has; a few of them are dropped, more of them mean that the file is no text.
CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffe\uffff]")
INVISIBLE = re.compile("[\u00ad\u200b\ufeff]")  # soft hyphens and the like, which split words for a search
SAMPLE = 65_536


def decode(data: bytes) -> str:
    """Bytes to text with "\\n" line ends: by byte order mark, as UTF-8, as UTF-16 without a mark, or as detected.

    Raises:
        Unreadable: the bytes are no text.
    """
    text = _decode(data)
    controls = len(CONTROL.findall(text[:SAMPLE]))
    if controls > len(text[:SAMPLE]) / 100:
        raise Unreadable("It is binary data, not text.")
    text = CONTROL.sub("", text) if controls or CONTROL.search(text) else text
    text = INVISIBLE.sub("", text)
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ").replace("\f", "\n")


def load(data: bytes, limits: Limits) -> Extracted:
    """A text file as it stands; the spaces at line ends are gone."""
    lines = [line.rstrip() for line in decode(data).split("\n")]
    return Extracted(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n"), "text/plain")


def _decode(data: bytes) -> str:
    for mark, encoding in MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise Unreadable(f"It starts like {encoding} text but isn't: {error.reason}.") from error
    zeros = data[:SAMPLE:2].count(0), data[1:SAMPLE:2].count(0)
    if max(zeros) > len(data[:SAMPLE]) / 5 > 5 * min(zeros):
        try:
            return data.decode("utf-16-le" if zeros[1] > zeros[0] else "utf-16-be")
        except UnicodeDecodeError:
            pass
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return _detect(data)


def _detect(data: bytes) -> str:
    """Another encoding, guessed from a sample by how the text would read."""
    if data[:SAMPLE].count(0):
        raise Unreadable("It is binary data, not text.")
    from charset_normalizer import from_bytes

    best = from_bytes(data[:SAMPLE]).best()
    encoding = best.encoding if best and len(data) >= 32 else "cp1252"  # a few bytes are too little to guess from
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        raise Unreadable(f"It mixes encodings: neither UTF-8 nor wholly {encoding}.") from None
