"""Wrong pairs of the editing and control tasks (VACE, Fun, references, camera paths, extras of guidance): two things
that are good by themselves and do not fit. Each is refused, or told, before a block of the model is walked."""

# ruff: noqa: E501 (a row is a line: the table is read down its first column)

import torch

from wan_core.errors import InputError, ModelFileError
from wan_core.stages import guidance
from wan_core.variants import VARIANTS

from .contents import VAE, lora, network, vace_module, wan
from .makers import (
    CAMERA_CONTROL,
    FUN_CONTROL,
    IMAGE_TO_VIDEO,
    VACE_NODE,
    camera_entry,
    chained_vace,
    clip_features,
    control_entry,
    decoder,
    encoded,
    entry,
    file,
    filled,
    guided,
    image_entry,
    model,
    pair,
    reference_entry,
    sampler,
    subject_entry,
    then_sampled,
    vace_entry,
    warned,
    with_module,
    wrong_pair,
)  # fmt: skip

FILE, INPUT = ModelFileError, InputError
TITLES = {row.name: row.title for row in VARIANTS}
PICTURE, CLIP = filled(1, 64, 64, 3), filled(5, 64, 64, 3)
EMPTY = torch.zeros(1, 16, 2, 8, 8)
VAE_21, VAE_22 = network("vae", VAE), network("vae", type(VAE)(dim=4, dec_dim=4, z_dim=48, patch=2, shortcuts=True))
START_MASK = torch.ones(1, 1, 3, 6, 8)
START_MASK[:, :, 0] = 0
MASKED = {"samples": filled(1, 48, 3, 6, 8), "noise_mask": START_MASK}
END_MASK = torch.ones(1, 4, 3, 6, 8)
END_MASK[:, :, -1] = 0


def crossed(what: str, phrase: str, conditioning: list, fixes: dict[str, str]):
    """What one task gives, for models of other tasks; with the fix that each is told."""
    for name, fix in fixes.items():
        made = sampler(name, conditioning=conditioning)
        yield wrong_pair(f"{what} for {TITLES[name]}", made, f"carries {phrase}", f"{TITLES[name]} takes none", fix)


