"""Native graphs in the API form, and the graphs of our nodes that they become."""

import pytest

from tests.wan_core.workflows.native import HIGH_FILE, LOW_FILE, Native, advanced, kinds, ksampler, moved, of, pair
from wan_core.errors import WorkflowError
from wan_core.workflows.convert import convert

SINGLE = [
    "CLIPTextEncode", "CLIPTextEncode", "EmptyHunyuanLatentVideo", "SaveImage", "VAEDecode", "WanCoreLoadModel",
    "WanCoreLoadTextEncoder", "WanCoreLoadVAE", "WanCoreSampler",
]  # fmt: skip


def test_a_single_model_gets_our_loaders_and_one_sampler():
    native = Native()
    ksampler(native, native.model())
    made = moved(native).document
    assert kinds(made) == SINGLE
    assert made["1"]["inputs"] == {
        "model_name": "wan2.1_t2v_1.3B_fp16.safetensors", "low_noise_model": "none", "variant": "auto",
        "precision": "auto", "module_name": "none", "low_noise_module": "none",
    }  # fmt: skip
    assert made["s"] == {
        "class_type": "WanCoreSampler",
        "inputs": {
            "model": ["1", 0], "positive": ["4", 0], "negative": ["5", 0], "latent": ["6", 0],
            "seed": 7, "steps": 30, "guidance": 6.0, "guidance_low": 0.0, "shift": 5.0, "solver": "euler",
            "schedule": "simple", "denoise": 1.0, "start_step": 0, "end_step": 10000, "boundary": 0.0,
            "switch_step": 0, "add_noise": True,
        },
        "_meta": {"title": "Wan Core Sampler"},
    }  # fmt: skip
    assert of(made, "VAEDecode") == {"samples": ["s", 0], "vae": ["8", 0]}
    assert made["3"]["inputs"] == {"text_encoder_name": "umt5.safetensors", "precision": "auto"}


def test_without_a_shift_it_is_the_one_that_native_comfyui_takes():
    native = Native()
    ksampler(native, native.model(shift=None))
    assert of(moved(native).document, "WanCoreSampler")["shift"] == 8.0


def test_two_samplers_over_a_pair_become_one():
    native = Native()
    pair(native, native.model(HIGH_FILE), native.model(LOW_FILE), second={"cfg": 3.0})
    made = moved(native).document
    assert kinds(made) == SINGLE
    model, sampler = of(made, "WanCoreLoadModel"), of(made, "WanCoreSampler")
    assert (model["model_name"], model["low_noise_model"]) == (HIGH_FILE, LOW_FILE)
    wanted = {
        "seed": 7, "steps": 20, "guidance": 3.5, "guidance_low": 3.0, "shift": 5.0, "start_step": 0, "end_step": 10000,
        "switch_step": 10, "add_noise": True,
    }  # fmt: skip
    assert wanted.items() <= sampler.items()
    assert of(made, "VAEDecode")["samples"] == ["h", 0]


def test_loras_of_both_experts_are_one_node():
    native = Native()
    pair(native, native.model(HIGH_FILE, lora="h.safetensors"), native.model(LOW_FILE, lora="l.safetensors"))
    made = moved(native).document
    lora = of(made, "WanCoreLoRA")
    assert (lora["lora_name"], lora["low_noise_lora"]) == ("h.safetensors", "l.safetensors")
    assert (lora["strength"], lora["strength_low"]) == (0.8, 0.8)
    assert of(made, "WanCoreSampler")["model"] == ["2", 0]


@pytest.mark.parametrize(("side", "names"), [("high", ("x.safetensors", "none")), ("low", ("none", "x.safetensors"))])
def test_a_lora_on_one_expert_stays_on_that_expert(side, names):
    native = Native()
    loras = {"high": "", "low": ""} | {side: "x.safetensors"}
    pair(native, native.model(HIGH_FILE, lora=loras["high"]), native.model(LOW_FILE, lora=loras["low"]))
    lora = of(moved(native).document, "WanCoreLoRA")
    assert (lora["lora_name"], lora["low_noise_lora"]) == names


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"steps": 22}),
        ({}, {"start_at_step": 11}),
        ({}, {"add_noise": "enable", "start_at_step": 0}),
        ({"return_with_leftover_noise": "disable"}, {}),
        ({}, {"sampler_name": "uni_pc"}),
        ({}, {"scheduler": "normal"}),
    ],
)
def test_samplers_that_do_not_continue_each_other_stay_two(first, second):
    native = Native()
    pair(native, native.model(HIGH_FILE), native.model(LOW_FILE), first, second)
    made = moved(native).document
    assert kinds(made).count("WanCoreSampler") == kinds(made).count("WanCoreLoadModel") == 2
    assert made["l"]["inputs"]["latent"] == ["h", 0]
    assert made["h"]["inputs"]["end_step"] == 10


