"""A prompt that was encoded before loads no encoder: not in the same server, not after /free, not after a restart."""

from pathlib import Path

import torch

from scripts.host import Host, link_or_copy
from tests.host.conftest import Client
from tests.host.graphs import Graph, dumped

HERE = Path(__file__).parent
REUSED = "The text encoding is reused"
NOTICE = f"{REUSED}: this prompt was encoded before."


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


def said(history: dict) -> list[str]:
    """What the nodes told in a job's history."""
    return [line for output in history["outputs"].values() for line in output.get("text", [])]


def test_a_prompt_that_was_encoded_before_loads_no_encoder(host_env, tiny_files, tiny_tree, tmp_path):
    def server() -> Host:
        made = Host(host_env, tmp_path, models=tiny_tree)
        link_or_copy(HERE / "dump_pack", made.base_dir / "custom_nodes" / "wan_test_dump")
        return made

    folder = tmp_path / "user" / "wan_core" / "prompts"
    with server() as host:
        client = Client(host=host)
        client.run(job(tiny_files, "first", "a cat", "a dog"))
        assert built(host.log(), tiny_files) == 1 and REUSED not in host.log()
        client.post("/free", {"unload_models": True, "free_memory": True})
        assert NOTICE in said(client.run(job(tiny_files, "swapped", "a dog", "a cat")))
        client.run(job(tiny_files, "native", "a cat", "", native=True))
        assert built(host.log(), tiny_files) == 1 and REUSED in host.log()
        first, output = dumped(host.output_dir, "first"), host.output_dir
        assert torch.equal(dumped(output, "native"), first)
        assert not torch.equal(dumped(output, "swapped"), first)
    kept = list(folder.iterdir())
    assert len(kept) == 2 and not any("cat" in file.name or b"cat" in file.read_bytes() for file in kept)
    with server() as host:
        client = Client(host=host)
        history = client.run(job(tiny_files, "again", "a cat", "a dog"))
        assert built(host.log(), tiny_files) == 0 and NOTICE in said(history)
        assert torch.equal(dumped(host.output_dir, "again"), first)
        client.run(job(tiny_files, "other", "a horse", "a dog"))
        assert built(host.log(), tiny_files) == 1
    for file in kept:
        file.write_bytes(file.read_bytes()[:-7])
    with server() as host:
        history = Client(host=host).run(job(tiny_files, "damaged", "a cat", "a dog"))
        assert built(host.log(), tiny_files) == 1 and not said(history)
        assert torch.equal(dumped(host.output_dir, "damaged"), first)


def test_a_user_folder_that_takes_no_files_is_said_once_and_jobs_run(host_env, tiny_files, tiny_tree, tmp_path):
    host = Host(host_env, tmp_path, models=tiny_tree)
    link_or_copy(HERE / "dump_pack", host.base_dir / "custom_nodes" / "wan_test_dump")
    (tmp_path / "user" / "wan_core").write_text("in the way")
    with host:
        client = Client(host=host)
        client.run(job(tiny_files, "one", "a cat", "a dog"))
        client.run(job(tiny_files, "two", "a bird", "a dog"))
        assert host.log().count("text encodings are not kept on disk") == 1
