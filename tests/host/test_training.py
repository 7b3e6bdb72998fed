"""A LoRA trained in a real host: from a folder of clips to a file that the LoRA node loads."""

import csv
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scripts import api_client
from tests.conftest import ROOT
from tests.host.graphs import Graph, Node, dumped, our_model, our_sampler
from wan_core.training.show import write_video
from wan_core.training.state import states

log = logging.getLogger(__name__)

SIZE, FRAMES, STEPS = 32, 5, 12
TABLE = "training_clips/metadata.csv"


def write_folder(folder: Path, more: list[tuple[str, ...]] = ()) -> Path:
    """Four clips with captions, and the rows of ``more``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [("file_name", "text")]
    for number in range(4):
        frames = np.full((FRAMES, SIZE, SIZE, 3), 60 * number, np.uint8)
        frames[:, 8:24, 4 * number : 4 * number + 8] = 255
        write_video(frames, folder / f"{number}.mp4", 16)
        rows.append((f"{number}.mp4", f"a white bar, number {number}, on grey"))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([*rows, *more])
    return folder


@pytest.fixture(scope="module")
def folder(client, tiny_files) -> Path:
    for path in tiny_files["lora"].parent.glob("*.safetensors"):
        if "tiny" not in path.name:
            path.unlink()  # trained on another version: the models are shared, the folders of the runs are not
    return write_folder(client.host.base_dir / "input" / "training_clips")


def data_node(graph: Graph, files: dict, table: str = TABLE, **changes) -> Node:
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name=files["text_encoder"].name, precision="fp32")
    vae = graph.add("WanCoreLoadVAE", vae_name=files["vae"].name, precision="fp32")
    widgets = {"width": SIZE, "height": SIZE, "frames": FRAMES, "skip_bad": False} | changes
    return graph.add("WanCoreTrainingData", clip=encoder, vae=vae, data=table, **widgets)


def train_node(graph: Graph, model: Node, data: Node, name: str, **changes) -> Node:
    widgets = {
        "expert": "all", "steps": STEPS, "learning_rate": 1e-3, "rank": 4, "alpha": 0.0,
        "targets": "q, k, v, o, ffn.0, ffn.2", "batch": 2, "seed": 0, "shift": 3.0, "drop_text": 0.1,
        "checkpointing": True, "save_every": 5, "sample_every": 0,
    }  # fmt: skip
    return graph.add("WanCoreTrainLoRA", model=model, data=data, name=name, **widgets | changes)


def trained(client, files: dict, name: str, models: tuple[str, ...] = ("t2v",), on_progress=None, **changes):
    """Run data -> train; returns the train node's text and the graph."""
    graph = Graph()
    node = train_node(graph, our_model(graph, files, *models), data_node(graph, files), name, **changes)
    graph.dump(Node(node.number).wire(1), f"curve_{name}")
    history = client.run(graph.prompt, on_progress=on_progress)
    return history["outputs"][node.number]["text"]


def lora_file(client, name: str) -> Path:
    return client.host.base_dir / "models" / "loras" / f"{name}.safetensors"


def run_folder(client, name: str) -> Path:
    return client.host.output_dir / "wan_core_training" / name


