"""VACE beside native ComfyUI: the same latents from either sampler, and contexts that either node makes."""

import logging

import pytest
import torch

from tests.host.graphs import Graph, dumped, loaders, native_model, native_sampler, our_model, our_sampler

log = logging.getLogger(__name__)

SIZE = {"width": 64, "height": 64}
FRAMES = 9
CLOSE = 1e-3
FAR = 1e-2
PARTS = {
    "nothing": (),
    "video": ("control_video",),
    "masked": ("control_video", "control_masks"),
    "reference": ("reference_image",),
    "all": ("control_video", "control_masks", "reference_image"),
}


@pytest.fixture(scope="module")
def picture(client, tmp_path_factory) -> str:
    """A picture of the clip's own size, where every node sees the same pixels."""
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "vace.png"
    pixels = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(5)) * 255).byte().numpy()
    Image.fromarray(pixels).save(path)
    return client.upload(path)


def given(graph: Graph, picture: str) -> dict:
    """A clip, a mask of its left half for the first five frames, and a reference picture."""
    image = graph.add("LoadImage", image=picture)
    clip = graph.add("RepeatImageBatch", image=image, amount=FRAMES)
    black = graph.add("SolidMask", value=0.0, **SIZE)
    white = graph.add("SolidMask", value=1.0, width=32, height=64)
    half = graph.add("MaskComposite", destination=black, source=white, x=0, y=0, operation="add")
    mask_image = graph.add("MaskToImage", mask=half)
    masks = graph.add(
        "ImageToMask", image=graph.add("RepeatImageBatch", image=mask_image, amount=FRAMES), channel="red"
    )
    return {"control_video": clip, "control_masks": masks, "reference_image": graph.add("ImageInvert", image=image)}


def wires(node) -> tuple:
    return node.wire(0), node.wire(1), node.wire(2)


def native_vace(graph: Graph, positive, negative, vae, strength=1.0, **inputs):
    return graph.add(
        "WanVaceToVideo", positive=positive, negative=negative, vae=vae, **SIZE, length=FRAMES, batch_size=1,
        strength=strength, **inputs,
    )  # fmt: skip


def our_vace(graph: Graph, positive, negative, vae, strength=1.0, start=0.0, end=1.0, **inputs):
    return graph.add(
        "WanCoreVace", positive=positive, negative=negative, vae=vae, **SIZE, frames=FRAMES, batch_size=1,
        strength=strength, start_percent=start, end_percent=end, **inputs,
    )  # fmt: skip


@pytest.mark.parametrize("what", PARTS)
def test_native_and_our_node_and_sampler_give_the_same_latents(client, tiny_files, picture, what):
    graph = Graph()
    parts = loaders(graph, tiny_files)
    text, vae = parts["text"], parts["vae"]
    inputs = {name: value for name, value in given(graph, picture).items() if name in PARTS[what]}
    native, ours = native_model(graph, tiny_files, "vace", 5.0), our_model(graph, tiny_files, "vace")
    nodes = {
        "native": native_vace(graph, text.wire(0), text.wire(1), vae, **inputs),
        "ours": our_vace(graph, text.wire(0), text.wire(1), vae, **inputs),
    }
    for name, node in nodes.items():
        theirs = native_sampler(graph, native, *wires(node))
        trimmed = graph.add("TrimVideoLatent", samples=theirs, trim_amount=node.wire(3))
        graph.dump(trimmed, f"vace_{what}_{name}_native")
        mine = our_sampler(graph, ours, *wires(node))
        mine = graph.add("TrimVideoLatent", samples=mine, trim_amount=node.wire(3))
        graph.dump(mine, f"vace_{what}_{name}_ours")
    client.run(graph.prompt)
    made = {
        f"{node}_{sampler}": dumped(client.host.output_dir, f"vace_{what}_{node}_{sampler}")
        for node in nodes
        for sampler in ("native", "ours")
    }
    base = made.pop("native_native")
    assert base.shape == (1, 16, 3, 8, 8)
    worst = 0.0
    for name, latent in made.items():
        assert latent.shape == base.shape, name
        worst = max(worst, (latent - base).abs().max().item())
        assert (latent - base).abs().max() <= CLOSE, name
    log.info("vace %s: max abs difference %.2e", what, worst)


