"""The converter keeps every bit and never shows half a file under the final name."""

import pytest
import torch
from safetensors.torch import load_file

from wan_core.errors import ModelFileError
from wan_core.weights import convert as module
from wan_core.weights.convert import convert, main

TENSORS = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "t": torch.randn(4, 6).t()}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.pth"
    torch.save({**TENSORS, "tied": TENSORS["a"]}, path)
    return path


def test_every_tensor_arrives_to_the_bit_tied_ones_included(source, tmp_path):
    count, size = convert(source, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert (count, size) == (4, sum(tensor.nbytes for tensor in found.values()))
    assert all(torch.equal(found[name], tensor) for name, tensor in {**TENSORS, "tied": TENSORS["a"]}.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_an_existing_file_is_kept_unless_forced(source, tmp_path):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(ModelFileError, match="--force"):
        convert(source, target)
    assert target.read_bytes() == b"precious"
    convert(source, target, force=True)
    assert torch.equal(load_file(target)["a"], TENSORS["a"])


@pytest.mark.parametrize("where", ["save_file", "os.fsync", "os.replace"])
def test_a_failure_while_writing_leaves_the_old_file_and_no_other(where, source, tmp_path, monkeypatch):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")

    def full(*args, **kwargs):
        if where == "save_file":
            args[1].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"{module.__name__}.{where}", full)
    with pytest.raises(OSError, match="No space"):
        convert(source, target, force=True)
    assert target.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.pth", "out.safetensors"]


def test_the_command_says_what_it_did_and_fails_with_a_sentence(source, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert main([str(source), str(target)]) == 0
    assert "4 tensors" in capsys.readouterr().out
    assert main([str(source), str(target)]) == 1
    assert "exists" in capsys.readouterr().err
    assert main([str(source), str(tmp_path / "out.bin")]) == 1
    assert "ending .safetensors" in capsys.readouterr().err
