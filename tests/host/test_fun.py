"""Wan Fun in one server with native ComfyUI, on the same float32 files: native nodes on our sampler, ours on theirs."""

import logging
from dataclasses import dataclass, field

import pytest
import torch

from scripts.api_client import JobError
from tests.host.graphs import Graph, dumped, loaders, native_model, native_sampler, our_model, our_sampler
from tests.host.test_interop import CLOSE, FAR, FRAMES, SIZE, our_vae, scaled
from wan_core.conditioning.camera import MOTIONS

log = logging.getLogger(__name__)
NATIVE_MOTIONS = list(MOTIONS)[:9]


@pytest.fixture(scope="module")
def pictures(client, tmp_path_factory) -> list[str]:
    """Three pictures in the host's input folder."""
    from PIL import Image

    folder, names = tmp_path_factory.mktemp("fun_pictures"), []
    for seed in (15, 16, 17):
        pixels = (torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(seed)) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"fun_{seed}.png")
        names.append(client.upload(folder / f"fun_{seed}.png"))
    return names


@dataclass(frozen=True, kw_only=True)
class Case:
    """A native node and ours for the same thing. ``given``: inputs by the same name on both."""

    model: str
    native: str
    ours: str
    given: tuple[str, ...]
    theirs: dict[str, str] = field(default_factory=dict)
    """Where the native node calls an input by another name."""
    vae: str = "t2v"


IMAGE = {"native": "WanFunInpaintToVideo", "ours": "WanCoreImageToVideo"}
CONTROL_21 = {"model": "fun_control", "native": "WanFunControlToVideo", "ours": "WanCoreFunControl"}
CONTROL_22 = {"model": "fun_control_high", "native": "Wan22FunControlToVideo", "ours": "WanCoreFunControl"}
CAMERA = {"native": "WanCameraImageToVideo", "ours": "WanCoreCameraControl"}
RENAMED = {"camera_embedding": "camera_conditions"}
# Native ComfyUI lets the text through the keys of the picture where a 2.1 model gets no CLIP features; so all get some.
CASES = {
    "inp_start": Case(model="fun_inp", given=("start_image", "clip_vision_output"), **IMAGE),
    "inp_both": Case(model="fun_inp", given=("start_image", "end_image", "clip_vision_output"), **IMAGE),
    "inp_2.2_both": Case(model="i2v_high", given=("start_image", "end_image"), **IMAGE),
    "control": Case(given=("control_video", "clip_vision_output"), **CONTROL_21),
    "control_start": Case(given=("control_video", "start_image", "clip_vision_output"), **CONTROL_21),
    "control_reference": Case(given=("control_video", "ref_image", "clip_vision_output"), **CONTROL_21),
    "control_2.2": Case(given=("control_video",), **CONTROL_22),
    "control_2.2_reference": Case(given=("control_video", "ref_image"), **CONTROL_22),
    "control_5b": Case(given=("control_video", "ref_image"), vae="ti2v", **{**CONTROL_22, "model": "fun_control_5b"}),
    "camera": Case(
        model="fun_camera", given=("start_image", "camera_embedding", "clip_vision_output"), theirs=RENAMED, **CAMERA
    ),
    "camera_text": Case(model="fun_camera", given=("camera_embedding", "clip_vision_output"), theirs=RENAMED, **CAMERA),
    "camera_2.2": Case(model="fun_camera_high", given=("start_image", "camera_embedding"), theirs=RENAMED, **CAMERA),
}


def givens(graph: Graph, files: dict, pictures: list[str]) -> dict:
    """Everything that a case may be given, at the clip's own size, where every node sees the same pixels."""
    start, end, other = (scaled(graph, picture) for picture in pictures)
    vision = graph.add("WanCoreLoadCLIPVision", clip_vision_name=files["clip_vision"].name, precision="fp32")
    clip = graph.add("ImageBatch", image1=graph.add("RepeatImageBatch", image=end, amount=4), image2=other)
    return {
        "start_image": start,
        "end_image": end,
        "ref_image": other,
        "control_video": graph.add(
            "ImageBatch", image1=clip, image2=graph.add("RepeatImageBatch", image=start, amount=4)
        ),
        "clip_vision_output": graph.add("CLIPVisionEncode", clip_vision=vision, image=start, crop="none"),
        "camera_embedding": graph.add("WanCameraEmbedding", camera_pose="Zoom In", **SIZE, length=FRAMES, speed=1.0),
    }


