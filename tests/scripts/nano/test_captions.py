"""Captions in both languages, and the vocabulary that reads them."""

import re

import numpy as np
import pytest
import sentencepiece

from scripts.nano.captions import (
    CHINESE,
    ENGLISH,
    TEMPLATES,
    WORDS,
    caption,
    captions,
    captions_beside_a_picture,
    pieces,
    sentencepiece_model,
)
from scripts.nano.world import CHOICES, Scene, all_scenes
from wan_core.text.clean import clean_prompt
from wan_core.text.tokenizer import EOS, load_tokenizer

UNKNOWN, SPECIAL, MOST_SYNONYMS = 2, 3, 3
SCENE = Scene(color="red", background="white", shape="circle", motion="right", size="small")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(sentencepiece_model())


@pytest.fixture(scope="module")
def official():
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(sentencepiece_model())
    return processor


def every_caption() -> list[str]:
    return [
        caption(scene, language, template, variant)
        for scene in all_scenes()
        for language, templates in TEMPLATES.items()
        for template in range(len(templates))
        for variant in range(MOST_SYNONYMS)
    ]


@pytest.mark.parametrize("language", WORDS)
def test_every_word_of_the_world_has_its_words(language):
    assert set(WORDS[language]) == {word for words in CHOICES.values() for word in words}
    assert all(len(synonyms) <= MOST_SYNONYMS for synonyms in WORDS[language].values())


@pytest.mark.parametrize("language", WORDS)
def test_no_two_words_share_a_synonym(language):
    said = [synonym for synonyms in WORDS[language].values() for synonym in synonyms]
    assert len(said) == len(set(said))


def test_a_caption_says_every_word_of_its_scene():
    assert caption(SCENE) == "A small red circle moves right on a white background."
    assert caption(SCENE, "zh") == "一个小的红色圆形在白色背景上向右移动。"
    assert caption(SCENE, variant=1) == "A little crimson disc moves to the right on a white background."


def test_captions_are_the_same_for_the_same_numbers_and_a_third_of_them_chinese():
    first, again = (captions(SCENE, np.random.default_rng(3), 300) for _ in range(2))
    assert first == again
    chinese = sum(bool(re.search("[一-鿿]", text)) for text in first)
    assert 75 < chinese < 135


def test_beside_a_picture_only_the_motion_can_be_relied_on():
    made = captions_beside_a_picture(SCENE, np.random.default_rng(3), 100)
    right = [*ENGLISH["right"], *CHINESE["right"]]
    assert all(any(words in text for words in right) for text in made)
    fitting, alone, others = made[:100], made[100:200], made[200:]
    said = {field: [*ENGLISH[word], *CHINESE[word]] for field, word in vars(SCENE).items()}
    for field in ("color", "background", "shape"):
        named = [[any(word in text for word in said[field]) for text in part] for part in (fitting, alone, others)]
        assert all(named[0]) and not any(named[1]) and 5 < sum(named[2]) < 45, field


def test_no_caption_has_an_unknown_piece_and_all_are_short(tokenizer):
    for text in every_caption():
        tokens = tokenizer.encode(text)
        assert UNKNOWN not in tokens.ids and tokens.ids[-1] == EOS and tokens.total <= 40, text


def test_captions_are_cut_into_whole_words_only(tokenizer):
    """Pieces of one sign are the article, whole Chinese words, punctuation, and the space before Chinese."""
    table = ["<pad>", "</s>", "<unk>", *pieces()]
    words = {table[one] for text in every_caption() for one in tokenizer.encode(text).ids}
    short = {word for word in words if len(word.lstrip("▁")) <= 1}
    assert short <= {"▁A", "▁a", "▁", *".,。的在小大"}


@pytest.mark.parametrize("language", WORDS)
def test_a_synonym_is_read_as_the_same_tokens_wherever_it_stands(tokenizer, language):
    for field, synonyms in WORDS[language].items():
        for synonym in synonyms:
            alone = tokenizer.encode(synonym).ids[:-1]
            assert len(alone) <= len(synonym.split()) + (language == "zh")
            for template in TEMPLATES[language]:
                slot = next(name for name, words in CHOICES.items() if field in words)
                others = {name: WORDS[language][words[0]][0] for name, words in CHOICES.items()}
                ids = tokenizer.encode(template.format(**others | {slot: synonym})).ids
                core = alone[1:] if language == "zh" and alone[0] == table_id("▁") else alone
                assert any(ids[n : n + len(core)] == core for n in range(len(ids))), (synonym, template)


def table_id(piece: str) -> int:
    return SPECIAL + pieces().index(piece)


def test_our_tokenizer_and_sentencepiece_agree(tokenizer, official):
    texts = [*every_caption()[::97], "", " ", "two  spaces", "Zebra 42!", "naïve ß 漢", "a\tb\nc", "</s>", "👍"]
    for text in texts:
        assert tokenizer.encode(text).ids[:-1] == official.encode_as_ids(text)
    assert tokenizer.vocab == official.get_piece_size() == len(pieces()) + SPECIAL


def test_special_ids_are_umt5s(official):
    assert (official.pad_id(), official.eos_id(), official.unk_id(), official.bos_id()) == (0, 1, 2, -1)
    assert [official.id_to_piece(n) for n in range(SPECIAL)] == ["<pad>", "</s>", "<unk>"]


def test_pieces_are_each_there_once():
    assert len(pieces()) == len(set(pieces()))


def test_cleaning_a_caption_changes_nothing_that_is_read(tokenizer):
    for text in every_caption()[::31]:
        assert tokenizer.encode(clean_prompt(text)).ids == tokenizer.encode(text).ids
