"""Files of one shape that are several models: what the loader takes one for, by its name, unless it is told."""

from pathlib import Path

import pytest

from wan_core.stages.file_names import choose_row
from wan_core.variants import VARIANTS


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("wan2.1_i2v_480p_14B_fp16", "i2v-14b-480p"), ("Wan2.1-I2V-14B-720P_fp8", "i2v-14b-720p"),
        ("wan2.1_flf2v_720p_14B_fp16", "flf2v-14b"), ("Wan2.1-Fun-14B-InP", "fun-inp-14b"),
        ("wan2.1_fun_v1.1_inp_14B_bf16", "fun-inp-14b"), ("model", "i2v-14b-480p"),
        ("wan2.2_i2v_high_noise_14B_fp8_scaled", "i2v-a14b"), ("Wan2.2-I2V-A14B_low_noise", "i2v-a14b"),
        ("wan2.2_fun_inpaint_high_noise_14B_fp8_scaled", "fun-inp-a14b"), ("high_noise_model", "i2v-a14b"),
        ("wan2.1_t2v_14B_bf16", "t2v-14b"), ("wan2.2_t2v_high_noise_14B", "t2v-a14b"),
    ],
)  # fmt: skip
def test_the_name_of_a_file_chooses_among_models_of_its_shapes(name, chosen):
    row = next(row for row in VARIANTS if row.name == chosen)
    rows = [other for other in VARIANTS if other.dit == row.dit and other.experts == row.experts]
    assert choose_row(rows, "auto", Path(f"{name}.safetensors")) is row
    for other in rows:
        assert choose_row(rows, other.name, Path(f"{name}.safetensors")) is other
