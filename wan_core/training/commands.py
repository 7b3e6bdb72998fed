"""What the command line can train: the options of each kind, and how they become a task."""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ..configs import VaeConfig
from ..errors import InputError
from ..grid import grid_of
from ..models.dit import WanDiT
from ..models.umt5 import Umt5Encoder
from ..models.vae import WanVAE
from ..runtime.ports import Compute, Ports
from ..stages.load import ModelHandle, load_model, load_text_encoder, load_vae
from ..variants import LATENT_21, LatentSpec
from ..weights.checkpoint import open_checkpoint
from ..weights.load import read_raw
from ..weights.precision import has_bf16
from .clips import Clips, ClipSize, InMemory, open_clips
from .data_set import DataSet, fingerprint
from .dit_task import DitSettings, DitTask
from .flow import SigmaSettings
from .lock import locked
from .loop import LoopSettings, train
from .lora_job import LoraRecipe, check_fit, train_lora
from .lora_task import LoraSettings
from .optim import OptimSettings
from .phases import Phase
from .show import COMPUTE, Show, ShowSettings, is_image_model
from .trainable import check_exists, trainable
from .vae_clip import compile_kernels
from .vae_task import VaeSettings, VaeTask, init_vae

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
    parser.add_argument("--skip-bad", action="store_true", help="go on without clips of a folder that cannot be used")
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
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="bf16: autocast; auto: bf16 where the device multiplies it in hardware, else fp32, which is faster there",
    )
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


def choose_precision(args: argparse.Namespace) -> None:
    """Put bf16 or fp32 in the place of ``auto``."""
    if args.precision == "auto":
        device = _device(getattr(args, "device", "cpu"))
        args.precision = "bf16" if has_bf16(device) else "fp32"


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


def _open_both(args: argparse.Namespace, size: ClipSize) -> tuple[Clips, Clips | None]:
    """Clips to learn from, and those that are only shown where there are such."""
    data = open_clips(args.data, size, args.skip_bad)
    return data, open_clips(args.held, size, args.skip_bad) if args.held else None


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
    data, shown = _open_both(args, size)
    clips = InMemory(data)
    task = VaeTask(vae, clips, clips if shown is None else InMemory(shown), settings)
    loop, optim = _settings(args, sum(phase.steps for phase in phases))
    chosen = asdict(settings) | {"dim": args.dim, "data": args.data, "size": asdict(size)}
    chosen |= {"held": args.held, "compile": args.compile}  # the held clips set the scale of the exported latents
    with locked(args.out):
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
    parser.add_argument("--device", default="auto", help="auto: the first CUDA card, or the CPU where there is none")


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What a command line names, opened and checked; nothing of it is encoded yet."""

    model: ModelHandle
    data: DataSet
    held: Clips | None
    settings: DitSettings


def _open(args: argparse.Namespace, compute: Compute, dtype: str) -> _Files:
    """Open and check everything that a transformer is trained with."""
    for option in ("model", "vae", "text_encoder"):
        check_exists(getattr(args, option), f"--{option.replace('_', '-')}")
    model = load_model(args.model, compute=compute, dtype=dtype, notify=lambda text: None)
    vae = load_vae(args.vae, compute=compute, dtype="fp32")
    encoder = load_text_encoder(args.text_encoder, compute=compute, dtype="fp32")
    check_fit(model, vae, encoder)
    size = _size(args, vae.spec)
    settings = DitSettings(
        phases=_phases(args),
        sigma=SigmaSettings(shift=args.shift, low=args.sigma[0], high=args.sigma[1]),
        drop_text=args.drop_text,
        bf16=args.precision == "bf16",
        checkpoint=args.checkpoint,
        seed=args.seed,
    )
    clips, held = _open_both(args, size)
    data = DataSet(
        name=args.data,
        folder=Path(args.data) if Path(args.data).is_dir() else None,
        clips=clips,
        size=size,
        vae=vae,
        encoder=encoder,
        path=args.cache or args.out / "clips.safetensors",
    )
    return _Files(model=model, data=data, held=held, settings=settings)


def run_dit(args: argparse.Namespace) -> list[Path]:
    """Train a transformer by flow matching, text or image to video; writes dit.safetensors (bf16)."""
    files = _open(args, COMPUTE, "fp32")
    data, settings, encoder = files.data, files.settings, files.data.encoder
    chosen = asdict(settings) | data.source() | {"train_text_encoder": args.train_text_encoder, "compile": args.compile}
    chosen |= {"model": fingerprint(files.model.name, files.model.high.module), "text_encoder": data.text_key()}
    dit = trainable(WanDiT(replace(files.model.variant.dit, text_len=0)), files.model.high)
    trained_text = {}
    if args.train_text_encoder:
        trained_text["spiece"] = _spiece(args.text_encoder)
        trained_text["encoder"] = trainable(Umt5Encoder(encoder.config), encoder.weights)
    with locked(args.out):
        images = is_image_model(files.model.variant.dit)
        clips = data.encoded(Ports(), images=images, rows=not args.train_text_encoder)
        show = Show(data.vae, encoder, files.held or data.clips, ShowSettings())
        task = DitTask(dit, clips, settings, show=show, **trained_text)
        if args.compile:
            for block in dit.blocks:
                block.compile()
        loop, optim = _settings(args, sum(phase.steps for phase in settings.phases))
        return train(task, args.out, loop, optim, chosen)


def run_lora(args: argparse.Namespace) -> list[Path]:
    """Train a LoRA on a transformer that stays as it is; writes lora.safetensors (bf16, PEFT names)."""
    alpha = args.rank if args.alpha is None else args.alpha
    device = _device(args.device)
    files = _open(args, Compute(device=device, bf16=True), args.precision)
    loop, optim = _settings(args, sum(phase.steps for phase in files.settings.phases))
    recipe = LoraRecipe(
        lora=LoraSettings(rank=args.rank, alpha=alpha, targets=tuple(args.targets)),
        dit=files.settings,
        loop=loop,
        optim=optim,
        show=ShowSettings(),
        held=files.held,
        compile=args.compile,
    )
    return [train_lora(files.model, files.data, args.out, recipe, Ports())]


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if (
        device is None
        or device.type not in ("cpu", "cuda")
        or (device.type == "cuda" and not torch.cuda.is_available())
    ):
        raise InputError(f"--device must be auto, cpu or a CUDA card that is there, such as cuda:0; got {name}.")
    return device


def _spiece(path: Path) -> bytes:
    """The tokenizer that the trained text encoder's file will carry."""
    with open_checkpoint(path) as file:
        if "spiece_model" in file.header:
            return read_raw(file, "spiece_model")
    beside = path.parent / "spiece.model"
    if beside.is_file():
        return beside.read_bytes()
    raise InputError(f"{path} carries no tokenizer; to train it, put its spiece.model beside it.")


COMMANDS: dict[str, Command] = {
    "vae": Command(options=vae_options, run=run_vae, lr=3e-3),
    "dit": Command(options=dit_options, run=run_dit, lr=1e-3),
    "lora": Command(options=lora_options, run=run_lora, lr=1e-4, optimizer="adamw"),
}
"""Name on the command line -> what it does."""
