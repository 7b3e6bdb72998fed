"""Write example_workflows: the graphs of workflow_graphs.py, each as page form and as API form.

``python3 scripts/make_workflows.py --url http://127.0.0.1:8188`` asks a running ComfyUI (with the pack) for the nodes'
schemas, which give the widget order of the page form. Released files live on in tests/workflows.
"""

import argparse
import json
import sys
import urllib.request
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.workflow_graphs import JOBS, graph

OUT = Path(__file__).parent.parent / "example_workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
# Save Video's format is a plain combo on older hosts and brings sockets of its own on newer ones.
NEWER_ONLY = {("SaveVideo", "format"), ("SaveVideo", "codec"), ("CreateVideo", "bit_depth")}
COLUMNS = (
    # title, left edge, width
    ("1 Load", 0, 460),
    ("2 Encode", 560, 440),
    ("3 Sample (0 = what the model was made for)", 1100, 440),
    ("4 Decode and save", 1640, 440),
)
# The page's own measures: a title bar, a row of sockets, a row of widgets. Above a title sits the pack's badge.
TITLE, SOCKET, WIDGET, GAP, MARGIN = 30, 20, 24, 56, 24


def schema_inputs(schema: dict) -> dict[str, list]:
    """Input name -> its declaration, in the page's order."""
    return {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}


def input_type(declaration: list) -> str:
    return "COMBO" if isinstance(declaration[0], list) else declaration[0]


def default(declaration: list):
    """A widget's default; the first choice of a combo that names none."""
    options = declaration[1] if len(declaration) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = declaration[0] if isinstance(declaration[0], list) else options.get("options", [None])
    return choices[0]


def fill(nodes: dict[str, dict], schemas: dict[str, dict]) -> None:
    """Give every widget that a graph leaves out its default, and all inputs the schema's order."""
    for node in nodes.values():
        given, declared = node["inputs"], schema_inputs(schemas[node["class"]])
        for name, declaration in declared.items():
            if (
                input_type(declaration) in WIDGET_TYPES
                and given.get(name) is None
                and not (hidden(declaration) or newer_only(node, name))
            ):
                given[name] = default(declaration)
        node["inputs"] = {name: given[name] for name in sorted(given, key=[*declared, *given].index)}


def hidden(declaration: list) -> bool:
    return len(declaration) > 1 and bool(declaration[1].get("hidden"))


def newer_only(node: dict, key: str) -> bool:
    """Not the same on all hosts, and right when the page fills it in itself."""
    return (node["class"], key) in NEWER_ONLY


def api_form(nodes: dict[str, dict], schemas: dict[str, dict]) -> dict:
    """What POST /prompt takes."""
    ids = {name: str(number) for number, name in enumerate(nodes, 1)}
    return {
        ids[name]: {
            "class_type": node["class"],
            "inputs": {
                key: [ids[value[0]], value[1]] if isinstance(value, list) else value
                for key, value in node["inputs"].items()
            },
            "_meta": {"title": schemas[node["class"]]["display_name"]},
        }
        for name, node in nodes.items()
    }


def page_form(title: str, nodes: dict[str, dict], schemas: dict[str, dict]) -> dict:
    """What the page opens."""
    ids = {name: number for number, name in enumerate(nodes, 1)}
    links, page_nodes = [], []
    for order, (name, node) in enumerate(nodes.items()):
        sockets, values = _sockets(node, schemas[node["class"]], ids, links, ids[name])
        page_nodes.append(_page_node(ids[name], order, node, schemas[node["class"]], sockets, values))
    for page_node in page_nodes:
        for slot, output in enumerate(page_node["outputs"]):
            output["links"] = [wire[0] for wire in links if wire[1] == page_node["id"] and wire[2] == slot]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"wan-core/{title}")),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": page_nodes,
        "links": links,
        "groups": place(nodes, page_nodes),
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _sockets(node: dict, schema: dict, ids: dict[str, int], links: list, number: int) -> tuple[list, list]:
    """A node's sockets and the values of its widgets, in the page's order; its wires are added to ``links``."""
    sockets, values = [], []
    for key, declaration in schema_inputs(schema).items():
        kind, value = input_type(declaration), node["inputs"].get(key)
        if hidden(declaration) or newer_only(node, key):
            continue
        socket = {"name": key, "type": kind, "link": None}
        if isinstance(value, list):
            links.append([len(links) + 1, ids[value[0]], value[1], number, len(sockets), kind])
            socket["link"] = len(links)
        if kind in WIDGET_TYPES:
            socket["widget"] = {"name": key}
            values.append(default(declaration) if isinstance(value, list) else value)
            options = declaration[1] if len(declaration) > 1 else {}
            values += ["fixed"] if options.get("control_after_generate") else []
            values += ["image"] if options.get("image_upload") or options.get("video_upload") else []
        sockets.append(socket)
    if node["class"] == "SaveVideo":
        values += [node["inputs"]["format"], node["inputs"]["codec"]]
    return sockets, values


def _page_node(number: int, order: int, node: dict, schema: dict, sockets: list, values: list) -> dict:
    properties = {"Node name for S&R": node["class"]}
    if node.get("files"):
        properties["models"] = node["files"]
    wires = sum("widget" not in socket for socket in sockets)
    height = SOCKET * max(wires, len(schema["output"])) + WIDGET * len(values) + 14 + node.get("room", 0)
    return {
        "id": number,
        "type": node["class"],
        "pos": [0, 0],
        "size": [COLUMNS[node["at"][0]][2], height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": sockets,
        "outputs": [{"name": n, "type": t} for n, t in zip(schema["output_name"], schema["output"])],
        "properties": properties,
        "widgets_values": values,
    }


def place(nodes: dict[str, dict], page_nodes: list[dict]) -> list[dict]:
    """Stacks the nodes of each column, and returns a titled frame for each."""
    bottoms = [0] * len(COLUMNS)
    for (column, _), page_node in sorted(zip((node["at"] for node in nodes.values()), page_nodes), key=lambda n: n[0]):
        page_node["pos"] = [COLUMNS[column][1], bottoms[column]]
        bottoms[column] += page_node["size"][1] + GAP + TITLE
    top, bottom = -3 * TITLE, max(bottoms) - GAP - TITLE + MARGIN
    return [
        {
            "id": number,
            "title": title,
            "bounding": [left - MARGIN, top, width + 2 * MARGIN, bottom - top],
            "color": "#8a9bb0",
            "font_size": 24,
            "flags": {},
        }
        for number, (title, left, width) in enumerate(COLUMNS, 1)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="a running ComfyUI with the pack")
    parser.add_argument("names", nargs="*", help="workflows (default: all)")
    args = parser.parse_args()
    with urllib.request.urlopen(f"{args.url}/object_info") as answer:
        schemas = json.load(answer)
    (OUT / "api").mkdir(parents=True, exist_ok=True)
    for title in args.names or JOBS:
        nodes = graph(JOBS[title])
        fill(nodes, schemas)
        for path, form in (
            (OUT / f"{title}.json", page_form(title, nodes, schemas)),
            (OUT / "api" / f"{title}.json", api_form(nodes, schemas)),
        ):
            path.write_text(json.dumps(form, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
            print(path.relative_to(OUT.parent))


if __name__ == "__main__":
    main()