def test_without_any_context_both_samplers_give_the_same_latents(client, tiny_files):
    graph = Graph()
    sides = [loaders(graph, tiny_files)["text"].wire(slot) for slot in (0, 1)]
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=2)
    native, ours = native_model(graph, tiny_files, "vace", 5.0), our_model(graph, tiny_files, "vace")
    graph.dump(native_sampler(graph, native, *sides, latent), "vace_bare_native")
    graph.dump(our_sampler(graph, ours, *sides, latent), "vace_bare_ours")
    client.run(graph.prompt)
    theirs, mine = (dumped(client.host.output_dir, f"vace_bare_{name}") for name in ("native", "ours"))
    assert (theirs - mine).abs().max() <= CLOSE


def test_contexts_add_up_as_natively_and_each_counts(client, tiny_files, picture):
    """Two contexts of different strength, by native nodes, by ours, and mixed."""
    graph = Graph()
    parts = loaders(graph, tiny_files)
    text, vae = parts["text"], parts["vae"]
    inputs = given(graph, picture)
    video = {"control_video": inputs["control_video"]}
    masked = {name: inputs[name] for name in ("control_video", "control_masks")}
    makers = {"native": native_vace, "ours": our_vace}
    chains = {
        f"{a}_{b}": makers[b](
            graph, *wires(makers[a](graph, text.wire(0), text.wire(1), vae, **video))[:2], vae, 0.6, **masked
        )
        for a in makers
        for b in makers
    }
    native, ours = native_model(graph, tiny_files, "vace", 5.0), our_model(graph, tiny_files, "vace")
    for name, node in chains.items():
        graph.dump(our_sampler(graph, ours, *wires(node)), f"vace_chain_{name}")
    graph.dump(native_sampler(graph, native, *wires(chains["native_native"])), "vace_chain_base")
    graph.dump(native_sampler(graph, native, *wires(chains["ours_ours"])), "vace_chain_back")
    one = our_vace(graph, text.wire(0), text.wire(1), vae, **video)
    graph.dump(our_sampler(graph, ours, *wires(one)), "vace_chain_one")
    client.run(graph.prompt)
    get = lambda name: dumped(client.host.output_dir, f"vace_chain_{name}")  # noqa: E731
    base = get("base")
    for name in (*chains, "back"):
        assert (get(name) - base).abs().max() <= CLOSE, name
    assert (get("one") - base).abs().max() > FAR, "the second context changes nothing"


def test_our_contexts_count_in_their_share_of_the_steps_and_make_room_for_references(client, tiny_files, picture):
    graph = Graph()
    parts = loaders(graph, tiny_files)
    text, vae = parts["text"], parts["vae"]
    inputs = given(graph, picture)
    model = our_model(graph, tiny_files, "vace")
    video, reference = ({name: inputs[name]} for name in ("control_video", "reference_image"))
    first = our_vace(graph, text.wire(0), text.wire(1), vae, **reference)
    second = our_vace(graph, *wires(first)[:2], vae, **video)
    swapped = our_vace(graph, *wires(our_vace(graph, text.wire(0), text.wire(1), vae, **video))[:2], vae, **reference)
    half = our_vace(graph, text.wire(0), text.wire(1), vae, end=0.5, **video)
    whole = our_vace(graph, text.wire(0), text.wire(1), vae, **video)
    for name, node in {"second": second, "swapped": swapped, "half": half, "whole": whole}.items():
        graph.dump(our_sampler(graph, model, *wires(node)), f"vace_room_{name}")
    first_half = our_sampler(graph, model, *wires(second), end_step=4)
    graph.dump(our_sampler(graph, model, *wires(second)[:2], first_half, start_step=4), "vace_room_resumed")
    client.run(graph.prompt)
    made = {
        name: dumped(client.host.output_dir, f"vace_room_{name}")
        for name in ("second", "swapped", "half", "whole", "resumed")
    }
    assert [latent.shape[2] for latent in made.values()] == [4, 4, 3, 3, 4]
    assert (made["second"] - made["swapped"]).abs().max() <= CLOSE
    assert (made["second"] - made["resumed"]).abs().max() <= CLOSE
    assert (made["half"] - made["whole"]).abs().max() > FAR