def test_samplers_of_one_pair_with_different_prompts_stay_two():
    native = Native()
    high, low = native.model(HIGH_FILE), native.model(LOW_FILE)
    texts, others = native.prompts(), native.prompts()
    latent = advanced(native, high, texts, native.latent(), "h")
    native.save(advanced(native, low, others, latent, "l", add_noise="disable", start_at_step=10, end_at_step=10000))
    assert kinds(moved(native).document).count("WanCoreSampler") == 2


def test_samplers_of_one_pair_with_different_shifts_stay_two():
    native = Native()
    pair(native, native.model(HIGH_FILE, shift=5.0), native.model(LOW_FILE, shift=8.0))
    made = moved(native).document
    assert [made[key]["inputs"]["shift"] for key in "hl"] == [5.0, 8.0]


def test_a_latent_that_is_looked_at_between_the_experts_keeps_them_apart():
    native = Native()
    pair(native, native.model(HIGH_FILE), native.model(LOW_FILE))
    native.save(["h", 0])
    assert kinds(moved(native).document).count("WanCoreSampler") == 2


def test_a_first_sampler_without_lora_goes_on_before_a_joined_pair():
    native = Native()
    high = native.add("UNETLoader", unet_name=HIGH_FILE, weight_dtype="default")
    worn = native.add("LoraLoaderModelOnly", model=high, lora_name="h.safetensors", strength_model=1.0)
    texts = native.prompts()
    latent = advanced(native, high, texts, native.latent(), "a", end_at_step=2)
    latent = advanced(native, worn, texts, latent, "b", add_noise="disable", start_at_step=2, end_at_step=4)
    low = {"add_noise": "disable", "start_at_step": 4, "end_at_step": 10000}
    native.save(advanced(native, native.model(LOW_FILE, shift=None), texts, latent, "c", **low))
    made = moved(native).document
    assert kinds(made).count("WanCoreSampler") == 2
    assert made["b"]["inputs"]["latent"] == ["a", 0]
    assert (made["b"]["inputs"]["start_step"], made["b"]["inputs"]["switch_step"]) == (2, 4)


def switched(native: Native, name: str, lora: str, switch: object) -> list:
    off = native.add("UNETLoader", unet_name=name, weight_dtype="default")
    on = native.add("LoraLoaderModelOnly", model=off, lora_name=lora, strength_model=1.0)
    model = native.add("ComfySwitchNode", switch=switch, on_false=off, on_true=on)
    return native.add("ModelSamplingSD3", model=model, shift=5.0)


def test_a_switch_that_both_experts_hang_on_goes_on_switching():
    native = Native()
    turbo = native.add("PrimitiveBoolean", value=True)
    high, low = (switched(native, name, f"{name[:13]}.safetensors", turbo) for name in (HIGH_FILE, LOW_FILE))
    steps = native.add("ComfySwitchNode", switch=turbo, on_false=20, on_true=4)
    pair(native, high, low, {"steps": steps}, {"steps": steps})
    made = moved(native).document
    (switch,) = [
        n["inputs"] for n in made.values() if n["class_type"] == "ComfySwitchNode" and n["inputs"]["on_true"] != 4
    ]
    assert switch["switch"] == turbo
    assert made[switch["on_false"][0]]["class_type"] == "WanCoreLoadModel"
    assert made[switch["on_true"][0]]["class_type"] == "WanCoreLoRA"
    assert of(made, "WanCoreSampler")["steps"] == steps
    assert kinds(made).count("WanCoreLoadModel") == 1


