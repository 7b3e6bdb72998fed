"""What the command line can train: the options of each kind, and how they become a task."""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..configs import VaeConfig
from ..errors import InputError, MismatchError
from ..grid import grid_of
from ..models.dit import WanDiT
from ..models.umt5 import Umt5Encoder
from ..models.vae import WanVAE
from ..stages.load import ModelHandle, TextEncoderHandle, VaeHandle, load_model, load_text_encoder, load_vae
from ..variants import LATENT_21, Feature, LatentSpec
from ..weights.checkpoint import open_checkpoint
from ..weights.load import read_raw
from .clips import Clips, ClipSize, InMemory, open_clips
from .dit_task import DitSettings, DitTask
from .flow import SigmaSettings
from .latents import EncodedClips, encode_clips
from .loop import LoopSettings, train
from .lora_task import LoraSettings, LoraTask, add_trained_layers
from .optim import OptimSettings
from .phases import Phase
from .show import COMPUTE, Show, ShowSettings, is_image_model
from .trainable import check_exists, trainable
from .vae_clip import compile_kernels
from .vae_task import VaeSettings, VaeTask, init_vae

FINGERPRINT_BYTES = 1 << 20
NUMBERS: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    ("at least 1", lambda value: value >= 1, ("accumulate", "dim", "rank")),
    ("at least 0", lambda value: value >= 0, ("warmup", "weight_decay", "kl", "seed")),
    ("at least 0", lambda value: value >= 0, ("save_every", "sample_every", "log_every")),
    ("above 0", lambda value: value > 0, ("lr", "clip", "shift", "alpha")),
    ("from 0 to 1", lambda value: 0 <= value <= 1, ("lr_end", "ema", "drop_text")),
)
"""What options must be: in words, as a test, and which of them."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Adds its options to a parser; runs on what was parsed; its usual learning rate and optimizer."""

    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], list[Path]]
    lr: float
    optimizer: str = OptimSettings().optimizer


def common_options(parser: argparse.ArgumentParser, command: Command) -> None:
    """What every kind of training takes."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: states, loss.png, samples, files")
    parser.add_argument("--data", required=True, help="folder with metadata.csv (file_name,text), or module:function")
    parser.add_argument("--held", help="the same for clips that are only shown and measured (default: --data)")
    parser.add_argument("--size", type=int, nargs=2, default=(64, 64), metavar=("W", "H"), help="pixels")
    parser.add_argument("--frames", type=int, default=17, help="frames of a clip, 4n+1")
    parser.add_argument("--seed", type=int, default=0)
    usual = OptimSettings()
    parser.add_argument("--optimizer", choices=("adamw", "muon"), default=command.optimizer)
    parser.add_argument("--lr", type=float, default=command.lr, help="peak learning rate; falls along a cosine")
    parser.add_argument("--lr-end", type=float, default=usual.lr_end, help="where the cosine ends, as a part of --lr")
    parser.add_argument("--warmup", type=int, default=usual.warmup, help="steps of rising learning rate")
    parser.add_argument("--weight-decay", type=float, default=usual.weight_decay)
    parser.add_argument("--clip", type=float, default=usual.clip, help="largest norm of the gradients")
    parser.add_argument(
        "--ema", type=float, default=usual.ema, help="decay of the averaged weights, which are exported"
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="bf16: autocast")
    parser.add_argument("--compile", action="store_true", help="fused kernels: faster steps, needs a C++ compiler")
    often = LoopSettings(steps=0)
    parser.add_argument("--accumulate", type=int, default=often.accumulate, help="batches per step")
    parser.add_argument("--save-every", type=int, default=often.save_every, help="steps between states")
    parser.add_argument("--sample-every", type=int, default=often.sample_every, help="steps between samples (0: none)")
    parser.add_argument("--log-every", type=int, default=often.log_every, help="steps between lines of the log")


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers that no training can use, before anything is read."""
    for rule, holds, names in NUMBERS:
        for name in names:
            value = vars(args).get(name)
            if value is not None and not holds(value):
                raise InputError(f"--{name.replace('_', '-')} must be {rule}; got {value}.")


def _settings(args: argparse.Namespace, steps: int) -> tuple[LoopSettings, OptimSettings]:
    loop = LoopSettings(
        steps=steps,
        accumulate=args.accumulate,
        save_every=args.save_every,
        sample_every=args.sample_every,
        log_every=args.log_every,
    )
    optim = OptimSettings(
        optimizer=args.optimizer,
        lr=args.lr,
        lr_end=args.lr_end,
        warmup=args.warmup,
        weight_decay=args.weight_decay,
        clip=args.clip,
        ema=args.ema,
    )
    return loop, optim


def _size(args: argparse.Namespace, spec: LatentSpec) -> ClipSize:
    grid_of(spec, width=args.size[0], height=args.size[1], frames=args.frames)
    return ClipSize(width=args.size[0], height=args.size[1], frames=args.frames)