def same(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_node_trains_what_the_command_line_trains_and_the_lora_node_takes_it(client, tiny_files, folder, tmp_path):
    name = "from_node"
    told = trained(client, tiny_files, name)
    assert any(f"{name}.safetensors is in the loras folder" in line for line in told)
    command = [sys.executable, "-m", "wan_core.training", "lora", "--model", str(tiny_files["t2v"])]
    command += ["--vae", str(tiny_files["vae"]), "--text-encoder", str(tiny_files["text_encoder"]), "--data", folder]
    command += ["--size", str(SIZE), str(SIZE), "--frames", str(FRAMES), "--phases", f"{FRAMES}x2x{STEPS}"]
    command += ["--rank", "4", "--lr", "1e-3", "--precision", "fp32", "--checkpoint", "--device", "cpu"]
    subprocess.run([*map(str, command), "--out", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    ours, theirs = load_file(lora_file(client, name)), load_file(tmp_path / "lora.safetensors")
    assert ours.keys() == theirs.keys()
    worst = max((ours[key].float() - theirs[key].float()).abs().max().item() for key in ours)
    log.info("node against command line: max abs difference %.2e", worst)
    assert worst <= 1e-3 and all(tensor.any() for tensor in ours.values())
    curve = dumped(client.host.output_dir, f"curve_{name}")
    assert curve.shape == (1, 400, 800, 3) and curve.unique().numel() > 2
    graph = Graph()
    model = our_model(graph, tiny_files, "t2v")
    widgets = {"strength": 1.0, "low_noise_lora": "same", "strength_low": 1.0, "strict": True}
    worn = graph.add("WanCoreLoRA", model=model, lora_name=f"{name}.safetensors", **widgets)
    graph.dump(sampled(graph, tiny_files, worn), "trained_lora")
    history = client.run(graph.prompt)
    assert "applied 40 of 40 tensors" in history["outputs"][worn.number]["text"][0]


def sampled(graph: Graph, files: dict, model: Node) -> Node:
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name=files["text_encoder"].name, precision="fp32")
    text = graph.add("WanCoreTextEncode", clip=encoder, positive="a white bar", negative="")
    latent = graph.add("WanCoreEmptyLatent", model=model, width=SIZE, height=SIZE, frames=FRAMES, batch_size=1)
    return our_sampler(graph, model, text.wire(0), text.wire(1), latent, steps=2)


def test_the_model_that_comes_out_wears_the_new_lora_and_the_one_that_went_in_does_not(client, tiny_files, folder):
    graph = Graph()
    model = our_model(graph, tiny_files, "t2v")
    made = train_node(graph, model, data_node(graph, tiny_files), "worn", learning_rate=0.05, steps=20)
    widgets = {"strength": 1.0, "low_noise_lora": "same", "strength_low": 1.0, "strict": True}
    graph.dump(sampled(graph, tiny_files, model), "training_before")
    graph.dump(sampled(graph, tiny_files, made), "training_out")
    client.run(graph.prompt)
    graph = Graph()
    model = our_model(graph, tiny_files, "t2v")
    graph.dump(sampled(graph, tiny_files, model), "training_after")
    loaded = graph.add("WanCoreLoRA", model=model, lora_name="worn.safetensors", **widgets)
    graph.dump(sampled(graph, tiny_files, loaded), "training_loaded")
    client.run(graph.prompt)
    before, after, out, again = (
        dumped(client.host.output_dir, f"training_{name}") for name in ("before", "after", "out", "loaded")
    )
    assert torch.equal(before, after), "training changed the model on the wire"
    assert torch.equal(out, again)
    assert (out - before).abs().max() > 1e-3


def test_both_experts_of_a_pair_get_a_lora_and_progress_counts_both(client, tiny_files, folder):
    seen = []
    told = trained(
        client, tiny_files, "pair", ("t2v_high", "t2v_low"), steps=6,
        on_progress=lambda node, value, maximum: seen.append((value, maximum)),
    )  # fmt: skip
    for side in ("high", "low"):
        assert any(f"pair_{side}_noise.safetensors is in the loras folder" in line for line in told)
        assert lora_file(client, f"pair_{side}_noise").is_file()
    assert not same(lora_file(client, "pair_high_noise"), lora_file(client, "pair_low_noise"))
    steps = [value for value, maximum in seen if maximum == 12]
    assert steps[-1] == 12 and len(set(steps)) > 6 and steps == sorted(steps)
    assert dumped(client.host.output_dir, "curve_pair").shape[0] == 2


def test_an_image_model_is_trained_with_its_first_frame(client, tiny_files, folder):
    trained(client, tiny_files, "image", ("i2v_high", "i2v_low"), expert="low noise", steps=3)
    assert lora_file(client, "image_low_noise").is_file() and not lora_file(client, "image_high_noise").exists()


def test_a_cancelled_training_goes_on_where_it_was_and_ends_as_if_it_had_not_been(client, tiny_files, folder):
    steps, begun, outcome = 300, threading.Event(), []
    trained(client, tiny_files, "whole", steps=steps, save_every=100)

    def on_progress(node: str, value: float, maximum: float) -> None:
        if maximum == steps and value >= 20:
            begun.set()

    def long_run():
        try:
            outcome.append(trained(client, tiny_files, "broken", steps=steps, save_every=100, on_progress=on_progress))
        except api_client.JobError as error:
            outcome.append(error)

    worker = threading.Thread(target=long_run)
    worker.start()
    assert begun.wait(120), "training never began"
    client.post("/interrupt", {})
    worker.join(60)
    assert not worker.is_alive() and isinstance(outcome[0], api_client.JobError), outcome
    (kept,) = states(run_folder(client, "broken"))[-1:]
    step = int(kept.stem.split("-")[1])
    log.info("cancelled after step %d of %d", step, steps)
    assert 20 <= step < steps
    assert not lora_file(client, "broken").exists()
    assert not list(lora_file(client, "broken").parent.glob("*.part"))
    values = []
    trained(
        client, tiny_files, "broken", steps=steps, save_every=100,
        on_progress=lambda node, value, maximum: values.append(value) if maximum == steps else None,
    )  # fmt: skip
    assert min(values) > step, "it began anew"
    assert lora_file(client, "broken").read_bytes() == lora_file(client, "whole").read_bytes()
    newest = [states(run_folder(client, name))[-1] for name in ("broken", "whole")]
    assert same(*newest)


def test_samples_are_made_while_it_trains(client, tiny_files, folder):
    trained(client, tiny_files, "shown", steps=2, sample_every=2)
    assert (run_folder(client, "shown") / "sample-00000002.mp4").is_file()


def test_everything_that_is_wrong_with_a_data_set_reaches_the_page(client, tiny_files):
    more = [("absent.mp4", "a"), ("0.mp4", "twice"), ("1.mp4",), ("x.txt", "b")]
    write_folder(client.host.base_dir / "input" / "bad_clips", more)
    graph = Graph()
    data = data_node(graph, tiny_files, "bad_clips/metadata.csv")
    train_node(graph, our_model(graph, tiny_files, "t2v"), data, "never")
    with pytest.raises(api_client.JobError) as caught:
        client.run(graph.prompt)
    said = str(caught.value)
    for words in ("absent.mp4 (line 6): not there", "0.mp4 (line 7): listed twice (line 2 too)", "x.txt (line 9)"):
        assert words in said, said
    graph = Graph()
    data = data_node(graph, tiny_files, "bad_clips/metadata.csv", skip_bad=True)
    train_node(graph, our_model(graph, tiny_files, "t2v"), data, "bad_left_out", steps=2)
    history = client.run(graph.prompt)
    assert "4 clips of 32x32, 5 frames; 4 left out." in history["outputs"][data.number]["text"]


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "a/b", "a\\b", "", ".hidden", "con", "x" * 90, "tab\tin", "a:b"]
)
def test_a_name_that_leaves_the_loras_folder_is_refused_before_the_job_begins(client, tiny_files, folder, name):
    graph = Graph()
    train_node(graph, our_model(graph, tiny_files, "t2v"), data_node(graph, tiny_files), name)
    with pytest.raises(api_client.JobError, match="cannot be the name of a LoRA"):
        client.run(graph.prompt)


