"""Native samplers on our model, through Wan Core Model to MODEL, against native samplers on the native model: one
server, the same float32 files, the same latents."""

import logging
import shutil
from pathlib import Path

import pytest

from tests.host.graphs import Graph, Node, dumped, loaders, native_sampler, our_model, our_sampler
from tests.host.test_interop import (
    CLOSE,
    FAR,
    MODELS,
    conditions,
    our_vae,
    picture,
    pictures,
    start_latent,
)

log = logging.getLogger(__name__)
__all__ = ["picture", "pictures"]
"""Fixtures of the other file."""

BASE = {"seed": 1, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "batch": 1, "shift": 5.0}
CASES = [
    BASE,
    {**BASE, "cfg": 1.0, "scheduler": "beta", "shift": None},
    {**BASE, "sampler_name": "uni_pc", "scheduler": "simple", "shift": 8.0, "batch": 2},
    {**BASE, "sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform", "shift": 3.0, "seed": 2},
    {**BASE, "denoise": 0.6, "scheduler": "normal"},
    {**BASE, "denoise": 0.6, "batch": 2, "cfg": 1.0, "sampler_name": "uni_pc", "shift": None},
    {**BASE, "sampler_name": "heun", "scheduler": "linear_quadratic"},
]
"""``shift`` None: no ModelSamplingSD3, the loader's own schedule."""
IMAGE_CASES = [one for one in CASES if one["denoise"] == 1.0]


def bridge(graph: Graph, model: Node, slot: int = 0, **widgets) -> list:
    return graph.add("WanCoreToModel", model=model, boundary=widgets.get("boundary", 0.0)).wire(slot)


def native(graph: Graph, files: dict[str, Path], name: str) -> Node:
    return graph.add("UNETLoader", unet_name=files[name].name, weight_dtype="default")


def shifted(graph: Graph, model, shift: float | None):
    return model if shift is None else graph.add("ModelSamplingSD3", model=model, shift=shift)


def worst(client, first: str, second: str) -> float:
    a, b = (dumped(client.host.output_dir, name) for name in (first, second))
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("role", MODELS)
def test_a_native_sampler_makes_the_same_latent_with_our_model_as_with_its_own(client, tiny_files, pictures, role):
    graph, cases = Graph(), CASES if role != "ti2v_image" else IMAGE_CASES
    parts = loaders(graph, tiny_files)
    vae = our_vae(graph, tiny_files, role)
    positive, negative = conditions(graph, parts, role, tiny_files, pictures)
    models = {
        "native": native(graph, tiny_files, MODELS[role]),
        "ours": bridge(graph, our_model(graph, tiny_files, MODELS[role])),
    }
    for i, case in enumerate(cases):
        latent = start_latent(graph, vae, role, case, pictures[0])
        widgets = {key: value for key, value in case.items() if key not in ("batch", "shift")}
        for name, model in models.items():
            made = native_sampler(graph, shifted(graph, model, case["shift"]), positive, negative, latent, **widgets)
            graph.dump(made, f"bridge_{role}_{i}_{name}")
    client.run(graph.prompt)
    found = [worst(client, f"bridge_{role}_{i}_native", f"bridge_{role}_{i}_ours") for i in range(len(cases))]
    log.info("%s: max abs differences %s", role, ", ".join(f"{one:.1e}" for one in found))
    assert max(found) <= CLOSE, dict(zip(map(str, cases), found))
    assert worst(client, f"bridge_{role}_0_native", f"bridge_{role}_1_ours") > FAR


def prepared(graph: Graph, files: dict[str, Path], role: str, pictures: list[str]):
    """Positive, negative and an empty latent of a role."""
    parts = loaders(graph, files)
    vae = our_vae(graph, files, role)
    sides = conditions(graph, parts, role, files, pictures)
    return (*sides, start_latent(graph, vae, role, {**BASE, "batch": 1}, pictures[0]))


