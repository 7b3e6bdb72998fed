"""Wan Core Model to MODEL in a real host: what it refuses and how, memory, cancel, and weights that are shared."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scripts import api_client
from scripts.host import Host, link_or_copy
from tests.host.conftest import Client
from tests.host.graphs import Graph, Node, dumped, loaders, native_sampler, our_model, our_sampler
from tests.host.test_bridge import bridge, lora, shifted, with_lora
from tests.host.test_cancel import cancel, loaded_models

__all__ = ["lora"]
"""A fixture of the other file."""
HERE = Path(__file__).parent
SIZE = {"width": 64, "height": 64}


def video(graph: Graph, files: dict, model, **changes) -> Node:
    """A native KSampler on a MODEL."""
    text = loaders(graph, files)["text"]
    sides = [text.wire(0), text.wire(1)]
    if changes.pop("control", False):
        sides[0] = graph.add("WanTestControl", conditioning=sides[0])
    if changes.pop("no_text", False):
        sides[1] = graph.add("WanTestWithoutText")
    if hooks := changes.pop("hooks", None):
        pair = graph.add(
            "PairConditioningSetProperties", positive_NEW=sides[0], negative_NEW=sides[1], strength=1.0,
            set_cond_area="default", hooks=hooks,
        )  # fmt: skip
        sides = [pair.wire(0), pair.wire(1)]
    size, length = changes.pop("size", 64), changes.pop("length", 5)
    latent = graph.add("EmptyHunyuanLatentVideo", width=size, height=size, length=length, batch_size=1)
    if changes.pop("reference", False):
        sides[0] = graph.add("ReferenceLatent", conditioning=sides[0], latent=latent)
    return native_sampler(graph, model, *sides, latent, **{"steps": 2, **changes})


def node(name: str, **widgets) -> Callable:
    """A native node between the bridge and the sampler."""
    return lambda graph, files, model: video(graph, files, graph.add(name, model=model, **widgets))


def call(method: str, **given) -> Callable:
    """What packs of others do."""
    return lambda graph, files, model: graph.add("WanTestCall", value=model, method=method, given=json.dumps(given))


def sampled(**changes) -> Callable:
    return lambda graph, files, model: video(graph, files, model, **changes)


def hooked(graph, files, model):
    hooks = graph.add("CreateHookLoraModelOnly", lora_name="tiny_bridge_peft.safetensors", strength_model=1.0)
    return video(graph, files, model, hooks=hooks)


def of_another_space(graph, files, model):
    """A clip of the Wan 2.2 VAE for a model of the Wan 2.1 VAE."""
    vae = graph.add("WanCoreLoadVAE", vae_name=files["vae_22"].name, precision="fp32")
    picture = graph.add("EmptyImage", width=64, height=64, batch_size=5, color=0x808080)
    text = loaders(graph, files)["text"]
    latent = graph.add("VAEEncode", pixels=picture, vae=vae)
    return native_sampler(graph, model, text.wire(0), text.wire(1), latent, steps=2)


def overridden(graph, files, model):
    """As packs set an attention of their own: in the options, without a method of the model."""
    mine = shifted(graph, model, 4.25)  # a copy, so that the options of no other test change
    given = {"transformer_options": {"optimized_attention_override": 1}}
    call = graph.add("WanTestCall", value=mine, method="model_options.update", given=json.dumps(given))
    return video(graph, files, call)


def merged(graph, files, model, first: bool):
    other = graph.add("UNETLoader", unet_name=files["t2v"].name, weight_dtype="default")
    one, two = (model, other) if first else (other, model)
    return video(graph, files, graph.add("ModelMergeSimple", model1=one, model2=two, ratio=0.5))


def wan_merged(graph, files, model):
    """The node with a weight for each layer; its widgets are the host's own."""
    other = graph.add("UNETLoader", unet_name=files["t2v"].name, weight_dtype="default")
    parts = ("patch_embedding.", "time_embedding.", "time_projection.", "text_embedding.", "img_emb.", "head.")
    names = [*parts, *(f"blocks.{n}." for n in range(40))]
    merge = graph.add("ModelMergeWAN2_1", model1=other, model2=model, **dict.fromkeys(names, 0.5))
    return video(graph, files, merge)