@pytest.mark.parametrize("table", ["../training_clips/metadata.csv", "/etc/metadata.csv", "none", "training_clips"])
def test_a_data_set_outside_the_input_folder_is_refused(client, tiny_files, folder, table):
    graph = Graph()
    train_node(graph, our_model(graph, tiny_files, "t2v"), data_node(graph, tiny_files, table), "never")
    with pytest.raises(api_client.JobError, match=r"no data set below|not in"):
        client.run(graph.prompt)


def test_a_file_of_something_else_is_never_overwritten(client, tiny_files, folder):
    path = lora_file(client, "precious")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"mine")
    with pytest.raises(api_client.JobError, match=r"precious\.safetensors is there already"):
        trained(client, tiny_files, "precious")
    assert path.read_bytes() == b"mine"
    os.unlink(path)


def test_native_loaders_and_models_with_loras_are_refused_in_a_sentence(client, tiny_files, folder):
    graph = Graph()
    native = graph.add("VAELoader", vae_name="pixel_space")
    data = data_node(graph, tiny_files)
    graph.prompt[data.number]["inputs"]["vae"] = native.wire(0)
    train_node(graph, our_model(graph, tiny_files, "t2v"), data, "never")
    with pytest.raises(api_client.JobError, match="from Wan Core Load Text Encoder and Wan Core Load VAE"):
        client.run(graph.prompt)
    graph = Graph()
    widgets = {"strength": 1.0, "low_noise_lora": "same", "strength_low": 1.0}
    worn = graph.add(
        "WanCoreLoRA", model=our_model(graph, tiny_files, "t2v"), lora_name=tiny_files["lora"].name, **widgets
    )
    train_node(graph, worn, data_node(graph, tiny_files), "never")
    with pytest.raises(api_client.JobError, match="has a LoRA on it"):
        client.run(graph.prompt)
