"""Every native Wan node of the host, by name: on our sampler, and on native KSampler behind Wan Core Model to MODEL, it
gives what native KSampler gives on the native model, or it is refused in a sentence. docs/native_nodes.md is this
table.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from scripts.api_client import JobError
from tests.host.graphs import Graph, Node, dumped, loaders, native_model, native_sampler, our_model, our_sampler
from tests.host.test_bridge import bridge, shifted
from tests.host.test_fun import givens, pictures
from tests.host.test_interop import CLOSE, FRAMES, SIZE, our_vae

__all__ = ["pictures"]
"""A fixture of the other file."""
log = logging.getLogger(__name__)
MATTERS = 1e-2
MODULES = {"nodes_wan", "nodes_wanmove", "nodes_wandancer", "nodes_bernini", "nodes_scail", "nodes_camera_trajectory"}
TRACK = json.dumps([[{"x": 8 + 2 * i, "y": 40 - i} for i in range(FRAMES)]])
BEZIER = {
    "start_x": 0.1, "start_y": 0.2, "end_x": 0.8, "end_y": 0.6, "num_frames": FRAMES, "num_tracks": 2,
    "track_spread": 0.1, "bezier": False, "mid_x": 0.5, "mid_y": 0.5, "interpolation": "linear", "width": 64,
    "height": 64,
}  # fmt: skip
MOVE = {"start_x": 0.1, "start_y": 0.8, "end_x": 0.7, "end_y": 0.2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and what the node is given for it. ``slots``: its outputs that are positive, negative and latent; -1: the
    text alone."""

    model: str
    given: tuple[str, ...] = ()
    more: dict = field(default_factory=dict)
    vae: str = "t2v"
    slots: tuple[int, int, int] = (0, 1, 2)
    renamed: dict[str, str] = field(default_factory=dict)


CLIP = "clip_vision_output"
CASES: dict[str, dict[str, Case]] = {
    "WanImageToVideo": {
        "2.1": Case(model="i2v", given=("start_image", CLIP)),
        "2.2": Case(model="i2v_high", given=("start_image",)),
    },
    "WanFirstLastFrameToVideo": {
        "2.1": Case(
            model="flf2v", given=("start_image", "end_image", CLIP, "clip_vision_end_image"),
            renamed={CLIP: "clip_vision_start_image"},
        ),
        "2.2": Case(model="i2v_high", given=("start_image", "end_image")),
    },
    "WanFunControlToVideo": {"2.1": Case(model="fun_control", given=("control_video", "start_image", CLIP))},
    "Wan22FunControlToVideo": {
        "2.2": Case(model="fun_control_high", given=("control_video", "ref_image")),
        "5B": Case(model="fun_control_5b", given=("control_video", "ref_image"), vae="ti2v"),
    },
    "WanFunInpaintToVideo": {"2.1": Case(model="fun_inp", given=("start_image", "end_image", CLIP))},
    "WanVaceToVideo": {
        "2.1": Case(
            model="vace", given=("control_video", "control_masks", "ref_image"),
            renamed={"ref_image": "reference_image"}, more={"strength": 0.8},
        )
    },
    "WanCameraImageToVideo": {
        "2.1": Case(
            model="fun_camera", given=("start_image", "camera_embedding", CLIP),
            renamed={"camera_embedding": "camera_conditions"},
        ),
        "2.2": Case(
            model="fun_camera_high", given=("start_image", "camera_embedding"),
            renamed={"camera_embedding": "camera_conditions"},
        ),
    },
    "WanPhantomSubjectToVideo": {
        "2.1": Case(model="t2v", given=("two",), renamed={"two": "images"}, slots=(0, 2, 3)),
        "2.1, text negative": Case(model="t2v", given=("two",), renamed={"two": "images"}, slots=(0, 1, 3)),
    },
    "WanTrackToVideo": {
        "2.1": Case(
            model="i2v", given=("start_image", CLIP), more={"tracks": TRACK, "temperature": 220.0, "topk": 2}
        )
    },
    "WanMoveTrackToVideo": {
        "2.1": Case(model="i2v", given=("start_image", CLIP, "tracks"), more={"strength": 1.0}),
    },
    "WanDancerVideo": {"2.2, a picture alone": Case(model="i2v_high", given=("start_image",))},
    "Wan22ImageToVideoLatent": {"5B": Case(model="ti2v", given=("start_image",), vae="ti2v", slots=(-1, -1, 0))},
}  # fmt: skip
"""Native node -> a case for each kind of model that takes what it makes."""

