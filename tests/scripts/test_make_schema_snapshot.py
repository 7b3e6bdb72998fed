"""What counts as a break of saved workflows, and what as an addition."""

import copy

import pytest

from scripts import make_schema_snapshot as snapshot

INFO = {
    "WanCoreThing": {
        "input": {
            "required": {
                "model": ["WAN_CORE_MODEL", {}],
                "file": ["COMBO", {"options": ["a.safetensors"]}],
                "steps": ["INT", {"default": 4, "min": 1, "max": 9, "tooltip": "How many."}],
                "solver": ["COMBO", {"default": "euler", "options": ["euler", "lcm"]}],
            },
            "optional": {"sigmas": ["SIGMAS", {}]},
        },
        "output": ["LATENT"],
        "output_name": ["latent"],
    },
    "KSampler": {"input": {}, "output": [], "output_name": []},
}


def changed(edit) -> list[str]:
    info = copy.deepcopy(INFO)
    edit(info["WanCoreThing"], info)
    return snapshot.breaks(snapshot.describe(INFO), snapshot.describe(info))


def reorder(node: dict, info: dict) -> None:
    node["input"]["required"] = dict(reversed(node["input"]["required"].items()))


BREAKS = {
    "a node is gone": (lambda node, info: info.pop("WanCoreThing"), "WanCoreThing is gone"),
    "inputs change places": (reorder, "its inputs are solver, steps"),
    "an input is gone": (lambda node, info: node["input"]["required"].pop("steps"), "saved workflows have model, file"),
    "a required input is added": (
        lambda node, info: node["input"]["required"].update(extra=["INT", {"default": 1}]),
        "new input extra is required",
    ),
    "an optional input becomes required": (
        lambda node, info: node["input"]["required"].update(node["input"].pop("optional")),
        "optional of input sigmas was True and is False",
    ),
    "a type": (lambda node, info: node["input"]["required"].update(steps=["FLOAT", {"default": 4}]), "type of input"),
    "a default": (lambda node, info: node["input"]["required"]["steps"][1].update(default=5), "was 4 and is 5"),
    "a range": (lambda node, info: node["input"]["required"]["steps"][1].update(max=8), "max of input steps was 9"),
    "a choice is gone": (
        lambda node, info: node["input"]["required"]["solver"][1].update(options=["euler"]),
        "no longer offers lcm",
    ),
    "an output changes its type": (lambda node, info: node.update(output=["IMAGE"]), "saved workflows have latent"),
}


@pytest.mark.parametrize("edit", BREAKS)
def test_a_break_is_told_in_a_sentence(edit):
    change, words = BREAKS[edit]
    assert any(words in sentence for sentence in changed(change))


ADDITIONS = {
    "a node": lambda node, info: info.update(WanCoreOther=copy.deepcopy(node)),
    "an optional input": lambda node, info: node["input"]["optional"].update(extra=["INT", {"default": 1}]),
    "a choice": lambda node, info: node["input"]["required"]["solver"][1]["options"].append("unipc"),
    "an output": lambda node, info: node.update(output=["LATENT", "FLOAT"], output_name=["latent", "fps"]),
}


@pytest.mark.parametrize("edit", ADDITIONS)
def test_an_addition_at_the_end_breaks_nothing_and_shows_in_the_snapshot(edit):
    info = copy.deepcopy(INFO)
    ADDITIONS[edit](info["WanCoreThing"], info)
    assert snapshot.breaks(snapshot.describe(INFO), snapshot.describe(info)) == []
    assert snapshot.describe(INFO) != snapshot.describe(info)


def test_words_files_and_other_peoples_nodes_are_not_in_the_snapshot():
    info = copy.deepcopy(INFO)
    inputs = info["WanCoreThing"]["input"]["required"]
    inputs["steps"][1]["tooltip"] = "Another sentence."
    inputs["file"][1]["options"] = []
    del info["KSampler"]
    assert snapshot.describe(info) == snapshot.describe(INFO)


def test_a_combo_in_the_older_hosts_words_is_the_same():
    info = copy.deepcopy(INFO)
    info["WanCoreThing"]["input"]["required"]["solver"] = [["euler", "lcm"], {"default": "euler"}]
    assert snapshot.describe(info) == snapshot.describe(INFO)
