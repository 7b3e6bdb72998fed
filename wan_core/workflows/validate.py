"""Whether a document in the page form is consistent: what the page would repair or drop without a word."""

from collections import Counter


def problems(document: dict) -> list[str]:
    """Sentences about ids, links and slots that do not fit together; an empty list: it opens as it is."""
    nodes = {node["id"]: node for node in document["nodes"]}
    links = {link[0]: link for link in document["links"]}
    found = [f"two nodes have the id {key}" for key in _twice(node["id"] for node in document["nodes"])]
    found += [f"two links have the id {key}" for key in _twice(link[0] for link in document["links"])]
    found += [f"node {key} has an id that is no number" for key in nodes if not isinstance(key, int)]
    if nodes and document["last_node_id"] < max(nodes):
        found.append("last_node_id is below the id of a node")
    if links and document["last_link_id"] < max(links):
        found.append("last_link_id is below the id of a link")
    for link in document["links"]:
        found += _ends(link, nodes)
    for node in document["nodes"]:
        found += _sockets(node, links)
    subgraphs = (document.get("definitions") or {}).get("subgraphs")
    return found + (["it has subgraphs"] if subgraphs else [])


def _twice(values) -> list:
    return [value for value, count in Counter(values).items() if count > 1]


def _ends(link: list, nodes: dict) -> list[str]:
    """Both ends of a link are there, and know of it."""
    number, origin, origin_slot, target, target_slot = link[:5]
    if origin not in nodes or target not in nodes:
        return [f"link {number} has an end at a node that is not there"]
    outputs, inputs = nodes[origin]["outputs"], nodes[target]["inputs"]
    if origin_slot >= len(outputs) or target_slot >= len(inputs):
        return [f"link {number} has an end at a slot that is not there"]
    found = []
    if number not in (outputs[origin_slot]["links"] or []):
        found.append(f"output {origin_slot} of node {origin} does not know of link {number}")
    if inputs[target_slot]["link"] != number:
        found.append(f"input {target_slot} of node {target} does not know of link {number}")
    if not _fits(outputs[origin_slot].get("type"), inputs[target_slot].get("type")):
        found.append(
            f"link {number} goes from {outputs[origin_slot]['type']} of node {origin} to "
            f"{inputs[target_slot]['type']} of node {target}"
        )
    return found


def _fits(out: object, into: object) -> bool:
    """Whether the page lets an output be drawn to an input."""
    names = [set(str(kind).split(",")) for kind in (out, into)]
    return bool({"*", "", "0", "-1"} & (names[0] | names[1]) or names[0] & names[1]) or "COMFY_" in f"{out}{into}"


def _sockets(node: dict, links: dict) -> list[str]:
    found = []
    for slot, entry in enumerate(node["inputs"]):
        link = links.get(entry["link"])
        if entry["link"] is not None and (link is None or link[3:5] != [node["id"], slot]):
            found.append(f"input {slot} of node {node['id']} names link {entry['link']}, which ends elsewhere")
    for slot, output in enumerate(node["outputs"]):
        for number in output.get("links") or []:
            if number not in links or links[number][1:3] != [node["id"], slot]:
                found.append(f"output {slot} of node {node['id']} names link {number}, which begins elsewhere")
    return found
