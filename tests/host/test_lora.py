"""Our LoRA node beside native ComfyUI's in one server: the same file, the same latents."""

import logging
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.lora_dialects import TRAINED, make
from scripts.api_client import JobError
from scripts.tiny_models import CLIP_VISION, DIT, DIT_CONCAT
from tests.host.graphs import Graph, dumped, loaders, native_sampler, our_model, our_sampler

log = logging.getLogger(__name__)

CLOSE, FAR = 1e-3, 1e-1
SIZE = {"width": 64, "height": 64}
FRAMES = 9
MODELS = {"t2v": DIT, "i2v": replace(DIT_CONCAT, img_dim=CLIP_VISION.dim), "i2v_high": DIT_CONCAT}
STRENGTHS = {"t2v": (1.0, -0.5), "i2v": (0.7,), "i2v_high": (0.7,)}
KOHYA, PEFT, LIGHT, LOHA = "kohya (lora_unet_)", "PEFT (diffusion_model.)", "LightX2V (diff, diff_b)", "LoHa"
SET = "set_weight"
"""Native ComfyUI puts these tensors in whole at every strength; here they come by their strength, 0 being nothing."""
DIALECTS = (
    KOHYA, "Fun (lora_unet__)", PEFT, LIGHT, "every layer, PEFT", SET, "DoRA (dora_scale)", LOHA, "LoKr",
    TRAINED,
)  # fmt: skip
"""Those that native ComfyUI reads for Wan too."""
OURS_ALONE = {"diffusers (transformer.)": PEFT}
"""Those that it does not, and the dialect of the same changes that it does."""
SDXL = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.zeros(4, 4)}


@pytest.fixture(scope="module")
def loras(tiny_tree, tiny_files) -> dict[str, dict[str, str]]:
    """Model and dialect -> name in the host's list."""
    folder = tiny_tree / "loras"
    folder.mkdir(exist_ok=True)
    save_file(SDXL, folder / "tiny_sdxl.safetensors")
    names: dict[str, dict[str, str]] = {}
    for model, cfg in MODELS.items():
        for dialect in (*DIALECTS, *OURS_ALONE):
            name = f"tiny_{model}_{slug(dialect)}.safetensors"
            save_file(make(dialect, cfg), folder / name)
            names.setdefault(model, {})[dialect] = name
    return names


def strengths(model: str, dialect: str) -> tuple[float, ...]:
    return (1.0,) if dialect == SET else STRENGTHS[model]


def slug(dialect: str) -> str:
    return re.sub(r"\W+", "_", dialect).strip("_")


@pytest.fixture(scope="module")
def picture(client, tmp_path_factory) -> str:
    """A picture in the host's input folder."""
    from PIL import Image

    pixels = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(5)) * 255).byte().numpy()
    path = tmp_path_factory.mktemp("picture") / "lora.png"
    Image.fromarray(pixels).save(path)
    return client.upload(path)


def with_lora(
    graph: Graph, model, high: str, strength: float = 1.0, low: str = "same", strength_low: float = 1.0, **more
):
    return graph.add(
        "WanCoreLoRA", model=model, lora_name=high, strength=strength, low_noise_lora=low, strength_low=strength_low,
        **more,
    )  # fmt: skip


def prepared(graph: Graph, files: dict, model: str = "t2v", picture: str = ""):
    """Positive, negative and an empty latent; image models get theirs from the native node."""
    parts = loaders(graph, files)
    text, latent = parts["text"], graph.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=1)
    if model == "t2v":
        return text.wire(0), text.wire(1), latent
    image, more = graph.add("LoadImage", image=picture), {}
    if model == "i2v":
        vision = graph.add("WanCoreLoadCLIPVision", clip_vision_name=files["clip_vision"].name, precision="fp32")
        more["clip_vision_output"] = graph.add("CLIPVisionEncode", clip_vision=vision, image=image, crop="none")
    node = graph.add(
        "WanImageToVideo", positive=text.wire(0), negative=text.wire(1), vae=parts["vae"], **SIZE, length=FRAMES,
        batch_size=1, start_image=image, **more,
    )  # fmt: skip
    return node.wire(0), node.wire(1), latent


