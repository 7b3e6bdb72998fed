"""Opening: one file, a sharded set, a folder, a .pth; every disagreement between index and parts is named."""

import json

import pytest
import torch
from safetensors.torch import save_file

from wan_core.errors import ModelFileError
from wan_core.weights.checkpoint import open_checkpoint
from wan_core.weights.load import read_raw

TENSORS = {"a.weight": torch.randn(3, 4), "b.bias": torch.randn(4).bfloat16(), "c": torch.arange(5, dtype=torch.uint8)}


@pytest.fixture
def sharded(tmp_path):
    """Two parts and their index."""
    parts = {"model-00001-of-00002.safetensors": ["a.weight"], "model-00002-of-00002.safetensors": ["b.bias", "c"]}
    for part, names in parts.items():
        save_file({name: TENSORS[name] for name in names}, tmp_path / part, {"format": "pt"})
    write_index(tmp_path, {name: part for part, names in parts.items() for name in names})
    return tmp_path


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read_index(folder):
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def same(checkpoint):
    assert set(checkpoint.header) == set(TENSORS)
    assert all(torch.equal(checkpoint.get(name), tensor) for name, tensor in TENSORS.items())


def test_a_single_file_gives_its_header_metadata_and_tensors(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", {"config": "{}"})
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        same(checkpoint)
        assert checkpoint.metadata == {"config": "{}"}
        assert checkpoint.header["b.bias"].shape == (4,)
        with pytest.raises(KeyError):
            checkpoint.get("not there")


def test_tensors_outlive_the_closed_file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        kept = checkpoint.get("a.weight")
    assert torch.equal(kept, TENSORS["a.weight"])


def test_a_tensor_is_a_mapping_of_the_file_and_costs_no_private_memory(tmp_path):
    def private_kb():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    save_file({"big": torch.ones(8_000_000)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    before = private_kb()
    tensor = checkpoint.get("big")
    assert tensor.sum().item() == 8_000_000
    assert private_kb() - before < 8_000


@pytest.mark.parametrize("entry", ["model.safetensors.index.json", "model-00002-of-00002.safetensors", ""])
def test_a_sharded_set_opens_by_its_index_any_part_or_its_folder(entry, sharded):
    same(open_checkpoint(sharded / entry))


def test_a_folder_with_one_file_opens_and_one_with_several_names_them(tmp_path):
    with pytest.raises(ModelFileError, match="no safetensors file"):
        open_checkpoint(tmp_path)
    save_file(TENSORS, tmp_path / "one.safetensors")
    same(open_checkpoint(tmp_path))
    save_file(TENSORS, tmp_path / "two.safetensors")
    with pytest.raises(ModelFileError, match=r"one\.safetensors, two\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_missing_part_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelFileError, match=r"1 of 2 parts .*model-00002-of-00002"):
        open_checkpoint(sharded)


def test_a_part_without_its_index_says_so(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelFileError, match=r"part 1 of 2 .* index file"):
        open_checkpoint(sharded / "model-00001-of-00002.safetensors")


def test_a_tensor_the_index_promises_but_no_part_holds_is_named(sharded):
    write_index(sharded, {**read_index(sharded), "ghost": "model-00001-of-00002.safetensors"})
    with pytest.raises(ModelFileError, match=r"1 tensors are not in their parts .ghost"):
        open_checkpoint(sharded)


def test_a_tensor_the_index_does_not_list_is_named(sharded):
    weight_map = read_index(sharded)
    del weight_map["c"]
    write_index(sharded, weight_map)
    with pytest.raises(ModelFileError, match=r"does not list .c"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "part",
    ["../up.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b.safetensors", "x.pth", "C:x.safetensors"],
)
def test_a_part_is_a_plain_name_in_the_same_folder(part, sharded):
    write_index(sharded, {**read_index(sharded), "c": part})
    with pytest.raises(ModelFileError, match=r"plain .safetensors names"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{" * 90_000])
def test_a_damaged_index_is_refused(text, sharded):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelFileError, match="index"):
        open_checkpoint(sharded / "model.safetensors.index.json")


@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin", ".ckpt"])
def test_official_pickles_open_by_their_ending(ending, tmp_path):
    torch.save(TENSORS, tmp_path / f"model{ending}")
    with open_checkpoint(str(tmp_path / f"model{ending}")) as checkpoint:
        same(checkpoint)


def test_a_gguf_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 100)
    with pytest.raises(ModelFileError, match="GGUF is not supported yet"):
        open_checkpoint(tmp_path / "model.gguf")


def test_a_file_replaced_after_opening_is_noticed(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    save_file({**TENSORS, "a.weight": torch.ones(7)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match="after it was opened"):
        checkpoint.get("a.weight")


def test_a_file_cut_while_it_is_open_is_an_error_and_not_the_end_of_the_process(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100_000), "b": torch.ones(100_000)}, path)
    checkpoint = open_checkpoint(path)
    checkpoint.get("a")
    with path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ModelFileError, match="changed its size"):
        checkpoint.get("b")


def test_every_pickle_is_warned_of_with_the_converter(tmp_path, caplog):
    torch.save(TENSORS, tmp_path / "model.pth")
    open_checkpoint(tmp_path / "model.pth")
    assert "wan_core.weights.convert" in caplog.text


def test_raw_bytes_are_read_and_other_types_refused(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path / "model.safetensors")
    assert read_raw(checkpoint, "c") == bytes(range(5))
    with pytest.raises(ModelFileError, match="should hold bytes"):
        read_raw(checkpoint, "a.weight")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_file_that_is_read_gives_what_a_mapped_one_gives(tmp_path, sharded):
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(4).bfloat16(), "c": torch.arange(6, dtype=torch.uint8)}
    path = tmp_path / "one.safetensors"
    save_file(tensors, path)
    if sharded:
        parts = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
        for name, part in parts.items():
            save_file({name: tensors[name]}, tmp_path / part)
        path = tmp_path / "m.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": parts}))
        tensors.pop("c")
    with open_checkpoint(path) as mapped, open_checkpoint(path, mapped=False) as read:
        for name, tensor in tensors.items():
            assert torch.equal(mapped.get(name), tensor) and torch.equal(read.get(name), tensor)


def test_a_file_that_shrinks_while_it_is_read_is_said(tmp_path):
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.randn(300)}, path)
    with open_checkpoint(path, mapped=False) as read:
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(ModelFileError, match="changed its size"):
            read.get("a")
