"""Which widget a value of a page file belongs to.

A page file lists values without names. Newer files name (some of) the widgets among a node's inputs; a running ComfyUI
names all (``/object_info``); this table names those of the native nodes that Wan workflows use (ComfyUI 0.33.0), and
those of our own nodes come from :mod:`ours`.
"""

from .ours import OURS

CONTROLS = ("fixed", "increment", "decrement", "randomize")
"""Values of the extra widget behind a seed, which has no name in the file."""
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}

# fmt: off
NATIVE: dict[str, tuple[str, ...]] = {
    # what is converted, or read when something else is
    "UNETLoader": ("unet_name", "weight_dtype"),
    "CLIPLoader": ("clip_name", "type", "device"),
    "VAELoader": ("vae_name",),
    "CLIPVisionLoader": ("clip_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "ModelSamplingSD3": ("shift",),
    "KSampler": ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        "add_noise", "noise_seed", "steps", "cfg", "sampler_name", "scheduler", "start_at_step", "end_at_step",
        "return_with_leftover_noise",
    ),
    "SamplerCustom": ("add_noise", "noise_seed", "cfg"),
    "SamplerCustomAdvanced": (),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KSamplerSelect": ("sampler_name",),
    "CFGGuider": ("cfg",),
    "BasicGuider": (),
    "RandomNoise": ("noise_seed",),
    "DisableNoise": (),
    "SplitSigmas": ("step",),
    "ComfySwitchNode": ("switch",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveBoolean": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "PrimitiveNode": ("value",),
    # what stays
    "CLIPTextEncode": ("text",),
    "CLIPVisionEncode": ("crop",),
    "ConditioningZeroOut": (),
    "EmptyHunyuanLatentVideo": ("width", "height", "length", "batch_size"),
    "WanImageToVideo": ("width", "height", "length", "batch_size"),
    "WanFirstLastFrameToVideo": ("width", "height", "length", "batch_size"),
    "Wan22ImageToVideoLatent": ("width", "height", "length", "batch_size"),
    "WanFunControlToVideo": ("width", "height", "length", "batch_size"),
    "Wan22FunControlToVideo": ("width", "height", "length", "batch_size"),
    "WanFunInpaintToVideo": ("width", "height", "length", "batch_size"),
    "WanVaceToVideo": ("width", "height", "length", "batch_size", "strength"),
    "WanCameraImageToVideo": ("width", "height", "length", "batch_size"),
    "WanCameraEmbedding": ("camera_pose", "width", "height", "length", "speed", "fx", "fy", "cx", "cy"),
    "TrimVideoLatent": ("trim_amount",),
    "VAEDecode": (),
    "VAEDecodeTiled": ("tile_size", "overlap", "temporal_size", "temporal_overlap"),
    "VAEEncode": (),
    "LoadImage": ("image",),
    "LoadVideo": ("file",),
    "GetVideoComponents": (),
    "CreateVideo": ("fps", "bit_depth"),
    "SaveVideo": ("filename_prefix", "format", "codec"),
    "SaveImage": ("filename_prefix",),
    "SaveAnimatedWEBP": ("filename_prefix", "fps", "lossless", "quality", "method"),
    "SaveWEBM": ("filename_prefix", "codec", "fps", "crf"),
    "PreviewImage": (),
    "ImageScale": ("upscale_method", "width", "height", "crop"),
    "ImageFromBatch": ("batch_index", "length"),
    "RepeatImageBatch": ("amount",),
    "EmptyImage": ("width", "height", "batch_size", "color"),
    "ImageBatch": (),
    "BatchImagesNode": (),
    "GetImageSize": (),
    "SolidMask": ("value", "width", "height"),
    "MaskToImage": (),
    "ImageToMask": ("channel",),
    "InvertMask": (),
    "JoinImageWithAlpha": (),
    "Canny": ("low_threshold", "high_threshold"),
    "ImageStitch": ("direction", "match_image_size", "spacing_width", "spacing_color"),
    "ComfyMathExpression": ("expression",),
    "WanTrackToVideo": ("tracks", "width", "height", "length", "batch_size", "temperature", "topk"),
    "ManualSigmas": ("sigmas",),
    "GrowMask": ("expand", "tapered_corners"),
    "ImageCompositeMasked": ("x", "y", "resize_source"),
    "ImagePadForOutpaint": ("left", "top", "right", "bottom", "feathering"),
    "ImageScaleToTotalPixels": ("upscale_method", "megapixels", "resolution_steps"),
    "ImageScaleBy": ("upscale_method", "scale_by"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "RepeatLatentBatch": ("amount",),
    "GenerateTracks": (
        "width", "height", "start_x", "start_y", "end_x", "end_y", "num_frames", "num_tracks", "track_spread",
        "bezier", "mid_x", "mid_y", "interpolation",
    ),
    "WanMoveTrackToVideo": ("strength", "width", "height", "length", "batch_size"),
    "WanMoveVisualizeTracks": ("line_resolution", "circle_size", "opacity", "line_width"),
    "WanMoveTracksFromCoords": (),
    "WanMoveConcatTrack": (),
    "CFGZeroStar": (),
    "UNetTemporalAttentionMultiply": (
        "self_structural", "self_temporal", "cross_structural", "cross_temporal",
    ),
    "SkipLayerGuidanceDiT": (
        "double_layers", "single_layers", "scale", "start_percent", "end_percent", "rescaling_scale",
    ),
}

WRAPPER: dict[str, tuple[str, ...]] = {
    "WanVideoModelLoader": ("model", "base_precision", "quantization", "load_device", "attention_mode"),
    "WanVideoLoraSelect": ("lora", "strength", "low_mem_load", "merge_loras"),
    "LoadWanVideoT5TextEncoder": ("model_name", "precision", "load_device", "quantization"),
    "LoadWanVideoClipTextEncoder": ("model_name", "precision", "load_device"),
    "WanVideoVAELoader": ("model_name", "precision"),
    "WanVideoTextEncode": ("positive_prompt", "negative_prompt", "force_offload"),
    "WanVideoEmptyEmbeds": ("width", "height", "num_frames"),
    "WanVideoImageToVideoEncode": (
        "width", "height", "num_frames", "noise_aug_strength", "start_latent_strength", "end_latent_strength",
        "force_offload",
    ),
    "WanVideoSampler": (
        "steps", "cfg", "shift", "seed", "force_offload", "scheduler", "riflex_freq_index", "denoise_strength",
        "batched_cfg", "rope_function", "start_step", "end_step", "add_noise_to_samples",
    ),
}
"""Of kijai/ComfyUI-WanVideoWrapper, for files that do not name them themselves."""
# fmt: on

ON_THE_PAGE_ONLY = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode", "GetNode", "SetNode"}
"""Nodes that the page knows and the server never hears of."""


def named_values(raw: dict, schemas: dict | None = None) -> dict[str, object] | None:
    """A page node's widgets by name; None where nobody names them all.

    ``schemas``: the answer of a running ComfyUI to ``/object_info``, which knows more than the table.
    """
    given = raw.get("widgets_values")
    if isinstance(given, dict):  # some packs write the names themselves
        return dict(given)
    places = named_places(raw, schemas)
    return None if places is None else {name: given[place] for name, place in places.items()}


def named_places(raw: dict, schemas: dict | None = None) -> dict[str, int] | None:
    """Where in a page node's list of values each widget stands; None where nobody names them all."""
    given = raw.get("widgets_values")
    given = given if isinstance(given, list) else []
    kind = raw["type"]
    if schemas and kind in schemas:
        return _places(given, _schema_names(schemas[kind]))
    if kind in OURS:
        return _places(given, [(name, None) for name in OURS[kind].widgets])
    if kind in NATIVE:
        return _places(given, [(name, None) for name in NATIVE[kind]])
    named = [entry["widget"]["name"] for entry in raw.get("inputs") or [] if isinstance(entry.get("widget"), dict)]
    places = _places(given, [(name, None) for name in named])
    extra = sum(value in CONTROLS for value in given if isinstance(value, str))
    if len(places) + extra >= len(given):
        return places
    return _places(given, [(name, None) for name in WRAPPER[kind]]) if kind in WRAPPER else None


def _places(given: list, names: list[tuple[str, dict | None]]) -> dict[str, int]:
    """A name may bring a table: what its value says decides which names follow."""
    places, waiting, index = {}, list(names), 0
    while waiting and index < len(given):
        name, choices = waiting.pop(0)
        value, places[name] = given[index], index
        index += 1
        if choices and isinstance(value, str) and value in choices:
            waiting = choices[value] + waiting
        after = given[index] if index < len(given) else None
        if _is_number(value) and isinstance(after, str) and after in CONTROLS:
            index += 1
    return places


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _schema_names(schema: dict, prefix: str = "") -> list[tuple[str, dict | None]]:
    """The widgets of a schema in the page's order; a dynamic combo with those that each choice brings."""
    names = []
    inputs = schema.get("input", schema.get("inputs", schema))
    for name, declaration in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
        kind = "COMBO" if isinstance(declaration[0], list) else declaration[0]
        options = declaration[1] if len(declaration) > 1 else {}
        if kind not in WIDGET_TYPES or options.get("forceInput") or options.get("hidden"):
            continue
        choices = None
        if kind == "COMFY_DYNAMICCOMBO_V3":
            own = f"{prefix}{name}."
            choices = {choice["key"]: _schema_names(choice["inputs"], own) for choice in options["options"]}
        names.append((f"{prefix}{name}", choices))
    return names