@pytest.mark.parametrize("said", [True, False])
def test_a_switch_of_one_expert_alone_is_decided(said):
    native = Native()
    pair(native, switched(native, HIGH_FILE, "h.safetensors", said), native.model(LOW_FILE))
    result = moved(native)
    assert ("WanCoreLoRA" in kinds(result.document)) is said
    assert any(f"is set to {str(said).lower()} for good" in line for line in result.report.notes)


def test_a_wired_number_of_steps_stays_wired():
    native = Native()
    steps = native.add("PrimitiveInt", value=12)
    ksampler(native, native.model(), steps=steps)
    assert of(moved(native).document, "WanCoreSampler")["steps"] == steps


def test_a_lora_loader_for_model_and_text_encoder_lets_the_text_encoder_by():
    native = Native()
    clip = native.add("CLIPLoader", clip_name="umt5.safetensors", type="wan", device="default")
    unet = native.add("UNETLoader", unet_name="wan.safetensors", weight_dtype="default")
    lora = native.add(
        "LoraLoader", model=unet, clip=clip, lora_name="x.safetensors", strength_model=0.7, strength_clip=1.0
    )
    text = native.add("CLIPTextEncode", clip=[lora[0], 1], text="a fox")
    model = native.add("ModelSamplingSD3", model=lora, shift=5.0)
    ksampler(native, model, positive=text, negative=text)
    result = moved(native)
    assert of(result.document, "WanCoreLoRA")["strength"] == 0.7
    assert result.document[text[0]]["inputs"]["clip"] == clip
    assert "LoraLoader" not in kinds(result.document)


def custom(native: Native, sigmas: list, **changes) -> list:
    """A SamplerCustomAdvanced on a model whose noise levels come from ``sigmas``."""
    positive, negative = native.prompts()
    model = changes.pop("model", None) or native.model()
    parts = {
        "noise": native.add("RandomNoise", noise_seed=11),
        "guider": native.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=4.0),
        "sampler": native.add("KSamplerSelect", sampler_name="euler"),
        "sigmas": sigmas,
        "latent_image": native.latent(),
    }
    latent = native.add("SamplerCustomAdvanced", key="s", **parts | changes)
    native.save(latent)
    return latent


def test_a_sampler_in_pieces_is_put_together():
    native = Native()
    model = native.model()
    custom(native, native.add("BasicScheduler", model=model, scheduler="simple", steps=9, denoise=0.5), model=model)
    made = moved(native).document
    assert kinds(made) == SINGLE
    wanted = {"seed": 11, "steps": 9, "guidance": 4.0, "denoise": 0.5, "shift": 5.0, "solver": "euler"}
    assert wanted.items() <= of(made, "WanCoreSampler").items()


def test_noise_levels_that_no_model_is_asked_for_stay_on_their_wire():
    native = Native()
    sigmas = native.add("ManualSigmas", sigmas="1, 0.5, 0")
    custom(native, sigmas)
    sampler = of(moved(native).document, "WanCoreSampler")
    assert (sampler["sigmas"], sampler["schedule"]) == (sigmas, "auto")


def test_a_run_that_is_split_by_its_noise_levels_becomes_one():
    native = Native()
    high, low = native.model(HIGH_FILE), native.model(LOW_FILE)
    levels = native.add("BasicScheduler", model=high, scheduler="simple", steps=8, denoise=1.0)
    split = native.add("SplitSigmas", sigmas=levels, step=3)
    positive, negative = native.prompts()
    solver = native.add("KSamplerSelect", sampler_name="euler")
    common = {"positive": positive, "negative": negative, "sampler": solver, "cfg": 3.5}
    first = native.add(
        "SamplerCustom", key="h", model=high, add_noise=True, noise_seed=5, sigmas=split, latent_image=native.latent(),
        **common,
    )  # fmt: skip
    native.save(
        native.add(
            "SamplerCustom", key="l", model=low, add_noise=False, noise_seed=5, sigmas=[split[0], 1],
            latent_image=first, **common,
        )
    )  # fmt: skip
    made = moved(native).document
    sampler = of(made, "WanCoreSampler")
    assert (sampler["steps"], sampler["switch_step"], sampler["end_step"]) == (8, 3, 10000)
    assert of(made, "WanCoreLoadModel")["low_noise_model"] == LOW_FILE