def in_two(graph: Graph, high, low, sides, switch: int, **changes) -> Node:
    """Two KSamplerAdvanced: the first leaves noise over, the second goes on."""
    positive, negative, latent = sides
    shared = {
        "noise_seed": 7, "steps": 8, "cfg": 3.5, "sampler_name": "euler", "scheduler": "simple", "positive": positive,
        "negative": negative, **changes,
    }  # fmt: skip
    first = graph.add(
        "KSamplerAdvanced", model=shifted(graph, high, 5.0), latent_image=latent, add_noise="enable", start_at_step=0,
        end_at_step=switch, return_with_leftover_noise="enable", **shared,
    )  # fmt: skip
    return graph.add(
        "KSamplerAdvanced", model=shifted(graph, low, 5.0), latent_image=first, add_noise="disable",
        start_at_step=switch, end_at_step=10000, return_with_leftover_noise="disable", **shared,
    )  # fmt: skip


SWITCH = {"t2v": 4, "i2v": 3}
"""Of 8 simple steps at shift 5, the first below 0.875 and 0.9."""


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_a_pair_as_one_model_or_as_two_equals_two_native_models(client, tiny_files, pictures, kind):
    """The one MODEL changes its expert by noise level, in one native sampler; high_noise and low_noise take the places
    of two native models."""
    graph, names = Graph(), (f"{kind}_high", f"{kind}_low")
    sides = prepared(graph, tiny_files, "t2v" if kind == "t2v" else "i2v_a14b", pictures)
    pair = our_model(graph, tiny_files, *names)
    high, low = (native(graph, tiny_files, name) for name in names)
    whole = shifted(graph, bridge(graph, pair), 5.0)
    settings = {"seed": 7, "cfg": 3.5}
    made = {
        "native": in_two(graph, high, low, sides, SWITCH[kind]),
        "two": in_two(graph, bridge(graph, pair, 1), bridge(graph, pair, 2), sides, SWITCH[kind]),
        "one": native_sampler(graph, whole, *sides, **settings),
        "sampler": our_sampler(graph, pair, *sides, seed=7, guidance=3.5, guidance_low=3.5),
        "later": native_sampler(graph, shifted(graph, bridge(graph, pair, boundary=0.7), 5.0), *sides, **settings),
        "unipc": native_sampler(graph, whole, *sides, sampler_name="uni_pc", **settings),
    }
    for name, latent in made.items():
        graph.dump(latent, f"bridge_pair_{kind}_{name}")
    client.run(graph.prompt)
    differs = {name: worst(client, f"bridge_pair_{kind}_native", f"bridge_pair_{kind}_{name}") for name in made}
    log.info("%s: %s", kind, differs)
    assert max(differs[name] for name in ("two", "one", "sampler")) <= CLOSE, differs
    assert differs["later"] > FAR, "the boundary makes no difference, so nothing was tested"
    assert differs["unipc"] < 10 * differs["later"]


def guided(graph: Graph, model, sides, guider: str = "CFGGuider", scheduler: str = "beta") -> Node:
    """SamplerCustomAdvanced with a guider and a scheduler of its own."""
    positive, negative, latent = sides
    wires = {
        "CFGGuider": {"positive": positive, "negative": negative, "cfg": 4.0},
        "BasicGuider": {"conditioning": positive},
        "DualCFGGuider": {
            "cond1": positive, "cond2": negative, "negative": negative, "cfg_conds": 4.0, "cfg_cond2_negative": 2.0,
            "style": "regular",
        },
    }  # fmt: skip
    return graph.add(
        "SamplerCustomAdvanced",
        noise=graph.add("RandomNoise", noise_seed=3),
        guider=graph.add(guider, model=model, **wires[guider]),
        sampler=graph.add("KSamplerSelect", sampler_name="dpmpp_2m"),
        sigmas=graph.add("BasicScheduler", model=model, scheduler=scheduler, steps=6, denoise=1.0),
        latent_image=latent,
    )


WRAPPERS = {
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 1.0},
    "RescaleCFG": {"multiplier": 0.7},
    "ModelSamplingAuraFlow": {"shift": 3.0},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 0.95, "verbose": False},
    "ContextWindowsManual": {
        "context_length": 2, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1,
        "closed_loop": False, "fuse_method": "pyramid", "dim": 2, "freenoise": False, "cond_retain_index_list": "",
        "split_conds_to_windows": False, "latent_retain_index_list": "", "causal_window_fix": False,
    },
}  # fmt: skip