def _open_both(args: argparse.Namespace, size: ClipSize) -> tuple[Clips, Clips]:
    data = open_clips(args.data, size)
    return data, open_clips(args.held, size) if args.held else data


def _phases_option(parser: argparse.ArgumentParser, default: list[str]) -> None:
    parser.add_argument(
        "--phases", nargs="+", default=default, metavar="FRAMESxBATCHxSTEPS", help="batches, one kind after another"
    )


def _phases(args: argparse.Namespace) -> tuple[Phase, ...]:
    phases = tuple(Phase.parse(text) for text in args.phases)
    longest = max(phase.frames for phase in phases)
    if longest > args.frames:
        raise InputError(f"a phase has {longest} frames, the clips {args.frames}. Raise --frames or shorten the phase.")
    return phases


def vae_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dim", type=int, default=16, help="base width (Wan 2.1: 96)")
    _phases_option(parser, ["1x16x1500", "5x4x1200", "9x3x800"])
    parser.add_argument("--kl", type=float, default=1e-4, help="weight of the Kullback-Leibler term")


def run_vae(args: argparse.Namespace) -> list[Path]:
    """Train a VAE of the Wan 2.1 structure from nothing; writes vae.safetensors (bf16)."""
    size = _size(args, LATENT_21)
    phases = _phases(args)
    if args.compile:
        compile_kernels()
    vae = WanVAE(VaeConfig(dim=args.dim, dec_dim=args.dim))
    init_vae(vae, args.seed)
    settings = VaeSettings(phases=phases, kl=args.kl, bf16=args.precision == "bf16", seed=args.seed)
    clips, held = (InMemory(clips) for clips in _open_both(args, size))
    task = VaeTask(vae, clips, held, settings)
    loop, optim = _settings(args, sum(phase.steps for phase in phases))
    chosen = asdict(settings) | {"dim": args.dim, "data": args.data, "size": asdict(size)}
    chosen |= {"held": args.held, "compile": args.compile}  # the held clips set the scale of the exported latents
    return train(task, args.out, loop, optim, chosen)


def _model_options(parser: argparse.ArgumentParser, phases: list[str]) -> None:
    parser.add_argument("--model", type=Path, required=True, help="the transformer to train (further)")
    parser.add_argument("--vae", type=Path, required=True, help="its VAE")
    parser.add_argument("--text-encoder", type=Path, required=True, help="its umT5, with the tokenizer in it or beside")
    _phases_option(parser, phases)
    parser.add_argument("--shift", type=float, default=3.0, help="above 1: more of the high noise levels")
    parser.add_argument(
        "--sigma", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"),
        help="noise levels of an expert, for example 0.875 1",
    )  # fmt: skip
    parser.add_argument("--drop-text", type=float, default=0.1, help="share of captions left out, for guidance")
    parser.add_argument("--cache", type=Path, help="file for the encoded clips (default: in --out)")
    parser.add_argument("--checkpoint", action="store_true", help="gradient checkpointing: less memory, more time")


def dit_options(parser: argparse.ArgumentParser) -> None:
    _model_options(parser, ["17x32x3000"])
    parser.add_argument("--train-text-encoder", action="store_true", help="train the text encoder too")


def lora_options(parser: argparse.ArgumentParser) -> None:
    usual = LoraSettings()
    _model_options(parser, ["17x1x1000"])
    parser.add_argument("--rank", type=int, default=usual.rank)
    parser.add_argument("--alpha", type=float, help="the change is alpha / rank * up @ down (default: as --rank)")
    parser.add_argument("--targets", nargs="+", default=list(usual.targets), help="layers of a block, by their ends")


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """The files of a command line, the network to train, and what the run depends on."""

    dit: WanDiT
    vae: VaeHandle
    encoder: TextEncoderHandle
    settings: DitSettings
    held: Clips
    clips: EncodedClips
    chosen: dict


def _load(
    args: argparse.Namespace, dtype: str, network: Callable[[ModelHandle], WanDiT], text_is_trained: bool = False
) -> _Loaded:
    """Open and check everything that a transformer is trained with; then encode the clips, which takes its time."""
    for option in ("model", "vae", "text_encoder"):
        check_exists(getattr(args, option), f"--{option.replace('_', '-')}")
    model = load_model(args.model, compute=COMPUTE, dtype=dtype, notify=lambda text: None)
    vae = load_vae(args.vae, compute=COMPUTE, dtype="fp32")
    encoder = load_text_encoder(args.text_encoder, compute=COMPUTE, dtype="fp32")
    _check_fit(model, vae, encoder)
    dit = network(model)
    size = _size(args, vae.spec)
    settings = DitSettings(
        phases=_phases(args),
        sigma=SigmaSettings(shift=args.shift, low=args.sigma[0], high=args.sigma[1]),
        drop_text=args.drop_text,
        bf16=args.precision == "bf16",
        checkpoint=args.checkpoint,
        seed=args.seed,
    )
    data, held = _open_both(args, size)
    table = Path(args.data) / "metadata.csv"
    source = {"data": args.data, "size": asdict(size), "table": _fingerprint(table) if table.is_file() else None}
    source["vae"], text_encoder = _fingerprint(args.vae), _fingerprint(args.text_encoder)
    clips = encode_clips(
        data,
        vae,
        encoder,
        images=is_image_model(model.variant.dit),
        rows=not text_is_trained,
        key=json.dumps(source),
        text_key=text_encoder,
        path=args.cache or args.out / "clips.safetensors",
    )
    files = {"model": _fingerprint(args.model), "text_encoder": text_encoder, "compile": args.compile}
    chosen = asdict(settings) | source | files
    return _Loaded(dit=dit, vae=vae, encoder=encoder, settings=settings, held=held, clips=clips, chosen=chosen)


