"""What the nano models have learned, on fewer prompts than ``benchmarks.nano`` takes. Later work must keep it."""

import os

import numpy as np
import pytest
import torch

from benchmarks import nano, nano_guidance
from benchmarks.nano_judge import judge
from benchmarks.nano_run import Family, Files, Run, make, score

JUDGED = ("color", "background", "shape", "motion")
COUNT = 48
"""Prompts; a rate of 90 % has a standard error of 4 points."""


@pytest.fixture(scope="module", autouse=True)
def all_cores():
    """Other tests are small and take one core; these are the long ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def family() -> Family:
    return Family(files=Files())


@pytest.fixture(scope="module")
def english(family) -> dict[str, float]:
    return rates(family, "en", Run())


@pytest.fixture(scope="module")
def pictures(family) -> dict:
    return nano.check_i2v(family, 24)


def rates(family: Family, language: str, run: Run, count: int = COUNT) -> dict[str, float]:
    chosen = nano.scenes(count)
    clips = make(family.t2v, family.encoder, family.vae, nano.prompts(chosen, language), run)
    return score(clips, chosen)


def mean(judged: dict[str, float]) -> float:
    return float(np.mean([judged[field] for field in JUDGED]))


def test_the_vae_gives_unseen_clips_back(family):
    report = nano.check_vae(family, 24)
    assert report["psnr"] >= 30, report


@pytest.mark.slow
def test_prompts_never_trained_on_become_what_they_say(english):
    assert min(english[field] for field in JUDGED) >= 83, english
    assert mean(english) >= 90, english


@pytest.mark.slow
def test_chinese_prompts_do_as_well_as_english_ones(family, english):
    chinese = rates(family, "zh", Run(), 24)
    assert mean(chinese) >= mean(english) - 7, (english, chinese)


@pytest.mark.slow
def test_the_experts_are_not_each_other(family, english):
    chosen = nano.scenes(24)
    swapped = family.model(family.files.t2v_low, family.files.t2v_high)
    clips = make(swapped, family.encoder, family.vae, nano.prompts(chosen), Run())
    assert score(clips, chosen)["all"] <= english["all"] - 20


@pytest.mark.slow
def test_an_empty_prompt_knows_no_colour(family):
    chosen = nano.scenes(24)
    clips = make(family.t2v, family.encoder, family.vae, [""] * len(chosen), Run())
    rates = score(clips, chosen)
    assert rates["color"] <= 100 / 6 + 23  # chance and three standard errors
    assert all(judge(clip).color != "none" for clip in clips), "there is nothing to see"


@pytest.mark.slow
def test_a_picture_moves_as_the_words_say(pictures):
    own = pictures["own"]
    assert own["first_frame_psnr"] >= 25 and own["motion"] >= 85, own
    assert min(own["color"], own["background"], own["shape"]) >= 85, own


@pytest.mark.slow
def test_the_picture_counts_and_not_what_the_words_say_of_it(pictures):
    other = pictures["other_image"]
    assert other["psnr_to_given"] >= 25 and other["psnr_to_given"] > other["psnr_to_own"] + 5, other
    assert min(other["color_of_given"], other["motion_of_words"]) >= 85, other


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(family):
    assert nano.check_same(family, 8)["equal"] == 1


@pytest.mark.slow
def test_nag_keeps_away_from_a_negative_prompt_at_guidance_1_where_nothing_else_does(family):
    rows = {name: nano_guidance.AVOIDS[name] for name in ("guidance 1", "1, NAG")}
    report = nano_guidance.measure(family, 24, rows, against=True, told=lambda text: None)
    without, with_nag = (np.mean([report[name][field] for field in ("color", "motion")]) for name in rows)
    assert without >= 8 and with_nag <= 4, report
