"""Runs an API-form workflow on a ComfyUI server and saves what it makes: an example to copy from.

    python3 scripts/api_client.py example_workflows/api/wan2.1_t2v.json --set WanCoreTextEncode.positive="a blue boat"
    python3 scripts/api_client.py example_workflows/api/wan2.1_i2v.json --set LoadImage.image=@photo.png

Needs Python 3.10 and aiohttp, which every ComfyUI's Python has. The server's protocol, in the order of use here:
open /ws, POST /prompt, read progress messages until execution_success, GET /history/{id}, GET /view per file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mimetypes
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

try:
    import aiohttp
except ImportError:
    sys.exit("This client needs aiohttp: run it with the Python of your ComfyUI, or: python3 -m pip install aiohttp")

OnProgress = Callable[[str, float, float], None]  # node id, value, maximum

# Sent first, so that previews come with the id of their node.
FEATURES = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}


class JobError(RuntimeError):
    """The server refused a job or the job failed; the message is what the page would show."""


# --- one job ---------------------------------------------------------------------------------------------------------


def run(url: str, prompt: dict, workflow: dict | None = None, on_progress: OnProgress | None = None) -> dict:
    """Posts one job, waits for its end and returns its history entry (`outputs`, `status`, ...).

    `prompt` is the API form. `workflow`, the page form, is optional: when it is given the saved video carries both, and
    dropping the file on the page brings the graph back. Raises JobError with a sentence.
    """
    return asyncio.run(run_async(url, prompt, workflow, on_progress))


async def run_async(
    url: str, prompt: dict, workflow: dict | None = None, on_progress: OnProgress | None = None
) -> dict:
    client_id = uuid.uuid4().hex
    job = {"prompt": prompt, "client_id": client_id}
    if workflow is not None:
        job["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
    try:
        async with aiohttp.ClientSession(base_url=url) as session:
            # The socket is opened first, so that no message of a quick job is missed.
            async with session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket:
                await socket.send_json(FEATURES)
                prompt_id = await post(session, job)
                await follow(socket, prompt_id, on_progress)
            return await history_of(session, prompt_id)
    except aiohttp.ClientConnectionError as reason:
        raise JobError(f"No answer from {url}: {reason}. Is ComfyUI running there?") from reason


async def post(session: aiohttp.ClientSession, job: dict) -> str:
    async with session.post("/prompt", json=job) as answer:
        text = await answer.text()
    try:
        body = json.loads(text)
    except ValueError:
        raise JobError(f"The server answered {answer.status}: {text[:500]}") from None
    if answer.status != 200:
        raise JobError(refusal(body, job["prompt"]))
    return body["prompt_id"]


async def history_of(session: aiohttp.ClientSession, prompt_id: str) -> dict:
    """The finished job's entry, which the server writes a moment after it has said execution_success."""
    for _ in range(600):
        async with session.get(f"/history/{prompt_id}") as answer:
            entries = await answer.json()
        if prompt_id in entries:
            return entries[prompt_id]
        await asyncio.sleep(0.05)
    raise JobError(f"The job {prompt_id} ended, but the server's history does not have it.")


async def follow(socket: aiohttp.ClientWebSocketResponse, prompt_id: str, on_progress: OnProgress | None) -> None:
    """Reads messages until the job has ended; raises JobError unless it ended well."""
    told: dict[str, tuple] = {}
    async for message in socket:
        if message.type != aiohttp.WSMsgType.TEXT:  # binary messages are previews
            continue
        event = json.loads(message.data)
        kind, data = event["type"], event.get("data", {})
        if data.get("prompt_id") != prompt_id:
            continue
        if kind == "progress_state" and on_progress:
            tell(data["nodes"], told, on_progress)
        elif kind == "execution_success":
            return
        elif kind == "execution_error":
            raise JobError(f"{where(data['node_id'], data['node_type'])}: {data['exception_message'].strip()}")
        elif kind == "execution_interrupted":
            raise JobError(f"{where(data['node_id'], data['node_type'])}: cancelled.")
    raise JobError("The server closed the connection before the job had ended.")


def tell(nodes: dict, told: dict[str, tuple], on_progress: OnProgress) -> None:
    """Passes on what is new in a progress_state message, which repeats the state of every node so far."""
    for node_id, state in nodes.items():
        value = state["max"] if state["state"] == "finished" else state["value"]
        if told.get(node_id) != (value, state["max"]):
            told[node_id] = value, state["max"]
            on_progress(node_id, value, state["max"])


def where(node_id: str, class_type: str) -> str:
    return f"Node {node_id} ({class_type})"


def refusal(body: dict, prompt: dict) -> str:
    """The sentences in a refused POST /prompt: one line for each input that is wrong."""
    lines = [
        f"{where(node_id, node.get('class_type', '?'))}: {error['message']}: {error['details']}".rstrip(": ")
        for node_id, node in (body.get("node_errors") or {}).items()
        for error in node["errors"]
    ]
    error = body.get("error") or {}
    if isinstance(error, str):
        error = {"message": error}
    return "\n".join(lines) or f"{error.get('message', body)} {error.get('details', '')}".strip()


# --- files -----------------------------------------------------------------------------------------------------------


