"""THE table of what a person can plug in wrong, and what must be answered. One row: what, how it is made, the verdict."""

# ruff: noqa: E501 (a row is a line: the table is read down its first column)

import torch

from tests.wan_core.weights.test_pickle_file import HOSTILE
from wan_core.errors import CapacityError, InputError, MismatchError, ModelFileError
from wan_core.sampling.sigmas import make_schedule

from .contents import CLIP, F32, VAE, holding, lora, named, network, packed, t5, tokenizer, umt5, vace_module, wan
from .editing import EDITING
from .makers import (
    INF,
    NAN,
    accepted,
    beside,
    clip_features,
    clip_image,
    control_entry,
    empty_latent,
    entry,
    file,
    filled,
    folder,
    image_entry,
    native_vae,
    pair,
    prompt,
    pth,
    refused,
    sampler,
    start_image,
    vace_entry,
    vae_decode,
    vae_encode,
    vae_wire,
    with_module,
)  # fmt: skip

FILE, INPUT, MISMATCH = ModelFileError, InputError, MismatchError
M, T, V, C, L = "model", "text encoder", "VAE", "CLIP vision", "LoRA"
GOOD = wan()
T2V, I2V, TI2V = wan("t2v-a14b"), wan("i2v-a14b"), wan("ti2v-5b")
TWICE = b'{"a":%b,"a":%b}' % ((b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}',) * 2)
DIT = "blocks.0.self_attn.norm_q.weight", "blocks.0.modulation"


def two(first: list[int], second: list[int], size: int) -> bytes:
    return packed({"a": {**F32, "data_offsets": first}, "b": {**F32, "data_offsets": second}}, bytes(size))


# fmt: off
DAMAGED = [
    refused("LFS pointer", file(M, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), FILE, "Git LFS pointer", "git lfs pull"),
    refused("web page", file(V, b"<!DOCTYPE html><html>log in</html>"), FILE, "web page", "Download the file itself"),
    refused("storage server's error", file(T, b"<?xml version='1.0'?><Error>AccessDenied</Error>"), FILE, "XML"),
    refused("empty file", file(C, b""), FILE, "is empty (0 bytes)", "Download it again"),
    refused("seven bytes", file(M, b"1234567"), FILE, "only 7 bytes"),
    refused("noise", file(M, bytes(range(1, 200))), FILE, "not a safetensors file"),
    refused("download cut in its header", file(M, GOOD[:100]), FILE, "is cut: its header"),
    refused("download cut in its data", file(V, GOOD[:-5]), FILE, "is cut: its tensors need"),
    refused("trailing bytes", file(T, GOOD + b"xyz"), FILE, "3 trailing bytes"),
    refused("duplicate keys", file(M, packed(TWICE)), FILE, "duplicate key 'a'"),
    refused("overlapping ranges", file(V, two([0, 8], [4, 12], 12)), FILE, "overlaps the tensor before it"),
    refused("a hole between ranges", file(M, two([0, 8], [12, 20], 20)), FILE, "leaves a hole"),
    refused("header bomb: 2^63 bytes", file(M, (2**63).to_bytes(8, "little") + b"{}" + bytes(20)), FILE, "declares a header of 9223372036854775808"),
    refused("header bomb: 2.6 million lists", file(T, packed(b'{"a":[' + b"[]," * 2_600_000 + b"[]]}")), FILE, "more entries than any model"),
    refused("header bomb: 700,000 names", file(C, packed(b"{" + b",".join(b'"%x":0' % i for i in range(700_000)) + b"}")), FILE, "more entries"),
    refused("header bomb: as many as pass", file(M, packed(b"{" + b",".join(b'"%x":0' % i for i in range(159_000)) + b"}")), FILE, "159000 tensors"),
    refused("header bomb: nested 150,000 deep", file(M, packed(b'{"a":' + b"[" * 150_000 + b"]" * 150_000 + b"}")), FILE, "nested too deep"),
    refused("a number of 5000 digits", file(M, packed(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}')), FILE, "out of range"),
    refused("a shape of 2^80 values", file(M, packed({"a": {**F32, "shape": [2**40, 2**40]}})), FILE, "too large to be true"),
    refused("unknown number type", file(M, packed({"a": {**F32, "dtype": "F33"}})), FILE, "unknown type 'F33'"),
    refused("a name that walks attributes", file(M, packed({"a.__class__.__base__": F32})), FILE, "name that is not accepted"),
    refused("no tensors", file(M, packed({"__metadata__": {"a": "b"}}, b"")), FILE, "holds no tensors"),
    refused("GGUF", file(M, b"GGUF\x03\0\0\0" + bytes(64), "model.gguf"), FILE, "GGUF is not supported yet", "fp8_scaled"),
    refused("zip under another name", file(M, b"PK\x03\x04" + bytes(64)), FILE, "zip archive", "convert"),
    refused("pickle under another name", file(V, b"\x80\x02}q\0." + bytes(64)), FILE, "Python pickle", "convert"),
    refused("gzip", file(M, b"\x1f\x8b\x08" + bytes(64)), FILE, "gzip", "Unpack"),
    refused("a picture", file(C, b"\x89PNG\r\n\x1a\n" + bytes(64)), FILE, "PNG image"),
    refused("a workflow", file(M, b'{"nodes": [], "links": []}'), FILE, "JSON text"),
    refused("a file that is gone", file(M, lambda rig: rig.folder / "gone.safetensors"), FILE, "cannot be opened", "Check the path"),
    refused("an empty folder", file(M, folder()), FILE, "holds no safetensors file"),
    refused("a folder of two models", file(M, folder(("a.safetensors", GOOD), ("b.safetensors", GOOD))), FILE, "several models", "a.safetensors"),
    refused("one part of a sharded model", file(M, GOOD, "d-00001-of-00003.safetensors"), FILE, "part 1 of 3", "index"),
    refused("index of parts that are not there", file(M, b'{"weight_map": {"a": "d-00001-of-00001.safetensors"}}', "d.safetensors.index.json"), FILE, "1 of 1 parts are not beside it"),
    refused("index that leaves its folder", file(M, b'{"weight_map": {"a": "../../etc/passwd"}}', "d.safetensors.index.json"), FILE, "plain .safetensors names"),
    refused("a tensor missing", file(M, wan(drop=("blocks.1.ffn.2.bias",))), FILE, "blocks.1.ffn.2.bias", "missing"),
    refused("a tensor too many", file(V, network("vae", VAE, extra=("F32", (2,)))), FILE, "extra", "no place"),
    refused("a tensor of another shape", file(M, wan(**{"blocks.1.ffn.2.bias": ("BF16", (47,))})), FILE, "[47]", "[48]"),
    refused("metadata of another model", file(M, wan(metadata={"config": '{"num_heads": 2, "num_layers": 40}'})), FILE, "num_layers 40", "3"),
    refused("number of heads unknown", file(M, wan(metadata={"config": "{}"})), FILE, "attention heads cannot be told", "48"),
    refused("a VAE of 4 latent channels", file(V, network("vae", type(VAE)(dim=4, dec_dim=4, z_dim=4))), FILE, "4 latent channels", "16 and 48"),
    *(refused(f"pth: {name}", pth(write), FILE, words) for name, (write, words) in HOSTILE.items()),
]

WRONG_KIND = [
    refused("LoRA as model (peft names)", file(M, named("diffusion_model.blocks.0.self_attn.q.lora_A.weight")), FILE, "a LoRA", "models/loras"),
    refused("LoRA as model (kohya names)", file(M, named("lora_unet_blocks_0_self_attn_q.lora_up.weight")), FILE, "a LoRA"),
    refused("LoRA as VAE", file(V, named("transformer.blocks.0.attn1.to_q.lora_B.weight")), FILE, "a LoRA"),
    refused("VAE as model", file(M, network("vae", VAE)), FILE, "Wan VAE file", "not a diffusion model", "VAE loader"),
    refused("text encoder as model", file(M, umt5()), FILE, "text encoder file", "text encoder loader"),
    refused("CLIP vision as model", file(M, network("clip_vision", CLIP, "hf")), FILE, "CLIP vision encoder file", "CLIP vision loader"),
    refused("model as VAE", file(V, GOOD), FILE, "diffusion model file, not a VAE", "model loader"),
    refused("model as text encoder", file(T, GOOD), FILE, "diffusion model file, not a text encoder"),
    refused("model as CLIP vision", file(C, GOOD), FILE, "diffusion model file, not a CLIP vision"),
    refused("VAE as text encoder", file(T, network("vae", VAE, "diffusers")), FILE, "Wan VAE file, not a text encoder"),
    refused("text encoder as CLIP vision", file(C, umt5()), FILE, "text encoder file, not a CLIP vision"),
    refused("CLIP vision as VAE", file(V, network("clip_vision", CLIP, "hf")), FILE, "CLIP vision encoder file, not a VAE"),
    refused("SDXL checkpoint", file(M, named("conditioner.embedders.1.model.ln_final.weight", "first_stage_model.decoder.conv_in.weight")), FILE, "SDXL", "Load Checkpoint"),
    refused("Stable Diffusion 1.5", file(M, named("model.diffusion_model.input_blocks.0.0.weight")), FILE, "Stable Diffusion"),
    refused("Stable Diffusion 3", file(M, named("joint_blocks.0.context_block.attn.qkv.weight")), FILE, "Stable Diffusion 3"),
    refused("Flux", file(M, named("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")), FILE, "Flux"),
    refused("LTX", file(M, named("adaln_single.linear.weight", "transformer_blocks.0.attn1.to_q.weight")), FILE, "LTX"),
    refused("Qwen Image", file(M, named("transformer_blocks.0.attn.add_q_proj.weight")), FILE, "another family"),
    refused("text-to-speech model (F5)", file(M, named("ema_model.transformer.transformer_blocks.0.attn.to_q.weight", "ema_model.mel_spec.mel_stft.mel_scale.fb")), FILE, "text-to-speech"),
    refused("text-to-speech model (XTTS)", file(T, named("gpt.mel_embedding.weight", "gpt.mel_head.weight", "hifigan_decoder.waveform_decoder.conv_pre.bias")), FILE, "text-to-speech"),
    refused("audio encoder", file(M, named("wav2vec2.encoder.layers.0.attention.k_proj.weight")), FILE, "wav2vec2", "not supported yet"),
    refused("one block of a Wan model", file(M, named("blocks.3.self_attn.q.weight")), FILE, "part of a Wan model", "single-file"),
    refused("something unknown", file(M, named("something.else")), FILE, "no Wan model", "something.else", "another file"),
    refused("T5 instead of umT5", file(T, t5()), FILE, "T5", "not umT5", "umt5_xxl"),
    refused("T5 v1.1 (Flux, SD 3)", file(T, named("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight")), FILE, "T5", "not umT5", "umt5_xxl"),
    refused("CLIP-L text encoder", file(T, named("text_model.encoder.layers.0.mlp.fc1.weight")), FILE, "CLIP text encoder", "umT5"),
    refused("language model", file(T, named("model.layers.0.self_attn.q_proj.weight")), FILE, "language model", "umT5"),
    refused("VAE of Stable Diffusion", file(V, named("encoder.down.0.block.0.conv1.weight")), FILE, "VAE of another model", "wan_2.1_vae"),
    refused("tiny preview VAE", file(V, named("decoder.1.weight", "encoder.0.weight")), FILE, "tiny preview VAE", "vae_approx"),
    refused("CLIP ViT-L", file(C, network("clip_vision", type(CLIP)(image_size=28, dim=1024, mlp_dim=2, num_heads=16, num_layers=24), "hf", **{f"vision_model.encoder.layers.23.mlp.fc1.{x}": ("BF16", (2,)) for x in ("weight", "bias")})), FILE, "CLIP ViT-L", "clip_vision_h"),
    refused("SigLIP", file(C, named("vision_model.encoder.layers.0.mlp.fc1.weight", "vision_model.head.probe")), FILE, "another image encoder", "clip_vision_h"),
    refused("text half of CLIP", file(C, named("text_model.encoder.layers.0.mlp.fc1.weight")), FILE, "CLIP text encoder"),
    *(refused(f"not supported yet: {title}", file(M, named(*DIT, name, "patch_embedding.weight")), FILE, title, "not supported yet")
      for title, name in [
          ("Wan 2.2 S2V", "audio_injector.injector.0.q.weight"),
          ("Wan 2.2 Animate", "face_adapter.fuser_blocks.0.linear1_kv.weight"), ("HuMo", "audio_proj.proj1.weight"),
          ("SCAIL 2", "patch_embedding_mask.weight"), ("SCAIL", "patch_embedding_pose.weight"),
          ("WanDancer", "patch_embedding_global.weight")]),
    refused("VACE module that lacks a tensor", with_module(GOOD, vace_module(drop=("vace_blocks.1.after_proj.bias",))), FILE, "vace_blocks.1.after_proj.bias", "missing"),
    refused("VACE of other channels", file(M, wan("vace-1.3b", **{"vace_patch_embedding.weight": ("BF16", (48, 32, 1, 2, 2))})), FILE, "VACE context of 32 channels", "96"),
    accepted("VACE module on a T2V model", with_module(GOOD, vace_module())),
    refused("not supported yet: 52 channels", file(M, wan(**{"patch_embedding.weight": ("BF16", (48, 52, 1, 2, 2))})), FILE, "takes 52", "Fun Control"),
    refused("int8", file(M, wan(**{"blocks.0.ffn.0.weight": ("I8", (64, 48))})), FILE, "int8", "fp8_scaled"),
    refused("nvfp4", file(M, wan(**{"blocks.0.ffn.0.weight": ("U8", (64, 24)), "blocks.0.ffn.0.weight_scale_2": ("F32", ())})), FILE, "4-bit", "fp8_scaled"),
    refused("mxfp8", file(T, packed({"a": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}})), FILE, "mxfp8", "fp8_scaled"),
    refused("bitsandbytes", file(M, wan(**{"blocks.0.ffn.0.weight.absmax": ("F32", (2,))})), FILE, "bitsandbytes"),
    refused("GPTQ or Nunchaku", file(M, wan(**{"blocks.0.ffn.0.qweight": ("I32", (2, 2))})), FILE, "GPTQ"),
    refused("a rotated quantisation", file(M, wan(metadata={"_quantization_metadata": '{"layers": {"x": {"format": "float8_e4m3fn", "convrot": true}}}'})), FILE, "convrot"),
    refused("whole numbers only", file(V, network("vae", VAE, code="I16")), FILE, "no floating-point weights"),
]

PAIRS = [
    refused("experts of T2V and I2V", pair(T2V, I2V), MISMATCH, "different shapes", "in_dim 16 and 36", "one model"),
    refused("experts of different size", pair(T2V, wan("t2v-a14b", layers=2)), MISMATCH, "num_layers 3 and 2"),
    refused("one file as both experts", file(M, lambda rig: rig.write("a.safetensors", T2V), low_noise_path="a.safetensors"), MISMATCH, "chosen as the high-noise and as the low-noise", "other expert"),
    refused("a pair of a model that has none", pair(wan("i2v-14b-480p"), wan("i2v-14b-480p")), MISMATCH, "single model", "'none'"),
    refused("a VAE as the low-noise expert", pair(T2V, network("vae", VAE)), FILE, "a_low_noise", "Wan VAE", "VAE loader"),
    refused("a variant that the file is not", file(M, T2V, variant="i2v-a14b"), MISMATCH, "cannot be 'i2v-a14b'", "t2v-1.3b"),
    refused("an unknown precision", file(M, T2V, dtype="int4"), INPUT, "int4", "bf16"),
    accepted("experts swapped, by their names", pair(T2V, T2V, ("wan_low_noise", "wan_high_noise")), "swapped", "high-noise is wan_low_noise"),
    accepted("twice the high-noise expert, by the names", pair(T2V, T2V, ("high_fp8", "high_fp16")), "both are the high-noise expert"),
    accepted("names that only look like it", pair(T2V, T2V, ("yellow_flow", "thigh_slow"))),
    accepted("one expert by itself", file(M, I2V), "one expert of a pair", "low_noise_model"),
]

TOKENIZERS = [
    refused("tokenizer missing", file(T, umt5()), FILE, "carries no tokenizer", "spiece.model", "umt5_xxl_fp8"),
    refused("tokenizer damaged", file(T, umt5(b"not a tokenizer")), FILE, "not a sentencepiece model", "google/umt5-xxl"),
    refused("tokenizer file empty", beside("spiece.model", b""), FILE, "not a sentencepiece model (0 bytes)"),
    refused("tokenizer.json of another model", beside("tokenizer.json", b'{"model": {"type": "BPE"}}'), FILE, "BPE", "Unigram"),
    refused("tokenizer.json that is a web page", beside("tokenizer.json", b"<html>"), FILE, "not a tokenizer.json"),
    refused("tokenizer larger than the vocabulary", file(T, umt5(tokenizer(600))), MISMATCH, "pieces", "knows 430", "google/umt5-xxl"),
    accepted("tokenizer in the file", file(T, umt5(tokenizer()))),
    accepted("tokenizer beside the file", beside("spiece.model", tokenizer())),
]

PROMPTS = [
    accepted("empty prompt", prompt("")),
    accepted("only spaces", prompt(" \n\t ")),
    accepted("10,000 tokens", prompt("cat " * 10_000), "tokens long", "reads 512", "were cut off"),
    refused("1 MB of text", prompt("x" * 2**20), INPUT, "1048576 characters", "200000", "Shorten"),
    accepted("a prompt in the wrong encoding", prompt("schÃ¶n"), "wrong encoding", '"schön", type it so'),
    accepted("the longest text that is read", prompt("Ω " * 100_000), "cut off"),
    *(accepted(f"{what}, {how}", prompt(words, clean))
      for clean, how in ((True, "our node"), (False, "native node"))
      for what, words in [
          ("emoji joined with ZWJ", "👩‍👩‍👧‍👦 family 🏳️‍🌈"), ("right to left", "قطة تمشي על העשב \u202egnirts"), ("NUL", "a\0b"),
          ("lone surrogates", "a \ud83d b \udc00"), ("line separator", "a\u2028b\u2029c"), ("control characters", "".join(map(chr, range(32))))]),
]

SIZES = [
    refused("width off the grid", empty_latent(width=72), INPUT, "multiple of 16", "got 72", "64 or 80"),
    refused("height off the grid of the 5B", empty_latent("ti2v-5b", height=48), INPUT, "multiple of 32", "got 48", "32 or 64"),
    refused("width 0", empty_latent(width=0), INPUT, "width", "got 0", "Use 16"),
    refused("height below 0", empty_latent(height=-480), INPUT, "height", "got -480", "Use 16"),
    refused("width of 10^6", empty_latent(width=10**6), INPUT, "to 8192", "got 1000000", "Use 8192"),
    refused("frames off the grid", empty_latent(frames=82), INPUT, "4n+1", "got 82", "81 or 85"),
    refused("0 frames", empty_latent(frames=0), INPUT, "got 0", "Use 1"),
    refused("10^6 frames", empty_latent(frames=10**6), INPUT, "got 1000000", "Use 8193"),
    refused("a size that no machine holds", empty_latent(width=8192, height=8192, frames=8193, batch_size=64), INPUT, "8192x8192 and 8193 frames", "tokens", "fewer frames"),
    refused("10^6 frames from a native node", sampler(latent=torch.zeros(1, 16, 1, 8, 8).expand(1, 16, 250_001, 8, 8)), INPUT, "1000001 frames", "4000000"),
    refused("a size that this machine cannot hold", sampler(latent=torch.zeros(1, 16, 201, 60, 104), memory_bytes=10**6), CapacityError, "Use fewer frames"),
    refused("10^6 frames to decode", vae_decode(torch.zeros(1, 16, 1, 8, 8).expand(1, 16, 250_001, 8, 8)), INPUT, "1000001 frames"),
    accepted("one frame", empty_latent(frames=1)),
]

PICTURES = [
    refused("no picture at all", start_image(None), INPUT, "start_image", "Empty Latent"),
    refused("picture with NaN", start_image(filled(1, 64, 64, 3, value=NAN)), INPUT, "start_image holds NaN"),
    refused("picture with infinity", start_image(filled(1, 80, 64, 3, value=INF)), INPUT, "start_image holds NaN or infinity"),
    refused("0 pictures", start_image(filled(0, 64, 64, 3)), INPUT, "[0, 64, 64, 3]", "none of them 0"),
    refused("picture of 2 channels", start_image(filled(1, 64, 64, 2)), INPUT, "2 channels", "RGB"),
    refused("a mask as picture", start_image(filled(1, 64, 64)), INPUT, "count, height, width, channels", "[1, 64, 64]"),
    refused("picture of bytes", start_image(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)), INPUT, "fractions", "uint8"),
    refused("picture that counts to 255", start_image(filled(1, 64, 64, 3) * 255), INPUT, "pictures are 0 to 1", "Divide by 255"),
    refused("picture of 1 x 8192", start_image(filled(1, 8192, 1, 3)), INPUT, "1x8192", "64x64", "Crop"),
    refused("size off the grid of the 5B's VAE", start_image(filled(1, 64, 64, 3), 48, width=80), INPUT, "multiple of 32", "got 80"),
    accepted("picture with alpha", start_image(filled(1, 64, 64, 4))),
    accepted("picture of 1 pixel", start_image(filled(1, 1, 1, 3))),
    accepted("picture of another shape", start_image(filled(1, 100, 300, 3)), "centre cut to 64x64"),
    accepted("more pictures than frames", start_image(filled(9, 64, 64, 3))),
    accepted("picture a little beyond 0 to 1", start_image(filled(1, 64, 64, 3) * 1.2 - 0.1)),
    refused("NaN for CLIP vision", clip_image(filled(1, 30, 30, 3, value=NAN)), INPUT, "holds NaN"),
    refused("1 channel for CLIP vision", clip_image(filled(1, 30, 30, 1)), INPUT, "1 channels", "RGB"),
    accepted("alpha for CLIP vision", clip_image(filled(1, 30, 30, 4))),
    accepted("1 pixel for CLIP vision", clip_image(filled(1, 1, 1, 3))),
    refused("NaN to encode", vae_encode(filled(1, 1, 16, 16, 3, value=NAN)), INPUT, "clip to encode holds NaN"),
    refused("0 frames to encode", vae_encode(filled(1, 0, 16, 16, 3)), INPUT, "none of them 0"),
    refused("a picture of 20 x 16 to encode", vae_encode(filled(1, 1, 16, 20, 3)), INPUT, "multiples of 8", "20x16", "16x16"),
    refused("1 pixel from a native node to encode", vae_wire(filled(1, 1, 1, 3)), INPUT, "8 pixels a side", "[1, 1, 1, 3]"),
    refused("a mask from a native node to encode", vae_wire(filled(16, 16)), INPUT, "[16, 16]"),
    accepted("alpha to encode", vae_encode(filled(1, 1, 16, 16, 4))),
]

LATENTS = [
    refused("latent of the 5B for a 14B model", sampler(latent=filled(1, 48, 3, 6, 8)), MISMATCH, "48", "takes 16", "Wan 2.1 VAE"),
    refused("latent of a 14B for the 5B model", sampler("ti2v-5b", filled(1, 16, 3, 6, 8)), MISMATCH, "16", "takes 48", "Wan 2.2 VAE"),
    refused("latent of Stable Diffusion", sampler(latent=filled(1, 4, 64, 64)), MISMATCH, "[1, 4, 1, 64, 64]", "takes 16"),
    refused("latent of sound", sampler(latent=filled(1, 64, 200)), MISMATCH, "[1, 64, 200]"),
    refused("latent without samples", sampler(latent={"noise_mask": None}), MISMATCH, "NoneType"),
    refused("latents of two kinds in one", sampler(latent={"samples": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}), MISMATCH, "several tensors, not one tensor"),
    refused("latent of no video", sampler(latent=filled(0, 16, 3, 6, 8)), INPUT, "none of them 0"),
    refused("latent with NaN", sampler(latent=filled(1, 16, 3, 6, 8, value=NAN)), INPUT, "holds NaN"),
    refused("latent with a key that is not known", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "reference": 1}), MISMATCH, "reference", "native KSampler"),
    refused("inpainting mask", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "noise_mask": torch.ones(1, 1, 48, 64)}), MISMATCH, "inpainting", "Remove the mask"),
    refused("mask of part of a frame, 5B", sampler("ti2v-5b", {"samples": filled(1, 48, 3, 6, 8), "noise_mask": filled(1, 1, 96, 128)}), MISMATCH, "whole latent frames"),
    refused("mask of other length, 5B", sampler("ti2v-5b", {"samples": filled(1, 48, 3, 6, 8), "noise_mask": torch.ones(1, 1, 5, 6, 8)}), MISMATCH, "[1, 1, 5, 6, 8]", "there are 3"),
    refused("mask of nothing, 5B", sampler("ti2v-5b", {"samples": filled(1, 48, 3, 6, 8), "noise_mask": torch.ones(0, 6, 8)}), INPUT, "noise mask", "[0, 6, 8]"),
    refused("batch_index below 0", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "batch_index": [-1]}), INPUT, "batch_index", "-1"),
    refused("batch_index of 10^9", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "batch_index": [10**9]}), INPUT, "batch_index", "1000000000"),
    refused("batch_index of another batch", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "batch_index": [0, 1]}), INPUT, "each of the 1 latents"),
    accepted("latent without frames", sampler(latent=filled(1, 16, 6, 8))),
    accepted("latent in half precision", sampler(latent=filled(1, 16, 3, 6, 8, dtype=torch.float16) * 60000)),
    refused("2.1 VAE behind the 5B model", vae_decode(filled(1, 48, 1, 2, 2)), MISMATCH, "48 channels", "takes 16", "5B"),
    refused("2.2 VAE behind a 14B model", vae_decode(filled(1, 16, 1, 2, 2), 48), MISMATCH, "16 channels", "takes 48", "5B"),
    refused("VAE of Stable Diffusion on the wire", native_vae(4), MISMATCH, "4 latent channels", "16 or 48"),
    refused("NaN to decode", vae_decode(filled(1, 16, 3, 2, 2, value=NAN)), INPUT, "latent holds NaN"),
    refused("sound to decode", vae_decode(filled(1, 16, 200)), INPUT, "batch, channels, frames"),
    accepted("a picture's latent to decode", vae_decode(filled(1, 16, 2, 2))),
]

