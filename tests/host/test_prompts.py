"""A prompt that was encoded before loads no encoder: not in the same server, not after /free, not after a restart."""

from pathlib import Path

import torch

from scripts.host import Host, link_or_copy
from tests.host.conftest import Client
from tests.host.graphs import Graph, dumped

HERE = Path(__file__).parent
REUSED = "The text encoding is reused"


def job(files: dict, name: str, positive: str, negative: str, native: bool = False) -> dict:
    graph = Graph()
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name=files["text_encoder"].name, precision="fp32")
    if native:
        graph.dump(graph.add("CLIPTextEncode", clip=encoder, text=positive), name)
    else:
        graph.dump(graph.add("WanCoreTextEncode", clip=encoder, positive=positive, negative=negative), name)
    return graph.prompt


def built(told: str, files: dict) -> int:
    """How often the encoder's weights were read, by the line that says how many tensors they are."""
    return sum(files["text_encoder"].name in line and " GB" in line and "tensors" in line for line in told.splitlines())


def test_a_prompt_that_was_encoded_before_loads_no_encoder(host_env, tiny_files, tiny_tree, tmp_path):
    def server() -> Host:
        made = Host(host_env, tmp_path, models=tiny_tree)
        link_or_copy(HERE / "dump_pack", made.base_dir / "custom_nodes" / "wan_test_dump")
        return made

    with server() as host:
        client = Client(host=host)
        client.run(job(tiny_files, "first", "a cat", "a dog"))
        assert built(host.log(), tiny_files) == 1 and REUSED not in host.log()
        client.post("/free", {"unload_models": True, "free_memory": True})
        client.run(job(tiny_files, "swapped", "a dog", "a cat"))
        client.run(job(tiny_files, "native", "a cat", "", native=True))
        assert REUSED in host.log()
        first, output = dumped(host.output_dir, "first"), host.output_dir
        assert torch.equal(dumped(output, "native"), first)
        assert not torch.equal(dumped(output, "swapped"), first)
    kept = list((tmp_path / "user" / "wan_core" / "prompts").iterdir())
    assert len(kept) == 2 and not any("cat" in file.name for file in kept)
    with server() as host:
        Client(host=host).run(job(tiny_files, "again", "a cat", "a dog"))
        assert built(host.log(), tiny_files) == 0 and REUSED in host.log()
        assert torch.equal(dumped(host.output_dir, "again"), first)
        Client(host=host).run(job(tiny_files, "other", "a horse", "a dog"))
        assert built(host.log(), tiny_files) == 1
