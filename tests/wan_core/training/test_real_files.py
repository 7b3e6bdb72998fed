"""Training on a folder of videos, and on model files that do not fit together or cannot be trained."""

import csv
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.wan_core.training.tiny_run import DIT, dit_command, lora_command, losses, scenes, write_files
from wan_core.configs import VaeConfig
from wan_core.models.dit import WanDiT
from wan_core.models.vae import WanVAE
from wan_core.stages.load import load_text_encoder
from wan_core.training import __main__ as program
from wan_core.training.clips import ClipSize
from wan_core.training.dit_task import write_dit
from wan_core.training.show import COMPUTE, write_video
from wan_core.training.state import read_safetensors, write_safetensors


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Six videos with captions, and one that is no video."""
    made = tmp_path / "clips"
    made.mkdir()
    rows = [("file_name", "text"), ("broken.mp4", "nothing")]
    (made / "broken.mp4").write_bytes(b"no video")
    for index, clip in enumerate(scenes(ClipSize(width=48, height=48, frames=5))):
        write_video(clip.frames, made / f"{index}.mp4", 16)
        rows.append((f"{index}.mp4", clip.captions[0]))
    write_table(made, rows)
    return made


def write_table(folder, rows):
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.mark.parametrize("command", [dit_command, lora_command])
def test_a_folder_of_videos_is_trained_on_without_what_is_no_video(tmp_path, files, folder, caplog, capsys, command):
    caplog.set_level("INFO")
    told = command(tmp_path / "out", files, "--data", str(folder), "--phases", "5x4x3", "--sample-every", "3")
    assert program.main(told) == 1
    assert "- broken.mp4 (line 2): cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert program.main([*told, "--skip-bad"]) == 0
    assert len(losses(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "sample-00000003.mp4").is_file()
    assert (tmp_path / "out" / "loss.png").is_file()
    assert any(line.startswith("broken.mp4 (line 2): cannot be read") for line in caplog.messages)
    assert any(line.startswith("step 2/3  loss") and line.endswith(" left") for line in caplog.messages)


def test_other_captions_in_the_same_folder_are_encoded_again(tmp_path, files, folder):
    cache = tmp_path / "cache.safetensors"

    def command(out):
        more = ["--skip-bad", "--data", str(folder), "--cache", str(cache), "--phases", "5x2x1"]
        return program.main(dit_command(tmp_path / out, files, *more))

    assert command("a") == 0
    before = cache.read_bytes()
    assert command("b") == 0 and cache.read_bytes() == before
    write_table(folder, [("file_name", "text"), *((f"{n}.mp4", "another caption") for n in range(6))])
    assert command("c") == 0 and cache.read_bytes() != before


def test_a_tokenizer_beside_the_text_encoder_goes_into_the_trained_file(tmp_path, files):
    path = files["text-encoder"]
    tensors = load_file(path)
    (tmp_path / "spiece.model").write_bytes(tensors.pop("spiece_model").numpy().tobytes())
    save_file(tensors, path)
    assert program.main(dit_command(tmp_path / "out", files, "--phases", "5x2x1", "--train-text-encoder")) == 0
    (tmp_path / "spiece.model").rename(tmp_path / "gone")
    made = load_text_encoder(tmp_path / "out" / "text_encoder.safetensors", compute=COMPUTE)
    assert made.tokenizer().encode("red").total == 2


def wide_vae(path):
    made = WanVAE(VaeConfig(dim=4, dec_dim=4, z_dim=48, patch=2, shortcuts=True))
    write_safetensors(path, {name: value.detach() for name, value in made.named_parameters()}, {})


def clip_model(path):
    made = WanDiT(replace(DIT, in_dim=36, img_dim=32))
    write_dit(path, made, dict(made.state_dict()))


def fp8_model(path):
    tensors, metadata = read_safetensors(path)
    small = {name: value.to(torch.float8_e4m3fn) if value.ndim == 2 else value for name, value in tensors.items()}
    save_file(small, path, metadata)


@pytest.mark.parametrize(
    ("which", "make", "complaint"),
    [
        ("vae", wide_vae, "makes latents of 16 channels, vae.safetensors has 48. Use the Wan 2.1 VAE"),
        ("model", clip_model, "takes CLIP tokens of a picture, which are not trained here"),
        ("model", fp8_model, "is stored in torch.float8_e4m3fn. Train from the bf16, fp16 or fp32 file"),
        ("model", lambda path: path.write_bytes(b"no model"), "model.safetensors"),
    ],
)
def test_files_that_cannot_be_trained_with_are_refused_in_one_sentence(tmp_path, files, capsys, which, make, complaint):
    make(files[which])
    assert program.main(dit_command(tmp_path / "out", files)) == 1
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