REFUSED: dict[str, tuple[dict, str]] = {
    "WanSoundImageToVideo": ({"given": ("control_video",)}, "control_video"),
    "WanSoundImageToVideoExtend": ({"given": ("ref_image",), "latent": "video_latent"}, "control_video"),
    "WanHuMoImageToVideo": ({"given": ("ref_image",)}, "audio_embed"),
    "WanAnimateToVideo": (
        {"given": ("face_video",), "more": {"continue_motion_max_frames": 5, "video_frame_offset": 0}},
        "face_video_pixels",
    ),
    "WanAnimate2ToVideo": (
        {
            "given": ("pose_video",),
            "more": {
                "video_frame_offset": 0,
                "pose_strength": 1.0,
                "pose_start_percent": 0.0,
                "pose_end_percent": 1.0,
                "reference_image_strength": 1.0,
            },
        },
        "pose_video_latent",
    ),
    "WanSCAILToVideo": (
        {
            "given": ("pose_video",),
            "more": {
                "pose_strength": 1.0,
                "pose_start": 0.0,
                "pose_end": 1.0,
                "video_frame_offset": 0,
                "previous_frame_count": 5,
            },
        },
        "pose_video_latent",
    ),
    "BerniniConditioning": ({"given": ("source_video",)}, "context_latents"),
}
"""Native node of a model that is not ours -> what it is given, and the key by which both samplers refuse it."""

OTHERS = {
    "TrimVideoLatent": "cuts latent frames off; with WanVaceToVideo above",
    "WanCameraEmbedding": "makes a camera path; with WanCameraImageToVideo above",
    "GenerateTracks": "makes tracks; with WanMoveTrackToVideo above",
    "WanMoveTracksFromCoords": "makes tracks; none of it reaches a sampler",
    "WanMoveConcatTrack": "joins tracks; with WanMoveTrackToVideo above",
    "WanMoveVisualizeTracks": "draws tracks on pictures; none of it reaches a sampler",
    "WanDancerEncodeAudio": "encodes sound; what WanDancerVideo makes of it is refused (audio_embed)",
    "WanDancerPadKeyframes": "makes pictures; none of it reaches a sampler",
    "WanDancerPadKeyframesList": "makes pictures; none of it reaches a sampler",
    "SCAIL2ColoredMask": "makes pictures of masks; what WanSCAILToVideo makes of them is refused",
    "WanContextWindowsManual": "wraps MODEL: works behind Model to MODEL (below)",
    "WanAnimate2Cache": "a cache inside Animate 2's blocks: refused behind Model to MODEL (below)",
    "WanUni3CControlnetApply": "patches MODEL's blocks: refused behind Model to MODEL (below)",
    "ModelMergeWAN2_1": "merges weights: refused behind Model to MODEL (below)",
    "wanBlockSwap": "does nothing, natively too",
    "WanInfiniteTalkToVideo": "patches MODEL's attention: refused behind Model to MODEL (below)",
}
"""Native node that hands a sampler nothing of its own, or only a MODEL."""


@pytest.fixture(scope="module")
def known(client) -> dict:
    return client.get("/object_info")


def test_every_native_wan_node_of_this_host_has_a_row(known):
    native = {
        name
        for name, node in known.items()
        if (module := node.get("python_module", "")).startswith("comfy_extras.")
        and (module.removeprefix("comfy_extras.") in MODULES or name.lower().startswith(("wan", "modelmergewan")))
    }
    rows = CASES.keys() | REFUSED.keys() | OTHERS.keys()
    assert native <= rows, sorted(native - rows)
    assert len(native) >= 15
    if "BerniniConditioning" in known:  # the newest of them: an older host has fewer
        assert rows <= native, sorted(rows - native)