def test_masks_times_and_several_conditionings_are_the_native_samplers(client, tiny_files, pictures):
    graph = Graph()
    parts = loaders(graph, tiny_files)
    positive, negative, _ = prepared(graph, tiny_files, "t2v", pictures)
    other = graph.add("CLIPTextEncode", clip=parts["text_encoder"], text="a blue whale at night")
    late = graph.add("ConditioningSetTimestepRange", conditioning=other, start=0.3, end=1.0)
    area = graph.add("ConditioningSetAreaPercentageVideo", conditioning=late, width=0.5, height=1.0, temporal=1.0,
                     x=0.5, y=0.0, z=0.0, strength=1.0)  # fmt: skip
    both = graph.add("ConditioningCombine", conditioning_1=positive, conditioning_2=area)
    clip = start_latent(graph, parts["vae"], "t2v", {"denoise": 0.5, "batch": 1}, pictures[0])
    mask = graph.add("SolidMask", value=1.0, width=64, height=64)
    hole = graph.add("SolidMask", value=0.0, width=32, height=64)
    mask = graph.add("MaskComposite", destination=mask, source=hole, x=0, y=0, operation="multiply")
    masked = graph.add("SetLatentNoiseMask", samples=clip, mask=mask)
    models = {"native": native(graph, tiny_files, "t2v"), "ours": bridge(graph, our_model(graph, tiny_files, "t2v"))}
    for who, model in models.items():
        made = native_sampler(graph, shifted(graph, model, 5.0), both, negative, masked, steps=4)
        graph.dump(made, f"bridge_mask_{who}")
        plain = native_sampler(graph, shifted(graph, model, 5.0), positive, negative, masked, steps=4)
        graph.dump(plain, f"bridge_mask_plain_{who}")
    graph.dump(clip, "bridge_mask_clip")
    client.run(graph.prompt)
    assert worst(client, "bridge_mask_native", "bridge_mask_ours") <= CLOSE
    assert worst(client, "bridge_mask_plain_ours", "bridge_mask_ours") > FAR
    made, clip = (dumped(client.host.output_dir, f"bridge_mask_{name}") for name in ("ours", "clip"))
    assert (made - clip)[..., :4].abs().max() <= CLOSE < (made - clip)[..., 4:].abs().max()


def test_native_guiders_and_nodes_that_only_wrap_the_model_work(client, tiny_files, pictures):
    graph = Graph()
    sides = prepared(graph, tiny_files, "i2v", pictures)
    models = {"native": native(graph, tiny_files, "i2v"), "ours": bridge(graph, our_model(graph, tiny_files, "i2v"))}
    wrappers = dict(WRAPPERS)
    if client.host.env.version == "0.3.64":
        del wrappers["ContextWindowsManual"]  # it does not cut the conditions of image models there, native or ours
    names = ["CFGGuider", "BasicGuider", "DualCFGGuider", *wrappers]
    for who, model in models.items():
        for guider in names[:3]:
            graph.dump(guided(graph, shifted(graph, model, 5.0), sides, guider), f"wrap_{guider}_{who}")
        for node, widgets in wrappers.items():
            wrapped = graph.add(node, model=shifted(graph, model, 5.0), **widgets)
            made = (
                native_sampler(graph, wrapped, *sides, steps=5)
                if node != "ModelSamplingAuraFlow"
                else guided(graph, wrapped, sides)
            )
            graph.dump(made, f"wrap_{node}_{who}")
        graph.dump(native_sampler(graph, shifted(graph, model, 5.0), *sides, steps=5), f"wrap_none_{who}")
    client.run(graph.prompt)
    found = {name: worst(client, f"wrap_{name}_native", f"wrap_{name}_ours") for name in names}
    log.info("%s", found)
    assert max(found.values()) <= CLOSE, found
    changed = {name: worst(client, "wrap_none_ours", f"wrap_{name}_ours") for name in wrappers}
    assert min(changed.values()) > CLOSE * 10, changed


@pytest.fixture(scope="module")
def lora(tiny_tree, tiny_files) -> str:
    """A LoRA for the tiny models of text, in the host's list."""
    from safetensors.torch import save_file

    from benchmarks.lora_dialects import make
    from scripts.tiny_models import DIT

    folder = tiny_tree / "loras"
    folder.mkdir(exist_ok=True)
    save_file(make("PEFT (diffusion_model.)", DIT), folder / "tiny_bridge_peft.safetensors")
    return "tiny_bridge_peft.safetensors"


