"""Other ways to start the host: where weights live and how files are read change no bit of the result."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from scripts import tiny_jobs
from scripts.host import Host, link_or_copy
from tests.host.conftest import Client
from tests.host.graphs import Graph, dumped, loaders, our_model, our_sampler
from tests.host.workflow_files import examples

HERE = Path(__file__).parent
SIZE = {"width": 64, "height": 64}
CLIP = tiny_jobs.Clip(width=96, height=64, frames=5, steps=2)
PLENTY = 2**40
LITTLE = 10**9
"""Enough for a tiny transformer, not for what the host wants free beside it: it takes off what it loaded before."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a server is started; flags that have nothing to do with each other share one.

    ``vram`` is what --novram, --lowvram or --highvram sets, which the host does not accept beside --cpu: card_pack sets
    it. ``loads`` is what the memory manager then allows each model to take (its own words: 0 is all of it).
    """

    flags: tuple[str, ...] = ()
    newest: tuple[str, ...] = ()  # flags that 0.3.64 does not have
    vram: str | None = None
    free: int = 0
    loads: str = ""
    evicts: bool = False
    streams: bool = False  # the transformer's blocks come and go, so the host loads no transformer


STARTS = {
    "cache_none-no_dynamic_vram": Start(flags=("--cache-none",), newest=("--disable-dynamic-vram",)),
    "novram": Start(vram="NO_VRAM", free=LITTLE, loads=r"0\.1", streams=True),
    "lowvram": Start(vram="LOW_VRAM", free=LITTLE, loads=r"-?[1-9]\d+(\.\d+)?|0\.1", evicts=True),
    "highvram-disable_mmap": Start(flags=("--disable-mmap",), vram="HIGH_VRAM", free=PLENTY, loads="0"),
}


def job(files: dict, name: str, end_step: int) -> dict:
    """A video of a pair; ``end_step`` beyond the steps changes nothing but the host's cache key."""
    graph = Graph()
    parts = loaders(graph, files)
    pair = our_model(graph, files, "t2v_high", "t2v_low")
    latent = graph.add("WanCoreEmptyLatent", model=pair, **SIZE, frames=5, batch_size=1)
    text = parts["text"]
    sampled = our_sampler(graph, pair, text.wire(0), text.wire(1), latent, steps=2, switch_step=1, end_step=end_step)
    graph.dump(graph.add("WanCoreVAEDecode", vae=parts["vae"], samples=sampled), name)
    return graph.prompt


@pytest.fixture(scope="module")
def plain(client, tiny_files) -> torch.Tensor:
    """The frames that the server without flags makes."""
    client.run(job(tiny_files, "plain", 10000))
    return dumped(client.host.output_dir, "plain")


def run_every_workflow(client: Client, files: dict, folder: Path) -> None:
    """All example workflows at a tiny size, each read back and compared with what was asked for."""
    folder.mkdir()
    image = client.upload(tiny_jobs.draw_image(folder / "start.png"))
    video = client.upload(tiny_jobs.draw_video(folder / "source.mp4"))
    given = tiny_jobs.Given(words="a blue boat", image=image, video=video)
    for workflow in examples():
        prompt = tiny_jobs.tiny(workflow.api, files, CLIP, given, workflow.name)
        page = tiny_jobs.tiny_page(workflow.page, prompt)
        (path,) = client.download(client.run(prompt, page), folder)
        tiny_jobs.check_saved(path, CLIP, prompt, page)


@pytest.mark.slow
@pytest.mark.parametrize("name", STARTS)
def test_other_flags_of_the_host_give_the_same_bits_and_run_every_workflow(
    host_env, plain, tiny_files, tiny_tree, tmp_path, monkeypatch, name
):
    start = STARTS[name]
    flags = start.flags + (() if host_env.version == "0.3.64" else start.newest)
    server = Host(host_env, tmp_path, models=tiny_tree, flags=flags)
    packs = {"dump_pack": "wan_test_dump"} | ({"card_pack": "wan_test_card"} if start.vram else {})
    for folder, pack in packs.items():
        link_or_copy(HERE / folder, server.base_dir / "custom_nodes" / pack)
    monkeypatch.setenv("WAN_TEST_CARD", json.dumps({"state": start.vram, "free": start.free}))
    with server:
        for run, end_step in (("first", 10000), ("again", 9999)):
            Client(host=server).run(job(tiny_files, run, end_step))
            assert torch.equal(dumped(server.output_dir, run), plain), f"{run} run with {name}"
        told = server.log()
        run_every_workflow(Client(host=server), tiny_files, tmp_path / "workflows")
    if start.vram:
        loads = re.findall(r"CARD load (\w+) allowed (\S+)", told)
        on_card = [(model, allowed) for model, allowed in loads if model != "Umt5Encoder"]  # the CPU may be its place
        assert {model for model, _ in on_card} == ({"WanVAE"} if start.streams else {"WanDiT", "WanVAE"})
        assert ("Streams 2 of 2 blocks" in told) == start.streams
        assert all(re.fullmatch(start.loads, allowed) for _, allowed in on_card), loads
        assert ("CARD unload" in told) == start.evicts


def test_the_pretended_card_is_needed(host_env, tmp_path):
    """If the host took these flags beside --cpu, they should be tried as they are."""
    from scripts.host import HostError

    with pytest.raises(HostError, match="not allowed with argument"):
        Host(host_env, tmp_path, flags=("--novram",)).start()