def test_what_the_pack_does_without_is_dropped_and_said():
    native = Native()
    model = native.add("CFGZeroStar", model=native.model())
    ksampler(native, native.add("PathchSageAttentionKJ", model=model, sage_attention="auto"))
    result = moved(native)
    assert kinds(result.document) == SINGLE
    assert [line.split(":")[0] for line in result.report.dropped] == ["CFGZeroStar 3", "PathchSageAttentionKJ 4"]


def test_samplers_and_schedulers_that_are_not_there_are_said():
    native = Native()
    ksampler(native, native.model(), sampler_name="er_sde", scheduler="beta")
    result = moved(native)
    sampler = of(result.document, "WanCoreSampler")
    assert (sampler["solver"], sampler["schedule"]) == ("unipc", "simple")
    assert "er_sde" in result.report.text() and "beta" in result.report.text()


def test_an_exact_counterpart_needs_no_word():
    native = Native()
    ksampler(native, native.model(), scheduler="normal")
    result = moved(native)
    assert of(result.document, "WanCoreSampler")["schedule"] == "diffusers"
    assert result.report.notes == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, m: n.add("ScaleROPE", model=m, scale=1.0), "ChronoEdit"),
        (lambda n, m: n.add("SomebodysPatch", model=m), "SomebodysPatch 3 changes or loads its model"),
    ],
)
def test_a_model_that_the_pack_cannot_have_is_refused_by_name(change, words):
    native = Native()
    ksampler(native, change(native, native.model()))
    with pytest.raises(WorkflowError, match=words):
        moved(native)


def test_what_cannot_be_converted_stays_native_beside_what_can():
    native = Native()
    ksampler(native, native.model())
    other = native.add("SomebodysPatch", key="patch", model=native.model("wan_other.safetensors"))
    native.save(native.add("KSampler", key="n", **native.prompt["s"]["inputs"] | {"model": other}))
    result = moved(native)
    assert result.document["n"]["class_type"] == "KSampler"
    assert result.document["s"]["class_type"] == "WanCoreSampler"
    assert kinds(result.document).count("UNETLoader") == 1
    assert result.report.kept == [
        "KSampler n, because SomebodysPatch patch changes or loads its model, and the pack has nothing in its place."
    ]


def test_models_of_other_families_are_left_alone():
    native = Native()
    ksampler(native, native.model())
    flux = native.add("UNETLoader", unet_name="flux.safetensors", weight_dtype="default")
    positive, negative = native.prompts("flux")
    vae = native.add("VAELoader", vae_name="ae.safetensors")
    inputs = native.prompt["s"]["inputs"] | {"model": flux, "positive": positive, "negative": negative}
    image = native.add("KSampler", key="f", **inputs)
    native.add("VAEDecode", key="fd", samples=image, vae=vae)
    made = moved(native).document
    assert made["f"]["class_type"] == "KSampler"
    assert made[flux[0]]["class_type"] == "UNETLoader"
    assert made[vae[0]]["class_type"] == "VAELoader"
    assert made[positive[0]]["inputs"]["clip"][0] in made


def test_a_workflow_without_wan_is_refused_in_a_sentence():
    native = Native()
    positive, negative = native.prompts("flux")
    ksampler(native, native.model("flux.safetensors"), positive=positive, negative=negative)
    native.prompt = {k: n for k, n in native.prompt.items() if n["inputs"].get("type") != "wan"}
    native.prompt = {k: n for k, n in native.prompt.items() if n["inputs"].get("clip", ["3"])[0] in native.prompt}
    with pytest.raises(WorkflowError, match="no sampler of a Wan model"):
        moved(native)


def test_a_spare_loader_that_nothing_hung_on_is_not_taken_away():
    native = Native()
    ksampler(native, native.model())
    spare = native.model("wan_spare.safetensors", lora="x.safetensors", shift=None)
    assert moved(native).document[spare[0]]["class_type"] == "LoraLoaderModelOnly"


def test_what_is_converted_is_not_converted_again():
    native = Native()
    pair(native, native.model(HIGH_FILE, lora="h.safetensors"), native.model(LOW_FILE))
    once = moved(native).document
    twice = convert(once)
    assert twice.document is once and not twice.changed


def test_the_body_of_a_job_is_read_too():
    native = Native()
    ksampler(native, native.model())
    assert kinds(convert({"prompt": native.prompt, "client_id": "x"}).document) == SINGLE
