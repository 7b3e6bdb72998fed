"""Token ids from each form of the vocabulary, against sentencepiece itself."""

import random

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from scripts.tiny_models import PROMPTS, sentencepiece_model
from wan_core.errors import ModelFileError
from wan_core.text.clean import clean_prompt
from wan_core.text.tokenizer import EOS, load_tokenizer

TEXTS = [
    *PROMPTS.splitlines(),
    "一只猫在草地上行走，写实风格",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈",
    "قطة تمشي על העשב",
    "x",
]


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentencepiece_model()


@pytest.fixture(scope="module")
def reference(model):
    return sentencepiece.SentencePieceProcessor(model_proto=model, add_bos=False, add_eos=True)


@pytest.fixture
def json_file(reference, tmp_path):
    pieces = [(reference.id_to_piece(i), reference.get_score(i)) for i in range(reference.get_piece_size())]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.enable_truncation(max_length=7)  # such settings of the file must not matter
    tokenizer.enable_padding(length=40)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("text", [*TEXTS, "a </s> b <pad> c <unk>"])
def test_ids_are_those_of_sentencepiece_with_the_end_token(model, reference, text):
    tokens = load_tokenizer(model).encode(text)
    assert tokens.ids == reference.encode(text)
    assert tokens.total == len(tokens.ids)


@pytest.mark.parametrize("text", TEXTS)
def test_all_three_forms_of_a_vocabulary_give_the_same_ids(model, json_file, tmp_path, text):
    (tmp_path / "spiece.model").write_bytes(model)
    expected = load_tokenizer(model).encode(text)
    assert load_tokenizer(tmp_path / "spiece.model").encode(text) == expected
    assert load_tokenizer(json_file).encode(text) == expected


def test_an_empty_prompt_is_the_end_token_alone(model, json_file):
    for source in (model, json_file):
        tokens = load_tokenizer(source).encode("")
        assert tokens.ids == [EOS]
        assert tokens.total == 1


@pytest.mark.parametrize("words", [250, 10_000])
def test_a_long_prompt_is_cut_and_both_counts_are_kept(model, reference, words):
    text = " ".join(random.Random(1).choices(PROMPTS.split(), k=words))
    whole = reference.encode(text)
    tokens = load_tokenizer(model).encode(text)
    assert len(whole) > 512
    assert tokens.ids == [*whole[:511], EOS]
    assert tokens.total == len(whole)


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_the_end_token_is_within_the_limit(model, max_tokens):
    assert load_tokenizer(model).encode("a cat on the grass and a dog", max_tokens).ids[-1] == EOS
    assert len(load_tokenizer(model).encode("a cat on the grass and a dog", max_tokens).ids) == max_tokens


def test_exactly_the_limit_is_not_cut(model, reference):
    whole = reference.encode("a cat on the grass")
    tokens = load_tokenizer(model).encode("a cat on the grass", len(whole))
    assert tokens.ids == whole


@pytest.mark.parametrize(
    ("text", "same_as"),
    [("a \ud800 cat", "a \ufffd cat"), ("\udfff\ud800", "\ufffd\ufffd"), ("\ud83d\ude00", "😀"), ("\ud83d", "\ufffd")],
)
def test_surrogates_never_reach_the_library(model, json_file, text, same_as):
    for source in (model, json_file):
        tokenizer = load_tokenizer(source)
        assert tokenizer.encode(text) == tokenizer.encode(same_as)


def test_nul_is_a_character_like_any_other_until_it_is_cleaned(model, reference):
    tokenizer = load_tokenizer(model)
    assert reference.piece_to_id("<0x00>") in tokenizer.encode("a\x00cat").ids
    assert tokenizer.encode(clean_prompt("a\x00 cat")) == tokenizer.encode("a cat")


def test_the_vocabulary_size_is_known(model, json_file, reference):
    assert load_tokenizer(model).vocab == reference.get_piece_size()
    assert load_tokenizer(json_file).vocab == reference.get_piece_size()


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_damaged_sentencepiece_model_is_refused(model, tmp_path, cut):
    (tmp_path / "spiece.model").write_bytes(model[:cut])
    for source in (model[:cut], tmp_path / "spiece.model"):
        with pytest.raises(ModelFileError, match="google/umt5-xxl"):
            load_tokenizer(source)


def test_flipped_bytes_give_a_refusal_or_a_tokenizer_and_nothing_else(model):
    rng, refused = random.Random(0), 0
    for _ in range(300):
        data = bytearray(model)
        for _ in range(rng.choice([1, 3, 30])):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            load_tokenizer(bytes(data)).encode("a cat on the grass")
        except ModelFileError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"model": 3}',
        '{"model": {"type": "Unigram"}}',
        '{"model": {"type": "BPE"}}',
        "[" * 10**5,
    ],
)
def test_a_damaged_tokenizer_json_is_refused(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelFileError, match="google/umt5-xxl"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_another_models_tokenizer_is_refused_by_its_end_token():
    import io

    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROMPTS.splitlines()), model_writer=other, vocab_size=100, minloglevel=2
    )
    with pytest.raises(ModelFileError, match="end token at 2"):
        load_tokenizer(other.getvalue())


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"nowhere\.model cannot be read"):
        load_tokenizer(tmp_path / "nowhere.model")
