"""The base install: the client and the command line, without torch, a web framework or a codec.

And the one with the extra `serve`, without what only other models need.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Of what is installed here, only what an install has may be imported.
ALONE = """
import sys
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement

def closure(names):
    found, left = set(), [name.lower().replace("_", "-") for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except Exception:
            continue
        needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
        left += [one.name.lower().replace("_", "-") for one in needed]
    return found

allowed = closure(sys.argv[1].split(","))
owners = packages_distributions()

class OnlyAllowed:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        has = {owner.lower().replace("_", "-") for owner in owners.get(top, ())}
        if has and top != "cosmorama" and not has & allowed:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [OnlyAllowed(finder) for finder in sys.meta_path]
sys.path.insert(0, sys.argv[2])
sys.argv = ["cosmorama", *sys.argv[3:]]
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    copied = ("pyproject.toml", "README.md", "LICENSE", "src")
    tracked = subprocess.run(["git", "ls-files", *copied], cwd=ROOT, capture_output=True, text=True, check=False)
    names = tracked.stdout.split("\n") if tracked.returncode == 0 else []
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    if not names:
        pytest.skip("this is no clone")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(command, check=True, timeout=300)
    (built,) = folder.glob("cosmorama-*.whl")
    return built


def run(
    wheel: Path, tmp_path: Path, program: str, *arguments: str, extra: str = "none"
) -> subprocess.CompletedProcess[str]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
    wanted = rf"^Requires-Dist: ([\w.-]+)[^;\n]*(?:; .*extra == .{extra}.)?$"
    needed = re.findall(wanted, metadata, re.MULTILINE)
    return subprocess.run(
        [sys.executable, "-c", ALONE + program, ",".join(needed), str(tmp_path / "installed"), *arguments],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_server_of_the_embedded_model_needs_no_more_than_the_extra(wheel: Path, tmp_path: Path) -> None:
    program = (
        "from importlib.util import find_spec\n"
        "assert find_spec('transformers') is None and find_spec('accelerate') is None\n"
        "from cosmorama.api.app import create_app\n"
        "from cosmorama.engine.build import load_model\n"
        "from cosmorama.settings import Settings\n"
        "from cosmorama.world.families import makers\n"
        "create_app(Settings())\n"
        "print(load_model(Settings()).capabilities.model, dict(makers())['policy'])\n"
        "assert 'diffusers' not in sys.modules\n"
    )
    found = run(wheel, tmp_path, program, extra="serve")
    assert found.stdout == "microcosm ('cosmos3',)\n", found.stderr


def test_the_client_and_the_command_line_need_no_torch(wheel: Path, tmp_path: Path) -> None:
    looked = (
        "import cosmorama, cosmorama.batch\n"
        "assert cosmorama.__file__.startswith(sys.path[0]), cosmorama.__file__\n"
        "cosmorama.Client('localhost:1').close()\n"
        "for name in ('torch', 'fastapi', 'numpy', 'PIL', 'av', 'sqlalchemy'):\n"
        "    try: __import__(name)\n"
        "    except ModuleNotFoundError: continue\n"
        "    raise SystemExit(name + ' could be imported')\n"
        "print('fine')\n"
    )
    found = run(wheel, tmp_path, looked)
    assert found.stdout == "fine\n", found.stderr
    cli = "from cosmorama.cli import main; main()\n"
    shown = run(wheel, tmp_path, cli, "--help")
    assert shown.returncode == 0, shown.stderr
    for command in ("generate", "serve", "jobs", "batch", "doctor"):
        assert command in shown.stdout
    assert run(wheel, tmp_path, cli, "--version").stdout.startswith("cosmorama ")
    for command in (["serve"], ["generate", "a red ball"]):
        refused = run(wheel, tmp_path, cli, *command)
        assert refused.returncode == 2, (refused.stdout, refused.stderr)
        assert "is not installed: this is the client alone" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_every_dependency_is_justified_in_one_line_and_used() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "architecture.md").read_text()
    _, _, built_on = page.partition("## What it is built on")
    base, serve = built_on.partition("\n## ")[0].split("The extra `serve`")
    code = "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    distributions = packages_distributions()
    for said, requirements in ((base, project["dependencies"]), (serve, project["optional-dependencies"]["serve"])):
        names = [re.split(r"[^\w-]", requirement)[0] for requirement in requirements]
        assert re.findall(r"^- `([\w-]+)`: .+\.$", said, re.MULTILINE) == sorted(names)
        for name in names:
            modules = [
                module
                for module, owners in distributions.items()
                if name in (each.lower().replace("_", "-") for each in owners)
            ]
            # Starlette reads forms with the one, uvicorn runs on the other where it is installed.
            used = any(re.search(rf"^\s*(import|from) {module}\b", code, re.MULTILINE) for module in modules)
            assert used or name == "uvloop", name


def test_the_rooms_are_about_as_large_as_is_said() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w./]+)` \| (\d+) \| ([\d,]+) \|$", page, re.MULTILINE)
    said = {room: (int(files), int(lines.replace(",", ""))) for room, files, lines in rows}
    found: dict[str, list[int]] = {}
    for file in (ROOT / "src" / "cosmorama").rglob("*.py"):
        folder = file.parent.relative_to(ROOT / "src" / "cosmorama")
        room = max((room for room in said if room == "." or folder.is_relative_to(room)), key=len)
        assert folder.parts == () or room != ".", f"{folder} is missing from the table"
        found.setdefault(room, []).append(len(file.read_text().splitlines()))
    for room, (files, lines) in said.items():
        assert files == pytest.approx(len(found[room]), rel=0.25, abs=2), room
        assert lines == pytest.approx(sum(found[room]), rel=0.25, abs=100), room
