"""The recipe of the nano family: commands that the trainer takes, in an order in which each finds its files."""

from pathlib import Path

import pytest

from scripts.nano import train
from wan_core.training.__main__ import make_parser

STARTS = {train.START_DIT, train.START_TEXT, *train.START_I2V.values()}


@pytest.mark.parametrize("name", train.RECIPE)
def test_the_trainer_takes_every_command_of_the_recipe(name):
    args = make_parser().parse_args([*train.RECIPE[name], "--out", "out"])
    assert args.kind in ("vae", "dit")


def test_every_file_is_made_by_a_command_before_the_one_that_reads_it():
    made = set(STARTS)
    for name, arguments in train.RECIPE.items():
        args = make_parser().parse_args([*arguments, "--out", str(train.RUNS / name)])
        read = {getattr(args, option) for option in ("model", "vae", "text_encoder") if hasattr(args, option)}
        assert read <= made, f"{name} reads {read - made}"
        made |= {args.out / file for file in ("vae.safetensors", "dit.safetensors", "text_encoder.safetensors")}
    assert set(train.PLACES.values()) <= made


def test_the_family_is_installed_where_the_loaders_find_it(tmp_path, monkeypatch):
    for source in train.PLACES.values():
        (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source).write_bytes(str(source).encode())
    monkeypatch.chdir(tmp_path)
    train.install(Path("models"))
    for name, source in train.PLACES.items():
        assert (tmp_path / "models" / f"{name}.safetensors").read_bytes() == str(source).encode()


def test_an_image_expert_begins_with_the_text_expert_of_its_side(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="train t2v_low first"):
        train.prepare("i2v_low")
    sources = []
    monkeypatch.setattr(train.start, "write_i2v", lambda source, out: sources.append((source, out)))
    for expert in ("high", "low"):
        source = train.RUNS / f"t2v_{expert}" / "dit.safetensors"
        source.parent.mkdir(parents=True)
        source.touch()
        train.prepare(f"i2v_{expert}")
    assert sources == [(train.RUNS / f"t2v_{e}" / "dit.safetensors", train.START_I2V[e]) for e in ("high", "low")]


def test_the_experts_of_a_pair_share_the_noise_levels_without_a_gap():
    for kind in ("t2v", "i2v"):
        high, low = (
            make_parser().parse_args([*train.RECIPE[f"{kind}_{side}"], "--out", "x"]).sigma for side in ("high", "low")
        )
        assert (high[1], low[0]) == (1, 0) and high[0] == low[1]