# fmt: off
FOR_ANOTHER_TASK = [
    *crossed("control video", "a control video", control_entry(), {
        "t2v-1.3b": "Load a Fun Control model", "i2v-a14b": "Load a Fun Control model", "fun-inp-1.3b": "Load a Fun Control model",
        "fun-camera-a14b": "Load a Fun Control model", "ti2v-5b": "Load a Fun Control model", "vace-1.3b": "Give the video to Wan Core VACE"}),
    *crossed("reference picture", "a reference picture", reference_entry(), {
        "t2v-a14b": "Load a Fun Control model", "i2v-14b-480p": "or disconnect the picture", "fun-control-1.3b": "of Wan 2.2 (or 2.1 V1.1)", "fun-inp-a14b": "or disconnect the picture",
        "fun-camera-1.3b": "Load a Fun Control model", "ti2v-5b": "Load a Fun Control model", "vace-14b": "Give the picture to Wan Core VACE (reference_image)"}),
    *crossed("camera path", "a camera path", camera_entry(), {
        "t2v-1.3b": "Load a Fun Camera model", "i2v-a14b": "Load a Fun Camera model", "fun-control-v1.1-1.3b": "Load a Fun Camera model",
        "fun-inp-a14b": "or disconnect the camera", "ti2v-5b": "Load a Fun Camera model", "vace-a14b": "or disconnect the camera"}),
    *crossed("VACE context", "a VACE context", vace_entry(), {
        "t2v-1.3b": "add a VACE module to a T2V model", "ti2v-5b": "Choose a VACE model", "flf2v-14b": "Choose a VACE model",
        "fun-control-a14b": "or remove the VACE node", "fun-inp-1.3b": "Choose a VACE model", "fun-camera-a14b": "Choose a VACE model"}),
    *crossed("image", "an image", image_entry(), {
        "t2v-a14b": "Choose an image-to-video model", "ti2v-5b": "It takes its picture in the latent", "vace-1.3b": "Give the picture to Wan Core VACE"}),
    wrong_pair("picture of a Fun InP 5B for TI2V 5B", then_sampled(encoded(IMAGE_TO_VIDEO, 48, start_image=PICTURE, model=model("fun-inp-5b")), "ti2v-5b"), "carries an image", TITLES["ti2v-5b"], "and no other model"),
    wrong_pair("Image to Video without its model, for Fun InP 5B", then_sampled(encoded(IMAGE_TO_VIDEO, 48, start_image=PICTURE), "fun-inp-5b"), "in the latent alone", TITLES["fun-inp-5b"], "Connect the model to Wan Core Image to Video"),
    wrong_pair("picture in the latent alone for Fun Control 5B", sampler("fun-control-5b", MASKED), "in the latent alone", TITLES["fun-control-5b"], "use Wan Core Fun Control"),
    wrong_pair("Fun Control for Image to Video", encoded(IMAGE_TO_VIDEO, start_image=PICTURE, model=model("fun-control-a14b")), TITLES["fun-control-a14b"], "Wan Core Image to Video", "takes its start image from Wan Core Fun Control"),
    wrong_pair("Fun Camera for Image to Video", encoded(IMAGE_TO_VIDEO, start_image=PICTURE, model=model("fun-camera-1.3b")), TITLES["fun-camera-1.3b"], "Wan Core Image to Video", "takes its start image from Wan Core Camera Control"),
    wrong_pair("VACE for Image to Video", encoded(IMAGE_TO_VIDEO, start_image=PICTURE, model=model("vace-1.3b")), TITLES["vace-1.3b"], "Wan Core Image to Video", "takes its start image from Wan Core VACE"),
    wrong_pair("T2V for Image to Video", encoded(IMAGE_TO_VIDEO, start_image=PICTURE, model=model("t2v-1.3b")), TITLES["t2v-1.3b"], "no start or end image", "Choose an image-to-video model"),
    wrong_pair("end image for TI2V 5B", encoded(IMAGE_TO_VIDEO, 48, start_image=PICTURE, end_image=PICTURE), "The 5B model", "no end_image", "Use an FLF2V or a Wan 2.2 14B I2V model", INPUT),
    warned("end image for Fun Control 2.1", sampler("fun-control-1.3b", conditioning=image_entry(mask=END_MASK)), "gives an end image", TITLES["fun-control-1.3b"], "Use a Fun InP model"),
    warned("end image for Fun Camera 2.1", sampler("fun-camera-1.3b", conditioning=camera_entry(**image_entry(mask=END_MASK)[0][1])), "gives an end image", TITLES["fun-camera-1.3b"], "Use a Fun InP model"),
    warned("CLIP features for Fun InP A14B", sampler("fun-inp-a14b", conditioning=clip_features(1, 257, 32)), TITLES["fun-inp-a14b"], "CLIP vision features are not used", "Disconnect them"),
    warned("Fun Control without a control video", sampler("fun-control-1.3b", conditioning=image_entry()), TITLES["fun-control-1.3b"], "no control video", "Connect Wan Core Fun Control"),
    warned("Fun Camera without a path", sampler("fun-camera-a14b", conditioning=image_entry()), TITLES["fun-camera-a14b"], "no camera path", "connect Wan Core Camera Path"),
    warned("VACE without a context", sampler("vace-1.3b"), TITLES["vace-1.3b"], "no VACE context", "Connect a VACE node, or use a T2V model"),
    warned("VACE on one side", sampler("vace-1.3b", conditioning=vace_entry(), negative=entry()), "Only the positive conditioning", "VACE contexts", "both outputs of the VACE node"),
    warned("control video on one side", sampler("fun-control-a14b", conditioning=control_entry(), negative=image_entry()), "Only the positive conditioning", "the control video", "both outputs of the Fun Control node"),
    warned("reference picture on the other side", sampler("fun-control-a14b", conditioning=control_entry(), negative=control_entry(reference_latents=[filled(1, 16, 1, 6, 8)])), "Only the negative conditioning", "the reference picture", "both outputs of the Fun Control node"),
    warned("camera path on one side", sampler("fun-camera-a14b", conditioning=camera_entry(), negative=entry()), "Only the positive conditioning", "the camera path", "both outputs of the camera node"),
    warned("CLIP features on one side, Fun InP", sampler("fun-inp-1.3b", conditioning=clip_features(1, 257, 32), negative=image_entry()), "Only the positive conditioning", "CLIP vision features", "both outputs of the image node"),
    *(wrong_pair(f"subjects for {TITLES[name]}", sampler(name, conditioning=subject_entry(channels)), "pictures of subjects", f"{TITLES[name]} takes none", "Load a Phantom model")
      for name, channels in (("i2v-a14b", 16), ("vace-1.3b", 16), ("fun-control-a14b", 16), ("ti2v-5b", 48))),
    wrong_pair("noise mask on what another sampler left", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "noise_mask": torch.ones(1, 48, 64)}, start_step=1), "carries a noise mask", "goes on from another sampler", "Sample in one Wan Core Sampler"),
    wrong_pair("noise mask in a run that stops", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "noise_mask": torch.ones(1, 48, 64)}, end_step=1), "carries a noise mask", "stops before the end", "Sample in one Wan Core Sampler"),
    wrong_pair("soft noise mask on what a 5B sampler left", sampler("ti2v-5b", {"samples": filled(1, 48, 3, 6, 8), "noise_mask": torch.full((1, 96, 128), 0.5)}, start_step=1), "carries a noise mask", "goes on from another sampler", "Sample in one Wan Core Sampler"),
    warned("noise mask on an empty latent", sampler(latent={"samples": torch.zeros(1, 16, 3, 6, 8), "noise_mask": torch.zeros(1, 48, 64)}), "noise mask keeps a part", "an empty latent", "Encode a clip"),
    warned("a range with noise levels of a wire", sampler(conditioning=[*entry(), *entry(start_percent=0.5)], sigmas=torch.tensor([1.0, 0.5, 0.0])), "conditionings count in", "noise levels on the wire", "Set shift"),
    wrong_pair("NAG with a negative for a part of the run", guided("t2v-1.3b", guidance.nag, 3.0, 2.5, 0.3, negative=entry(end_percent=0.5)), "NAG guides away from one", "counts in a part of the run", "or remove NAG", INPUT),
    wrong_pair("NAG with two negatives", guided("t2v-1.3b", guidance.nag, 3.0, 2.5, 0.3, negative=[*entry(), *entry()]), "NAG guides away from one", "has 2 entries", "or remove NAG", INPUT),
    warned("subjects on one side", sampler(conditioning=subject_entry(16), negative=entry()), "Only the positive conditioning", "the pictures of subjects", "both outputs of the subject node"),
    warned("mask of a shorter clip", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "noise_mask": torch.ones(5, 48, 64)}), "noise mask has 5 frames", "the clip 9", "Wan Core Inpaint Mask takes frame for frame"),
]