CONDITIONING = [
    *(refused(f"conditioning with {key}", sampler(conditioning=entry(**{key: value})), MISMATCH, key, "Remove the node", "native KSampler")
      for key, value in [
          ("area", (64, 64, 0, 0)), ("mask", filled(1, 64, 64)), ("hooks", object()), ("control", object()), ("strength", 0.5),
          ("vace_mask", [1]), ("vace_strength", [1.0]),
          ("start_percent", 0.5), ("gligen", ("position",)), ("audio_embed", filled(1, 4)),
          ("time_dim_concat", filled(1, 4)), ("guidance", 3.5), ("pose_video_latent", filled(1, 4))]),
    refused("control video with NaN", sampler("fun-control-1.3b", conditioning=entry(concat_latent_image=filled(1, 32, 3, 6, 8, value=NAN))), INPUT, "holds NaN"),
    refused("reference picture that is no list", sampler("fun-control-a14b", conditioning=control_entry(reference_latents=filled(1, 16, 1, 6, 8))), INPUT, "no list"),
    accepted("two reference pictures", sampler("fun-control-a14b", conditioning=control_entry(reference_latents=[filled(1, 16, 1, 6, 8)] * 2)), "last one"),
    refused("camera path with NaN", sampler("fun-camera-a14b", conditioning=entry(camera_conditions=filled(1, 24, 3, 48, 64, value=NAN))), INPUT, "camera path holds NaN"),
    refused("camera path that is none", sampler("fun-camera-a14b", conditioning=entry(camera_conditions=filled(1, 4))), INPUT, "batch, channels, frames"),
    refused("VACE with NaN", sampler("vace-1.3b", conditioning=vace_entry(frames=[filled(1, 32, 3, 6, 8, value=NAN)])), INPUT, "VACE context holds NaN"),
    refused("VACE frames that are no tensor", sampler("vace-1.3b", conditioning=vace_entry(frames=["clip"])), INPUT, "VACE context must be a tensor"),
    refused("VACE strength NaN", sampler("vace-1.3b", conditioning=vace_entry(strength=[NAN])), INPUT, "strength must be", "nan"),
    accepted("VACE for a VACE model", sampler("vace-1.3b", conditioning=vace_entry())),
    refused("several entries", sampler(conditioning=[*entry(), *entry()]), INPUT, "2 entries", "takes one", "combines"),
    refused("no entry", sampler(conditioning=[]), INPUT, "0 entries"),
    refused("text of another encoder", sampler(conditioning=entry(filled(1, 7, 32))), MISMATCH, "32 wide", "takes 24", "umT5-XXL"),
    refused("text without tokens axis", sampler(conditioning=entry(filled(7, 24))), INPUT, "batch, tokens, width", "[7, 24]"),
    refused("text with NaN", sampler(conditioning=entry(filled(1, 7, 24, value=NAN))), INPUT, "text conditioning holds NaN"),
    refused("texts of another batch", sampler(conditioning=entry(filled(3, 7, 24))), MISMATCH, "3 samples", "the latent 1"),
    refused("image of another length", sampler("i2v-a14b", conditioning=image_entry((2, 6, 8))), MISMATCH, "[16, 2, 6, 8]", "[16, 3, 6, 8]", "same width"),
    refused("image of the other VAE", sampler("i2v-a14b", conditioning=image_entry(channels=48)), MISMATCH, "[48, 3, 6, 8]", "VAE"),
    refused("image with NaN", sampler("i2v-a14b", conditioning=image_entry(known=filled(1, 16, 3, 6, 8, value=NAN))), INPUT, "image conditioning holds NaN"),
    refused("images of another batch", sampler("i2v-a14b", conditioning=image_entry(known=filled(3, 16, 3, 6, 8))), MISMATCH, "3 samples"),
    refused("image mask of other size", sampler("i2v-a14b", conditioning=image_entry(mask=torch.zeros(1, 4, 3, 48, 64))), MISMATCH, "[4, 3, 48, 64]", "[4, 3, 6, 8]"),
    refused("image mask of a picture", sampler("i2v-a14b", conditioning=image_entry(mask=torch.zeros(1, 1, 48, 64))), MISMATCH, "[1, 1, 48, 64]", "image-to-video node"),
    refused("image mask without an image", sampler("i2v-a14b", conditioning=entry(concat_mask=torch.zeros(1, 4, 3, 6, 8))), MISMATCH, "mask without an image"),
    refused("CLIP features of another width", sampler("i2v-14b-480p", conditioning=clip_features(1, 257, 48)), MISMATCH, "48 wide", "takes 32", "ViT-H"),
    refused("CLIP features of three pictures, FLF2V", sampler("flf2v-14b", conditioning=clip_features(1, 771, 32)), MISMATCH, "771 tokens", "514"),
    refused("CLIP features with NaN", sampler("i2v-14b-480p", conditioning=clip_features(1, 257, 32, value=NAN)), INPUT, "CLIP vision output holds NaN"),
    refused("CLIP features without their token axis", sampler("i2v-14b-480p", conditioning=clip_features(257, 32)), INPUT, "batch, tokens, width"),
    accepted("CLIP features missing", sampler("i2v-14b-480p", conditioning=image_entry()), "without CLIP vision features"),
    accepted("CLIP features that are not needed", sampler("i2v-a14b", conditioning=clip_features(1, 257, 32)), "no CLIP branch", "harmless"),
    accepted("image on one side only", sampler("i2v-a14b", conditioning=image_entry(), negative=entry()), "Only the positive", "both outputs"),
    accepted("I2V model without an image", sampler("i2v-a14b"), "has no image", "from text alone"),
    accepted("T2V conditioning with neutral values", sampler(conditioning=entry(strength=1.0, end_percent=1.0))),
]

