"""Wrong things posted to a real host: each is answered by a sentence, and the next good prompt gives the same bits.

The whole table, in process, is tests/bad_input/table.py; here are those of its rows that a page or a script can send.
"""

import itertools
import shutil

import pytest
import torch

from scripts import api_client
from tests.bad_input import contents
from tests.host.graphs import Graph, dumped, loaders, our_model, our_sampler
from tests.wan_core.weights.test_pickle_file import Runs

ENCODER, VAE, CLIP = "WanCoreLoadTextEncoder", "WanCoreLoadVAE", "WanCoreLoadCLIPVision"
MODEL, SAMPLER, LATENT, TEXT = "WanCoreLoadModel", "WanCoreSampler", "WanCoreEmptyLatent", "WanCoreTextEncode"
FOLDERS = {MODEL: "diffusion_models", VAE: "vae", ENCODER: "text_encoders"}
WIDGETS = {MODEL: "model_name", VAE: "vae_name", ENCODER: "text_encoder_name"}
GOOD = contents.wan()
MANY = b'{"a":[' + b"[]," * 2_600_000 + b"[]]}"
# what it is: (loader, name, content, words of the answer)
FILES = {
    "LoRA": (MODEL, "a.safetensors", contents.named("diffusion_model.blocks.0.self_attn.q.lora_A.weight"), ["LoRA"]),
    "VAE as model": (MODEL, "a.safetensors", contents.network("vae", contents.VAE), ["Wan VAE file", "VAE loader"]),
    "S2V": (
        MODEL,
        "a.safetensors",
        contents.wan(**{"audio_injector.injector.0.q.weight": ("BF16", (2,))}),
        ["S2V", "yet"],
    ),
    "speech": (MODEL, "a.safetensors", contents.named("gpt.mel_head.weight"), ["text-to-speech"]),
    "LFS pointer": (MODEL, "a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid x\n", ["git lfs pull"]),
    "web page": (VAE, "a.safetensors", b"<!DOCTYPE html><html></html>", ["web page"]),
    "empty": (ENCODER, "a.safetensors", b"", ["empty", "0 bytes"]),
    "cut": (MODEL, "a.safetensors", GOOD[:-9], ["is cut"]),
    "trailing bytes": (MODEL, "a.safetensors", GOOD + b"xyz", ["3 trailing bytes"]),
    "header bomb": (MODEL, "a.safetensors", contents.packed(MANY), ["more entries than any model"]),
    "a tensor missing": (MODEL, "a.safetensors", contents.wan(drop=("blocks.1.ffn.2.bias",)), ["blocks.1.ffn.2.bias"]),
    "model as VAE": (VAE, "a.safetensors", GOOD, ["not a VAE", "model loader"]),
    "T5": (ENCODER, "a.safetensors", contents.t5(), ["T5", "not umT5"]),
    "no tokenizer": (ENCODER, "a.safetensors", contents.umt5(), ["carries no tokenizer", "spiece.model"]),
}
# what it is: (changes to the job by class, words of the answer)
CHANGES = {
    "experts of two models": ({MODEL: {"low_noise_model": "i2v_low"}}, ["different shapes", "16 and 36"]),
    "one file twice": ({MODEL: {"low_noise_model": "t2v_high"}}, ["as the high-noise and as the low-noise"]),
    "the other VAE": ({VAE: {"vae_name": "vae_22"}}, ["makes latents of 16", "takes 48", "WanCoreSampler"]),
    "width off the grid": ({LATENT: {"width": 72}}, ["72", "64 or 80"]),
    "frames off the grid": ({LATENT: {"frames": 10}}, ["4n+1", "9 or 13"]),
    "a size no machine holds": ({LATENT: {"width": 8192, "height": 8192, "frames": 8193}}, ["tokens", "fewer frames"]),
    "10^6 frames": ({LATENT: {"frames": 10**6}}, ["frames"]),
    "start_step beyond the end": ({SAMPLER: {"start_step": 9}}, ["start_step 9"]),
    "start_step with an empty latent": ({SAMPLER: {"start_step": 1}}, ["latent is empty"]),
    "negative guidance": ({SAMPLER: {"guidance": -1.0}}, ["guidance"]),
    "negative seed": ({SAMPLER: {"seed": -1}}, ["seed"]),
    "1 MB of text": ({TEXT: {"positive": "x" * 2**20}}, ["1048576 characters"]),
}  # fmt: skip
TAKEN = {
    "10,000 tokens": "cat " * 10_000,
    "NUL, lone surrogates, line separators": "a\0b \ud83d \u2028 c",
    "right to left and joined emoji": "قطة \u202egnirts 👩‍👩‍👧‍👦",
}
numbers = itertools.count(1)


def job(files: dict, name: str, **changes) -> Graph:
    """``end_step`` beyond the steps changes nothing but the host's cache key: the job is really run again."""
    graph = Graph()
    parts = loaders(graph, files)
    pair = our_model(graph, files, "t2v_high", "t2v_low")
    latent = graph.add(LATENT, model=pair, width=64, height=64, frames=5, batch_size=1)
    settings = {"steps": 2, "end_step": 1000 + next(numbers)} | changes
    sampled = our_sampler(graph, pair, parts["text"].wire(0), parts["text"].wire(1), latent, **settings)
    graph.dump(graph.add("WanCoreVAEDecode", vae=parts["vae"], samples=sampled), name)
    return graph