SIZES_DIFFER = [
    wrong_pair("control video of another length", sampler("fun-control-a14b", conditioning=control_entry((2, 6, 8))), "The control video was encoded to a latent of [16, 2, 6, 8]", "the latent to sample is [16, 3, 6, 8]", "Give both nodes the same width"),
    wrong_pair("control video of another width", sampler("fun-control-1.3b", conditioning=control_entry((3, 6, 4))), "The control video was encoded to a latent of [16, 3, 6, 4]", "the latent to sample is [16, 3, 6, 8]", "Give both nodes the same width"),
    wrong_pair("control videos for one latent", sampler("fun-control-1.3b", conditioning=control_entry(batch=3)), "The control video holds 3 samples", "the latent 1", "Use 1."),
    wrong_pair("start image of another size, Fun Camera", sampler("fun-camera-1.3b", conditioning=camera_entry(concat_latent_image=filled(1, 16, 3, 8, 8))), "start image was encoded to a latent of [16, 3, 8, 8]", "the latent to sample is [16, 3, 6, 8]", "Give both nodes the same width"),
    wrong_pair("mask of another length, Fun InP", sampler("fun-inp-a14b", conditioning=image_entry(mask=torch.zeros(1, 4, 2, 6, 8))), "mask of the image conditioning is [4, 2, 6, 8]", "the latent to sample needs [4, 3, 6, 8]", "Give both nodes the same width"),
    wrong_pair("mask in another place", sampler("fun-control-a14b", conditioning=control_entry(concat_mask_index=4)), "behind channel 4", "Wan models have it in front", "Use Wan Core Fun Control"),
    wrong_pair("reference picture of another size", sampler("fun-control-a14b", conditioning=control_entry(reference_latents=[filled(1, 16, 1, 8, 8)])), "encoded to [16, 8, 8]", "the latent to sample needs [16, 6, 8]", "Give both nodes the same width"),
    wrong_pair("reference pictures for one latent", sampler("fun-control-a14b", conditioning=control_entry(reference_latents=[filled(3, 16, 1, 6, 8)])), "reference picture holds 3 samples", "the latent 1", "Use 1."),
    warned("a clip as reference picture, Fun Control", sampler("fun-control-a14b", conditioning=control_entry(reference_latents=[filled(1, 16, 3, 6, 8)])), "reference latent has 3 frames", TITLES["fun-control-a14b"], "Encode a single picture"),
    wrong_pair("camera path of another size", sampler("fun-camera-a14b", conditioning=camera_entry(1, 24, 3, 64, 64)), "camera path is [24, 3, 64, 64]", "the latent to sample needs [24, 3, 48, 64]", "Give the camera node the same width"),
    wrong_pair("camera path of another length", sampler("fun-camera-1.3b", conditioning=camera_entry(1, 24, 2, 48, 64)), "camera path is [24, 2, 48, 64]", "the latent to sample needs [24, 3, 48, 64]", "Give the camera node the same width"),
    wrong_pair("camera path of a 14B for the 5B", sampler("fun-camera-5b", conditioning=camera_entry(1, 24, 3, 48, 64)), "camera path is [24, 3, 48, 64]", "the latent to sample needs [24, 3, 96, 128]", "Give the camera node the same width"),
    wrong_pair("camera paths for one latent", sampler("fun-camera-a14b", conditioning=camera_entry(2, 24, 3, 48, 64)), "camera path holds 2 samples", "the latent 1", "Use 1."),
    wrong_pair("CLIP features of another encoder, Fun InP", sampler("fun-inp-1.3b", conditioning=clip_features(1, 257, 48)), "CLIP vision features are 48 wide", "the model takes 32", "Use the ViT-H image encoder"),
    wrong_pair("VACE of another length", sampler("vace-1.3b", conditioning=vace_entry((2, 6, 8))), "VACE context is [32, 2, 6, 8]", "the latent to sample needs [32, 3, 6, 8]", "Connect the latent of the same VACE node"),
    wrong_pair("VACE of another width", sampler("vace-a14b", conditioning=vace_entry((3, 6, 4))), "VACE context is [32, 3, 6, 4]", "the latent to sample needs [32, 3, 6, 8]", "same VAE, width, height"),
    wrong_pair("VACE mask of other channels", sampler("vace-1.3b", conditioning=vace_entry(mask=[filled(1, 4, 3, 6, 8)])), "VACE mask is [4, 3, 6, 8]", "needs [64, 3, 6, 8]", "Connect the latent of the same VACE node"),
    wrong_pair("VACE mask of another size", sampler("vace-1.3b", conditioning=vace_entry(mask=[filled(1, 64, 3, 12, 16)])), "VACE mask is [64, 3, 12, 16]", "needs [64, 3, 6, 8]", "Connect the latent of the same VACE node"),
    wrong_pair("VACE contexts for one latent", sampler("vace-1.3b", conditioning=vace_entry(frames=[filled(2, 32, 3, 6, 8)])), "VACE context holds 2 samples", "the latent 1", "Use 1."),
    wrong_pair("VACE with more masks than contexts", sampler("vace-1.3b", conditioning=vace_entry(mask=[filled(1, 64, 3, 6, 8)] * 2)), "1 VACE contexts", "2 masks", "Remove the node that changes one of them"),
    wrong_pair("VACE reference picture with an Empty Latent", then_sampled(encoded(VACE_NODE, reference_image=PICTURE), "vace-1.3b", EMPTY), "VACE context is [32, 3, 8, 8]", "the latent to sample needs [32, 2, 8, 8]", "Connect the latent of the same VACE node"),
    wrong_pair("two VACE nodes of other lengths", chained_vace((3, 8, 8), (2, 8, 8)), "VACE contexts have 3, 2 latent frames", "every VACE node", "the same number of frames"),
    warned("fewer masks than frames, VACE", encoded(VACE_NODE, control_video=CLIP, control_masks=filled(3, 64, 64)), "control_masks has 3 masks", "for 5 frames", "Give a mask for each frame"),
    warned("control video shorter than the clip, Fun Control", encoded(FUN_CONTROL, control_video=PICTURE), "control_video has 1 pictures", "the clip 5 frames", "Give a longer control_video"),
    warned("control video longer than the clip, Fun Control", encoded(FUN_CONTROL, control_video=filled(9, 64, 64, 3)), "Of 9 pictures of control_video 5", "the clip has no more frames", "Make it longer"),
    wrong_pair("start and end images that overlap", encoded(IMAGE_TO_VIDEO, start_image=CLIP, end_image=CLIP), "start_image has 5 pictures and end_image 5", "the clip 5 frames", "Give fewer pictures", INPUT),
    wrong_pair("subjects of another size", sampler(conditioning=subject_entry(16, (6, 4))), "encoded to [16, 2, 6, 4]", "the latent to sample needs [16, 6, 8]", "same width, height and VAE"),
    wrong_pair("subjects of the Wan 2.2 VAE", sampler(conditioning=subject_entry(48)), "encoded to [48, 2, 6, 8]", "the latent to sample needs [16, 6, 8]", "same width, height and VAE"),
    wrong_pair("masks of two clips for one latent", sampler(latent={"samples": filled(1, 16, 3, 6, 8), "noise_mask": torch.ones(2, 1, 3, 6, 8)}), "noise mask has 2 clips", "the latent 1", "Give it one"),
]