WIDGETS = [
    *(refused(f"{name} {value}", sampler(variant, **{name: value}), INPUT, word, str(value))
      for variant, name, value, word in [
          ("t2v-1.3b", "steps", -3, "steps must be"), ("t2v-1.3b", "steps", 1001, "1 to 1000"),
          ("t2v-1.3b", "shift", NAN, "shift must be"), ("t2v-1.3b", "shift", INF, "shift must be"), ("t2v-1.3b", "shift", -1.0, "shift must be"),
          ("t2v-1.3b", "guidance_high", NAN, "guidance must be"), ("t2v-1.3b", "guidance_high", INF, "guidance must be"),
          ("t2v-1.3b", "guidance_high", -2.0, "guidance must be"), ("t2v-a14b", "guidance_low", NAN, "guidance must be"),
          ("t2v-1.3b", "denoise", NAN, "denoise must be"), ("t2v-1.3b", "denoise", 0.0, "denoise must be"), ("t2v-1.3b", "denoise", 1.5, "denoise must be"),
          ("t2v-a14b", "boundary", NAN, "boundary must be"), ("t2v-a14b", "boundary", -0.1, "boundary must be"), ("t2v-a14b", "boundary", 1.1, "boundary must be"),
          ("t2v-a14b", "switch_step", -1, "switch_step"), ("t2v-1.3b", "start_step", -1, "start_step"), ("t2v-1.3b", "end_step", 0, "end_step"),
          ("t2v-1.3b", "seed", -1, "2^64"), ("t2v-1.3b", "seed", 2**64, "2^64"),
          ("t2v-1.3b", "solver", "euler_ancestral", "unknown solver"), ("t2v-1.3b", "schedule", "karras", "unknown schedule")]),
    refused("start_step beyond the end", sampler(start_step=2), INPUT, "start_step 2 leaves no step", "of 2", "below that"),
    refused("start_step with an empty latent", sampler(start_step=1), INPUT, "start_step 1", "latent is empty"),
    refused("more steps than a table holds", sampler(steps=900, denoise=0.5), INPUT, "900 steps at denoise 0.5", "at most 500"),
    refused("ascending SIGMAS", sampler(sigmas=torch.tensor([0.0, 0.5, 1.0])), INPUT, "value 1 (0.5) is not below"),
    refused("equal SIGMAS", sampler(sigmas=torch.tensor([1.0, 1.0, 0.0])), INPUT, "not below"),
    refused("SIGMAS with NaN", sampler(sigmas=torch.tensor([1.0, NAN, 0.0])), INPUT, "value 1 is nan"),
    refused("SIGMAS of Stable Diffusion", sampler(sigmas=torch.tensor([14.6, 5.0, 0.0])), INPUT, "14.6", "flow models"),
    refused("SIGMAS of one value", sampler(sigmas=torch.tensor([1.0])), INPUT, "at least 2 values"),
    refused("SIGMAS of no step left", sampler(sigmas=torch.zeros(0)), INPUT, "at least 2 values", "denoise"),
    refused("SIGMAS as a table", sampler(sigmas=torch.zeros(2, 3)), INPUT, "[2, 3]"),
    accepted("SIGMAS of our own making", sampler(sigmas=make_schedule("simple", 3, 5.0).sigmas)),
    accepted("denoise of an empty latent", sampler(denoise=0.5), "below full noise", "empty"),
    accepted("a boundary that leaves no low-noise step", sampler("t2v-a14b", boundary=0.001), "low-noise for 0"),
    accepted("a switch beyond the end", sampler("t2v-a14b", switch_step=50), "low-noise for 0"),
]

