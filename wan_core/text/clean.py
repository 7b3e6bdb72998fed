"""Prompt cleaning, with the standard library alone."""

import re
import unicodedata
from html import unescape
from html.entities import html5

ENTITY = re.compile("&#?[0-9A-Za-z]{1,24};")
TERMINAL_ESCAPE = re.compile(r"\x1b\[[\d;]*[A-Za-z]")
CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")

_LIGATURES = "ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬆ"
_WIDTHS = map(chr, range(0xFF01, 0xFFF0))
_C1 = {code: bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)}

PLAIN = {
    **{code: char for code, char in _C1.items() if char != "\ufffd"},
    **{ord(char): unicodedata.normalize("NFKC", char) for char in (*_LIGATURES, *_WIDTHS)},
    ord("ﬅ"): "ſt",
    **dict.fromkeys(map(ord, "‘’‚‛"), "'"),
    **dict.fromkeys(map(ord, "“”„‟"), '"'),
    0x2BC: "'",
}
"""Code point -> what is meant: C1 codes as Windows-1252, Latin ligatures, full and half widths, curly quotes."""
# Line breaks and wide spaces are not in it: white space of every kind collapses at the end.


def clean_prompt(text: str) -> str:
    """Repair a prompt the way Wan's training text was: HTML entities, widths, quotes, control codes, white space.

    Surrogate pairs are joined; a lone surrogate becomes U+FFFD. Text that was decoded with the wrong encoding
    ("schÃ¶n") stays as it is typed: guessing at it is the one thing that the official code does and this does not.
    Source: Wan-Video/Wan2.1, ``wan/modules/tokenizers.py``, mode 'whitespace'; ``fix_text`` of ftfy 6.3.
    """
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    lines, entities = [], True
    for line in text.split("\n"):
        entities = entities and "<" not in line  # from here on the text is HTML, its entities are meant
        lines.append(_mend(line, entities))
    return re.sub(r"\s+", " ", unescape(unescape("\n".join(lines)))).strip()


def misread(text: str) -> str | None:
    """What a text says whose UTF-8 was decoded as Windows-1252 or Latin-1; None where it was not."""
    for encoding in ("cp1252", "latin-1"):
        try:
            meant = text.encode(encoding).decode("utf-8")
        except UnicodeError:
            continue
        return meant if meant != text else None
    return None


def _mend(line: str, entities: bool) -> str:
    """One line, mended until nothing changes: what one step uncovers may be for another."""
    before = None
    while line != before:
        before = line
        if entities:
            line = ENTITY.sub(_character, line)
        line = CONTROLS.sub("", TERMINAL_ESCAPE.sub("", line.translate(PLAIN)))
        line = unicodedata.normalize("NFC", line)
    return line


def _character(entity: re.Match) -> str:
    """The character of an entity that is complete; names in capitals (``&EACUTE;``) give capital letters."""
    word = entity[0]
    if word[1:] in html5:
        return html5[word[1:]]
    plain = unescape(word)
    if ";" not in plain:
        return plain
    return html5.get(word[1:].lower(), word).upper() if word.isupper() and plain == word else word