def saved_files(history: dict) -> list[dict]:
    """What the job's nodes saved, as {"filename", "subfolder", "type"}; temporary previews are left out."""
    items = [item for output in history["outputs"].values() for value in output.values() for item in listed(value)]
    return [item for item in items if item.get("type") == "output"]


def listed(value: object) -> list[dict]:
    return [item for item in value if isinstance(item, dict) and "filename" in item] if isinstance(value, list) else []


def download(url: str, history: dict, folder: Path = Path()) -> list[Path]:
    """Fetches every saved file of a job into `folder` and returns the new paths; an existing name gets a number."""
    return asyncio.run(download_async(url, history, folder))


async def download_async(url: str, history: dict, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    async with aiohttp.ClientSession(base_url=url) as session:
        for item in saved_files(history):
            async with session.get(f"/view?{urlencode(item)}") as answer:
                if answer.status != 200:
                    raise JobError(f"The server answered {answer.status} for {item['filename']}.")
                path = unused(folder / Path(item["filename"]).name)
                with path.open("wb") as file:
                    async for part in answer.content.iter_chunked(1 << 20):
                        file.write(part)
            paths.append(path)
    return paths


def unused(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        candidate = path.with_stem(f"{path.stem}_{number}")
        number += 1
    return candidate


def upload(url: str, image: Path) -> str:
    """Puts an image into the server's input folder; returns the name for LoadImage."""
    return asyncio.run(upload_async(url, image))


async def upload_async(url: str, image: Path) -> str:
    form = aiohttp.FormData()
    kind = mimetypes.guess_type(image.name)[0] or "application/octet-stream"
    form.add_field("image", image.read_bytes(), filename=image.name, content_type=kind)
    async with aiohttp.ClientSession(base_url=url) as session, session.post("/upload/image", data=form) as answer:
        if answer.status != 200:
            raise JobError(f"The server did not take {image.name} ({answer.status}).")
        body = await answer.json()
    return "/".join(part for part in (body["subfolder"], body["name"]) if part)


# --- the command -----------------------------------------------------------------------------------------------------


def parse_set(text: str) -> tuple[str, str, object]:
    """`NODE.INPUT=VALUE` -> (node, input, value). VALUE is JSON where it can be read as JSON, else a string."""
    target, equals, raw = text.partition("=")
    node, dot, name = target.rpartition(".")
    if not (equals and dot and node and name):
        raise JobError(f"--set {text}: write NODE.INPUT=VALUE, for example WanCoreSampler.seed=7.")
    try:
        return node, name, json.loads(raw)
    except ValueError:
        return node, name, raw


def apply_set(prompt: dict, node: str, name: str, value: object) -> None:
    """Sets one input of the node with that id, or of every node of that class or title."""
    hits = [
        entry
        for node_id, entry in prompt.items()
        if node in (node_id, entry["class_type"], entry.get("_meta", {}).get("title"))
    ]
    if not hits:
        there = ", ".join(f"{node_id} {entry['class_type']}" for node_id, entry in prompt.items())
        raise JobError(f"--set: the workflow has no node {node}. It has: {there}.")
    for entry in hits:
        if name not in entry["inputs"]:
            raise JobError(f"--set: {entry['class_type']} has no input {name}. It has: {', '.join(entry['inputs'])}.")
        entry["inputs"][name] = value


def load_workflow(path: Path) -> tuple[dict, dict | None]:
    """The API form in `path`, and the page form where the same name stands one folder up (`api/x.json`, `x.json`)."""
    prompt = json.loads(path.read_text(encoding="utf-8"))
    if "nodes" in prompt:
        raise JobError(f"{path} is the page form. Export it with 'Export (API)', or use the file of that name in api/.")
    page = path.resolve().parent.parent / path.name
    return prompt, json.loads(page.read_text(encoding="utf-8")) if page.exists() else None


def progress_bar(prompt: dict) -> OnProgress:
    """A one-line bar on stderr: the node's name, how far it is, and its count; in a log file only the finished ones."""

    def show(node_id: str, value: float, maximum: float) -> None:
        if value < maximum and not sys.stderr.isatty():
            return
        name = prompt.get(node_id, {}).get("class_type", node_id)
        done = round(30 * value / maximum) if maximum else 0
        start, end = "\r" if sys.stderr.isatty() else "", "\n" if value >= maximum else ""
        print(f"{start}{name:<24} [{'#' * done:<30}] {value:g}/{maximum:g}", end=end, file=sys.stderr, flush=True)

    return show


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "workflow", type=Path, help="API-form workflow, for example example_workflows/api/wan2.1_t2v.json"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="@FILE uploads an image")
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="the server (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(), metavar="DIR", help="where to save (default: here)")
    args = parser.parse_args()
    try:
        prompt, workflow = load_workflow(args.workflow)
        for text in args.set:
            node, name, value = parse_set(text)
            if isinstance(value, str) and value.startswith("@"):
                value = upload(args.url, Path(value[1:]))
            apply_set(prompt, node, name, value)
        history = run(args.url, prompt, workflow, progress_bar(prompt))
        for path in download(args.url, history, args.output):
            print(path)
    except (JobError, OSError, ValueError) as reason:
        sys.exit(str(reason))


if __name__ == "__main__":
    main()