LORA, LAYERS, NETWORK = "Wan Core LoRA node, before", "Wan Core Memory node", "cannot be compiled"
ROPE = {f"{what}_{axis}": value for what, value in (("scale", 2.0), ("shift", 0.0)) for axis in "xyt"}
SKIP = {
    "double_layers": "0", "single_layers": "", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0,
    "rescaling_scale": 0.0,
}  # fmt: skip
FILE = {"lora_name": "tiny_bridge_peft.safetensors", "strength_model": 1.0}
REFUSED: dict[str, tuple[Callable, str]] = {
    "LoraLoaderModelOnly": (node("LoraLoaderModelOnly", **FILE), LORA),
    "LoraLoaderBypassModelOnly": (node("LoraLoaderBypassModelOnly", **FILE), LORA),
    "hooks": (hooked, "hooks cannot change its weights. Add LoRAs with the Wan Core LoRA node"),
    "TorchCompileModel": (node("TorchCompileModel", backend="inductor"), NETWORK),
    "ModelMergeSimple, into it": (lambda *given: merged(*given, first=True), LORA),
    "ModelMergeSimple, into another": (lambda *given: merged(*given, first=False), "cannot be merged"),
    "ModelMergeWAN2_1": (wan_merged, "cannot be merged"),
    "WanAnimate2Cache": (node("WanAnimate2Cache", device="cpu", dtype="default"), LAYERS),
    "WanInfiniteTalkToVideo": (call("set_model_patch", patch=None, name="attn2_patch"), LAYERS),
    "WanUni3CControlnetApply": (call("get_model_object", name="diffusion_model"), NETWORK),
    "ModelSave": (lambda graph, files, model: graph.add("ModelSave", model=model, filename_prefix="no"), "be saved"),
    "ModelComputeDtype": (node("ModelComputeDtype", dtype="fp16"), "Wan Core Load Model (precision)"),
    "UNetSelfAttentionMultiply": (node("UNetSelfAttentionMultiply", q=1.1, k=1.0, v=1.0, out=1.0), "read or change"),
    "SkipLayerGuidanceDiT": (node("SkipLayerGuidanceDiT", **SKIP), LAYERS),
    "PerturbedAttentionGuidance": (node("PerturbedAttentionGuidance", scale=3.0), LAYERS),
    "NAGuidance": (node("NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5), LAYERS),
    "ScaleROPE": (node("ScaleROPE", **ROPE), LAYERS),
    "ControlNet": (sampled(control=True), "takes no ControlNet"),
    "ReferenceLatent": (sampled(reference=True), "carries reference_latents, which Wan 2.1 T2V"),
    "no text": (sampled(no_text=True), "without a text"),
    "latent of another VAE": (of_another_space, "takes 16 channels. Make it with Wan Core Empty Latent"),
    "attention of a pack": (overridden, LAYERS),
    "object patch": (call("add_object_patch", name="diffusion_model.blocks.0.forward", obj=None), LAYERS),
    "compute dtype": (call("add_object_patch", name="manual_cast_dtype", obj=None), "(precision)"),
    "block": (call("get_model_object", name="diffusion_model.blocks.0"), NETWORK),
    "inside": (call("model.diffusion_model.blocks.parameters"), NETWORK),
    "weight wrapper": (call("add_weight_wrapper", name="a", function=None), LORA),
    "injection": (call("set_injections", key="a", injections=[]), LORA),
    "state dict": (call("model_state_dict"), "Load Diffusion Model"),
    "weights loaded": (call("model.load_state_dict", state_dict={}), "read or change"),
    "hook patches": (call("add_hook_patches", hook=None, patches={}), "hooks cannot change"),
    "attention": (call("set_model_optimized_attention", optimized_attention=None), LAYERS),
    "another card": (call("deepclone_multigpu", new_load_device=None), "computes on one device"),
    "deep copy": (call("clone", force_deepcopy=True), "Wan Core Train LoRA"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_do_is_refused_in_a_sentence_that_says_what_does_it(client, tiny_files, lora, what):
    make, words = REFUSED[what]
    newer = ("LoraLoaderBypassModelOnly", "NAGuidance", "ScaleROPE", "WanAnimate2Cache")
    if what in newer and what not in client.get("/object_info"):
        pytest.skip(f"this ComfyUI has no {what}")
    graph = Graph()
    made = make(graph, tiny_files, bridge(graph, our_model(graph, tiny_files, "t2v")))
    if graph.prompt[made.number]["class_type"] not in ("ModelSave", "WanTestCall"):
        graph.dump(made, "never")
    with pytest.raises(api_client.JobError) as refused:
        client.run(graph.prompt)
    assert words in str(refused.value), str(refused.value)
    assert len(str(refused.value)) < 700


def test_experts_of_a_model_that_has_none_are_refused_by_the_file_name(client, tiny_files):
    graph = Graph()
    low = bridge(graph, our_model(graph, tiny_files, "t2v"), 2)
    graph.dump(video(graph, tiny_files, low), "never")
    with pytest.raises(api_client.JobError) as refused:
        client.run(graph.prompt)
    assert f"{tiny_files['t2v'].name} is one model, not a pair" in str(refused.value), str(refused.value)


def test_a_vace_context_that_counts_in_some_steps_needs_our_sampler(client, tiny_files):
    graph = Graph()
    parts = loaders(graph, tiny_files)
    node = graph.add(
        "WanCoreVace", positive=parts["text"].wire(0), negative=parts["text"].wire(1), vae=parts["vae"], **SIZE,
        frames=5, batch_size=1, strength=1.0, start_percent=0.0, end_percent=0.5,
    )  # fmt: skip
    model = bridge(graph, our_model(graph, tiny_files, "vace"))
    graph.dump(native_sampler(graph, model, node.wire(0), node.wire(1), node.wire(2), steps=2), "never")
    with pytest.raises(api_client.JobError, match="or use the Wan Core Sampler"):
        client.run(graph.prompt)


def test_a_vace_context_of_another_size_is_refused_in_a_sentence(client, tiny_files):
    graph = Graph()
    parts = loaders(graph, tiny_files)
    node = graph.add(
        "WanVaceToVideo", positive=parts["text"].wire(0), negative=parts["text"].wire(1), vae=parts["vae"],
        width=32, height=32, length=5, batch_size=1, strength=1.0,
    )  # fmt: skip
    model = bridge(graph, our_model(graph, tiny_files, "vace"))
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=5, batch_size=1)
    graph.dump(native_sampler(graph, model, node.wire(0), node.wire(1), latent, steps=2), "never")
    with pytest.raises(api_client.JobError, match=r"VACE context 1 is .* same width"):
        client.run(graph.prompt)


def test_guidance_nodes_say_that_a_native_sampler_does_not_ask_them(client, tiny_files):
    graph = Graph()
    model = graph.add("WanCoreGuidanceCFGZero", model=our_model(graph, tiny_files, "t2v"), rescale=True, zero_steps=1)
    door = graph.add("WanCoreToModel", model=model, boundary=0.0)
    graph.dump(video(graph, tiny_files, door.wire(0)), "told")
    outputs = client.run(graph.prompt)["outputs"]
    assert "guidance nodes on this model do nothing here" in json.dumps(outputs[door.number])


def test_a_text_of_another_width_is_refused_as_by_our_sampler(client, tiny_files):
    graph = Graph()
    model = shifted(graph, bridge(graph, our_model(graph, tiny_files, "i2v_high")), 5.0)
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=5, batch_size=1)
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name="wan_nano_umt5.safetensors", precision="fp32")
    text = graph.add("WanCoreTextEncode", clip=encoder, positive="a", negative="")
    graph.dump(native_sampler(graph, model, text.wire(0), text.wire(1), latent), "never")
    with pytest.raises(api_client.JobError, match=r"128 wide, the model takes 4096"):
        client.run(graph.prompt)


def free(client: Client) -> None:
    client.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(2)


def test_two_bridges_and_our_sampler_share_the_weights_of_one_file(client, tiny_files, lora):
    free(client)
    already, graph = len(client.host.log()), Graph()
    model = our_model(graph, tiny_files, "t2v")
    first, second = bridge(graph, model), bridge(graph, with_lora(graph, model, lora))
    graph.dump(video(graph, tiny_files, first), "shared_first")
    graph.dump(video(graph, tiny_files, second), "shared_second")
    graph.dump(video(graph, tiny_files, shifted(graph, first, 3.0)), "shared_third")
    text = loaders(graph, tiny_files)["text"]
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=5, batch_size=1)
    graph.dump(our_sampler(graph, model, text.wire(0), text.wire(1), latent, steps=2), "shared_ours")
    client.run(graph.prompt)
    read = re.findall(rf"{re.escape(tiny_files['t2v'].name)}: \d+ tensors used", client.host.log()[already:])
    assert len(read) == 1, read
    first, second = (dumped(client.host.output_dir, f"shared_{name}") for name in ("first", "second"))
    assert (first - second).abs().max() > 0.1, "the LoRA of one reached the other"