def everything(graph: Graph, files: dict, names: list[str]) -> dict:
    """All that a node may be given."""
    given = givens(graph, files, names)
    vision = graph.add("WanCoreLoadCLIPVision", clip_vision_name=files["clip_vision"].name, precision="fp32")
    encoded = graph.add("CLIPVisionEncode", clip_vision=vision, image=given["end_image"], crop="none")
    black = graph.add("SolidMask", value=0.0, **SIZE)
    white = graph.add("SolidMask", value=1.0, width=32, height=64)
    half = graph.add("MaskComposite", destination=black, source=white, x=0, y=0, operation="add")
    masks = graph.add("RepeatImageBatch", image=graph.add("MaskToImage", mask=half), amount=FRAMES)
    return given | {
        "clip_vision_end_image": encoded,
        "control_masks": graph.add("ImageToMask", image=masks, channel="red"),
        "two": graph.add("ImageBatch", image1=given["end_image"], image2=given["ref_image"]),
        "face_video": given["control_video"],
        "pose_video": given["control_video"],
        "source_video": given["control_video"],
    }


def tracks(graph: Graph) -> Node:
    one, two = (graph.add("GenerateTracks", **{**BEZIER, **change}) for change in ({}, MOVE))
    return graph.add("WanMoveConcatTrack", tracks_1=one, tracks_2=two)


def native_node(graph: Graph, files: dict, name: str, vae, given: dict, names, renamed, more, known: dict) -> Node:
    text = loaders(graph, files)["text"]
    inputs = {"positive": text.wire(0), "negative": text.wire(1), "vae": vae, **SIZE, "length": FRAMES, "batch_size": 1}
    inputs |= {renamed.get(one, one): tracks(graph) if one == "tracks" else given[one] for one in names}
    declared = known[name]["input"]
    takes = declared.get("required", {}).keys() | declared.get("optional", {}).keys()
    return graph.add(name, **{key: value for key, value in {**inputs, **more}.items() if key in takes})


def wires_of(graph: Graph, files: dict, node: Node, slots: tuple[int, int, int]) -> list:
    text = loaders(graph, files)["text"]
    return [text.wire(n) if slot < 0 else node.wire(slot) for n, slot in enumerate(slots)]


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, cases in CASES.items() for kind in cases])
def test_a_native_node_means_the_same_to_our_sampler_and_behind_the_bridge(
    client, tiny_files, pictures, known, name, kind
):
    if name not in known:
        pytest.skip(f"this ComfyUI has no {name}")
    case, graph = CASES[name][kind], Graph()
    given = everything(graph, tiny_files, pictures)
    vae = our_vae(graph, tiny_files, case.vae)
    node = native_node(graph, tiny_files, name, vae, given, case.given, case.renamed, case.more, known)
    sides = wires_of(graph, tiny_files, node, case.slots)
    ours = our_model(graph, tiny_files, case.model)
    made = {
        "native": native_sampler(graph, native_model(graph, tiny_files, case.model, 5.0), *sides),
        "ours": our_sampler(graph, ours, *sides),
        "bridge": native_sampler(graph, shifted(graph, bridge(graph, ours), 5.0), *sides),
    }
    if name == "WanVaceToVideo":
        made = {who: graph.add("TrimVideoLatent", samples=one, trim_amount=node.wire(3)) for who, one in made.items()}
    text = loaders(graph, tiny_files)["text"]
    empty = graph.add("WanCoreEmptyLatent", model=ours, **SIZE, frames=FRAMES, batch_size=1)
    made["without"] = our_sampler(graph, ours, text.wire(0), text.wire(1), empty)
    tag = f"native_{name}_{kind.replace(' ', '_')}"
    for who, latent in made.items():
        graph.dump(latent, f"{tag}_{who}")
    client.run(graph.prompt)
    native, mine, bridged, without = (dumped(client.host.output_dir, f"{tag}_{who}") for who in made)
    differs = {who: (one - native).abs().max().item() for who, one in (("ours", mine), ("bridge", bridged))}
    log.info("%s (%s): ours %.1e, bridge %.1e", name, kind, *differs.values())
    assert native.shape == mine.shape == bridged.shape
    assert max(differs.values()) <= CLOSE, differs
    assert (mine - without).abs().max() > MATTERS, "what the node gives makes no difference, so nothing was tested"


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("where", ["sampler", "bridge"])
def test_a_native_node_of_a_model_that_is_not_ours_is_refused_by_name(client, tiny_files, pictures, known, name, where):
    if name not in known:
        pytest.skip(f"this ComfyUI has no {name}")
    inputs, key = REFUSED[name]
    graph = Graph()
    given = everything(graph, tiny_files, pictures)
    vae = our_vae(graph, tiny_files, "t2v")
    more = dict(inputs.get("more", {}))
    if "latent" in inputs:
        more[inputs["latent"]] = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=1)
    node = native_node(graph, tiny_files, name, vae, given, inputs["given"], {}, more, known)
    sides = wires_of(graph, tiny_files, node, (0, 1, 2))
    model = our_model(graph, tiny_files, "t2v")
    graph.dump(_on(where, graph, model, sides), "never")
    with pytest.raises(JobError) as error:
        client.run(graph.prompt)
    assert key in str(error.value) and "Remove the node" in str(error.value), error.value


