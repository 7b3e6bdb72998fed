"""The direction of imports, as docs/architecture.md has it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = ROOT / "wan_core"
RANK = {
    "training": 7, "workflows": 7, "stages": 6, "sampling": 5, "conditioning": 5, "models": 4, "weights": 4,
    "runtime": 4, "text": 4, "media": 4, "grid": 3, "variants": 2, "configs": 1, "errors": 1,
}  # fmt: skip
SOURCES = sorted(CORE.rglob("*.py"))
KERNELS = {("runtime", name) for name in ("attention", "pointwise", "winograd")}
"""What models may use of the runtime."""


def imports(path: Path) -> list[tuple[str, ...]]:
    """Absolute module paths (as parts) of everything that a file imports; relative ones are resolved."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            found += [(*module, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CORE)))
def test_imports_inside_wan_core_point_downwards(path):
    here = path.relative_to(CORE).parts[0].removesuffix(".py")
    for parts in imports(path):
        if parts[0] == "wan_core" and len(parts) > 1 and parts[1] != here:
            assert RANK[parts[1]] <= RANK[here], f"{here} imports {'.'.join(parts)}, which stands above it"


@pytest.mark.parametrize("path", sorted((CORE / "models").glob("*.py")), ids=lambda p: p.name)
def test_models_know_only_configs_and_kernels(path):
    for parts in imports(path):
        if parts[0] == "wan_core" and parts[1] != "models":
            assert parts[1] == "configs" or parts[1:3] in KERNELS, ".".join(parts)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CORE)))
def test_wan_core_knows_no_host_and_imports_itself_relatively(path):
    hosts = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "server", "nodes", "execution"}
    assert not hosts & {parts[0] for parts in imports(path)}
    tree = ast.parse(path.read_text(encoding="utf8"))
    absolute = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and not n.level and n.module]
    assert not [n.module for n in absolute if n.module.split(".")[0] == "wan_core"]


def test_only_two_files_of_the_nodes_talk_to_the_host():
    hosts = {"comfy", "folder_paths", "server"}
    talkers = [p.name for p in (ROOT / "nodes").glob("*.py") if hosts & {parts[0] for parts in imports(p)}]
    assert sorted(talkers) == ["bridge.py", "host.py"]