def job(files: dict, name: str, **changes) -> dict:
    """A pair on a native KSampler."""
    graph = Graph()
    pair = our_model(graph, files, "t2v_high", "t2v_low")
    made = video(graph, files, shifted(graph, bridge(graph, pair), 5.0), **changes)
    graph.dump(made, name)
    graph.add("WanTestLoaded", name=f"{name}_loaded", after=made)
    return graph.prompt


def test_free_takes_the_weights_off_the_hosts_list_and_the_next_run_is_the_same(client, tiny_files):
    client.run(job(tiny_files, "bridge_before", steps=4))
    assert {"WanDiT", "BridgedWan21"} <= loaded_models(client, "bridge_before_loaded")
    free(client)
    graph = Graph()
    graph.add("WanTestLoaded", name="bridge_freed_loaded")
    client.run(graph.prompt)
    assert not {"WanDiT", "BridgedWan21"} & loaded_models(client, "bridge_freed_loaded")
    client.run(job(tiny_files, "bridge_after", steps=4))
    before, after = (dumped(client.host.output_dir, f"bridge_{name}") for name in ("before", "after"))
    assert torch.equal(before, after)


def test_a_run_after_a_cancelled_one_is_bit_identical(client, tiny_files):
    client.run(job(tiny_files, "bridge_clean", steps=4))
    cancel(client, job(tiny_files, "bridge_long", steps=900, size=128, length=9), "KSampler")
    free(client)  # else the host answers from its cache
    client.run(job(tiny_files, "bridge_again", steps=4))
    clean, again = (dumped(client.host.output_dir, f"bridge_{name}") for name in ("clean", "again"))
    assert torch.equal(clean, again)