def nodes_of(graph: Graph, case: Case, files: dict, given: dict, without: str | None = None) -> dict:
    """Positive, negative and latent as the native node makes them, and ours."""
    parts = loaders(graph, files)
    inputs = {name: given[name] for name in case.given if name != without}
    shared = {
        "positive": parts["text"].wire(0),
        "negative": parts["text"].wire(1),
        "vae": our_vae(graph, files, case.vae),
    }
    shared |= {**SIZE, "batch_size": 1}
    theirs = {case.theirs.get(name, name): wire for name, wire in inputs.items()}
    reference = theirs.pop("ref_image", None) if case.native == "WanFunControlToVideo" else None
    native, ours = (
        [node.wire(slot) for slot in range(3)]
        for node in (
            graph.add(case.native, **shared, length=FRAMES, **theirs),
            graph.add(case.ours, **shared, frames=FRAMES, **inputs),
        )
    )
    if reference is not None:  # the native node for 2.1 has no input for it; its general one does the same
        latent = graph.add("VAEEncode", pixels=reference, vae=shared["vae"])
        native[:2] = (graph.add("ReferenceLatent", conditioning=side, latent=latent).wire(0) for side in native[:2])
    return {"native": native, "ours": ours}


def run(client, files, pictures, name: str, without: str | None = None) -> dict[str, torch.Tensor]:
    """Native and our conditions, each through native KSampler and through our sampler, in one job."""
    graph, case = Graph(), CASES[name]
    nodes = nodes_of(graph, case, files, givens(graph, files, pictures), without)
    native, ours = native_model(graph, files, case.model, 5.0), our_model(graph, files, case.model)
    tag, made = f"fun_{name}_{without}", []
    for which, sides in nodes.items():
        graph.dump(native_sampler(graph, native, *sides), f"{tag}_{which}_on_native")
        graph.dump(our_sampler(graph, ours, *sides), f"{tag}_{which}_on_ours")
        made += [f"{which}_on_native", f"{which}_on_ours"]
    client.run(graph.prompt)
    return {one: dumped(client.host.output_dir, f"{tag}_{one}") for one in made}


@pytest.mark.parametrize("name", CASES)
def test_native_nodes_and_ours_give_the_same_latents_on_both_samplers(client, tiny_files, pictures, name):
    made = run(client, tiny_files, pictures, name)
    reference = made.pop("native_on_native")
    worst = max((value - reference).abs().max().item() for value in made.values())
    log.info("%s: max abs difference %.2e", name, worst)
    for one, value in made.items():
        assert value.shape == reference.shape, one
        assert (value - reference).abs().max() <= CLOSE, one


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("inp_both", "end_image"), ("control_start", "start_image"), ("control_start", "control_video"),
        ("control_reference", "ref_image"), ("control_2.2_reference", "ref_image"), ("control_5b", "ref_image"),
        ("camera", "start_image"), ("camera_2.2", "start_image"),
    ],
)  # fmt: skip
def test_each_thing_that_is_given_matters(client, tiny_files, pictures, name, without):
    """The agreement above means something only where leaving a thing out shows."""
    whole, less = (run(client, tiny_files, pictures, name, one) for one in (None, without))
    assert (whole["ours_on_ours"] - less["ours_on_ours"]).abs().max() > FAR
    assert (less["native_on_native"] - less["ours_on_ours"]).abs().max() <= CLOSE


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_camera_path_is_the_native_nodes_and_each_motion_another_video(client, tiny_files, motion):
    graph = Graph()
    for width, height, frames, speed in ((64, 64, 9, 1.0), (96, 32, 1, 2.5), (32, 80, 5, 0.7)):
        size = {"width": width, "height": height, "speed": speed}
        tag = f"camera_{NATIVE_MOTIONS.index(motion) if motion in NATIVE_MOTIONS else motion}_{width}"
        if motion in NATIVE_MOTIONS:
            native = graph.add("WanCameraEmbedding", camera_pose=motion, length=frames, fx=0.7, fy=0.7, **size)
            graph.dump(native, f"{tag}_native")
        ours = graph.add(
            "WanCoreCameraPath", motion=motion, second_motion="none", frames=frames, focal_length=0.7, **size
        )
        graph.dump(ours, f"{tag}_ours")
    still = graph.add("WanCoreCameraPath", motion="Static", second_motion="none", frames=9, focal_length=0.7,
                      width=64, height=64, speed=1.0)  # fmt: skip
    graph.dump(still, "camera_still")
    client.run(graph.prompt)
    for width in (64, 96, 32):
        tag = f"camera_{NATIVE_MOTIONS.index(motion) if motion in NATIVE_MOTIONS else motion}_{width}"
        ours = dumped(client.host.output_dir, f"{tag}_ours")
        if motion in NATIVE_MOTIONS:
            native = dumped(client.host.output_dir, f"{tag}_native")
            assert native.shape == ours.shape
            assert (native - ours).abs().max() <= 1e-5
        if width == 64 and motion != "Static":
            assert (ours - dumped(client.host.output_dir, "camera_still")).abs().max() > FAR