def _on(where: str, graph: Graph, model: Node, sides: list) -> Node:
    if where == "sampler":
        return our_sampler(graph, model, *sides)
    return native_sampler(graph, bridge(graph, model), *sides)


WRONG: dict[str, tuple[str, Callable, str]] = {
    "a picture on T2V": ("t2v", lambda given, add: add("WanImageToVideo", start_image=given["start_image"]), "image"),
    "a control video on I2V": (
        "i2v_high",
        lambda given, add: add("WanFunControlToVideo", control_video=given["control_video"]),
        "control video",
    ),
    "VACE on T2V": ("t2v", lambda given, add: add("WanVaceToVideo", strength=1.0), "VACE|vace_frames"),
    "a camera on I2V": (
        "i2v_high",
        lambda given, add: add("WanCameraImageToVideo", camera_conditions=given["camera_embedding"]),
        "camera",
    ),
    "subjects on VACE": (
        "vace", lambda given, add: add("WanPhantomSubjectToVideo", images=given["two"]), "time_dim_concat"
    ),
}  # fmt: skip
"""Our model, the native node of another one, and what the sentence names (by our sampler | by the bridge)."""


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("where", ["sampler", "bridge"])
def test_a_native_node_of_another_of_our_models_is_refused_by_name(client, tiny_files, pictures, known, what, where):
    role, make, words = WRONG[what]
    graph = Graph()
    given = everything(graph, tiny_files, pictures)
    vae = our_vae(graph, tiny_files, "t2v")

    def add(name: str, **inputs) -> Node:
        return native_node(graph, tiny_files, name, vae, inputs, tuple(inputs), {}, {}, known)

    node = make(given, add)
    slots = (0, 2, 3) if "subjects" in what else (0, 1, 2)
    graph.dump(_on(where, graph, our_model(graph, tiny_files, role), [node.wire(slot) for slot in slots]), "never")
    with pytest.raises(JobError) as error:
        client.run(graph.prompt)
    said = str(error.value)
    assert any(word in said for word in words.split("|")) and ("takes none" in said or "does not take" in said), said


@pytest.mark.parametrize(("model", "vae"), [("ti2v", "ti2v"), ("i2v_high", "t2v"), ("vace", "t2v")])
def test_a_mask_over_time_means_the_same_to_every_kind_of_model(client, tiny_files, pictures, known, model, vae):
    """The 5B is shown what is given without noise, with a timestep by the share of each frame; the others under noise.
    Our node's masks are native latents' too."""
    graph = Graph()
    text = loaders(graph, tiny_files)["text"]
    given = everything(graph, tiny_files, pictures)
    encoder = our_vae(graph, tiny_files, vae)
    clip = graph.add("VAEEncode", pixels=given["control_video"], vae=encoder)
    late = graph.add("SolidMask", value=1.0, **SIZE)
    none = graph.add("SolidMask", value=0.0, **SIZE)
    masks = [graph.add("MaskToImage", mask=one) for one in (none, late)]
    frames = graph.add("ImageBatch", image1=graph.add("RepeatImageBatch", image=masks[0], amount=5),
                       image2=graph.add("RepeatImageBatch", image=masks[1], amount=4))  # fmt: skip
    over_time = graph.add("ImageToMask", image=frames, channel="red")
    masked = {
        "native": graph.add("SetLatentNoiseMask", samples=clip, mask=given["control_masks"]),
        "time": graph.add("SetLatentNoiseMask", samples=clip, mask=over_time),
        "ours": graph.add("WanCoreInpaintMask", latent=clip, mask=over_time),
    }
    theirs, ours = native_model(graph, tiny_files, model, 5.0), our_model(graph, tiny_files, model)
    bridged = shifted(graph, bridge(graph, ours), 5.0)
    for name, latent in masked.items():
        sides = text.wire(0), text.wire(1), latent
        graph.dump(native_sampler(graph, theirs, *sides, denoise=0.7), f"mask_{model}_{name}_native")
        graph.dump(our_sampler(graph, ours, *sides, denoise=0.7), f"mask_{model}_{name}_sampler")
        graph.dump(native_sampler(graph, bridged, *sides, denoise=0.7), f"mask_{model}_{name}_bridge")
    graph.dump(clip, f"mask_{model}_clip")
    client.run(graph.prompt)
    get = lambda name: dumped(client.host.output_dir, f"mask_{model}_{name}")  # noqa: E731
    for name in masked:
        differs = [(get(f"{name}_{who}") - get(f"{name}_native")).abs().max().item() for who in ("sampler", "bridge")]
        log.info("%s mask on %s: ours %.1e, bridge %.1e", name, model, *differs)
        assert max(differs) <= CLOSE, name
    changed = (get("ours_sampler") - get("clip")).abs().amax((0, 1, 3, 4))
    assert changed[:2].max() <= CLOSE < MATTERS < changed[2], "frames 0 to 4 are kept, 5 to 8 made"