CARDS = {
    "streams": {"state": "NO_VRAM", "free": 10**9},
    "evicts": {"state": "LOW_VRAM", "free": 10**9},
    "plenty": {"state": "NORMAL_VRAM", "free": 2**40},
}


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS)
def test_on_any_card_the_latent_is_the_same_and_what_does_not_fit_streams(
    host_env, client, tiny_files, tiny_tree, tmp_path, monkeypatch, card
):
    client.run(job(tiny_files, "bridge_plain", steps=4))
    plain = dumped(client.host.output_dir, "bridge_plain")
    server = Host(host_env, tmp_path, models=tiny_tree)
    for folder, pack in {"card_pack": "wan_test_card", "dump_pack": "wan_test_dump"}.items():
        link_or_copy(HERE / folder, server.base_dir / "custom_nodes" / pack)
    monkeypatch.setenv("WAN_TEST_CARD", json.dumps(CARDS[card]))
    with server:
        there = Client(host=server)
        there.run(job(tiny_files, "bridge_card", steps=4))
        first, told = dumped(server.output_dir, "bridge_card"), server.log()
        free(there)
        there.run(job(tiny_files, "bridge_card_again", steps=4))
        again = dumped(server.output_dir, "bridge_card_again")
        listed = loaded_models(there, "bridge_card_loaded")
    assert ("Streams 2 of 2 blocks" in told) == (card == "streams")
    assert ("WanDiT" in listed) == (card != "streams")
    # Whether both sides of guidance are one batch depends on the memory that is free: rounding only.
    assert (first - plain).abs().max() <= 1e-4 and (again - plain).abs().max() <= 1e-4
