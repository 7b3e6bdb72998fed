"""Tiny VAEs from their files to pictures: recognised by their tensors, announced, and refused where they do not fit."""

import pytest
import torch

from tests.tae_files import SMALL, TAE_21, TAE_22, write
from tests.wan_core.models.test_tae import whole
from tests.wan_core.stages.test_plan import machine, start
from wan_core.errors import CapacityError, MismatchError, ModelFileError
from wan_core.runtime.ports import Compute, PlainMemory, Ports
from wan_core.stages import load, plan, sample, vae, video_file
from wan_core.variants import LATENTS

COMPUTE = Compute(device=torch.device("cpu"))
SAID = (
    "An approximate decoder: quick, softer than the VAE. For the final video decode with the Wan 2.1 VAE "
    "(wan_2.1_vae.safetensors)."
)


def opened(path, told=None) -> load.VaeHandle:
    return load.load_vae(path, compute=COMPUTE, notify=(lambda _: None) if told is None else told.append)


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize(("name", "dtype"), [("taew2", torch.float16), ("lighttaew2", torch.float32)])
def test_a_file_decodes_latents_of_the_scale_that_it_was_made_for(tmp_path, channels, name, dtype):
    """fp16 files take what the transformer makes, others what the VAE makes: a LATENT as ComfyUI has it."""
    handle = opened(write(tmp_path / f"{name}_x.safetensors", SMALL[channels], dtype))
    assert handle.spec is LATENTS[channels] and handle.normalised == (dtype is torch.float16)
    z = torch.randn(2, channels, 3, 2, 3, generator=torch.Generator().manual_seed(4))
    latent = handle.spec.denormalise(z) if handle.normalised else z
    frames = vae.decode(handle, latent, Ports())
    expected = whole(SMALL[channels], z).movedim(1, -1)
    assert frames.shape == expected.shape and frames.dtype is torch.float32
    assert (frames - expected).abs().max() <= (1e-2 if handle.normalised else 1e-5)  # the file was rounded to fp16
    assert torch.equal(torch.cat(list(vae.decode_stream(handle, latent, Ports())), dim=1), frames)


def test_it_says_that_it_is_approximate_when_loaded_and_when_it_decodes(tmp_path):
    told = []
    handle = opened(write(tmp_path / "lighttaew2_1.safetensors", SMALL[16]), told)
    assert told == [SAID]
    list(video_file.decoded_frames(handle, torch.randn(1, 16, 1, 2, 2), Ports(notify=told.append)))
    assert told == [SAID, SAID]


@pytest.mark.parametrize(
    ("name", "dtype", "read"),
    [
        ("taew2_1", torch.float32, "taew2"),
        ("lighttaew2_1", torch.float16, "lighttaew2"),
        ("taehv", torch.float16, "taew2"),
        ("tiny", torch.float32, "lighttaew2"),
    ],
)
def test_a_name_that_says_something_else_is_told(tmp_path, name, dtype, read):
    told = []
    handle = opened(write(tmp_path / f"{name}.safetensors", SMALL[16], dtype), told)
    assert handle.normalised == (read == "taew2")
    assert (
        len(told) == 2
        and f"is read as {read}, of latents" in told[0].replace("normalised ", "")
        and "colours are wrong" in told[0]
    )


def test_it_does_not_encode(tmp_path):
    handle = opened(write(tmp_path / "taew2_2.safetensors", SMALL[48], torch.float16))
    with pytest.raises(MismatchError, match=r"taew2_2.safetensors is a tiny VAE.*only decodes.*Wan 2.2 VAE"):
        vae.encode(handle, torch.rand(1, 1, 32, 32, 3), Ports())


def test_a_latent_of_another_model_is_refused(tmp_path):
    handle = opened(write(tmp_path / "taew2_1.safetensors", SMALL[16]))
    with pytest.raises(MismatchError, match="48 channels"):
        vae.decode(handle, torch.randn(1, 48, 1, 2, 2), Ports())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder.9.conv.2.bias": None}, r"1 tensors of the tiny VAE are missing \(decoder.9.conv.2.bias\)"),
        ({"decoder.9.odd": torch.ones(2)}, r"no place in the tiny VAE \(decoder.9.odd\)"),
        ({"decoder.4.conv.2.weight": torch.ones(9, 12, 3, 3)}, r"decoder.4.conv.2.weight is \[9, 12, 3, 3\]"),
        ({"decoder.7.conv.weight": torch.ones(24, 12, 1, 1)}, r"decoder.7.conv.weight is \[24, 12, 1, 1\]"),
        ({"decoder.14.weight": None}, r"'decoder.14.weight' is missing"),
        ({"decoder.14.weight": torch.ones(6)}, r"decoder.14.weight.* where 4 dimensions belong"),
        ({"decoder.1.weight": torch.ones(12, 32, 3, 3)}, r"takes 32 and gives 3 channels.*taew2_1"),
        ({"decoder.1.conv.0.weight": torch.ones(4, 1, 7, 7)}, r"'super' decoder.*taew2_2"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_before_it_is_read(tmp_path, change, said):
    path = write(tmp_path / "taew2_1.safetensors", SMALL[16], **change)
    with pytest.raises(ModelFileError, match=rf"taew2_1.safetensors.*{said}"):
        opened(path)


def test_what_it_is_for_is_told_where_it_is_loaded_as_something_else(tmp_path):
    path = write(tmp_path / "taew2_1.safetensors", SMALL[16])
    with pytest.raises(ModelFileError, match=r"is a Wan VAE file, not a diffusion model\. Load it with the VAE loader"):
        load.load_model(path, compute=COMPUTE, notify=lambda _: None)


@pytest.mark.parametrize("config", [TAE_21, TAE_22])
def test_channels_are_read_from_the_header_for_the_check_before_the_first_step(tmp_path, config):
    assert load.vae_channels(write(tmp_path / "a.safetensors", config)) == config.z_dim


def test_a_device_that_is_too_small_is_named(tmp_path, monkeypatch):
    handle = opened(write(tmp_path / "taew2_1.safetensors", SMALL[16]))

    def full(*given):
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(type(handle.weights.module), "decode_part", full)
    with pytest.raises(CapacityError, match=r"taew2_1.*out of memory.*The latent is not lost"):
        vae.decode(handle, torch.randn(1, 16, 2, 2, 2), Ports(memory=PlainMemory()))


def test_a_plan_counts_its_decode_and_no_encode(tmp_path):
    from scripts import tiny_models

    files = tiny_models.make(tmp_path, ["i2v"])
    model = load.load_model(files["i2v"], compute=COMPUTE, notify=lambda _: None)
    parts = plan.Parts(model=model, vae=opened(write(tmp_path / "taew2_1.safetensors", TAE_21)))
    made = plan.plan_run(parts, start(model.variant, 3, 8, 8), sample.Settings(), machine())
    assert [one.name for one in made.stages if "VAE" in one.name] == ["VAE decode"]
    assert made.stages[-1].seconds > 0 and made.stages[-1].work_bytes > 0
