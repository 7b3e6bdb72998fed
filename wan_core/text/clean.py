"""Prompt cleaning."""

import html
import re


def clean_prompt(text: str) -> str:
    """Repair a prompt the way Wan's training text was: broken encodings, HTML entities, runs of white space.

    Control characters, NUL among them, are dropped; surrogate pairs are joined; a lone surrogate becomes U+FFFD.
    Source: Wan-Video/Wan2.1, ``wan/modules/tokenizers.py``, mode 'whitespace'.
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()
