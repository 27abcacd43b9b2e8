"""The docs as a site: no dead link, every page in its place, and errors quoted as the source words them."""

from __future__ import annotations

import inspect
import re
import subprocess
from pathlib import Path

import pytest

from cosmorama.api.dialects.openai_videos import parse
from cosmorama.errors import Problem
from cosmorama.request import GenerationRequest
from cosmorama.settings import CLIENT_VARIABLES, Settings
from tests import needs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
LINK = re.compile(r"\]\(([^)\s]+)\)")
QUOTED = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    for link in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        assert page.parent != DOCS or target.is_relative_to(DOCS), f"{link} leaves the site"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}"


def test_every_page_has_its_place_on_the_site() -> None:
    listed = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md"))


@pytest.fixture(scope="module")
def said() -> str:
    """All texts of the source, pieces that stand next to each other joined, and values left out."""
    files = [*(ROOT / "src").rglob("*.py"), ROOT / "tools" / "install"]
    joined = "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in files)
    return re.sub(r"\s+", " ", joined) + str(Problem("field", 1, "a number"))


@pytest.mark.parametrize("error", QUOTED)
def test_an_error_is_quoted_as_it_is_worded(error: str, said: str) -> None:
    fragments = [fragment.strip(" ;") for fragment in error.split("...") if len(fragment.strip(" ;")) > 3]
    assert fragments
    for fragment in fragments:
        assert fragment in said, f"nobody says {fragment!r} (any more)"


def test_names_on_the_right_of_the_map_from_diffusers_are_knobs() -> None:
    text = (DOCS / "moving.md").read_text()
    table = text.partition("## From diffusers")[2].partition("```")[0]
    right = [row.split("|")[2] for row in table.splitlines() if row.startswith("| `")]
    names = {name for cell in right for name in re.findall(r"`(\w+)(?:=[^`(]*)?`", cell)}
    assert {"steps", "frames", "seed", "solver", "flow_shift", "vae_tiling", "adapters"} <= names
    assert names <= set(GenerationRequest.__dataclass_fields__)


def test_the_map_from_diffusers_names_what_both_have() -> None:
    from diffusers import DiffusionPipeline
    from diffusers.loaders.lora_base import LoraBaseMixin
    from diffusers.schedulers import UniPCMultistepScheduler
    from diffusers.utils import export_to_video

    import cosmorama

    assert all((UniPCMultistepScheduler, export_to_video))
    for name in ("from_pretrained", "enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        assert hasattr(DiffusionPipeline, name)
    assert hasattr(LoraBaseMixin, "set_adapters")
    assert {"offload", "adapters"} <= inspect.signature(cosmorama.load).parameters.keys()


def test_fields_on_the_left_of_the_map_from_other_servers_are_followed() -> None:
    values = {
        "control": "AAAA",
        "control_path": "https://example.com/edge.mp4",
        "control_hint": "edge",
        "condition_frame_indexes_vision": [0],
        "condition_video_latent_indexes": [0, 1],
        "condition_video_keep": "last",
        "video_reference": "https://example.com/a.mp4",
        "action_mode": "forward_dynamics",
        "action_chunk_size": 4,
        "domain_name": "drive",
        "action": [[1.0, 0.0, 0.0]] * 4,
    }
    rows = (DOCS / "moving.md").read_text().partition("## From SGLang")[2].splitlines()
    kinds = ("contr", "what", "a r")
    named = {kind: next(row for row in rows if row.startswith(f"| {kind}")).split("|") for kind in kinds}
    cells = {kind: set(re.findall(r"[`\"](\w+)[`\"]", row[1])) for kind, row in named.items()}
    chunks = set(re.findall(r"`(\w+)`", named["contr"][2])) - {"transfer"}
    assert len(chunks) == 4
    carriers = {"extra_params", "control", "control_path", "control_hint", "control_reference", "control_type"}
    for kind in sorted(cells["contr"] - carriers):
        for way in ("control", "control_path"):
            extra = {kind: {way: values[way]}, **dict.fromkeys(chunks, 1)}
            request = parse({"prompt": "a", "extra_params": extra}, Settings())
            assert (len(request.controls), request.control_guidance, request.warnings) == (1, 1.0, ()), extra
    hinted = parse({"prompt": "a", "extra_params": {"control_hint": "edge", "control_path": "https://a/b"}}, Settings())
    beside = parse({"prompt": "a", "control_reference": "https://a/b", "control_type": "edge"}, Settings())
    assert [control.source for control in (*hinted.controls, *beside.controls)] == ["https://a/b"] * 2
    for name in cells["what"]:
        kept = parse({"prompt": "a", name: values[name]}, Settings())
        assert (kept.conditioning_indexes, kept.keep, kept.video) != (None, "first", None), name
    actions = cells["a r"] - {"extra_params"}
    driven = parse({"prompt": "a", "extra_params": {name: values[name] for name in actions}}, Settings())
    assert driven.action is not None
    assert driven.warnings == ()


def test_paths_and_methods_that_pages_name_are_there() -> None:
    from openai.resources import Videos

    from cosmorama.api.app import create_app

    app = create_app(Settings())
    paths = {route.path for route in app.routes if hasattr(route, "path")}
    known = "|".join(re.sub(r"\{[^}]+\}", "[^/]+", path) for path in paths | app.openapi()["paths"].keys())
    strange = []
    for page in PAGES:
        for path in re.findall(r"`(?:[A-Z]+ )?(/v1/[\w/{}.-]+)", page.read_text()):
            plain = re.sub(r"\{[^}]+\}", "X", path.rstrip("."))
            if not re.fullmatch(known, plain) and not (plain.endswith("/") and plain in known):
                strange.append(f"{page.name} speaks of {path}")
    assert not strange
    row = next(row for row in (DOCS / "moving.md").read_text().splitlines() if "client.videos.create" in row)
    methods = re.findall(r"`(?:client\.videos\.)?(\w+)`", row.split("|")[1])
    assert len(methods) == 7
    assert all(hasattr(Videos, name) for name in methods)


def test_settings_that_pages_name_are_some() -> None:
    others = {"FAULTS", "FUZZ_EXAMPLES", "CHROMIUM"}  # of the tests
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"COSMORAMA_([A-Z_]*[A-Z])\b(?!_)", text):
            known = name.lower() in Settings.model_fields or f"COSMORAMA_{name}" in CLIENT_VARIABLES or name in others
            assert known, f"{page.name} speaks of COSMORAMA_{name}"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    mkdocs = needs.program("mkdocs", "pip install '.[docs]'")
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert "http" not in "".join(
        re.findall(r"<(?:script|link)[^>]+src=\"([^\"]+)", (tmp_path / "site/index.html").read_text())
    )