def test_our_camera_path_drives_the_native_sampler(client, tiny_files, pictures):
    graph, made = Graph(), {}
    parts = loaders(graph, tiny_files)
    native, ours = (
        native_model(graph, tiny_files, "fun_camera_high", 5.0),
        our_model(graph, tiny_files, "fun_camera_high"),
    )
    for motion in ("Static", "Turn Left"):
        path = graph.add("WanCoreCameraPath", motion=motion, second_motion="Zoom In", speed=2.0, frames=FRAMES,
                         focal_length=0.5, **SIZE)  # fmt: skip
        node = graph.add(
            "WanCameraImageToVideo", positive=parts["text"].wire(0), negative=parts["text"].wire(1), vae=parts["vae"],
            **SIZE, length=FRAMES, batch_size=1, camera_conditions=path,
        )  # fmt: skip
        sides = node.wire(0), node.wire(1), node.wire(2)
        graph.dump(native_sampler(graph, native, *sides), f"path_{motion}_native")
        graph.dump(our_sampler(graph, ours, *sides), f"path_{motion}_ours")
    client.run(graph.prompt)
    for motion in ("Static", "Turn Left"):
        made[motion] = dumped(client.host.output_dir, f"path_{motion}_ours")
        assert (made[motion] - dumped(client.host.output_dir, f"path_{motion}_native")).abs().max() <= CLOSE
    assert (made["Static"] - made["Turn Left"]).abs().max() > FAR


@pytest.mark.parametrize("name", ["inp", "control"])
def test_5b_models_take_a_start_image_clean_and_beside_the_noise(client, tiny_files, pictures, name):
    """As they were trained: the picture comes out as it went in, and what is beside the noise matters too."""
    graph = Graph()
    given = givens(graph, tiny_files, pictures)
    parts, vae = loaders(graph, tiny_files), our_vae(graph, tiny_files, "ti2v")
    model = our_model(graph, tiny_files, f"fun_{name}_5b")
    shared = {"positive": parts["text"].wire(0), "negative": parts["text"].wire(1), "vae": vae, **SIZE}
    shared |= {"frames": FRAMES, "batch_size": 1, "start_image": given["start_image"]}
    if name == "inp":
        node = graph.add("WanCoreImageToVideo", **shared, end_image=given["end_image"], model=model)
        other = graph.add("WanCoreImageToVideo", **shared, model=model)
    else:
        node = graph.add("WanCoreFunControl", **shared, control_video=given["control_video"])
        other = graph.add("WanCoreFunControl", **shared)
    native = native_model(graph, tiny_files, f"fun_{name}_5b", 5.0)
    for which, one in (("all", node), ("less", other)):
        sides = one.wire(0), one.wire(1), one.wire(2)
        graph.dump(sides[2], f"fun5b_{name}_{which}_latent")
        graph.dump(our_sampler(graph, model, *sides), f"fun5b_{name}_{which}_ours")
        graph.dump(native_sampler(graph, native, *sides), f"fun5b_{name}_{which}_native")
    client.run(graph.prompt)
    get = lambda which, what: dumped(client.host.output_dir, f"fun5b_{name}_{which}_{what}")  # noqa: E731
    for which in ("all", "less"):
        assert (get(which, "ours") - get(which, "native")).abs().max() <= CLOSE
        assert (get(which, "ours")[:, :, 0] - get(which, "latent")[:, :, 0]).abs().max() <= 1e-5
    assert (get("all", "ours") - get("less", "ours")).abs().max() > FAR


WRONG = {
    "control on T2V": ("t2v", "WanCoreFunControl", ("control_video",), "Wan 2.1 T2V", "control video"),
    "control on Fun InP": ("fun_inp", "WanCoreFunControl", ("control_video",), "Fun InP", "control video"),
    "reference on Fun InP": ("fun_inp", "native reference", ("ref_image",), "Fun InP", "reference"),
    "camera on Fun Control": (
        "fun_control",
        "WanCoreCameraControl",
        ("camera_embedding",),
        "Fun Control",
        "camera path",
    ),
    "camera of another size": ("fun_camera", "WanCoreCameraControl", ("small",), "camera path", "same width"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_model_cannot_take_is_refused_by_name(client, tiny_files, pictures, what):
    role, node_id, names, *words = WRONG[what]
    graph = Graph()
    given, parts = givens(graph, tiny_files, pictures), loaders(graph, tiny_files)
    given["small"] = graph.add(
        "WanCameraEmbedding", camera_pose="Static", width=32, height=32, length=FRAMES, speed=1.0
    )
    sides = parts["text"].wire(0), parts["text"].wire(1)
    inputs = {"camera_embedding" if name == "small" else name: given[name] for name in names}
    if node_id == "native reference":
        latent = graph.add("VAEEncode", pixels=given["ref_image"], vae=parts["vae"])
        sides = tuple(graph.add("ReferenceLatent", conditioning=side, latent=latent).wire(0) for side in sides)
        empty = graph.add("EmptyHunyuanLatentVideo", **SIZE, length=FRAMES, batch_size=1)
        wires = *sides, empty.wire(0)
    else:
        node = graph.add(
            node_id,
            positive=sides[0],
            negative=sides[1],
            vae=parts["vae"],
            **SIZE,
            frames=FRAMES,
            batch_size=1,
            **inputs,
        )
        wires = node.wire(0), node.wire(1), node.wire(2)
    graph.dump(our_sampler(graph, our_model(graph, tiny_files, role), *wires), "fun_wrong")
    with pytest.raises(JobError) as error:
        client.run(graph.prompt)
    assert all(word in str(error.value) for word in words), error.value
