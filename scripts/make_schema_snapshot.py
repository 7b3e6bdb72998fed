"""Write tests/nodes/schema_snapshot.json: what saved workflows rely on in every node's schema.

    python3 scripts/make_schema_snapshot.py --url http://127.0.0.1:8188      of a running ComfyUI with the pack

Nodes, optional inputs at the end, choices and outputs at the end may be added. Any other change breaks workflows that
people have saved and is refused in a sentence; --break-saved-workflows writes it all the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path

SNAPSHOT = Path(__file__).resolve().parents[1] / "tests" / "nodes" / "schema_snapshot.json"
COMMAND = "python3 scripts/make_schema_snapshot.py --url URL"
KEPT = ("default", "min", "max", "step", "control_after_generate")
FILES = "the files of a models folder"
NO_FILE = {"none", "same"}
"""What stands before the files of a folder; alone where the folder is empty."""
MODEL_ENDINGS = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt", ".gguf", "/metadata.csv")
"""Of models, and of the tables of training data in the input folder."""
VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
"""Of videos in the input folder."""


def describe(object_info: dict) -> dict[str, dict]:
    """Our nodes of /object_info, without words and without what depends on the machine."""
    return {
        node_id: {
            "inputs": [
                describe_input(name, declaration, optional=kind == "optional")
                for kind in ("required", "optional")
                for name, declaration in info["input"].get(kind, {}).items()
            ],
            "outputs": [{"name": n, "type": t} for n, t in zip(info["output_name"], info["output"])],
        }
        for node_id, info in sorted(object_info.items())
        if node_id.startswith("WanCore")
    }


def describe_input(name: str, declaration: list, *, optional: bool) -> dict:
    kind, options = declaration[0], declaration[1] if len(declaration) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options")
    described = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "optional": optional}
    described |= {key: options[key] for key in KEPT if options.get(key) not in (None, False)}
    if choices is not None:
        found = any(str(choice).lower().endswith(MODEL_ENDINGS + VIDEO_ENDINGS) for choice in choices)
        described["options"] = FILES if found or set(choices) <= NO_FILE else choices
    return described


def breaks(old: dict[str, dict], new: dict[str, dict]) -> list[str]:
    """What a workflow saved with the old schemas would trip over, each with what to do."""
    found = [f"{node_id} is gone. Keep it, and mark it deprecated." for node_id in old if node_id not in new]
    for node_id in old:
        if node_id in new:
            found += [f"{node_id}: {sentence}" for sentence in _node_breaks(old[node_id], new[node_id])]
    return found


def _node_breaks(old: dict, new: dict) -> list[str]:
    names, expected = ([entry["name"] for entry in node["inputs"]] for node in (new, old))
    found = []
    if names[: len(expected)] != expected:
        found.append(
            f"its inputs are {', '.join(names)}; saved workflows have {', '.join(expected)}, by place. Put the old "
            "ones back in their order and new ones behind them all (optional inputs come behind required ones)."
        )
    by_name = {entry["name"]: entry for entry in new["inputs"]}
    for entry in old["inputs"]:
        found += _input_breaks(entry, by_name[entry["name"]]) if entry["name"] in by_name else []
    found += [
        f"the new input {entry['name']} is required, and workflows in API form that were saved without it would be "
        "refused. Make it optional=True, with a default in execute."
        for entry in new["inputs"]
        if entry["name"] not in expected and not entry["optional"]
    ]
    if new["outputs"][: len(old["outputs"])] != old["outputs"]:
        outputs, wanted = (", ".join(f"{o['name']} {o['type']}" for o in node["outputs"]) for node in (new, old))
        found.append(f"its outputs are {outputs}; saved workflows have {wanted}. Add outputs at the end only.")
    return found


def _input_breaks(old: dict, new: dict) -> list[str]:
    found = [
        f"{key} of input {old['name']} was {old.get(key)!r} and is {new.get(key)!r}. Put it back, or make a new input "
        "at the end."
        for key in ("type", "optional", *KEPT)
        if old.get(key) != new.get(key)
    ]
    options = (old.get("options"), new.get("options"))
    if all(isinstance(choices, list) for choices in options):
        lost = [choice for choice in options[0] if choice not in options[1]]
        found += [f"input {old['name']} no longer offers {', '.join(map(str, lost))}. Put it back."] if lost else []
    elif options[0] != options[1]:
        found.append(f"the choices of input {old['name']} were {options[0]} and are {options[1]}. Put them back.")
    return found


def read() -> dict[str, dict]:
    return json.loads(SNAPSHOT.read_text(encoding="utf-8")) if SNAPSHOT.exists() else {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="a running ComfyUI with the pack")
    parser.add_argument("--break-saved-workflows", action="store_true", help="write even what breaks saved workflows")
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.url}/object_info") as answer:
        new = describe(json.load(answer))
    broken = breaks(read(), new)
    if broken and not args.break_saved_workflows:
        print("\n".join(("Not written; saved workflows would break:", *broken)), file=sys.stderr)
        return 1
    SNAPSHOT.parent.mkdir(parents=True, exist_ok=True)
    SNAPSHOT.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{SNAPSHOT.name}: {len(new)} nodes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