@pytest.mark.parametrize("sampler", ["ours", "native"])
def test_our_decoder_cuts_reference_pictures_off_once(client, tiny_files, picture, sampler):
    graph = Graph()
    parts = loaders(graph, tiny_files)
    vae, inputs = parts["vae"], given(graph, picture)
    node = our_vace(graph, parts["text"].wire(0), parts["text"].wire(1), vae, reference_image=inputs["reference_image"])
    if sampler == "ours":
        made = our_sampler(graph, our_model(graph, tiny_files, "vace"), *wires(node))
    else:
        made = native_sampler(graph, native_model(graph, tiny_files, "vace", 5.0), *wires(node))
    cut = graph.add("TrimVideoLatent", samples=made, trim_amount=node.wire(3))
    graph.dump(graph.add("WanCoreVAEDecode", samples=made, vae=vae), f"vace_cut_{sampler}_by_itself")
    graph.dump(graph.add("WanCoreVAEDecode", samples=cut, vae=vae), f"vace_cut_{sampler}_before")
    graph.dump(graph.add("VAEDecode", samples=cut, vae=vae), f"vace_cut_{sampler}_native")
    saved = graph.add(
        "WanCoreSaveVideo", vae=vae, latent=made, filename_prefix=f"vace_cut_{sampler}", fps=0.0, codec="ffv1",
        quality="high",
    )  # fmt: skip
    images = graph.add("GetVideoComponents", video=saved)
    graph.dump(images, f"vace_cut_{sampler}_file")
    client.run(graph.prompt)
    assert dumped(client.host.output_dir, f"vace_cut_{sampler}_file").shape == (FRAMES, 64, 64, 3)
    by_itself, before, native = (
        dumped(client.host.output_dir, f"vace_cut_{sampler}_{name}") for name in ("by_itself", "before", "native")
    )
    assert by_itself.shape == (FRAMES, 64, 64, 3)
    assert torch.equal(by_itself, before) and torch.equal(by_itself, native)


def test_a_t2v_model_with_a_module_takes_contexts(client, tiny_files, picture):
    graph = Graph()
    parts = loaders(graph, tiny_files)
    text, vae = parts["text"], parts["vae"]
    node = our_vace(graph, text.wire(0), text.wire(1), vae, **given(graph, picture))
    module = {"module_name": tiny_files["vace_module"].name, "variant": "auto", "precision": "fp32"}
    single = graph.add("WanCoreLoadModel", model_name=tiny_files["t2v"].name, low_noise_model="none", **module)
    pair = graph.add(
        "WanCoreLoadModel", model_name=tiny_files["t2v_high"].name, low_noise_model=tiny_files["t2v_low"].name, **module
    )
    whole = our_model(graph, tiny_files, "vace_high", "vace_low")
    for name, model in {"single": single, "pair": pair, "whole": whole}.items():
        graph.dump(our_sampler(graph, model, *wires(node)), f"vace_module_{name}")
    client.run(graph.prompt)
    made = [dumped(client.host.output_dir, f"vace_module_{name}") for name in ("single", "pair", "whole")]
    assert all(latent.shape == (1, 16, 4, 8, 8) and latent.std() > 0.1 for latent in made)
    assert (made[0] - made[1]).abs().max() > FAR
