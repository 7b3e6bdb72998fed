"""Prompt cleaning: what comes out of what people paste."""

import pytest

from wan_core.text.clean import clean_prompt


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a cat on the grass", "a cat on the grass"),
        ("  a\t cat \r\n\n on\u3000the\u00a0grass ", "a cat on the grass"),
        ("a cat &amp; a dog", "a cat & a dog"),
        ("a cat &amp;amp; a &amp;lt;dog&amp;gt;", "a cat & a <dog>"),
        ("cafÃ© with â€œquotesâ€\x9d", 'café with "quotes"'),
        ("“curly” ‘quotes’", "\"curly\" 'quotes'"),
        ("ＦＵＬＬ width", "FULL width"),
        ("色调艳丽，过曝", "色调艳丽,过曝"),
        ("👩‍👩‍👧‍👦 family", "👩‍👩‍👧‍👦 family"),
        ("قطة تمشي", "قطة تمشي"),
        ("a\x00cat", "acat"),
        ("a \ud800 cat", "a \ufffd cat"),
        ("a \ud83d\ude00 cat", "a 😀 cat"),
        ("\udfff", "\ufffd"),
        ("&#0;&#xD800;", "\ufffd\ufffd"),
        ("", ""),
        (" \n\t ", ""),
    ],
)
def test_a_prompt_is_cleaned_to(text, cleaned):
    assert clean_prompt(text) == cleaned


def test_a_clean_prompt_is_left_as_it_is():
    once = clean_prompt("  Tom &amp; Jerry — “run”…  ")
    assert clean_prompt(once) == once
