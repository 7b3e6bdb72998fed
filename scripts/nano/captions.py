"""What a scene is called, in English and Chinese, and the vocabulary of the text encoder that reads it."""

import re

import numpy as np

from .world import CHOICES, Scene

ENGLISH = {
    "red": ("red", "crimson"), "green": ("green",), "blue": ("blue",), "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"), "cyan": ("cyan", "turquoise"),
    "black": ("black",), "white": ("white",), "gray": ("gray", "grey"), "brown": ("brown",),
    "circle": ("circle", "disc", "ball"), "square": ("square", "box"), "triangle": ("triangle",),
    "cross": ("cross", "plus sign"),
    "small": ("small", "little", "tiny"), "large": ("large", "big", "huge"),
    "left": ("moves left", "moves to the left", "slides left"),
    "right": ("moves right", "moves to the right", "slides right"),
    "up": ("moves up", "rises", "slides up"), "down": ("moves down", "falls", "slides down"),
    "still": ("stays still", "does not move", "rests"),
}  # fmt: skip
CHINESE = {
    "red": ("红色",), "green": ("绿色",), "blue": ("蓝色",), "yellow": ("黄色",), "purple": ("紫色",),
    "cyan": ("青色",),
    "black": ("黑色",), "white": ("白色",), "gray": ("灰色",), "brown": ("棕色",),
    "circle": ("圆形", "圆球"), "square": ("方块", "正方形"), "triangle": ("三角形",), "cross": ("十字",),
    "small": ("小",), "large": ("大",),
    "left": ("向左移动", "往左移动"), "right": ("向右移动", "往右移动"), "up": ("向上移动", "上升"),
    "down": ("向下移动", "下落"), "still": ("静止不动", "停着不动"),
}  # fmt: skip
TEMPLATES = {
    "en": (
        "A {size} {color} {shape} {motion} on a {background} background.",
        "A {size} {color} {shape} on a {background} background {motion}.",
        "On a {background} background, a {size} {color} {shape} {motion}.",
        "a {color} {shape}, {size}, {motion}, {background} background",
    ),
    "zh": (
        "一个{size}的{color}{shape}在{background}背景上{motion}。",
        "{background}背景上,一个{size}的{color}{shape}{motion}。",
    ),
}
WORDS = {"en": ENGLISH, "zh": CHINESE}
MOTION_ALONE = {"en": ("{motion}", "{motion}."), "zh": ("{motion}", "{motion}。")}
ZH_SHARE = 0.35


def caption(scene: Scene, language: str = "en", template: int = 0, variant: int = 0) -> str:
    """One caption; ``variant`` chooses among the synonyms of every word."""
    chosen = {field: _synonym(language, word, variant) for field, word in vars(scene).items()}
    return TEMPLATES[language][template % len(TEMPLATES[language])].format(**chosen)


def _synonym(language: str, word: str, variant: int) -> str:
    """One of the words for it; a word that the family was never told stands for itself."""
    synonyms = WORDS[language].get(word, (word,))
    return synonyms[variant % len(synonyms)]


def captions(scene: Scene, rng: np.random.Generator, count: int = 8) -> tuple[str, ...]:
    """Captions at random, about a third of them Chinese."""
    return tuple(_at_random(scene, TEMPLATES, rng) for _ in range(count))


def captions_beside_a_picture(scene: Scene, rng: np.random.Generator, count: int = 3) -> tuple[str, ...]:
    """What a model that is given the first frame should learn from: ``count`` captions that fit, as many that say the
    motion alone, and as many of other scenes with the same motion, so that only the motion is to be had from words."""
    others = (
        Scene(**{field: rng.choice(words) for field, words in CHOICES.items()} | {"motion": scene.motion})
        for _ in range(count)
    )
    return (
        *captions(scene, rng, count),
        *(_at_random(scene, MOTION_ALONE, rng) for _ in range(count)),
        *(_at_random(other, TEMPLATES, rng) for other in others),
    )


def _at_random(scene: Scene, templates: dict[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    language = "zh" if rng.random() < ZH_SHARE else "en"
    words = WORDS[language]
    chosen = {field: words[word][rng.integers(len(words[word]))] for field, word in vars(scene).items()}
    return templates[language][rng.integers(len(templates[language]))].format(**chosen)


def pieces() -> list[str]:
    """The vocabulary: every word of the captions as one piece, small and capital; then single letters, digits and
    signs for everything else. ``▁`` stands for the space before a word."""
    english = {word for words in ENGLISH.values() for phrase in words for word in phrase.split()}
    english |= {word for t in TEMPLATES["en"] for word in re.findall(r"(?<![{\w])[A-Za-z]+(?![}\w])", t)}
    both = sorted({form for word in english for form in (word.lower(), word.lower().capitalize())})
    chinese = sorted({word for words in CHINESE.values() for word in words})
    chinese += ["一个", "的", "在", "背景上", "背景", "上", "。", ",", "."]
    letters = [chr(c) for c in (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1))]
    digits = list("0123456789-'!?:;()\"&/%")
    return list(dict.fromkeys([*(f"▁{word}" for word in both), *chinese, "▁", *letters, *digits]))


def sentencepiece_model() -> bytes:
    """The vocabulary as a serialized sentencepiece model with umT5's special ids (pad 0, end 1, unknown 2).

    Whole words cost less than the letters they are made of, so a text is cut into the longest pieces.
    """
    special = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)]
    normal = [(piece, -14.0 if len(piece.lstrip("▁")) <= 1 else -4.0, 1) for piece in pieces()]
    model = b"".join(
        _field(1, _field(1, piece.encode()) + _float(2, score) + _number(3, kind))
        for piece, score, kind in (*special, *normal)
    )
    # TrainerSpec: unigram, vocabulary size, ids of unknown, begin (none), end and padding.
    trainer = _number(3, 1) + _number(4, len(special) + len(normal))
    trainer += _number(40, 2) + _number(41, -1) + _number(42, 1) + _number(43, 0)
    # NormalizerSpec: no rules, a space before the first word, runs of spaces as one, spaces written as the sign.
    normalizer = _field(1, b"identity") + _number(3, 1) + _number(4, 1) + _number(5, 1)
    return model + _field(2, trainer) + _field(3, normalizer)


# The few lines of the protocol-buffers wire format that sentencepiece_model.proto needs.
def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _float(number: int, value: float) -> bytes:
    return _varint(number << 3 | 5) + np.float32(value).tobytes()