Q = "blocks.0.self_attn.q"
ON_I2V = "blocks.1.cross_attn.k_img"
LORAS = [
    refused("LoRA: LFS pointer", file(L, b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), FILE, "Git LFS pointer"),
    refused("LoRA: web page", file(L, b"<!DOCTYPE html><html>log in</html>"), FILE, "web page"),
    refused("LoRA: empty file", file(L, b""), FILE, "is empty"),
    refused("LoRA: cut", file(L, lora(Q, fill=1.0)[:-3]), FILE, "is cut"),
    refused("LoRA: a model", file(L, GOOD), FILE, "holds no LoRA of a Wan transformer", "Choose a Wan LoRA"),
    refused("LoRA: a VAE", file(L, network("vae", VAE)), FILE, "holds no LoRA"),
    refused("LoRA: of SDXL", file(L, named("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight")), FILE, "SDXL"),
    refused("LoRA: of Flux", file(L, named("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight")), FILE, "Flux"),
    refused("LoRA: of a larger model", file(L, lora(Q, width=5120)), MISMATCH, "none of its 2 tensors", "14B", "48 wide"),
    refused("LoRA: halves only", file(L, named(f"diffusion_model.{Q}.lora_A.weight")), MISMATCH, "upper half", "missing"),
    refused("LoRA: all zero", file(L, lora(Q)), MISMATCH, "changes nothing", "every change in it is zero"),
    refused("LoRA: NaN", file(L, lora(Q, fill=NAN)), FILE, "not finite"),
    refused("LoRA: infinity", file(L, lora(Q, fill=INF)), FILE, "not finite"),
    refused("LoRA: values too large to be true", file(L, lora(Q, fill=1e20)), FILE, "too large to be true"),
    refused("LoRA: a rank beyond every side", file(L, holding({f"diffusion_model.{Q}.lora_A.weight": ("F8_E4M3", (60_000, 48)), f"diffusion_model.{Q}.lora_B.weight": ("F8_E4M3", (48, 60_000))})), MISMATCH, "another shape"),
    refused("LoRA: a rank of nothing", file(L, holding({f"diffusion_model.{Q}.lora_A.weight": ("F32", (0, 48)), f"diffusion_model.{Q}.lora_B.weight": ("F32", (48, 0)), f"diffusion_model.{Q}.alpha": ("F32", ())})), MISMATCH, "changes nothing"),
    refused("LoRA: factors without sides", file(L, holding({f"diffusion_model.{Q}.lokr_w1": ("F32", ()), f"diffusion_model.{Q}.lokr_w2": ("F32", ())})), MISMATCH, "another shape"),
    refused("LoRA: more than fits, strict", file(L, lora(Q, ON_I2V, fill=1.0), strict=True), MISMATCH, "'strict' asks for every tensor"),
    refused("LoRA: blocks that are none", file(L, lora(Q, fill=1.0), blocks="0-3"), INPUT, "from 0 to 2"),
    refused("LoRA: blocks as words", file(L, lora(Q, fill=1.0), blocks="first"), INPUT, "numbers and ranges"),
    refused("LoRA: blocks that it does not change", file(L, lora(Q, fill=1.0), blocks="2"), MISMATCH, "changes nothing in the chosen blocks"),
    refused("LoRA: strength as words", file(L, lora(Q, fill=1.0), over="strong"), INPUT, "no strength over steps", "STEP: STRENGTH"),
    refused("LoRA: strength NaN", file(L, lora(Q, fill=1.0), over="nan"), INPUT, "from -100 to 100"),
    refused("LoRA: steps that fall", file(L, lora(Q, fill=1.0), over="4: 1, 2: 0"), INPUT, "must rise"),
    accepted("LoRA: of Wan 2.1 I2V on a model without CLIP branch", file(L, lora(Q, ON_I2V, fill=1.0)), "2 ignored", "CLIP", "harmless"),
    accepted("LoRA: parts of another family in it", file(L, lora(Q, fill=1.0, zz_unknown=("F32", (0,)))), "1 not applied: no part of a Wan transformer"),
    accepted("LoRA: of the low-noise expert on the high-noise one", file(L, lora(Q, fill=1.0), "style_low_noise.safetensors", model="t2v-a14b"), "by its name a LoRA of the low-noise expert"),
]
# fmt: on

ROWS = [
    *DAMAGED,
    *WRONG_KIND,
    *PAIRS,
    *LORAS,
    *TOKENIZERS,
    *PROMPTS,
    *SIZES,
    *PICTURES,
    *LATENTS,
    *CONDITIONING,
    *EDITING,
    *WIDGETS,
]
