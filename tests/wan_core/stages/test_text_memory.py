"""What blocks made of a text is kept through a run on a CPU, as long as it is true, and changes no bit."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.lora_dialects import make
from tests import tiny
from tests.wan_core.runtime.memories import Planned
from tests.wan_core.stages.test_entries import condition, run
from wan_core.models.dit_block import TextMemory
from wan_core.models.nag import Nag
from wan_core.runtime.memory import dit_work
from wan_core.runtime.ports import Ports
from wan_core.sampling.guidance_options import GuidanceOptions, SkipBlocks
from wan_core.sampling.loras import parse_strength
from wan_core.stages import sides
from wan_core.stages.lora import add_lora

STEPS = 4


@pytest.fixture
def forgetful(monkeypatch):
    """A switch: from its call on nothing is kept."""
    return lambda: monkeypatch.setattr(TextMemory, "of", lambda self, block, make: make())


def text_reads(model) -> list[int]:
    """Grows with every block that makes keys of a text."""
    seen: list[int] = []
    for weights in filter(None, (model.high, model.low)):
        for number, block in enumerate(weights.module.blocks):
            block.cross_attn.k.register_forward_hook(lambda *_, number=number: seen.append(number))
    return seen


@pytest.mark.parametrize("name", ["t2v-1.3b", "t2v-a14b", "vace-1.3b"])
def test_each_text_is_read_once_by_each_block_and_the_run_is_the_same_to_the_bit(name, forgetful):
    model = tiny.model(name)
    reads, settings = text_reads(model), {} if model.low is None else {"switch_step": 2, "guidance_low": 3.0}
    kept = run(model, **settings)
    blocks = sum(len(one.module.blocks) for one in (model.high, model.low) if one is not None)
    assert len(reads) == 2 * blocks
    reads.clear()
    forgetful()
    assert torch.equal(run(model, **settings), kept)
    assert len(reads) == 2 * len(model.high.module.blocks) * STEPS


EXTRAS = {
    "nag": {"nag": Nag(scale=3.0, tau=2.5, alpha=0.3)},
    "skipped blocks": {"skip": SkipBlocks(blocks=frozenset({1}), start=0.0, end=0.6, scale=2.0)},
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_guidance_inside_of_the_model_is_the_same_to_the_bit(extra, forgetful):
    plain = run(tiny.model("t2v-1.3b"))
    model = replace(tiny.model("t2v-1.3b"), guidance=GuidanceOptions(**EXTRAS[extra]))
    reads = text_reads(model)
    kept = run(model)
    read = len(reads)
    assert (kept - plain).abs().max() > 1e-3
    reads.clear()
    forgetful()
    assert torch.equal(run(model), kept)
    assert 0 < read < len(reads)


def test_two_runs_share_nothing():
    model = tiny.model("t2v-1.3b")
    one = run(model, condition(5))
    assert (run(model, condition(7)) - one).abs().max() > 1e-3
    assert torch.equal(run(model, condition(5)), one)


def test_weights_that_change_within_a_run_read_the_text_again(tmp_path, forgetful):
    file = tmp_path / "lora.safetensors"
    save_file(make("PEFT (diffusion_model.)", tiny.variant("t2v-1.3b").dit), file)
    model = tiny.model("t2v-1.3b")
    plain = run(model)
    course = parse_strength("0: 1, 2: 0.5")
    worn = add_lora(model, file, None, strength=course, strength_low=course, notify=lambda text: None)
    made = run(worn)
    assert (made - plain).abs().max() > 1e-3
    forgetful()
    assert torch.equal(run(worn), made)


def test_where_blocks_come_and_go_nothing_is_kept():
    model = tiny.model("t2v-1.3b")
    whole = run(model)
    reads = text_reads(model)
    assert torch.equal(run(model, ports=Ports(memory=Planned(1))), whole)
    assert len(reads) == 2 * len(model.high.module.blocks) * STEPS


def test_when_memory_runs_out_what_was_kept_goes(monkeypatch):
    model, made, calls = tiny.model("t2v-1.3b"), [], []
    whole = run(model)
    monkeypatch.setattr(sides, "TextMemory", lambda: made.append(TextMemory()) or made[-1])

    def fails_once(*_):
        calls.append(1)
        if len(calls) == 3:  # in the second step
            raise torch.OutOfMemoryError("out of memory")

    model.high.module.blocks[1].register_forward_pre_hook(fails_once)
    assert torch.equal(run(model), whole)
    assert len(made) == 2 and not any(one._made for one in made)


def test_an_entry_that_counts_no_more_keeps_nothing(monkeypatch):
    model, made = tiny.model("t2v-1.3b"), []
    monkeypatch.setattr(sides, "TextMemory", lambda: made.append(TextMemory()) or made[-1])
    run(model, [condition(5, end=0.3), condition(7, start=0.3)])
    assert [bool(one._made) for one in made] == [False, True, True]


def test_the_plan_counts_it():
    cfg = tiny.variant("t2v-1.3b").dit
    none, two = (dit_work(cfg, 1, 64, passes=2, itemsize=4, text_rows=n).kept_bytes for n in (0, 90))
    assert two - none == 90 * cfg.num_layers * 2 * cfg.dim * 4
