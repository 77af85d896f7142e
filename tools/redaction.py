"""Secrets and unprintable characters out of what a model is shown.

A net, not a wall: it knows this process's own environment and the shapes of common keys. A secret of another shape, or
one that a tool encodes, passes. Tools should not read what the model must not see.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

MASK = "[redacted]"
SHORTEST = 8
LONGEST = 4_096
_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH", re.IGNORECASE)
_PLACES = re.compile(r"_(SOCK|FILE|PATH|DIR|URL|HOST|NAME)$", re.IGNORECASE)
_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{0,4000}?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\bsk-[A-Za-z0-9_-]{20,200}"  # OpenAI, Anthropic and their kin
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS
    r"|\bgh[pousr]_[A-Za-z0-9]{36,255}|\bgithub_pat_\w{22,255}"
    r"|\bglpat-[\w-]{20,100}"
    r"|\bxox[abeoprs]-[\w-]{10,250}"  # Slack
    r"|\bAIza[\w-]{35}"  # Google
    r"|\bhf_[A-Za-z0-9]{30,100}"
    r"|\beyJ[\w-]{10,2000}\.[\w-]{10,2000}\.[\w-]{10,2000}"  # JSON web token
    r"|(?<=://)[^/\s:@]{1,200}:[^/\s:@]{1,200}(?=@)"  # user and password in an address
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")


def redact(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text with secret values of the environment and strings in the shape of keys replaced by a mask."""
    values = {
        value
        for name, value in environ.items()
        if SHORTEST <= len(value) <= LONGEST and _NAMES.search(name) and not _PLACES.search(name)
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK)
    return _SHAPES.sub(MASK, text)


def printable(text: str) -> str:
    """The text with NUL, terminal escapes and lone surrogates replaced by U+FFFD, so that it can be stored and sent."""
    return _UNPRINTABLE.sub("\ufffd", text)