OTHER_LATENTS = [
    *(wrong_pair(f"latent of {other} for {TITLES[name]}", sampler(name, filled(1, channels, 3, 6, 8)), f"The latent is [1, {channels}, 3, 6, 8]", f"{TITLES[name]} takes", "Make it with Wan Core Empty Latent")
      for name, channels, other in [("vace-1.3b", 48, "the 5B"), ("fun-control-a14b", 48, "the 5B"), ("fun-camera-5b", 16, "a 14B"), ("fun-inp-5b", 16, "a 14B")]),
    wrong_pair("Image to Video on the 2.1 VAE for Fun InP 5B", then_sampled(encoded(IMAGE_TO_VIDEO, 16, start_image=PICTURE), "fun-inp-5b"), "The latent is [1, 16, 2, 8, 8]", TITLES["fun-inp-5b"], "encode with the Wan 2.2 VAE"),
    wrong_pair("VACE node for Fun Control 5B", then_sampled(encoded(VACE_NODE, control_video=CLIP), "fun-control-5b"), "The latent is [1, 16, 2, 8, 8]", TITLES["fun-control-5b"], "Make it with Wan Core Empty Latent"),
    wrong_pair("Fun Control on the 2.2 VAE for Fun Control A14B", then_sampled(encoded(FUN_CONTROL, 48, control_video=CLIP), "fun-control-a14b", EMPTY), "The control video was encoded to a latent of [48, 2, 4, 4]", "the latent to sample is [16, 2, 8, 8]", "frames and VAE"),
    wrong_pair("control video of the other VAE, Fun Control 2.1", sampler("fun-control-1.3b", conditioning=control_entry(channels=48)), "The control video was encoded to a latent of [48, 3, 6, 8]", "the latent to sample is [16, 3, 6, 8]", "frames and VAE"),
    wrong_pair("control video of the other VAE, Fun Control 5B", sampler("fun-control-5b", conditioning=control_entry()), "The control video was encoded to a latent of [16, 3, 6, 8]", "the latent to sample is [48, 3, 6, 8]", "frames and VAE"),
    wrong_pair("Camera Control's start image of the other VAE", sampler("fun-camera-a14b", conditioning=camera_entry(concat_latent_image=filled(1, 48, 3, 6, 8))), "The image conditioning was made for a latent of [48, 3, 6, 8]", "the latent to sample is [16, 3, 6, 8]", "frames and VAE"),
    wrong_pair("reference picture of the other VAE", sampler("fun-control-a14b", conditioning=control_entry(reference_latents=[filled(1, 48, 1, 6, 8)])), "encoded to [48, 6, 8]", "the latent to sample needs [16, 6, 8]", "height and VAE"),
    wrong_pair("VACE context of the other VAE", sampler("vace-1.3b", conditioning=vace_entry(frames=[filled(1, 96, 3, 6, 8)])), "VACE context is [96, 3, 6, 8]", "needs [32, 3, 6, 8]", "the same VAE"),
    wrong_pair("2.2 VAE for the VACE node", encoded(VACE_NODE, 48, control_video=CLIP), "VACE models work in the latents of the Wan 2.1 VAE", "connected is the Wan 2.2 VAE", "Use the former"),
    wrong_pair("VAE of Stable Diffusion for the VACE node", encoded(VACE_NODE, 4, control_video=CLIP), "The VAE has 4 latent channels", "Wan takes 16 or 48", "Load the Wan 2.1 VAE"),
    wrong_pair("VAE of Flux for Fun Control", encoded(FUN_CONTROL, 128, control_video=CLIP), "The VAE has 128 latent channels", "Wan takes 16 or 48", "Load the Wan 2.1 VAE"),
    wrong_pair("VAE of Stable Diffusion for Camera Control", encoded(CAMERA_CONTROL, 4, camera_embedding=filled(1, 24, 2, 64, 64), start_image=PICTURE), "The VAE has 4 latent channels", "Wan takes 16 or 48", "Load the Wan 2.1 VAE"),
    wrong_pair("2.1 VAE for Fun InP 5B", encoded(IMAGE_TO_VIDEO, 16, start_image=PICTURE, model=model("fun-inp-5b")), f"{TITLES['fun-inp-5b']} takes the Wan 2.2 VAE", "connected is the Wan 2.1 VAE", "Use the former"),
    wrong_pair("2.2 VAE for Fun InP A14B", encoded(IMAGE_TO_VIDEO, 48, start_image=PICTURE, model=model("fun-inp-a14b")), f"{TITLES['fun-inp-a14b']} takes the Wan 2.1 VAE", "connected is the Wan 2.2 VAE", "Use the former"),
    wrong_pair("a size of the 2.1 VAE for Fun Control 5B", encoded(FUN_CONTROL, 48, control_video=CLIP, width=80), "for the Wan 2.2 VAE", "got 80", "Use 64 or 96", INPUT),
    *(wrong_pair(f"{vae} VAE behind {TITLES[name]}", decoder(name, content), f"{TITLES[name]} makes latents", "vae.safetensors, which is to decode them, takes", fix)
      for vae, content, name, fix in [
          ("2.2", VAE_22, "vace-1.3b", "Choose the Wan 2.1 VAE"), ("2.2", VAE_22, "fun-control-a14b", "Choose the Wan 2.1 VAE"),
          ("2.1", VAE_21, "fun-camera-5b", "Choose the Wan 2.2 VAE"), ("2.1", VAE_21, "fun-inp-5b", "Choose the Wan 2.2 VAE")]),
]