def test_several_entries_times_and_a_mask_on_our_sampler_are_native_ksamplers(client, tiny_files, pictures):
    """Combined prompts with strengths and timestep ranges, and inpainting over time."""
    graph = Graph()
    parts = loaders(graph, tiny_files)
    given = everything(graph, tiny_files, pictures)
    text, encoder = parts["text"], parts["text_encoder"]
    other = graph.add("CLIPTextEncode", clip=encoder, text="a blue whale at night")
    late = graph.add("ConditioningSetTimestepRange", conditioning=other, start=0.33, end=0.9)
    weighted = graph.add("ConditioningSetAreaStrength", conditioning=late, strength=0.4)
    both = graph.add("ConditioningCombine", conditioning_1=text.wire(0), conditioning_2=weighted)
    clip = graph.add("VAEEncode", pixels=given["control_video"], vae=parts["vae"])
    masked = graph.add("SetLatentNoiseMask", samples=clip, mask=given["control_masks"])
    empty = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=1)
    sides = {
        "entries": (both, text.wire(1), empty, 1.0),
        "negative": (text.wire(0), both, empty, 1.0),
        "mask": (text.wire(0), text.wire(1), masked, 1.0),
        "mask_part": (text.wire(0), text.wire(1), masked, 0.6),
        "all": (both, text.wire(1), masked, 0.6),
        "plain": (text.wire(0), text.wire(1), empty, 1.0),
    }
    native, ours = native_model(graph, tiny_files, "t2v", 5.0), our_model(graph, tiny_files, "t2v")
    for name, (*wires, denoise) in sides.items():
        graph.dump(native_sampler(graph, native, *wires, denoise=denoise), f"entries_{name}_native")
        graph.dump(our_sampler(graph, ours, *wires, denoise=denoise), f"entries_{name}_ours")
    graph.dump(clip, "entries_clip")
    client.run(graph.prompt)
    get = lambda name: dumped(client.host.output_dir, f"entries_{name}")  # noqa: E731
    for name in sides:
        differs = (get(f"{name}_native") - get(f"{name}_ours")).abs().max().item()
        log.info("%s: max abs difference %.1e", name, differs)
        assert differs <= CLOSE, name
        if name != "plain":
            assert (get(f"{name}_ours") - get("plain_ours")).abs().max() > MATTERS, name
    kept = get("mask_ours") - get("clip")
    assert kept[..., 4:].abs().max() <= CLOSE < kept[..., :4].abs().max()
    broken = Graph()
    text = loaders(broken, tiny_files)["text"]
    area = broken.add("ConditioningSetMask", conditioning=text.wire(0), strength=1.0, set_cond_area="default",
                      mask=broken.add("SolidMask", value=1.0, width=64, height=64))  # fmt: skip
    latent = broken.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=1)
    broken.dump(our_sampler(broken, our_model(broken, tiny_files, "t2v"), area, text.wire(1), latent), "never")
    with pytest.raises(JobError, match=r"carries mask.*Wan Core Model to MODEL"):
        client.run(broken.prompt)