def with_lora(graph: Graph, model: Node, name: str, **widgets) -> Node:
    given = {"lora_name": name, "strength": 0.8, "low_noise_lora": "same", "strength_low": 0.8, **widgets}
    return graph.add("WanCoreLoRA", model=model, **given)


def test_loras_of_our_node_reach_native_samplers_and_their_strength_follows_the_steps(
    client, tiny_files, pictures, lora
):
    graph = Graph()
    sides = prepared(graph, tiny_files, "t2v", pictures)
    model, pair = our_model(graph, tiny_files, "t2v"), our_model(graph, tiny_files, "t2v_high", "t2v_low")
    theirs = graph.add(
        "LoraLoaderModelOnly", model=native(graph, tiny_files, "t2v"), lora_name=lora, strength_model=0.8
    )
    worn, falling = (with_lora(graph, model, lora, over_steps=text) for text in ("", "0: 1, 3: 0.25"))
    both = with_lora(graph, pair, lora, over_steps="0%: 0, 50%: 1")
    made = {
        "native": native_sampler(graph, shifted(graph, theirs, 5.0), *sides),
        "worn": native_sampler(graph, shifted(graph, bridge(graph, worn), 5.0), *sides),
        "bare": native_sampler(graph, shifted(graph, bridge(graph, model), 5.0), *sides),
        "falling": native_sampler(graph, shifted(graph, bridge(graph, falling), 5.0), *sides),
        "falling_sampler": our_sampler(graph, falling, *sides),
        "both": native_sampler(graph, shifted(graph, bridge(graph, both), 5.0), *sides),
        "both_sampler": our_sampler(graph, both, *sides, guidance_low=5.0),
    }
    for name, latent in made.items():
        graph.dump(latent, f"bridge_lora_{name}")
    client.run(graph.prompt)
    differ = lambda a, b: worst(client, f"bridge_lora_{a}", f"bridge_lora_{b}")  # noqa: E731
    assert differ("native", "worn") <= CLOSE
    assert differ("falling", "falling_sampler") <= CLOSE
    assert differ("both", "both_sampler") <= CLOSE
    assert min(differ("worn", "bare"), differ("worn", "falling"), differ("bare", "falling")) > FAR


@pytest.fixture(scope="module")
def copy(tiny_tree, tiny_files) -> dict[str, Path]:
    """The model of text under another name: native ComfyUI lets two models of one file share what they wear."""
    path = tiny_files["t2v"].with_name("tiny_bridge_copy.safetensors")
    shutil.copyfile(tiny_files["t2v"], path)
    return {"t2v": path}


def test_two_models_of_one_handle_take_turns_and_each_keeps_its_own(client, tiny_files, copy, pictures, lora):
    """They share the weights, so that each has to put its own LoRAs on at every turn."""
    if "DualModelGuider" not in client.get("/object_info"):
        pytest.skip("this ComfyUI has no guider that takes two models")
    graph = Graph()
    positive, negative, latent = prepared(graph, tiny_files, "t2v", pictures)
    model = our_model(graph, tiny_files, "t2v")
    theirs = native(graph, tiny_files, "t2v")
    pairs = {
        "native": (
            graph.add("LoraLoaderModelOnly", model=theirs, lora_name=lora, strength_model=0.8),
            native(graph, copy, "t2v"),
        ),
        "ours": (bridge(graph, with_lora(graph, model, lora)), bridge(graph, model)),
    }
    for name, (main, other) in pairs.items():
        main, other = shifted(graph, main, 5.0), shifted(graph, other, 5.0)
        guider = graph.add(
            "DualModelGuider", model=main, model_negative=other, positive=positive, negative=negative, cfg=4.0
        )
        made = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.add("RandomNoise", noise_seed=3),
            guider=guider,
            sampler=graph.add("KSamplerSelect", sampler_name="euler"),
            sigmas=graph.add("BasicScheduler", model=main, scheduler="simple", steps=4, denoise=1.0),
            latent_image=latent,
        )
        graph.dump(made, f"bridge_turns_{name}")
    client.run(graph.prompt)
    assert worst(client, "bridge_turns_native", "bridge_turns_ours") <= CLOSE