NAMES = ("wan2.2_fun_inpaint_high_noise_14B", "wan2.2_i2v_low_noise_14B")
T2V_PAIR = wan("t2v-a14b")
FILES = [
    *(wrong_pair(f"experts of {TITLES[high]} and {TITLES[low]}", pair(wan(high), wan(low)), f"a_high_noise.safetensors ({TITLES[high]}", f"a_low_noise.safetensors ({TITLES[low]}", "Choose the high-noise and the low-noise file of one model")
      for high, low in [("vace-a14b", "t2v-a14b"), ("t2v-a14b", "vace-a14b"), ("fun-control-a14b", "fun-camera-a14b"), ("fun-camera-a14b", "i2v-a14b")]),
    wrong_pair("experts of Fun InP and Fun Control", pair(wan("fun-inp-a14b"), wan("fun-control-a14b")), "Wan 2.2 Fun InP A14B", "Wan 2.2 Fun Control A14B", "Choose the high-noise and the low-noise file of one model"),
    warned("experts of Fun InP and I2V, by their names", pair(wan("i2v-a14b"), wan("i2v-a14b"), NAMES), "high_noise_14B.safetensors of Wan 2.2 Fun InP A14B", "low_noise_14B.safetensors of Wan 2.2 I2V A14B", "Choose both files of one model"),
    warned("one expert of Fun Control alone", file("model", wan("fun-control-a14b")), "model.safetensors is one expert", "Wan 2.2 Fun Control A14B", "Choose the other file as low_noise_model"),
    *(wrong_pair(f"a pair of {TITLES[name]}", pair(wan(name), wan(name)), TITLES[name], "a single model", "leave the low-noise file at 'none'") for name in ("fun-control-1.3b", "fun-camera-5b")),
    wrong_pair("Fun Control as Fun Camera", file("model", wan("fun-control-1.3b"), variant="fun-camera-1.3b"), "model.safetensors", "cannot be 'fun-camera-1.3b'", "It can be: fun-control-1.3b"),
    wrong_pair("T2V as VACE", file("model", wan(), variant="vace-1.3b"), "model.safetensors", "cannot be 'vace-1.3b'", "It can be: t2v-1.3b"),
    wrong_pair("VACE module of another width", with_module(wan(), vace_module(dim=64, num_heads=1)), "the model is 48 wide", "the module 64", "Take the module for the model's size"),
    *(wrong_pair(f"VACE module on {TITLES[name]}", with_module(wan(name), vace_module()), "model.safetensors is an image model", "a VACE module belongs to a T2V model", "Choose a T2V model") for name in ("i2v-a14b", "fun-control-1.3b", "fun-camera-a14b")),
    wrong_pair("VACE module on the 5B", with_module(wan("ti2v-5b"), vace_module()), "model.safetensors makes latents of 48 channels", "VACE modules are for T2V models", "Choose one of those"),
    wrong_pair("VACE module on a VACE model", with_module(wan("vace-1.3b"), vace_module()), "model.safetensors is a VACE model", "the blocks of module.safetensors already", "leave module_name at 'none'"),
    wrong_pair("T2V model as VACE module", with_module(wan(), wan()), "module.safetensors is no VACE module", "vace_patch_embedding.weight", "Choose a file that holds VACE blocks alone", FILE),
    wrong_pair("whole VACE model as VACE module", with_module(wan(), wan("vace-1.3b")), "module.safetensors is more than a VACE module", "a whole VACE model", "choose it as model_name", FILE),
    wrong_pair("VACE module in diffusers' naming", with_module(wan(), vace_module("diffusers")), "module.safetensors has VACE blocks in another naming", "the official one", "Use a module with official names", FILE),
    wrong_pair("VACE module on a model in diffusers' naming", with_module(wan(naming="diffusers"), vace_module()), "model.safetensors has diffusers names", "VACE modules go with official ones", "Use a T2V model with official names"),
    wrong_pair("VACE module for a low-noise model that is not there", with_module(wan(), vace_module(), low_noise_module="module.safetensors"), "low_noise_module is module.safetensors", "no low_noise_model", "takes its module as module_name"),
    wrong_pair("low-noise module without a high-noise one", pair(T2V_PAIR, T2V_PAIR, modules={"low_noise_module": vace_module()}), "low_noise_module is low_noise_module.safetensors", "module_name is 'none'", "a pair takes one for each expert"),
    wrong_pair("VACE modules of other depths", pair(T2V_PAIR, T2V_PAIR, modules={"module": vace_module(), "low_noise_module": vace_module(vace_layers=(0,))}), "vace_layers (0, 1)", "and (0,)", "Choose the high-noise and the low-noise file of one model"),
    wrong_pair("VACE module for the high-noise expert, which has it", pair(wan("vace-a14b"), T2V_PAIR, modules={"module": vace_module()}), "a_high_noise.safetensors is a VACE model", "the blocks of module.safetensors already", "leave module_name at 'none'"),
    warned("one VACE module for two experts", pair(T2V_PAIR, T2V_PAIR, modules={"module": vace_module()}), "The VACE module module.safetensors", "both experts", "low_noise_module takes one of its own"),
    wrong_pair("VACE module as model", file("model", vace_module()), "model.safetensors", "a VACE module", "Choose the T2V model of its size here, and this file as module_name", FILE),
    wrong_pair("LoRA of VACE blocks on a T2V model", file("LoRA", lora("vace_blocks.0.self_attn.q", fill=1.0)), "2 for VACE blocks", "t2v-1.3b", "Choose another LoRA or model"),
]