def changed(files: dict, changes: dict[str, dict]) -> dict:
    """The good job with other values; a file is named by its role."""
    prompt = job(files, "bad").prompt
    for node in prompt.values():
        for name, value in changes.get(node["class_type"], {}).items():
            node["inputs"][name] = files[value].name if value in files else value
    return prompt


@pytest.fixture(scope="module")
def clean(client, tiny_files) -> torch.Tensor:
    client.run(job(tiny_files, "bad_input_clean").prompt)
    return dumped(client.host.output_dir, "bad_input_clean")


@pytest.fixture
def same_after(client, tiny_files, clean):
    """After each wrong thing, the good job again."""
    yield
    client.run(job(tiny_files, "bad_input_after").prompt)
    assert torch.equal(dumped(client.host.output_dir, "bad_input_after"), clean)


@pytest.fixture
def put(tiny_tree):
    """Puts a bad file into a folder of its own, and takes it away again."""
    made = []

    def write(loader: str, name: str, content: bytes) -> str:
        folder = tiny_tree / FOLDERS[loader] / "bad"
        folder.mkdir(exist_ok=True)
        made.append(folder)
        (folder / name).write_bytes(content)
        return f"bad/{name}"

    yield write
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def answer(client, prompt: dict) -> str:
    with pytest.raises(api_client.JobError) as caught:
        client.run(prompt)
    return str(caught.value)


@pytest.mark.parametrize("what", FILES)
def test_a_wrong_file_is_answered_by_a_sentence(client, tiny_files, put, same_after, what):
    loader, name, content, words = FILES[what]
    chosen = {WIDGETS[loader]: put(loader, name, content)} | ({"low_noise_model": "none"} if loader == MODEL else {})
    said = answer(client, changed(tiny_files, {loader: chosen}))
    assert all(word in said for word in words), said


def test_a_hostile_pickle_runs_nothing_in_the_host(client, tiny_files, put, same_after, tmp_path):
    torch.save({"a": Runs(tmp_path / "canary")}, tmp_path / "hostile.pth")
    name = put(MODEL, "hostile.pth", (tmp_path / "hostile.pth").read_bytes())
    assert "holds more than plain tensors" in answer(client, changed(tiny_files, {MODEL: {"model_name": name}}))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("what", CHANGES)
def test_a_wrong_value_is_answered_by_a_sentence(client, tiny_files, same_after, what):
    changes, words = CHANGES[what]
    said = answer(client, changed(tiny_files, changes))
    assert all(word in said for word in words), said


@pytest.mark.parametrize("what", TAKEN)
def test_odd_prompts_are_taken(client, tiny_files, same_after, what):
    client.run(changed(tiny_files, {TEXT: {"positive": TAKEN[what]}}))


def between(graph: Graph, cls: str, outputs: int = 1, **inputs):
    """A native node put between the prompt and our sampler."""
    sampler = next(node for node in graph.prompt.values() if node["class_type"] == SAMPLER)
    wires = {name: sampler["inputs"][name] for name in ("positive", "negative")}
    wires |= {"VAE": [next(number for number, one in graph.prompt.items() if one["class_type"] == VAE), 0]}
    names = {key: wires.get(value, value) if isinstance(value, str) else value for key, value in inputs.items()}
    node = graph.add(cls, **names)
    for slot, name in enumerate(("positive", "negative")[:outputs]):
        sampler["inputs"][name] = node.wire(slot)
    return graph.prompt


@pytest.mark.parametrize(
    ("cls", "outputs", "inputs", "words"),
    [
        ("ConditioningSetArea", 1, {"conditioning": "positive", "width": 64, "height": 64, "x": 0, "y": 0,
                                    "strength": 1.0}, ["area"]),
        ("ConditioningSetTimestepRange", 1, {"conditioning": "positive", "start": 0.5, "end": 1.0},
         ["No entry of the positive conditioning counts in step 1", "Widen"]),
        ("WanImageToVideo", 2, {"positive": "positive", "negative": "negative", "vae": "VAE", "width": 64,
                                "height": 64, "length": 5, "batch_size": 1, "start_image": "picture"}, ["takes none"]),
    ],
)  # fmt: skip
def test_conditioning_that_cannot_be_sampled_is_refused_by_name(
    client, tiny_files, same_after, cls, outputs, inputs, words
):
    graph = job(tiny_files, "bad")
    if "start_image" in inputs:
        inputs = inputs | {"start_image": graph.add("EmptyImage", width=64, height=64, batch_size=1, color=255).wire(0)}
    said = answer(client, between(graph, cls, outputs, **inputs))
    assert all(word in said for word in words), said


def test_the_latent_of_another_model_is_refused(client, tiny_files, same_after):
    graph = job(tiny_files, "bad")
    latent = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    sampler = next(node for node in graph.prompt.values() if node["class_type"] == SAMPLER)
    sampler["inputs"]["latent"] = latent.wire(0)
    said = answer(client, graph.prompt)
    assert "takes 16" in said, said
