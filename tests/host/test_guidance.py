"""Extras of guidance in real hosts, on the pack's own small model: off is plain to the bit, on says what is on and
still shows the prompt, and a bad value is answered by a sentence."""

import pytest
import torch

from benchmarks.nano_judge import judge
from benchmarks.nano_run import GUIDANCE, SHIFT
from scripts import api_client
from scripts.nano.world import FRAMES, SIZE
from tests.host.graphs import Graph, Node, dumped, our_model, our_sampler
from tests.nano_files import FILES

STEPS = 12
PROMPT = "A large red square moves down on a white background."
OFF = [
    ("WanCoreGuidanceOverSteps", {"guidance": ""}),
    ("WanCoreGuidanceCFGZero", {"rescale": False, "zero_steps": 0}),
    ("WanCoreGuidanceSkipBlocks", {"blocks": "", "start": 0.0, "end": 1.0, "scale": 2.0}),
    ("WanCoreGuidanceNAG", {"scale": 1.0, "tau": 2.5, "alpha": 0.25}),
]
ON = {
    "over_steps": ("WanCoreGuidanceOverSteps", {"guidance": "0%: 3, 50%: 1"}),
    "cfg_zero": ("WanCoreGuidanceCFGZero", {"rescale": True, "zero_steps": 1}),
    "skip": ("WanCoreGuidanceSkipBlocks", {"blocks": "2", "start": 0.1, "end": 1.0, "scale": 0.0}),
    "nag": ("WanCoreGuidanceNAG", {"scale": 11.0, "tau": 2.5, "alpha": 0.25}),
}


def job(name: str, *extras: tuple[str, dict]) -> tuple[dict, Node]:
    """A video of the prompt with these nodes between model and sampler; and the sampler."""
    graph = Graph()
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name=FILES["text_encoder"].name, precision="fp32")
    text = graph.add("WanCoreTextEncode", clip=encoder, positive=PROMPT, negative="")
    model = our_model(graph, FILES, "t2v_high", "t2v_low")
    latent = graph.add("WanCoreEmptyLatent", model=model, width=SIZE, height=SIZE, frames=FRAMES, batch_size=1)
    for node, widgets in extras:
        model = graph.add(node, model=model, **widgets)
    settings = {"seed": 5, "steps": STEPS, "guidance": GUIDANCE, "guidance_low": GUIDANCE, "shift": SHIFT}
    sampled = our_sampler(graph, model, text.wire(0), text.wire(1), latent, **settings)
    vae = graph.add("WanCoreLoadVAE", vae_name=FILES["vae"].name, precision="fp32")
    graph.dump(graph.add("WanCoreVAEDecode", samples=sampled, vae=vae), name)
    return graph.prompt, sampled


def video(client, name: str, *extras: tuple[str, dict]) -> tuple[torch.Tensor, str]:
    """The frames, and what the sampler told."""
    prompt, sampled = job(name, *extras)
    history = client.run(prompt)
    told = " ".join(history["outputs"].get(sampled.number, {}).get("text", []))
    return dumped(client.host.output_dir, name), told


def test_nodes_that_are_off_change_no_bit_and_each_that_is_on_changes_the_video_of_the_same_prompt(client):
    plain, told = video(client, "guidance_plain")
    assert f"guidance {GUIDANCE:g}" in told and "CFG-Zero" not in told
    off, _ = video(client, "guidance_off", *OFF)
    assert torch.equal(off, plain)
    words = {
        "over_steps": "over the steps",
        "cfg_zero": "CFG-Zero*",
        "skip": "Skipped blocks 2",
        "nag": "NAG: scale 11",
    }
    for name, extra in ON.items():
        frames, told = video(client, f"guidance_{name}", extra)
        assert words[name] in told
        assert not torch.equal(frames, plain)
        seen = judge((frames * 255).round().byte().numpy())
        assert (seen.color, seen.background, seen.motion) == ("red", "white", "down"), name
    chained, told = video(client, "guidance_chained", *ON.values())
    assert all(word in told for word in words.values())
    assert chained.isfinite().all()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("WanCoreGuidanceOverSteps", {"guidance": "4: 2"}), ["must say what the first step has", "step 4"]),
        (("WanCoreGuidanceCFGZero", {"rescale": True, "zero_steps": STEPS}), [f"first {STEPS} steps", "Use fewer"]),
        (("WanCoreGuidanceSkipBlocks", {"blocks": "9", "start": 0.1, "end": 1.0, "scale": 0.0}), ["'9'", "0 to 5"]),
        (("WanCoreGuidanceNAG", {"scale": 0.5, "tau": 2.5, "alpha": 0.25}), ["scale", "1"]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_bad_value_is_answered_by_a_sentence(client, extra, words):
    prompt, _ = job("guidance_refused", extra)
    with pytest.raises(api_client.JobError) as caught:
        client.run(prompt)
    assert all(word in str(caught.value) for word in words), str(caught.value)
