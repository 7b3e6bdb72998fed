"""Hostile and damaged .pth files: nothing runs, nothing odd comes through; the official layout is read."""

import collections
import os
import pickle
import random
import time
import zipfile

import pytest
import torch
from torch import nn

from wan_core.errors import ModelFileError
from wan_core.weights import pickle_file
from wan_core.weights.header import DTYPES
from wan_core.weights.pickle_file import read_pickle


class Runs:
    """Writes a canary when unpickled by a reader that runs code."""

    def __init__(self, canary, call=os.system):
        self.canary, self.call = canary, call

    def __reduce__(self):
        if self.call is os.system:
            return os.system, (f"touch {self.canary}",)
        return self.call, (f"open({str(self.canary)!r}, 'w').close()",)


def saved(path, value):
    torch.save(value, path)
    return path


def rezipped(path, change):
    """The same archive with entries changed by ``change(name, data, info) -> data``."""
    with zipfile.ZipFile(path) as old:
        entries = [(info, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for info, data in entries:
            new.writestr(zipfile.ZipInfo(info.filename), change(info.filename, data))
    return path


def deflated(path):
    with zipfile.ZipFile(path) as old:
        entries = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries:
            new.writestr(name, data)
    return path


def truncated(path):
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 2 // 3])
    return path


def raw_pickle(path, value):
    path.write_bytes(pickle.dumps(value))
    return path


def huge_storage(path):
    """The table claims 10^11 elements for a storage of four."""
    saved(path, {"a": torch.ones(4)})
    return rezipped(path, lambda name, data: data.replace(b"K\x04t", b"\x8a\x05\x00\xe8\x76\x48\x17t"))


def huge_view(path):
    """A tensor of a million elements on a storage of four."""
    saved(path, {"a": torch.ones(4)})
    return rezipped(path, lambda name, data: data.replace(b"K\x04\x85", b"J\x40\x42\x0f\x00\x85"))


def contents(path, data, more=()):
    """An archive with this table of contents."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, entry in (("m/data.pkl", data), ("m/version", b"3"), *more):
            archive.writestr(name, entry)
    return path


BYTEARRAY = b"\x80\x02}X\x01\0\0\0ac__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85Rs."
SPARSE = torch.eye(3).to_sparse()
HOSTILE = {
    "os.system in a value": (lambda p, c: saved(p, {"a": Runs(c)}), "refused"),
    "exec in a value": (lambda p, c: saved(p, {"a": Runs(c, exec)}), "refused"),
    "code beside good tensors": (lambda p, c: saved(p, {"a": torch.ones(2), "b": Runs(c)}), "refused"),
    "code as the whole": (lambda p, c: saved(p, Runs(c)), "refused"),
    "raw pickle with code": (lambda p, c: raw_pickle(p, {"a": Runs(c)}), "old format"),
    "old format": (
        lambda p, c: torch.save({"a": torch.ones(2)}, p, _use_new_zipfile_serialization=False) or p,
        "old format",
    ),
    "sparse coo": (lambda p, c: saved(p, {"a": SPARSE}), "sparse"),
    "sparse csr": (lambda p, c: saved(p, {"a": SPARSE.to_sparse_csr()}), "sparse"),
    "sparse csc": (lambda p, c: saved(p, {"a": SPARSE.to_sparse_csc()}), "sparse"),
    "expanded": (lambda p, c: saved(p, {"a": torch.ones(1).expand(10**9)}), "expanded"),
    "quantised": (
        lambda p, c: saved(p, {"a": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}),
        "refused",
    ),
    "nested": (lambda p, c: saved(p, {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}), "refused"),
    "without data": (lambda p, c: saved(p, {"a": torch.ones(4, device="meta")}), "without data"),
    "complex": (lambda p, c: saved(p, {"a": torch.ones(2, dtype=torch.complex64)}), "complex64"),
    "six dimensions": (lambda p, c: saved(p, {"a": torch.ones(1, 1, 1, 1, 1, 2)}), "6 dimensions"),
    "storage that lies": (lambda p, c: huge_storage(p), "refused"),
    "view that lies": (lambda p, c: huge_view(p), "refused"),
    "a list": (lambda p, c: saved(p, [torch.ones(2)]), "holds a list"),
    "a tensor": (lambda p, c: saved(p, torch.ones(2)), "holds a Tensor"),
    "a number as value": (lambda p, c: saved(p, {"a": torch.ones(2), "step": 7}), "'step' is a int"),
    "a text as value": (lambda p, c: saved(p, {"a": "text"}), "'a' is a str"),
    "a number as name": (lambda p, c: saved(p, {1: torch.ones(2)}), "name is a int"),
    "a dunder name": (lambda p, c: saved(p, {"a.__class__": torch.ones(2)}), "not accepted"),
    "two levels deep": (lambda p, c: saved(p, {"state_dict": {"module": {"a": torch.ones(2)}}}), "'module' is a dict"),
    "empty table": (lambda p, c: saved(p, {}), "0 entries"),
    "many views of one memory": (
        lambda p, c: saved(p, dict.fromkeys((f"t{i}" for i in range(99)), torch.ones(5000))),
        "more memory",
    ),
    "deflated": (lambda p, c: deflated(saved(p, {"a": torch.zeros(10**6)})), "compressed"),
    "bytearray of 2 GB": (lambda p, c: contents(p, BYTEARRAY), "bytearray"),
    "a million lists": (lambda p, c: contents(p, b"\x80\x02" + b"]" * 10**6 + b"."), "longer than any model"),
    "table of contents of 5 MB": (lambda p, c: contents(p, b"\x80\x02" + b"]" * 5_000_000 + b"."), "larger than any"),
    "a name made at run time": (lambda p, c: contents(p, b"\x80\x04\x8c\x02os\x8c\x06system\x93)R."), "STACK_GLOBAL"),
    "two tables of contents": (
        lambda p, c: contents(p, b"\x80\x02}.", [("n/data.pkl", b"\x80\x02}.")]), "several tables",
    ),
    "a directory of 45000 files": (
        lambda p, c: contents(p, b"\x80\x02}.", ((f"m/data/{i}", b"") for i in range(45_000))), "directory is longer",
    ),
    "zip bomb": (lambda p, c: deflated(contents(p, b"\x80\x02}.", [("m/data/0", bytes(5 * 10**7))])), "compressed"),
    "cut": (lambda p, c: truncated(saved(p, {"a": torch.ones(1000)})), "cut or damaged"),
    "TorchScript": (lambda p, c: torch.jit.save(torch.jit.script(nn.Linear(2, 2)), p) or p, "TorchScript"),
    "other zip": (lambda p, c: zipfile.ZipFile(p, "w").writestr("a.txt", "x") or p, "no data.pkl"),
    "html": (lambda p, c: p.write_bytes(b"<!DOCTYPE html>") and p, "web page"),
    "safetensors": (lambda p, c: p.write_bytes(b"\x02\0\0\0\0\0\0\0{}") and p, "ending .safetensors"),
    "empty": (lambda p, c: p.write_bytes(b"") or p, "is empty"),
    "an open module": (lambda p, c: saved(p, nn.Linear(2, 2)), "refused"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_and_runs_nothing(name, tmp_path):
    make, words = HOSTILE[name]
    canary = tmp_path / "canary"
    path = make(tmp_path / "model.pth", canary)
    begin = time.process_time()
    with pytest.raises(ModelFileError) as caught:
        read_pickle(path)
    assert words in str(caught.value)
    assert "model.pth" in str(caught.value)
    assert not canary.exists()
    assert time.process_time() - begin < 1.0


def test_the_canary_works_where_code_does_run(tmp_path):
    pickle.loads(pickle.dumps(Runs(tmp_path / "canary")))  # noqa: S301 (this is the point)
    assert (tmp_path / "canary").exists()


def test_the_official_layout_is_read_to_the_bit(tmp_path):
    tensors = collections.OrderedDict(a=torch.randn(3, 4), b=torch.randn(5).bfloat16(), c=torch.randn(4, 6).t())
    read = read_pickle(saved(tmp_path / "model.pth", tensors))
    assert list(read) == ["a", "b", "c"]
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", sorted(DTYPES.values(), key=str), ids=str)
def test_every_type_that_a_file_may_hold_is_read(dtype, tmp_path):
    tensor = torch.ones(3).to(dtype)
    read = read_pickle(saved(tmp_path / "model.pth", {"a": tensor, "b": nn.Parameter(tensor, requires_grad=False)}))
    assert all(torch.equal(one.view(torch.uint8), tensor.view(torch.uint8)) for one in read.values())


def test_a_state_dict_of_a_module_and_one_wrapping_level_are_read(tmp_path):
    layer = nn.Linear(3, 2)
    for value in (layer.state_dict(), dict(layer.named_parameters()), {"state_dict": layer.state_dict(), "epoch": 3}):
        read = read_pickle(saved(tmp_path / "model.pth", value))
        assert set(read) == {"weight", "bias"} and type(read["weight"]) is torch.Tensor
        assert torch.equal(read["weight"], layer.weight.data)


def test_weights_only_is_the_only_way_in(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        pickle_file.torch, "load", lambda *a, **k: calls.append(k) or (_ for _ in ()).throw(RuntimeError)
    )
    with pytest.raises(ModelFileError):
        read_pickle(saved(tmp_path / "model.pth", {"a": torch.ones(1)}))
    assert [(call["weights_only"], call["mmap"]) for call in calls] == [(True, False)]


@pytest.mark.parametrize("version", ["2.9.1", "2.4.0+cu121", "2.9.0a0+git1"])
def test_an_older_torch_refuses_and_names_the_converter(version, tmp_path, monkeypatch):
    path = saved(tmp_path / "model.pth", {"a": torch.ones(1)})
    monkeypatch.setattr(pickle_file.torch, "__version__", version)
    with pytest.raises(ModelFileError, match=r"wan_core\.weights\.convert"):
        read_pickle(path)


def test_a_changed_file_is_read_or_refused_and_nothing_else(tmp_path):
    raw = saved(tmp_path / "good.pth", {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16()}).read_bytes()
    rng, verdicts = random.Random(3), collections.Counter()
    path = tmp_path / "model.pth"
    for _ in range(300):
        changed = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(min(len(changed), 700))
            if rng.random() < 0.3:
                del changed[at : at + rng.randint(1, 3)]
            else:
                changed[at] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            tensors = read_pickle(path)
        except ModelFileError:
            verdicts["refused"] += 1
            continue
        verdicts["read"] += 1
        assert all(t.numel() * t.element_size() <= t.untyped_storage().nbytes() for t in tensors.values())
    assert verdicts["refused"] > 100 and verdicts["read"] > 5