@pytest.mark.parametrize("model", MODELS)
def test_our_lora_gives_the_latents_of_the_native_one(client, tiny_files, loras, picture, model):
    graph, name = Graph(), f"lora_{model}_{{}}_{{}}_{{}}".format
    sides = prepared(graph, tiny_files, model, picture)
    ours = our_model(graph, tiny_files, model)
    graph.dump(our_sampler(graph, ours, *sides), f"lora_{model}_none")
    cases = [(dialect, strength) for dialect in DIALECTS for strength in strengths(model, dialect)]
    for dialect, strength in cases:
        unet = graph.add("UNETLoader", unet_name=tiny_files[model].name, weight_dtype="default")
        given = {"lora_name": loras[model][dialect], "strength_model": strength}
        native = graph.add("LoraLoaderModelOnly", model=unet, **given)
        native = graph.add("ModelSamplingSD3", model=native, shift=5.0)
        graph.dump(native_sampler(graph, native, *sides), name(slug(dialect), strength, "native"))
    alone = [(dialect, strength) for dialect in OURS_ALONE for strength in STRENGTHS[model]]
    for dialect, strength in [*cases, *alone]:
        mine = with_lora(graph, ours, loras[model][dialect], strength)
        graph.dump(our_sampler(graph, mine, *sides), name(slug(dialect), strength, "ours"))
    client.run(graph.prompt)
    folder = client.host.output_dir
    plain = dumped(folder, f"lora_{model}_none")
    for dialect, strength in cases:
        native, mine = (dumped(folder, name(slug(dialect), strength, side)) for side in ("native", "ours"))
        worst, moved = (native - mine).abs().max().item(), (plain - mine).abs().max().item()
        log.info("%s, %s at %s: max abs difference %.2e, moved by %.2e", model, dialect, strength, worst, moved)
        assert worst <= CLOSE and moved >= FAR, (model, dialect, strength, worst, moved)
    for dialect, strength in alone:
        mine, same = (dumped(folder, name(slug(one), strength, "ours")) for one in (dialect, OURS_ALONE[dialect]))
        assert (mine - same).abs().max() <= CLOSE


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_a_pair_wears_a_lora_on_each_expert(client, tiny_files, loras, picture, kind):
    """Against two native samplers, each with the LoRA of its side."""
    graph, of_kind = Graph(), loras["t2v" if kind == "t2v" else "i2v_high"]
    sides = prepared(graph, tiny_files, "t2v" if kind == "t2v" else "i2v_high", picture)
    pair = our_model(graph, tiny_files, f"{kind}_high", f"{kind}_low")
    mine = with_lora(graph, pair, of_kind[KOHYA], 1.0, of_kind[PEFT], 0.5)
    graph.dump(our_sampler(graph, mine, *sides, boundary=0.0, switch_step=4), f"lora_pair_{kind}_ours")
    graph.dump(our_sampler(graph, pair, *sides, boundary=0.0, switch_step=4), f"lora_pair_{kind}_none")
    halves, latent = {"high": (of_kind[KOHYA], 1.0), "low": (of_kind[PEFT], 0.5)}, sides[2]
    for side, (name, strength) in halves.items():
        unet = graph.add("UNETLoader", unet_name=tiny_files[f"{kind}_{side}"].name, weight_dtype="default")
        worn = graph.add("LoraLoaderModelOnly", model=unet, lora_name=name, strength_model=strength)
        first = side == "high"
        latent = graph.add(
            "KSamplerAdvanced",
            model=graph.add("ModelSamplingSD3", model=worn, shift=5.0),
            positive=sides[0], negative=sides[1], latent_image=latent, noise_seed=1, steps=8, cfg=5.0,
            sampler_name="euler", scheduler="simple", add_noise="enable" if first else "disable",
            start_at_step=0 if first else 4, end_at_step=4 if first else 10000,
            return_with_leftover_noise="enable" if first else "disable",
        )  # fmt: skip
    graph.dump(latent, f"lora_pair_{kind}_native")
    client.run(graph.prompt)
    found = {name: dumped(client.host.output_dir, f"lora_pair_{kind}_{name}") for name in ("ours", "native", "none")}
    assert (found["ours"] - found["native"]).abs().max() <= CLOSE
    assert (found["ours"] - found["none"]).abs().max() >= FAR


def test_the_node_tells_what_was_applied(client, tiny_files, loras):
    graph = Graph()
    # A strength of its own: of a node that the host has cached, after another test, nothing is told again.
    worn = with_lora(graph, our_model(graph, tiny_files, "t2v"), loras["t2v"][LIGHT], strength=0.9)
    graph.dump(our_sampler(graph, worn, *prepared(graph, tiny_files), steps=1), "lora_told")
    history = client.run(graph.prompt)
    (told,) = (out["text"] for number, out in history["outputs"].items() if number == worn.number)
    count = len(make(LIGHT, DIT))
    assert f"applied {count} of {count} tensors" in told[0]


def test_a_lora_of_another_family_is_refused_and_the_next_job_is_right(client, tiny_files, loras):
    graph = Graph()
    model = our_model(graph, tiny_files, "t2v")
    graph.dump(
        our_sampler(graph, with_lora(graph, model, "tiny_sdxl.safetensors"), *prepared(graph, tiny_files)), "lora_bad"
    )
    with pytest.raises(JobError, match="SDXL, not of a Wan transformer"):
        client.run(graph.prompt)
    results = []
    for n, chain in enumerate([(KOHYA, LOHA), (LOHA, KOHYA), (KOHYA, LOHA)]):
        graph = Graph()
        worn = our_model(graph, tiny_files, "t2v")
        for name in chain:
            worn = with_lora(graph, worn, loras["t2v"][name])
        graph.dump(our_sampler(graph, worn, *prepared(graph, tiny_files), steps=3), f"lora_order_{n}")
        client.run(graph.prompt)
        results.append(dumped(client.host.output_dir, f"lora_order_{n}"))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_stack_is_the_chain(client, tiny_files, loras):
    graph = Graph()
    sides = prepared(graph, tiny_files)
    model = our_model(graph, tiny_files, "t2v_high", "t2v_low")
    chained = with_lora(graph, with_lora(graph, model, loras["t2v"][KOHYA], 0.5), loras["t2v"][PEFT], low="none")
    rows = {1: (loras["t2v"][KOHYA], 0.5, "same", 1.0), 4: (loras["t2v"][PEFT], 1.0, "none", 1.0)}
    widgets = {}
    for number in range(1, 6):
        row = rows.get(number, ("none", 1.0, "same", 1.0))
        widgets |= {
            f"{name}_{number}": value
            for name, value in zip(("lora_name", "strength", "low_noise_lora", "strength_low"), row)
        }
    stacked = graph.add("WanCoreLoRAStack", model=model, **widgets)
    for name, worn in (("chain", chained), ("stack", stacked)):
        graph.dump(our_sampler(graph, worn, *sides, steps=3), f"lora_{name}")
    history = client.run(graph.prompt)
    chain, stack = (dumped(client.host.output_dir, f"lora_{name}") for name in ("chain", "stack"))
    assert torch.equal(chain, stack)
    assert len(history["outputs"][stacked.number]["text"]) == 3
