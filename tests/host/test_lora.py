"""Our LoRA node beside native ComfyUI's in one server: the same file, the same latents."""

import logging

import pytest
import torch
from safetensors.torch import save_file

from scripts.api_client import JobError
from scripts.tiny_models import DIT
from tests.host.graphs import Graph, dumped, loaders, native_sampler, our_model, our_sampler

log = logging.getLogger(__name__)

CLOSE, FAR = 1e-3, 1e-1
SIZE = {"width": 64, "height": 64}
FRAMES, RANK = 9, 4
LAYERS = {
    "blocks.0.self_attn.q": ("blocks.0.attn1.to_q", DIT.dim, DIT.dim),
    "blocks.0.cross_attn.k": ("blocks.0.attn2.to_k", DIT.dim, DIT.dim),
    "blocks.0.ffn.0": ("blocks.0.ffn.net.0.proj", DIT.ffn_dim, DIT.dim),
    "blocks.1.ffn.2": ("blocks.1.ffn.net.2", DIT.dim, DIT.ffn_dim),
}
"""Official name -> diffusers name, outputs, inputs."""


def low_rank(prefix: str, up: str, down: str, alpha: float | None = None, diffusers: bool = False) -> dict:
    generator, tensors = torch.Generator().manual_seed(3), {}
    for official, (theirs, out, into) in LAYERS.items():
        name = theirs if diffusers else official
        name = prefix + (name.replace(".", "_") if prefix.startswith("lora_unet") else name)
        tensors[f"{name}.{up}.weight"] = torch.randn(out, RANK, generator=generator) / 8
        tensors[f"{name}.{down}.weight"] = torch.randn(RANK, into, generator=generator) / 8
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def shaped(prefix: str, shapes: dict[str, tuple[int, ...]], seed: int = 4) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {prefix + name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}


KOHYA_Q, PEFT_Q = "lora_unet_blocks_0_self_attn_q.", "diffusion_model.blocks.0.self_attn.q."
DIALECTS = {
    "kohya": low_rank("lora_unet_", "lora_up", "lora_down", alpha=2.0),
    "fun": low_rank("lora_unet__", "lora_up", "lora_down", alpha=8.0),
    "peft": low_rank("diffusion_model.", "lora_B", "lora_A"),
    "lightx2v": low_rank("diffusion_model.", "lora_up", "lora_down", alpha=4.0)
    | shaped(
        "diffusion_model.",
        {
            "blocks.0.norm3.diff": (DIT.dim,), "blocks.0.norm3.diff_b": (DIT.dim,),
            "blocks.1.self_attn.norm_k.diff": (DIT.dim,), "blocks.0.self_attn.q.diff_b": (DIT.dim,),
            "head.head.diff": (64, DIT.dim),
        },
    ),
    "dora": low_rank("diffusion_model.", "lora_up", "lora_down", alpha=4.0)
    | {PEFT_Q + "dora_scale": torch.rand(DIT.dim, 1, generator=torch.Generator().manual_seed(5)) + 0.5},
    "loha": shaped(
        KOHYA_Q,
        {"hada_w1_a": (256, 4), "hada_w1_b": (4, 256), "hada_w2_a": (256, 4), "hada_w2_b": (4, 256)},
    )
    | {KOHYA_Q + "alpha": torch.tensor(32.0)},
    "lokr": shaped(KOHYA_Q, {"lokr_w1": (4, 4), "lokr_w2_a": (64, 4), "lokr_w2_b": (4, 64)})
    | {KOHYA_Q + "alpha": torch.tensor(32.0)},
}  # fmt: skip
"""Those that native ComfyUI reads for Wan too."""
OURS_ALONE = {"diffusers": (low_rank("transformer.", "lora_B", "lora_A", diffusers=True), "peft")}
"""Those that it does not, and the dialect of the same changes that it does."""
SDXL = {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight": torch.zeros(4, 4)}


@pytest.fixture(scope="module")
def loras(tiny_tree, tiny_files) -> dict[str, str]:
    """Name in the host's list of every file."""
    folder = tiny_tree / "loras"
    folder.mkdir(exist_ok=True)
    files = DIALECTS | {name: tensors for name, (tensors, _) in OURS_ALONE.items()} | {"sdxl": SDXL}
    for name, tensors in files.items():
        save_file(tensors, folder / f"tiny_{name}.safetensors")
    return {name: f"tiny_{name}.safetensors" for name in files}


def with_lora(
    graph: Graph, model, high: str, strength: float = 1.0, low: str = "same", strength_low: float = 1.0, **more
):
    return graph.add(
        "WanCoreLoRA", model=model, lora_name=high, strength=strength, low_noise_lora=low, strength_low=strength_low,
        **more,
    )  # fmt: skip


def prepared(graph: Graph, files: dict):
    text = loaders(graph, files)["text"]
    latent = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=1)
    return text.wire(0), text.wire(1), latent


