"""Prompt cleaning: what comes out of what people paste, and the official cleaning with ftfy as the oracle."""

import html
import random
import re
from html.entities import html5

import ftfy
import pytest

from wan_core.text.clean import clean_prompt, misread
from wan_core.text.defaults import NEGATIVE_PROMPT

PROMPTS = [
    "A red fox runs through fresh snow; the camera follows it, shallow depth of field, 35mm film.",
    "Close-up — an old man’s hands, “slow motion”… he says: ‘don’t look’",
    "a clip at 24 fps, 16:9, f/1.8, 50% grey, -10°C, ½ cup, 10³ m², €5 & £3, ©2024, №1, ±2",
    "Über den Straßen: ein Café in Zürich, Ärzte, Öl & Größe",
    "Un été à la plage, où l’on aperçoit Noël, garçon, cœur et œuvre — « Ça va ? »",
    "São Paulo à noite, ação, coração, às vezes; El niño corrió mañana, ¿qué? ¡olé!",
    "Smörgåsbord på Åland, Ångström, Łódź, Dvořák, Škoda, İstanbul, ığdır, Đà Nẵng phở",
    "Кошка идёт по траве, «крупный план»; Η γάτα περπατά στο γρασίδι",
    "一只猫在草地上行走，写实风格，“特写”镜头：慢动作！（逆光）～",
    "猫が草の上を歩く、実写「アップ」ﾊﾞｯｸﾗｲﾄ 고양이가 풀밭을 걷는다 ｶﾞﾗｽ",
    "ＦＵＬＬ　ＷＩＤＴＨ　１２３，ＡＢＣ！＜ｔａｇ＞",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 ☕️ 1️⃣ 🏴󠁧󠁢󠁷󠁬󠁳󠁿 (word:1.2) [a|b] {c}",
    "قطة تمشي على العشب، \u200fחתול הולך על הדשא\u200e, פרסי می‌رود",
    "बिल्ली घास पर चलती है, แมวเดินบนหญ้า, Cafe\u0301 n\u0303 A\u030a \u212b ᄒ\u1161\u11ab",
    "ﬁne ﬂuﬃest ﬀ ﬄ ﬅ ﬆ Ĳssel ŉ Ǆ ǆ Ǌ ǳ æ œ",
    "a cat\r\nand a dog\rand\n\n a\u2028fox\u2029x\x0by\x0cz\x1cw\u00a0v\u2003u",
    "a\x00 cat \ufeff\ufffc\u206a\x7f \x1b[36;44mblue\x1b[0m \x1b x",
    "a \ud800 cat \udfff \ud83d\ude00 \ude00\ud83d \ud83d\x00\ude00",
    "Tom &amp; Jerry &amp;lt;b&amp;gt; &amp;amp;lt; &quot;x&quot; &#8217; &#x201c; &#0; &#xD800; &hellip;&nbsp;|",
    "a &lt; b <b>bold &amp; &rdquo;x&rdquo;</b>\nthen &amp;rdquo; &EACUTE;",
    "P&EACUTE;REZ STRA&SZLIG;E &nTILDE; &AMPX; this&not that &notit; &semi; &#59; &#12abc; &;",
    NEGATIVE_PROMPT,
    "",
    " \n\t ",
]
MOJIBAKE = [
    ("schÃ¶n", "schön"),
    ("cafÃ© on the StraÃŸe", "café on the Straße"),
    ("a smiling ðŸ˜€", "a smiling 😀"),
    ("ä¸€åªçŒ«", None),
    ("voilÃ le travail", None),
    ("cafÃ© “here”", None),
]
"""Text decoded with the wrong encoding, and what `misread` makes of it: only what is certain."""
PIECES = [
    *(
        "&",
        "amp;",
        "#38;",
        "#60;",
        "&lt;",
        "&#x3b;",
        "semi;",
        "&semi",
        "&EACUTE;",
        "&ltX;",
        "&not",
        "&rdquo;",
        "&#145;",
    ),
    *("<", "\n", "\r\n", "\x1b", "[", "3", "１", "；", ";", "m", " ", "e", "\u0301", "\u037e", "\u3000", "&NewLine;"),
    *("\ufeff", "\ud83d", "\ude00", "\x00", "\x85", "\x9d", "“", "ﾊ", "ﾟ", "ﬅ", "ŉ", "&acute;"),
]


def official(text: str, **settings: bool) -> str:
    """Wan-Video/Wan2.1, ``wan/modules/tokenizers.py``, mode 'whitespace'."""
    text = html.unescape(html.unescape(ftfy.fix_text(text, **settings)))
    return re.sub(r"\s+", " ", text.strip()).strip()


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a cat on the grass", "a cat on the grass"),
        ("  a\t cat \r\n\n on\u3000the\u00a0grass ", "a cat on the grass"),
        ("a cat &amp; a dog", "a cat & a dog"),
        ("a cat &amp;amp; a &amp;lt;dog&amp;gt;", "a cat & a <dog>"),
        ("cafÃ© with â€œquotesâ€\x9d", "cafÃ© with â€œquotesâ€\x9d"),
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


@pytest.mark.parametrize("text", PROMPTS)
def test_a_prompt_is_cleaned_as_the_official_code_cleans_it(text):
    assert clean_prompt(text) == official(text)


def test_every_code_point_is_cleaned_as_the_official_code_cleans_it():
    block = 0x1000
    words = {
        start: " ".join(f"a{chr(code)}b" for code in range(start, start + block)) for start in range(0, 0x110000, block)
    }
    expected = {start: official(text, fix_encoding=False) for start, text in words.items()}
    assert [hex(start) for start in words if clean_prompt(words[start]) != expected[start]] == []
    assert sum(words[start] != expected[start] for start in words) > 5


def test_every_html_entity_is_read_as_the_official_code_reads_it():
    names = {form for name in html5 for form in (name, name.upper(), name.lower(), f"{name.rstrip(';')}x;")}
    texts = [form.replace("%", name) for name in names for form in ("a &% b", "&amp;%", "&% <\n&%")]
    assert len(texts) > 10_000
    assert [text for text in texts if clean_prompt(text) != official(text, fix_encoding=False)] == []


def test_mixtures_of_everything_are_cleaned_as_the_official_code_cleans_them():
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(2, 12))) for _ in range(20_000)]
    assert [text for text in texts if clean_prompt(text) != official(text, fix_encoding=False)] == []


@pytest.mark.parametrize("text", [text for text, _ in MOJIBAKE])
def test_text_in_the_wrong_encoding_is_the_one_thing_that_is_left_as_it_is_typed(text):
    assert clean_prompt(text) == official(text, fix_encoding=False) != official(text)


@pytest.mark.parametrize(("text", "meant"), MOJIBAKE)
def test_text_in_the_wrong_encoding_is_told_where_it_is_certain(text, meant):
    assert misread(text) == meant


@pytest.mark.parametrize("text", PROMPTS)
def test_no_ordinary_prompt_is_taken_for_text_in_the_wrong_encoding(text):
    assert misread(text) is None


def test_a_clean_prompt_is_left_as_it_is():
    once = clean_prompt("  Tom &amp; Jerry — “run”…  ")
    assert clean_prompt(once) == once
