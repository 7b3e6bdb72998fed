"""``python3 -m wan_core.workflows FILE [-o OUT]``: a shared workflow -> the same on the nodes of this pack."""

import argparse
import json
import sys
from pathlib import Path

from ..errors import WorkflowError
from .convert import convert
from .file import dumps, read


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 after one sentence about what is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m wan_core.workflows", description=__doc__.split(": ", 1)[1])
    parser.add_argument("file", type=Path, help="a workflow as ComfyUI saves it, or exports it as API")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="where to write it (default: to stdout)")
    parser.add_argument("--api", action="store_true", help="write the API form, whatever came in")
    parser.add_argument(
        "--schemas", type=Path, metavar="FILE", help="the saved answer of your ComfyUI to /object_info, for --api"
    )
    args = parser.parse_args(arguments)
    try:
        content, document = read(args.file)
        schemas = _schemas(args.schemas) if args.schemas else None
        converted = convert(document, api=args.api, schemas=schemas)
        same = converted.document is document
        text = content if same else dumps(converted.document).encode()
        _write(args.output, text)
    except WorkflowError as reason:
        sys.stderr.write(f"{args.file.name}: {reason}\n")
        return 1
    sys.stderr.write(converted.report.text())
    return 0


def _schemas(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as reason:
        raise WorkflowError(f"{path} is not the answer of /object_info: {reason}.") from None


def _write(path: Path | None, text: bytes) -> None:
    try:
        if path is None:
            sys.stdout.buffer.write(text)
            sys.stdout.flush()
        else:
            path.write_bytes(text)
    except OSError as reason:
        raise WorkflowError(f"{path or 'stdout'} cannot be written: {reason.strerror or reason}.") from reason


if __name__ == "__main__":
    sys.exit(main())