EXTRAS = [
    wrong_pair("skipped block that VACE has not", guided("vace-1.3b", guidance.skip_blocks, "9", 0.1, 1.0, 0.0), "blocks '9'", "the model has 3 blocks", "Write numbers and ranges from 0 to 2", INPUT),
    wrong_pair("all blocks of Fun Control skipped", guided("fun-control-1.3b", guidance.skip_blocks, "0-2", 0.1, 1.0, 0.0), "blocks '0-2'", "all 3 blocks of fun-control-1.3b", "Skip one to three", INPUT),
    wrong_pair("CFG-Zero* of as many steps as the run", guided("vace-1.3b", guidance.cfg_zero_star, True, 2, conditioning=vace_entry()), "the first 2 steps", "this run has no other", "Use fewer zero_steps", INPUT),
    warned("skipped blocks without a negative pass", guided("fun-control-1.3b", guidance.skip_blocks, "1", 0.0, 1.0, 0.0, conditioning=control_entry(), guidance_high=1.0), "The skipped blocks have no effect", "no step between their start and end makes a negative pass", "Raise the guidance"),
    warned("CFG-Zero* without a negative pass", guided("vace-1.3b", guidance.cfg_zero_star, True, 0, conditioning=vace_entry(), guidance_high=1.0), "The rescaling of CFG-Zero*", "at guidance 1", "Raise the guidance"),
]
# fmt: on

EDITING = [*FOR_ANOTHER_TASK, *SIZES_DIFFER, *OTHER_LATENTS, *FILES, *EXTRAS]
