"""Decode into a file and encode from one, in real hosts with the small models."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from scripts import api_client
from scripts.nano.world import FRAMES, SIZE
from scripts.tiny_jobs import _read_video
from tests.host.graphs import Graph, Node, dumped, our_model, our_sampler
from tests.nano_files import FILES
from wan_core.media.codecs import VIDEO_CODECS
from wan_core.media.part import Place
from wan_core.media.write import VideoSettings, write_video

log = logging.getLogger(__name__)


def our_vae(graph: Graph) -> Node:
    return graph.add("WanCoreLoadVAE", vae_name=FILES["vae"].name, precision="fp32")


def sampled(graph: Graph, batch: int = 1) -> Node:
    """A latent of the small model; two steps, as only its decode matters here."""
    encoder = graph.add("WanCoreLoadTextEncoder", text_encoder_name=FILES["text_encoder"].name, precision="fp32")
    words = "A large red square moves down on a white background."
    text = graph.add("WanCoreTextEncode", clip=encoder, positive=words, negative="")
    model = our_model(graph, FILES, "t2v_high", "t2v_low")
    empty = graph.add("WanCoreEmptyLatent", model=model, width=SIZE, height=SIZE, frames=FRAMES, batch_size=batch)
    return our_sampler(graph, model, text.wire(0), text.wire(1), empty, steps=2, guidance=1.0)


def save(graph: Graph, vae, latent, prefix: str, **changes) -> Node:
    widgets = {"fps": 0.0, "codec": "h264", "quality": "highest"} | changes
    return graph.add("WanCoreSaveVideo", vae=vae, latent=latent, filename_prefix=prefix, **widgets)


def shown(history: dict, node: Node) -> list[dict]:
    return history["outputs"][node.number]["images"]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def clip(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A soft pattern that moves."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.stack([np.sin(x / 17 + t / 5 + c) * np.cos(y / (19 + c)) for c in range(3)], -1) for t in range(frames)]
    return (127 + 100 * np.stack(waves)).astype(np.uint8)


def input_file(client, name: str, frames: np.ndarray, codec: str = "ffv1") -> str:
    folder = client.host.base_dir / "input"
    made = write_video(frames, Place(folder=folder, name=name), VideoSettings(fps=12, codec=codec))
    return made.rename(made.with_stem(name)).name


def encode(graph: Graph, vae, file: str, **changes) -> Node:
    widgets = {"start_frame": 0, "frames": 0, "width": 0, "height": 0} | changes
    return graph.add("WanCoreLoadVideoLatent", file=file, vae=vae, **widgets)


def test_a_file_holds_what_the_decode_node_makes_and_the_page_can_show_it(client, tmp_path):
    graph = Graph()
    vae, latent = our_vae(graph), sampled(graph)
    node = save(graph, vae, latent, "video/kept", codec="ffv1")
    graph.dump(graph.add("WanCoreVAEDecode", samples=latent, vae=vae), "video_direct")
    history = client.run(graph.prompt, workflow={"nodes": [], "note": "Größe"})
    (entry,) = shown(history, node)
    assert entry["type"] == "output" and entry["subfolder"] == "video" and entry["filename"].startswith("kept_0")
    assert history["outputs"][node.number]["animated"] == [True]
    (path,) = client.download(history, tmp_path)
    assert path.read_bytes() == (client.host.output_dir / "video" / entry["filename"]).read_bytes()
    frames, fps, tags = _read_video(path)
    direct = (dumped(client.host.output_dir, "video_direct") * 255).round().byte().numpy()
    assert len(frames) == FRAMES and fps == 16
    assert np.abs(np.stack(frames).astype(int) - direct).max() <= 1  # halves may round either way
    tags = {key.lower(): value for key, value in tags.items()}  # matroska writes them large
    said = json.loads(tags["prompt"])
    assert {number: (n["class_type"], n["inputs"]) for number, n in said.items()} == {
        number: (n["class_type"], n["inputs"]) for number, n in graph.prompt.items()
    }
    assert json.loads(tags["workflow"]) == {"nodes": [], "note": "Größe"}


@pytest.mark.parametrize("codec", VIDEO_CODECS)
def test_every_codec_makes_a_file_that_native_nodes_read(client, codec):
    graph = Graph()
    vae = our_vae(graph)
    node = save(graph, vae, encode(graph, vae, input_file(client, "codecs", clip(9))), f"codec_{codec}", codec=codec)
    parts = graph.add("GetVideoComponents", video=node)
    graph.dump(parts.wire(0), f"codec_{codec}")
    history = client.run(graph.prompt)
    (entry,) = shown(history, node)
    assert entry["filename"].endswith("." + VIDEO_CODECS[codec].ending) and entry["subfolder"] == ""
    images = dumped(client.host.output_dir, f"codec_{codec}")
    assert images.shape == (9, 64, 96, 3) and 0.1 < images.mean() < 0.9


def test_sound_and_frame_rate_go_into_the_file(client):
    import av

    graph = Graph()
    vae = our_vae(graph)
    latent = encode(graph, vae, input_file(client, "quiet", clip(9)))
    sound = graph.add("EmptyAudio", duration=5.0, sample_rate=44100, channels=2)
    node = save(graph, vae, latent, "sound", fps=25.0, audio=sound)
    (entry,) = shown(client.run(graph.prompt), node)
    with av.open(str(client.host.output_dir / entry["filename"])) as container:
        track = container.streams.audio[0]
        assert float(container.streams.video[0].average_rate) == 25
        assert track.codec_context.name == "aac"
        assert float(track.duration * track.time_base) == pytest.approx(9 / 25, abs=0.03)


def test_a_batch_makes_a_file_each_and_numbers_go_on(client):
    names = []
    for _ in range(2):
        graph = Graph()
        vae = our_vae(graph)
        node = save(graph, vae, sampled(graph, batch=2), "numbers/of", fps=len(names) + 10.0)
        names += [entry["filename"] for entry in shown(client.run(graph.prompt), node)]
    assert names == [f"of_{number:05}_.mp4" for number in range(1, 5)]
    folder = client.host.output_dir / "numbers"
    assert sorted(path.name for path in folder.iterdir()) == names
    one, two = (np.stack(_read_video(folder / name)[0]) for name in names[:2])
    assert np.abs(one.astype(int) - two).max() > 20, "both clips of the batch are the same"


def test_native_vae_takes_both_ways_too(client):
    if client.host.env.version == "0.3.64":
        pytest.skip("this ComfyUI fixes the VAE's width of Wan models")
    graph = Graph()
    vae, native = our_vae(graph), graph.add("VAELoader", vae_name=FILES["vae"].name)
    file = input_file(client, "both", clip(9))
    mine, theirs = (encode(graph, one, file) for one in (vae, native))
    graph.dump(mine, "latent_ours")
    graph.dump(theirs, "latent_native")
    nodes = [save(graph, one, mine, "both", codec="ffv1") for one in (vae, native)]
    history = client.run(graph.prompt)
    ours, native = (dumped(client.host.output_dir, f"latent_{side}") for side in ("ours", "native"))
    assert (ours - native).abs().max() < 1e-3
    files = [client.host.output_dir / shown(history, node)[0]["filename"] for node in nodes]
    a, b = (np.stack(_read_video(path)[0]).astype(int) for path in files)
    assert np.abs(a - b).max() <= 1


def test_encode_from_a_file_is_the_encode_of_its_frames(client):
    graph = Graph()
    vae, file = our_vae(graph), input_file(client, "frames", clip(12))
    video = graph.add("LoadVideo", file=file)
    images = graph.add("GetVideoComponents", video=video)
    graph.dump(graph.add("WanCoreVAEEncode", images=images.wire(0), vae=vae), "from_images")
    whole = encode(graph, vae, file)
    graph.dump(whole, "from_file")
    graph.dump(encode(graph, vae, file, start_frame=3, frames=5, width=32, height=32), "from_part")
    history = client.run(graph.prompt)
    images, read, part = (dumped(client.host.output_dir, f"from_{what}") for what in ("images", "file", "part"))
    assert read.shape == (1, 16, 3, 8, 12) and part.shape == (1, 16, 2, 4, 4)
    assert (images - read).abs().max() < 0.2  # native nodes convert the colours of a file a little differently
    assert (images[:, :, 1] - read[:, :, 2]).abs().max() > 0.5
    assert any("last 3 of 12" in line for line in history["outputs"][whole.number]["text"])


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("/tmp/out", "leads out of"),
        ("../out", "leads out of"),
        ("a/../../out", "leads out of"),
        ("..\\out", "leads out of"),
        ("C:\\out", "leads out of"),
        ("~/out", "leads out of"),
        ("", "leads out of"),
        ("a\0b", "leads out of"),
        ("a/con/b", "cannot be a file's name"),
        ("a\\nul", "cannot be a file's name"),
        ("video/", "cannot be a file's name"),
        ("abc:stream", "cannot be a file's name"),
        ("x" * 300, "cannot be a file's name"),
    ],
)
def test_a_prefix_that_leads_elsewhere_is_refused_before_anything_runs(client, prefix, said):
    before = tree(client.host.base_dir)
    graph = Graph()
    vae = our_vae(graph)
    save(graph, vae, encode(graph, vae, input_file(client, "refused", clip(5))), prefix)
    with pytest.raises(api_client.JobError, match=said):
        client.run(graph.prompt)
    assert tree(client.host.base_dir) - before <= {Path("input/refused.mkv")}


def tree(folder: Path) -> set[Path]:
    kept = {"user", "temp", "custom_nodes"}
    return {p.relative_to(folder) for p in folder.rglob("*") if p.relative_to(folder).parts[0] not in kept}


def test_a_link_out_of_the_output_folder_is_refused(client, tmp_path):
    link = client.host.output_dir / "way_out"
    if not link.is_symlink():
        os.symlink(tmp_path, link)
    graph = Graph()
    vae = our_vae(graph)
    save(graph, vae, encode(graph, vae, input_file(client, "link", clip(5))), "way_out/file")
    with pytest.raises(api_client.JobError, match="leads out of the output folder"):
        client.run(graph.prompt)
    assert list(tmp_path.iterdir()) == []
    link.unlink()


def test_a_folder_that_is_a_file_is_said_and_the_latent_is_kept(client):
    graph = Graph()
    vae = our_vae(graph)
    latent = encode(graph, vae, input_file(client, "kept", clip(5)))
    block = client.host.output_dir / "blocked"
    block.write_text("a file")
    save(graph, vae, latent, "blocked/file")
    with pytest.raises(api_client.JobError, match=r"cannot be made or read.*The latent is kept"):
        client.run(graph.prompt)
    block.unlink()
    client.run(graph.prompt)
    assert (client.host.output_dir / "blocked" / "file_00001_.mp4").is_file()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("noise.mp4", b"\x00" * 5000, "cannot be read"),
        ("list.mp4", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n", "cannot be read"),
        ("concat.mkv", b"ffconcat version 1.0\nfile /etc/passwd\n", "cannot be read"),
        ("huge.gif", b"GIF89a" + b"\x20\x4e\x20\x4e" + b"\x80\x00\x00" + bytes(6), "huge.gif"),
        ("text.txt", b"hello", "no video|not in|has the ending"),
    ],
)
def test_files_that_are_no_video_are_answered_by_a_sentence(client, name, content, said):
    (client.host.base_dir / "input" / name).write_bytes(content)
    graph = Graph()
    graph.dump(encode(graph, our_vae(graph), name), "never")
    with pytest.raises(api_client.JobError, match=said):
        client.run(graph.prompt)


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/passwd", "../secret.mp4 [output]", "a/../../secret.mp4"])
def test_only_files_of_the_hosts_folders_are_read(client, name):
    write_video(clip(5), Place(folder=client.host.base_dir, name="s"), VideoSettings(fps=8)).rename(
        client.host.base_dir / "secret.mp4"
    )
    graph = Graph()
    graph.dump(encode(graph, our_vae(graph), name), "never")
    with pytest.raises(api_client.JobError, match=r"leads out of|There is no video"):
        client.run(graph.prompt)


def test_a_saved_file_is_read_again_by_its_name_in_the_output_folder(client):
    graph = Graph()
    vae = our_vae(graph)
    node = save(graph, vae, encode(graph, vae, input_file(client, "again", clip(9))), "again")
    (entry,) = shown(client.run(graph.prompt), node)
    back = Graph()
    back.dump(encode(back, our_vae(back), f"{entry['filename']} [output]"), "again")
    client.run(back.prompt)
    assert dumped(client.host.output_dir, "again").shape == (1, 16, 3, 8, 12)