def test_our_lora_gives_the_latents_of_the_native_one(client, tiny_files, loras):
    graph = Graph()
    sides = prepared(graph, tiny_files)
    ours = our_model(graph, tiny_files, "t2v")
    graph.dump(our_sampler(graph, ours, *sides), "lora_none")
    for name in DIALECTS:
        for strength in (1.0, -0.5):
            unet = graph.add("UNETLoader", unet_name=tiny_files["t2v"].name, weight_dtype="default")
            given = {"lora_name": loras[name], "strength_model": strength}
            native = graph.add("LoraLoaderModelOnly", model=unet, **given)
            native = graph.add("ModelSamplingSD3", model=native, shift=5.0)
            graph.dump(native_sampler(graph, native, *sides), f"lora_{name}_{strength}_native")
            mine = with_lora(graph, ours, loras[name], strength)
            graph.dump(our_sampler(graph, mine, *sides), f"lora_{name}_{strength}_ours")
    for name in OURS_ALONE:
        graph.dump(our_sampler(graph, with_lora(graph, ours, loras[name]), *sides), f"lora_{name}_1.0_ours")
    client.run(graph.prompt)
    folder = client.host.output_dir
    plain = dumped(folder, "lora_none")
    for name in DIALECTS:
        for strength in (1.0, -0.5):
            native, mine = (dumped(folder, f"lora_{name}_{strength}_{side}") for side in ("native", "ours"))
            worst, moved = (native - mine).abs().max().item(), (plain - mine).abs().max().item()
            log.info("%s at %s: max abs difference %.2e, moved by %.2e", name, strength, worst, moved)
            assert worst <= CLOSE and moved >= FAR, (name, strength, worst, moved)
    for name, (_, same) in OURS_ALONE.items():
        mine, other = (dumped(folder, f"lora_{one}_1.0_ours") for one in (name, same))
        assert (mine - other).abs().max() <= CLOSE


def test_a_pair_wears_a_lora_on_each_expert(client, tiny_files, loras):
    """Against two native samplers, each with the LoRA of its side."""
    graph = Graph()
    sides = prepared(graph, tiny_files)
    pair = our_model(graph, tiny_files, "t2v_high", "t2v_low")
    mine = with_lora(graph, pair, loras["kohya"], 1.0, loras["peft"], 0.5)
    graph.dump(our_sampler(graph, mine, *sides, boundary=0.0, switch_step=4), "lora_pair_ours")
    halves, latent = {"high": (loras["kohya"], 1.0), "low": (loras["peft"], 0.5)}, sides[2]
    for side, (name, strength) in halves.items():
        unet = graph.add("UNETLoader", unet_name=tiny_files[f"t2v_{side}"].name, weight_dtype="default")
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
    graph.dump(latent, "lora_pair_native")
    client.run(graph.prompt)
    ours, native = (dumped(client.host.output_dir, f"lora_pair_{side}") for side in ("ours", "native"))
    assert (ours - native).abs().max() <= CLOSE


def test_the_node_tells_what_was_applied(client, tiny_files, loras):
    graph = Graph()
    worn = with_lora(graph, our_model(graph, tiny_files, "t2v"), loras["lightx2v"])
    graph.dump(our_sampler(graph, worn, *prepared(graph, tiny_files), steps=1), "lora_told")
    history = client.run(graph.prompt)
    (told,) = (out["text"] for number, out in history["outputs"].items() if number == worn.number)
    assert "applied 17 of 17 tensors" in told[0]


def test_a_lora_of_another_family_is_refused_and_the_next_job_is_right(client, tiny_files, loras):
    graph = Graph()
    model = our_model(graph, tiny_files, "t2v")
    graph.dump(our_sampler(graph, with_lora(graph, model, loras["sdxl"]), *prepared(graph, tiny_files)), "lora_bad")
    with pytest.raises(JobError, match="SDXL, not of a Wan transformer"):
        client.run(graph.prompt)
    results = []
    for n, chain in enumerate([("kohya", "loha"), ("loha", "kohya"), ("kohya", "loha")]):
        graph = Graph()
        worn = our_model(graph, tiny_files, "t2v")
        for name in chain:
            worn = with_lora(graph, worn, loras[name])
        graph.dump(our_sampler(graph, worn, *prepared(graph, tiny_files), steps=3), f"lora_order_{n}")
        client.run(graph.prompt)
        results.append(dumped(client.host.output_dir, f"lora_order_{n}"))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_the_stack_is_the_chain(client, tiny_files, loras):
    graph = Graph()
    sides = prepared(graph, tiny_files)
    model = our_model(graph, tiny_files, "t2v_high", "t2v_low")
    chained = with_lora(graph, with_lora(graph, model, loras["kohya"], 0.5), loras["peft"], low="none")
    rows = {1: (loras["kohya"], 0.5, "same", 1.0), 4: (loras["peft"], 1.0, "none", 1.0)}
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
