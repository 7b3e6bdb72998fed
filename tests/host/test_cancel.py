"""Cancel in a real host: it acts at once, and the next run is as if it had not been."""

import json
import threading
import time

import pytest
import torch

from scripts import api_client
from tests.host.graphs import Graph, dumped, loaders, our_model, our_sampler


def job(files: dict, name: str, steps: int, size: int = 64, end_step: int = 10000) -> dict:
    """``end_step`` beyond the steps changes nothing but the host's cache key: the job is really run again."""
    graph = Graph()
    parts = loaders(graph, files)
    pair = our_model(graph, files, "t2v_high", "t2v_low")
    latent = graph.add("WanCoreEmptyLatent", model=pair, width=size, height=size, frames=9, batch_size=1)
    text = parts["text"]
    settings = {"steps": steps, "end_step": end_step, "solver": "unipc", "schedule": "auto"}
    sampled = our_sampler(graph, pair, text.wire(0), text.wire(1), latent, **settings)
    images = graph.add("WanCoreVAEDecode", vae=parts["vae"], samples=sampled)
    graph.dump(images, name)
    graph.add("WanTestLoaded", name=f"{name}_loaded", after=images)
    return graph.prompt


def cancel(client, long_job: dict, sampler: str) -> None:
    """Post a long job and press cancel once the node of class ``sampler`` is at work; it has to end at once."""
    outcome, sampling = [], threading.Event()

    def on_progress(node: str, value: float, maximum: float) -> None:
        if value >= 1 and long_job[node]["class_type"] == sampler:
            sampling.set()

    def long_run():
        try:
            outcome.append(client.run(long_job, on_progress=on_progress))
        except api_client.JobError as error:
            outcome.append(error)

    worker = threading.Thread(target=long_run)
    worker.start()
    assert sampling.wait(120), "sampling never began"
    pressed = time.monotonic()
    client.post("/interrupt", {})
    worker.join(60)
    assert not worker.is_alive(), "the job did not end within a minute of the cancel"
    assert isinstance(outcome[0], api_client.JobError), "the job ran to its end"
    assert time.monotonic() - pressed < 10


def test_a_run_after_a_cancelled_one_is_bit_identical_and_the_host_lives_on(client, tiny_files):
    client.run(job(tiny_files, "cancel_clean", steps=4))
    cancel(client, job(tiny_files, "cancel_long", steps=900, size=128), "WanCoreSampler")
    client.run(job(tiny_files, "cancel_after", steps=4, end_step=9999))
    clean, after = (dumped(client.host.output_dir, f"cancel_{name}") for name in ("clean", "after"))
    assert torch.equal(clean, after)


def loaded_models(client, name: str) -> set[str]:
    """Which models were in the host's list when a ``WanTestLoaded`` of that name ran."""
    return set(json.loads((client.host.output_dir / f"{name}.json").read_text()))


def test_free_takes_our_models_off_the_hosts_list_and_the_next_run_is_the_same(client, tiny_files):
    client.run(job(tiny_files, "free_before", steps=3))
    assert {"WanDiT", "WanVAE"} <= loaded_models(client, "free_before_loaded")
    client.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)
    graph = Graph()
    graph.add("WanTestLoaded", name="freed_loaded")
    client.run(graph.prompt)
    assert not {"WanDiT", "WanVAE", "Umt5Encoder"} & loaded_models(client, "freed_loaded")
    client.run(job(tiny_files, "free_after", steps=3, end_step=9999))
    before, after = (dumped(client.host.output_dir, f"free_{name}") for name in ("before", "after"))
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"WanCoreEmptyLatent": {"width": 72}}, ["width", "72", "64 or 80"]),
        (
            {"WanCoreLoadVAE": {"vae_name": "wan_core_tiny_vae_2.2.safetensors"}},
            ["16", "wan_core_tiny_vae_2.2", "48", "Wan 2.1 VAE"],
        ),
        ({"WanCoreSampler": {"start_step": 9}}, ["start_step 9", "4"]),
    ],
)
def test_the_page_and_the_api_get_the_sentence(client, tiny_files, change, words):
    prompt = job(tiny_files, "refused", steps=4)
    for node in prompt.values():
        node["inputs"].update(change.get(node["class_type"], {}))
    with pytest.raises(api_client.JobError) as caught:
        client.run(prompt)
    assert all(word in str(caught.value) for word in words), str(caught.value)