def _train(task: DitTask, args: argparse.Namespace, chosen: dict) -> list[Path]:
    if args.compile:
        for block in task.dit.blocks:
            block.compile()
    loop, optim = _settings(args, sum(phase.steps for phase in task.settings.phases))
    return train(task, args.out, loop, optim, chosen)


def run_dit(args: argparse.Namespace) -> list[Path]:
    """Train a transformer by flow matching, text or image to video; writes dit.safetensors (bf16)."""

    def network(model: ModelHandle) -> WanDiT:
        return trainable(WanDiT(replace(model.variant.dit, text_len=0)), model.high)

    files = _load(args, "fp32", network, args.train_text_encoder)
    trained_text = {}
    if args.train_text_encoder:
        trained_text["spiece"] = _spiece(args.text_encoder)
        trained_text["encoder"] = trainable(Umt5Encoder(files.encoder.config), files.encoder.weights)
    show = Show(files.vae, files.encoder, files.held, ShowSettings())
    task = DitTask(files.dit, files.clips, files.settings, show=show, **trained_text)
    return _train(task, args, files.chosen | {"train_text_encoder": args.train_text_encoder})


def run_lora(args: argparse.Namespace) -> list[Path]:
    """Train a LoRA on a transformer that stays as it is; writes lora.safetensors (bf16, PEFT names)."""
    alpha = args.rank if args.alpha is None else args.alpha
    lora = LoraSettings(rank=args.rank, alpha=alpha, targets=tuple(args.targets))
    files = _load(args, args.precision, lambda model: add_trained_layers(model.high.module, lora, args.seed))
    facts = asdict(lora) | {"base": args.model.name, "clips": len(files.clips), "settings": asdict(files.settings)}
    show = Show(files.vae, files.encoder, files.held, ShowSettings(), base=args.model)
    task = LoraTask(files.dit, files.clips, files.settings, facts=facts, show=show)
    return _train(task, args, files.chosen | {"lora": asdict(lora)})


def _check_fit(model: ModelHandle, vae: VaeHandle, encoder: TextEncoderHandle) -> None:
    """Refuse files that do not belong together, and a model whose inputs the clips cannot give."""
    config = model.variant.dit
    if config.out_dim != vae.spec.channels:
        raise MismatchError(
            f"{model.name} makes latents of {config.out_dim} channels, {vae.weights.name} has {vae.spec.channels}. "
            f"Use the {model.variant.latent.vae}."
        )
    if config.text_dim != encoder.config.dim:
        raise MismatchError(
            f"{model.name} reads text of width {config.text_dim}, {encoder.weights.name} gives {encoder.config.dim}. "
            "Use the text encoder that the model was trained with."
        )
    if Feature.CLIP in model.variant.features:
        raise InputError(
            f"{model.name} takes CLIP tokens of a picture, which are not trained here. Use a model without them "
            "(T2V, or the I2V of Wan 2.2)."
        )


def _spiece(path: Path) -> bytes:
    """The tokenizer that the trained text encoder's file will carry."""
    with open_checkpoint(path) as file:
        if "spiece_model" in file.header:
            return read_raw(file, "spiece_model")
    beside = path.parent / "spiece.model"
    if beside.is_file():
        return beside.read_bytes()
    raise InputError(f"{path} carries no tokenizer; to train it, put its spiece.model beside it.")


def _fingerprint(path: Path) -> str:
    """What tells one file from another in the settings of a run: its name, its size and both its ends."""
    with path.open("rb") as file:
        ends = file.read(FINGERPRINT_BYTES)
        file.seek(max(0, path.stat().st_size - FINGERPRINT_BYTES))
        ends += file.read()
    return f"{path.name} {path.stat().st_size} {hashlib.sha256(ends).hexdigest()[:16]}"


COMMANDS: dict[str, Command] = {
    "vae": Command(options=vae_options, run=run_vae, lr=3e-3),
    "dit": Command(options=dit_options, run=run_dit, lr=1e-3),
    "lora": Command(options=lora_options, run=run_lora, lr=1e-4, optimizer="adamw"),
}
"""Name on the command line -> what it does."""
