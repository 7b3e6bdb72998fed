"""The rows of ``benchmarks.cpu`` that time a network: what is built, who builds it, and how a row is judged."""

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wan_core.configs import DitConfig, Umt5Config, VaeConfig
from wan_core.models.dit import WanDiT
from wan_core.models.umt5 import Umt5Encoder
from wan_core.models.vae import WanVAE
from wan_core.weights.keymaps import to_naming

from .cpu_child import Child, Places, place

NO_ROW_ABOVE = 1.05
QUIET = 1.2
"""Medians that are more than this times the best run say that the machine did something else as well."""
TEXT_ROWS = 512
SLOT_S = 0.05
"""A turn lasts at least so long: a run of a millisecond is repeated within it."""


@dataclass(frozen=True, kw_only=True)
class Maker:
    """Who builds a network: a function of ``cpu_models`` (or ``module:function``), in whose process, with what."""

    builder: str
    host: str = "ours"
    flags: tuple[str, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One input: a latent ``[16, frames, height, width]`` with a prompt of so many rows (zeros up to 512, as every
    node gives it), ``tokens`` of text padded to ``padded`` for rivals, or a ``clip`` ``[3, frames, height, width]``."""

    name: str
    latent: tuple[int, int, int] | None = None
    clip: tuple[int, int, int] | None = None
    prompt: int = TEXT_ROWS
    tokens: int = 0
    padded: int = 0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of section C: a network, its inputs, the target of ``ours / better rival``."""

    title: str
    config: DitConfig | Umt5Config | VaeConfig
    dtype: str
    cases: tuple[Case, ...]
    target: float
    tolerance: float
    """Largest error of an output, relative by norm to ours in float32; more voids the row."""
    timed: str = "forward"
    makers: Mapping[str, Maker] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return {DitConfig: "dit", Umt5Config: "umt5", VaeConfig: "vae"}[type(self.config)]


PYTORCH = "--use-pytorch-cross-attention"
DIT_MAKERS = {
    "ours": Maker(builder="ours_dit"),
    "diffusers": Maker(builder="diffusers_dit", host="diffusers"),
    "diffusers, qkv fused": Maker(builder="diffusers_dit", host="diffusers", settings={"fuse": True}),
    "ComfyUI": Maker(builder="comfy_dit", host="comfyui", flags=("--cpu",)),
    "ComfyUI, pytorch attention": Maker(builder="comfy_dit", host="comfyui", flags=("--cpu", PYTORCH)),
}
FLOOR = {"floor": Maker(builder="floor_dit")}
UMT5_MAKERS = {
    "ours": Maker(builder="ours_umt5"),
    "transformers": Maker(builder="transformers_umt5", host="diffusers"),
    "transformers, eager": Maker(builder="transformers_umt5", host="diffusers", settings={"attention": "eager"}),
    "ComfyUI": Maker(builder="comfy_umt5", host="comfyui", flags=("--cpu",), settings={"cast": True}),
    "ComfyUI, all bf16": Maker(builder="comfy_umt5", host="comfyui", flags=("--cpu", PYTORCH)),
}
NOT_RIVALS = ("ours", "floor")


def _vae_makers(direction: str) -> dict[str, Maker]:
    """Ours and its convolutions alone; rivals as they are, and with their weights' channels last, which turns their
    activations as well."""
    both = {"": {"direction": direction}, ", channels last": {"direction": direction, "last": True}}
    return {
        "ours": Maker(builder="ours_vae", settings={"direction": direction}),
        "floor": Maker(builder="floor_vae", settings={"direction": direction}),
        **{
            f"{name}{more}": Maker(builder=builder, host=host, flags=flags, settings=settings)
            for name, builder, host, flags in (
                ("diffusers", "diffusers_vae", "diffusers", ()),
                ("ComfyUI", "comfy_vae", "comfyui", ("--cpu",)),
            )
            for more, settings in both.items()
        },
    }


WAN_1B = DitConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30, in_dim=16, out_dim=16)
WAN_14B = DitConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16)
TINY = DitConfig(dim=256, ffn_dim=1024, num_heads=2, num_layers=4, in_dim=16, out_dim=16, text_dim=256)
LENGTHS = tuple(
    Case(name=f"L={t * h * w // 4}", latent=(t, h, w))
    for t, h, w in ((1, 16, 16), (1, 32, 32), (4, 32, 32), (8, 32, 32))
)
REAL = (
    Case(name="L=720, 40-token prompt", latent=(3, 24, 40), prompt=40),
    Case(name="L=720, 512-token prompt", latent=(3, 24, 40)),
)
"""320x192x9."""


def _tiny(dtype: str, tolerance: float) -> Row:
    title = f"tiny transformer (d=256, 4 layers), {dtype}"
    return Row(title=title, config=TINY, dtype=dtype, cases=LENGTHS, target=0.7, tolerance=tolerance, makers=DIT_MAKERS)


def _vae(direction: str, dtype: str, target: float, tolerance: float) -> Row:
    sizes = ((9, 128), (33, 128), (9, 256)) if direction == "decode" else ((9, 128),)
    cases = tuple(
        Case(name=f"{side}x{side}x{frames}", latent=((frames - 1) // 4 + 1, side // 8, side // 8))
        if direction == "decode"
        else Case(name=f"{side}x{side}x{frames}", clip=(frames, side, side))
        for frames, side in sizes
    )
    return Row(title=f"VAE 2.1 {direction}, {dtype}", config=VaeConfig(), dtype=dtype, cases=cases, target=target,
               tolerance=tolerance, makers=_vae_makers(direction))  # fmt: skip


def _umt5(title: str, cases: Iterable[Case], target: float) -> Row:
    config = Umt5Config(vocab=4096, num_layers=3)
    cases = tuple(cases)
    return Row(title=title, config=config, dtype="bf16", cases=cases, target=target, tolerance=0.05, makers=UMT5_MAKERS)


ROWS: dict[str, tuple[Row, ...]] = {
    "C1": (_tiny("fp32", 1e-3), _tiny("bf16", 0.05)),
    "C2": (
        Row(title="1.3B, 10 of its 30 blocks, 320x192x9, bf16", config=replace(WAN_1B, num_layers=10), dtype="bf16",
            cases=REAL, target=0.95, tolerance=0.05, makers=DIT_MAKERS | FLOOR),
    ),
    "C3": (
        Row(title="one 14B block, 320x192x9, bf16", config=replace(WAN_14B, num_layers=1), dtype="bf16", cases=REAL,
            target=0.95, tolerance=0.05, timed="blocks", makers=DIT_MAKERS | FLOOR),
    ),
    "C4": (
        _vae("decode", "fp32", 0.6, 1e-4), _vae("encode", "fp32", 0.8, 1e-4),
        _vae("decode", "bf16", 0.6, 0.1), _vae("encode", "bf16", 0.8, 0.1),
    ),
    "C7": (
        _umt5("umT5, 3 layers, as the user runs it (rivals pad to 512)",
              [Case(name="32 tokens", tokens=32, padded=TEXT_ROWS)], 0.7),
        _umt5("umT5, 3 layers, nobody pads",
              [Case(name=f"{n} tokens", tokens=n, padded=n) for n in (32, 128, 512)], NO_ROW_ABOVE),
    ),
}  # fmt: skip


# --- files -----------------------------------------------------------------------------------------------------------


def write_weights(row: Row, path: Path) -> Path:
    """Random weights that no part of the network can hide behind, the same numbers in every type.

    Matrices have a spread of ``0.8 / sqrt(inputs)`` (0.02 at 1.3B), gates of 1, so that every block counts; norms of
    queries and keys are near 2, so that attention is far from a plain mean.
    """
    with torch.device("meta"):
        network = {"dit": WanDiT, "umt5": Umt5Encoder, "vae": WanVAE}[row.kind](row.config)
    dtype = torch.float32 if row.dtype == "fp32" else torch.bfloat16
    tensors = {name: _values(row, name, tensor.shape).to(dtype) for name, tensor in network.state_dict().items()}
    if row.kind == "umt5":
        tensors = to_naming(tensors, "umt5", "hf")
        from scripts.tiny_models import sentencepiece_model

        tensors["spiece_model"] = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def _values(row: Row, name: str, shape: torch.Size) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    noise = torch.randn(shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        mean = 2.0 if "norm_q" in name or "norm_k" in name else 1.0
        return noise.mul_(0.1).add_(mean).bfloat16().float()
    if name.endswith("modulation") or "embedding.embedding" in name or name.startswith("token"):
        return noise.bfloat16().float()
    if name.endswith("gamma"):
        return noise.mul_(0.1).add_(1).bfloat16().float()
    fan_in = shape[1:].numel() if len(shape) > 1 else 64
    spread = 0.8 * fan_in**-0.5
    if row.kind == "umt5" and ".attn.q." in name:
        spread /= 8  # its scores are not divided by the root of the head's width
    return noise.mul_(spread).bfloat16().float()


def write_inputs(row: Row, case: Case, folder: Path) -> dict[str, Path]:
    """The case's tensors, for us and for rivals (who may have to pad)."""
    generator = torch.Generator().manual_seed(7)
    if row.kind == "dit":
        x = torch.randn(1, row.config.in_dim, *case.latent, generator=generator).bfloat16().float()
        text = torch.randn(1, TEXT_ROWS, row.config.text_dim, generator=generator).bfloat16().float()
        text[:, case.prompt :] = 0
        same = {"x": x, "t": torch.tensor([500.0]), "text": text}
        both = {"ours": same, "rivals": same}
    elif row.kind == "vae":
        shape = (row.config.z_dim, *case.latent) if case.latent else (3, *case.clip)
        x = torch.randn(1, *shape, generator=generator)
        same = {"x": (x if case.latent else x.clamp(-1, 1)).bfloat16().float()}
        both = {"ours": same, "rivals": same}
    else:
        ids = torch.randint(3, row.config.vocab, (1, case.tokens), generator=generator)
        count = torch.tensor(case.tokens)
        padded = torch.nn.functional.pad(ids, (0, case.padded - case.tokens))
        both = {"ours": {"ids": ids, "count": count}, "rivals": {"ids": padded, "count": count}}
    paths, stem = {}, case.name.replace(" ", "_")
    for who, tensors in both.items():
        paths[who] = folder / f"{stem}_{who}.safetensors"
        save_file(tensors, paths[who])
    return paths


# --- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Result:
    """One case of one row. ``turns`` are seconds of one run, by implementation, turn and run; ``errors`` are against
    ours in float32."""

    row: str
    title: str
    case: str
    target: float
    turns: dict[str, list[list[float]]]
    errors: dict[str, float]
    void: str = ""
    missing: dict[str, str] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(second for turn in self.turns[name] for second in turn)

    def best(self, name: str) -> float:
        return min(second for turn in self.turns[name] for second in turn)

    def ratio_to(self, name: str) -> float:
        """Ours by another: the median over turns of the ratio within a turn, when both met the same machine."""
        pairs = zip(self.turns["ours"], self.turns[name], strict=True)
        return statistics.median(statistics.median(a) / statistics.median(b) for a, b in pairs)

    @property
    def rival(self) -> str | None:
        """The rival in the setting that is hardest to beat."""
        rivals = [name for name in self.turns if name not in NOT_RIVALS]
        return max(rivals, key=self.ratio_to, default=None) if "ours" in self.turns else None

    @property
    def ratio(self) -> float | None:
        return self.ratio_to(self.rival) if self.rival else None

    @property
    def ratio_of_best(self) -> float | None:
        """By the fastest run of each: what is left to go by where the machine is not quiet."""
        rivals = [self.best(name) for name in self.turns if name not in NOT_RIVALS]
        return self.best("ours") / min(rivals) if rivals and "ours" in self.turns else None

    @property
    def noise(self) -> float:
        """Median by best run, of ours or its rival, whichever suffered more."""
        return max(self.median(name) / self.best(name) for name in ("ours", self.rival) if name in self.turns)

    @property
    def verdict(self) -> str:
        """By the medians on a quiet machine, else by the best runs, and then it says so."""
        if self.void:
            return f"VOID: {self.void}"
        if self.ratio is None:
            return "NOT MEASURED: there is no rival"
        quiet = self.noise <= QUIET
        ratio = self.ratio if quiet else self.ratio_of_best
        said = "ok" if ratio <= self.target else "SLOWER" if ratio > NO_ROW_ABOVE else "MISS"
        return said if quiet else f"{said} by the best runs (machine not quiet: medians are {self.noise:.1f} x them)"

    def as_json(self) -> dict:
        kept = {name: value for name, value in asdict(self).items() if name != "tables"}
        return kept | {
            "median": {name: self.median(name) for name in self.turns},
            "rival": self.rival, "ratio": self.ratio, "ratio_of_best": self.ratio_of_best, "verdict": self.verdict,
        }  # fmt: skip


def disagreement(outputs: Mapping[str, Tensor], reference: Tensor, tolerance: float) -> tuple[dict[str, float], str]:
    """Relative error by norm of every output, and a sentence about the first that is no number or too far off."""
    errors, void = {}, ""
    for name, output in outputs.items():
        if output.shape != reference.shape:
            errors[name], reason = float("inf"), f"gives {list(output.shape)}, not {list(reference.shape)}"
        else:
            errors[name] = ((output.double() - reference.double()).norm() / reference.double().norm()).item()
            reason = f"is {errors[name]:.1e} off, allowed are {tolerance:.0e}"
        if not errors[name] <= tolerance and not void:
            void = f"{name} {reason}"
    return errors, void


def measure(key: str, row: Row, folder: Path, places: Places, repeats: int, profiled: bool = False) -> list[Result]:
    """Every case of a row: outputs first, then times in turns."""
    weights = write_weights(row, folder / "weights.safetensors")
    files = {case.name: write_inputs(row, case, folder) for case in row.cases}
    children: dict[str, Child] = {}
    missing: dict[str, str] = {}

    def start(name: str, maker: Maker, dtype: str) -> Child:
        spec = {
            "config": asdict(row.config), "dtype": dtype, "weights": str(weights), "timed": row.timed,
            "inputs": {c: str(f["ours" if maker.host == "ours" else "rivals"]) for c, f in files.items()},
            "builder": maker.builder if ":" in maker.builder else f"benchmarks.cpu_models:{maker.builder}",
            "flags": list(maker.flags), **maker.settings,
        }  # fmt: skip
        return Child(name, spec, folder, place(maker.host, places), places.threads)

    try:
        with start("reference", row.makers["ours"], "fp32") as child:
            references = {case.name: _output(child, case.name, folder) for case in row.cases}
        for name, maker in row.makers.items():
            try:
                children[name] = start(name, maker, row.dtype)
            except Child.Missing as reason:
                missing[name] = str(reason)
        return [
            _judge(key, row, case, children, references[case.name], missing, folder, repeats, profiled)
            for case in row.cases
        ]
    finally:
        for child in children.values():
            child.close()
        weights.unlink(missing_ok=True)


def _judge(
    key: str, row: Row, case: Case, children: dict[str, Child], reference: Tensor, missing: dict[str, str],
    folder: Path, repeats: int, profiled: bool,
) -> Result:  # fmt: skip
    outputs = {name: _output(child, case.name, folder) for name, child in children.items() if name != "floor"}
    errors, void = disagreement(outputs, reference, row.tolerance)
    runs = {name: lambda count, c=child: c.ask("run", case.name, str(count)) for name, child in children.items()}
    found = Result(
        row=key, title=row.title, case=case.name, target=row.target, errors=errors, void=void, missing=missing,
        turns=in_turns(runs, repeats),
    )  # fmt: skip
    if not profiled:
        return found
    tables = {name: children[name].ask("profile", case.name)["table"] for name in ("ours", found.rival) if name}
    return replace(found, tables=tables)


def _output(child: Child, case: str, folder: Path) -> Tensor:
    path = folder / "output.safetensors"
    child.ask("save", case, str(path))
    return load_file(path)["output"].clone()


def in_turns(runs: Mapping[str, Callable[[int], list[float]]], repeats: int) -> dict[str, list[list[float]]]:
    """Seconds of each in every turn: A B C C B A A B C ... so that a machine that grows slower is unfair to nobody."""
    counts: dict[str, int] = {}
    for name, run in runs.items():
        run(1)
        counts[name] = max(1, min(50, round(SLOT_S / run(1)[0])))
    turns: dict[str, list[list[float]]] = {name: [] for name in runs}
    for turn in range(2 * repeats):
        for name in runs if turn % 2 == 0 else reversed(runs):
            turns[name].append(runs[name](counts[name]))
    return turns
