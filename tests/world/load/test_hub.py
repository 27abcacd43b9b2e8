"""Published repositories, with small weights: each row of the table loads from a cache, and is downloaded in parts."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cosmorama.cli import app
from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load import hub
from cosmorama.world.load.sources import SOURCES, Source, source_of
from cosmorama.world.registry import load_world
from tests.world.checkpoints import save_predict
from tests.world.cosmos.transfer_checkpoints import save_transfer
from tests.world.cosmos3_checkpoints import save_cosmos3
from tests.world.load.hub_cache import FakeHub, Files, commit_of, files_of, publish, serving
from tests.world.load.test_cases import both, in_8_bits, modelopt

KINDS = {
    "predict1": "predict1-text2world",
    "predict2-2b-text2image": "predict2-text2image",
    "predict2-14b-text2image": "predict2-text2image",
    "predict2-": "predict2-video2world",
    "predict2.5": "predict2.5",
}
STUDENTS = [source for source in SOURCES if source.name.endswith("4step")]
PICKLES = {
    "base/post-trained/81edfebe_ema_bf16.pt": b"a pickle",
    "tokenizer.pth": b"a pickle",
    "README.md": b"# Cosmos",
}
NOISE = {
    "model_card.md": b"# card",
    "assets/clip.mp4": b"0" * 99,
    "setup.py": b"raise SystemExit",
    ".gitattributes": b"",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of a small checkpoint of every kind."""
    folder = tmp_path_factory.mktemp("made")
    for kind in dict.fromkeys(KINDS.values()):
        save_predict(kind, folder / kind)
    save_predict("predict1-video2world", folder / "predict1-video2world")
    save_cosmos3(folder / "cosmos3")
    save_transfer(folder / "transfer")
    both(in_8_bits(beside=("input_scale",)), modelopt())(Path(shutil.copytree(folder / "cosmos3", folder / "fp8")))
    return {part.name: files_of(part) for part in folder.iterdir()}


def published(source: Source, made: dict[str, dict[str, bytes]]) -> dict[str, Files]:
    """The revisions of a repository as they are published, by their names."""
    if source.controls:
        whole = made["transfer"]
        net = {
            name.removeprefix("controlnet/"): found for name, found in whole.items() if name.startswith("controlnet/")
        }
        base = {name: found for name, found in whole.items() if not name.startswith("controlnet/")}
        return {"main": PICKLES, str(source.revision): base, **dict.fromkeys(source.controls.values(), net)}
    if source.name.startswith("cosmos3"):
        unread = {"sound_tokenizer/config.json": b"{}", "sound_tokenizer/model.safetensors": b"unread"}
        modular = {"modular_model_index.json": json.dumps({"_class_name": "Cosmos3OmniModularPipeline"}).encode()}
        found: dict[str, Files] = {"main": made["cosmos3"] | NOISE | unread | modular}
        return found | ({"fp8": made["fp8"] | NOISE | unread | modular} if source.fp8 else {})
    kind = (
        "predict1-video2world"
        if source.name.endswith("video2world") and "predict1" in source.name
        else next(kind for start, kind in KINDS.items() if source.name.startswith(start))
    )
    if source.revision is not None:
        return {"main": PICKLES, source.revision: made[kind] | {"safety_checker/config.json": b"{}"}}
    return {"main": made[kind] | NOISE | {"model-720p-16fps.pt": b"a pickle"}}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "hub"


def offline(name: str, cache: Path, **options: Any) -> Any:
    return load_world(name, cache=cache, download=False, device="cpu", **options)


@pytest.mark.parametrize("source", [row for row in SOURCES if row not in STUDENTS], ids=lambda source: source.name)
def test_every_row_loads_from_the_cache(source: Source, made: dict[str, dict[str, bytes]], home: Path) -> None:
    for revision, files in published(source, made).items():
        publish(home, source.repository, revision, files)
    family = "cosmos3" if source.name.startswith("cosmos3") else source.name.partition("-")[0]
    for name in (source.name, source.repository, f"hf://{source.repository}"):
        capabilities = offline(name, home).capabilities
        assert capabilities.family == family
        assert capabilities.model == source.repository.rpartition("/")[2]
    if family != "cosmos3":  # whose controls are not parts of their own
        assert capabilities.controls == tuple(source.controls or ())
    if source.fp8:
        for name in (f"{source.name}@fp8", f"{source.repository}@fp8", f"hf://{source.repository}:fp8"):
            assert str(offline(name, home).transformer.dtype) == "torch.bfloat16"


@pytest.mark.parametrize("source", STUDENTS, ids=lambda source: source.name)
def test_a_distilled_student_is_served_with_its_own_steps(
    source: Source, made: dict[str, dict[str, bytes]], home: Path
) -> None:
    index = {"_class_name": "Cosmos3DistilledModularPipeline", "distilled_sigmas": [1.0, 0.9, 0.75, 0.5]}
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}
    files = {"modular_model_index.json": index, "scheduler/scheduler_config.json": scheduler}
    published = {name: json.dumps(values).encode() for name, values in files.items()}
    publish(home, source.repository, "main", made["cosmos3"] | published)
    capabilities = offline(source.name, home).capabilities
    assert (capabilities.steps.low, capabilities.steps.high, capabilities.defaults.steps) == (4, 4, 4)


def test_controls_are_chosen_or_those_that_are_there(made: dict[str, dict[str, bytes]], home: Path) -> None:
    (source,) = (row for row in SOURCES if row.controls)
    files = published(source, made)
    for revision in (str(source.revision), source.controls["edge"], source.controls["vis"]):
        publish(home, source.repository, revision, files[revision])
    assert offline(source.name, home).capabilities.controls == ("edge", "vis")
    assert offline(source.name, home, controls=("vis",)).capabilities.controls == ("vis",)
    with pytest.raises(ModelNotFoundError, match="no copy of the ControlNet for depth"):
        offline(source.name, home, controls=("edge", "depth"))
    with pytest.raises(ModelNotFoundError, match="no ControlNet for 'blur'; it has edge, depth, seg, vis"):
        offline(source.name, home, controls=("blur",))
    with pytest.raises(ModelNotFoundError, match="it is no Transfer2"):
        offline("cosmos3-nano", home, controls=("edge",))


def test_a_repository_of_pickles_is_told_with_what_to_type(made: dict[str, dict[str, bytes]], home: Path) -> None:
    publish(home, "nvidia/Cosmos-Predict2.5-2B", "main", PICKLES)
    with pytest.raises(
        ModelNotFoundError, match=r"81edfebe_ema_bf16\.pt, a pickle\): take predict2\.5-2b, which is nvidia"
    ):
        offline("nvidia/Cosmos-Predict2.5-2B@main", home)
    kept = home / "models--nvidia--Cosmos-Predict2.5-2B"
    snapshot = kept / "snapshots" / commit_of("nvidia/Cosmos-Predict2.5-2B", "main")
    with pytest.raises(ModelNotFoundError, match=r"holds base/post-trained/81edfebe_ema_bf16\.pt, a pickle"):
        load_world(str(snapshot))
    with pytest.raises(ModelNotFoundError, match=r"the hub's cache of nvidia/Cosmos-Predict2\.5-2B: give that name"):
        load_world(str(kept))
    with pytest.raises(ModelNotFoundError, match=r"is a file: give the folder"):
        load_world(str(snapshot / "tokenizer.pth"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("predict2.5-3b", "for example predict2.5-2b"),
        ("nope", "for example microcosm"),
        ("hf://nvidia", "write hf://owner/name or hf://owner/name:revision"),
        ("cosmos3-nano@", "is no revision"),
        ("nvidia/Cosmos3-Nano@a//b", "is no revision"),
        ("nobody/nothing", "no copy of it"),
        ("cosmos3-nano@fp4", "no copy of it"),
    ],
)
def test_what_cannot_be_had_is_told(name: str, said: str, home: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=re.escape(said)):
        offline(name, home)


@pytest.mark.parametrize("package", ["accelerate", "transformers"])
def test_a_missing_package_is_told_before_anything_is_downloaded(
    package: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there(name))
    with pytest.raises(ModelNotFoundError, match=rf"predict2\.5-2b needs {package}: pip install '\.\[cosmos\]'"):
        load_world("predict2.5-2b", cache=home)


def test_a_copy_that_is_not_whole_is_told_by_what_is_missing(made: dict[str, dict[str, bytes]], home: Path) -> None:
    name = "nvidia/Cosmos3-Nano"
    publish(home, name, "main", made["cosmos3"])
    kept = home / "models--nvidia--Cosmos3-Nano"
    snapshot = kept / "snapshots" / commit_of(name, "main")
    assert offline(f"cosmos3-nano@{commit_of(name, 'main')}", home).capabilities.family == "cosmos3"
    # A newer one came in half; the older can still be asked for.
    publish(home, name, "newer", {key: data for key, data in made["cosmos3"].items() if not key.startswith("vae")})
    (kept / "refs" / "main").write_text(commit_of(name, "newer"))
    with pytest.raises(ModelNotFoundError, match=r"not a complete checkpoint: missing vae/config\.json"):
        offline("cosmos3-nano", home)
    assert offline(f"cosmos3-nano@{commit_of(name, 'main')}", home).capabilities.family == "cosmos3"
    for content in (b"", b"\xff\xfe", b"../../..", b"f" * 40):
        (kept / "refs" / "main").write_bytes(content)
        with pytest.raises(ModelNotFoundError, match="no copy of it"):
            offline("cosmos3-nano", home)
    (kept / "refs" / "main").write_text(commit_of(name, "main") + "\n")
    for file, said in (
        ("transformer/diffusion_pytorch_model.safetensors", r"missing transformer/\*\.safetensors"),
        ("vae/config.json", r"vae/config\.json is a link to a file that is not there"),
        ("model_index.json", r"not whole: .*model_index\.json is a link .* cosmorama models rm cosmos3-nano"),
    ):
        (snapshot / file).resolve().unlink()
        with pytest.raises(ModelNotFoundError, match=said):
            offline("cosmos3-nano", home)


def test_names_mean_revisions() -> None:
    def address(name: str) -> str:
        found = source_of(name)
        assert found is not None
        return found.address

    assert address("predict2.5-2b") == "nvidia/Cosmos-Predict2.5-2B@diffusers/base/post-trained"
    assert address("nvidia/cosmos-predict2.5-2b") == address("predict2.5-2b")
    assert address("predict2.5-2b@diffusers/base/pre-trained").endswith("@diffusers/base/pre-trained")
    assert address("hf://nvidia/Cosmos3-Nano:main") == address("cosmos3-nano") == "nvidia/Cosmos3-Nano"
    for page in (
        "https://huggingface.co/nvidia/Cosmos3-Nano",
        "https://hf.co/nvidia/Cosmos3-Nano/",
        "huggingface.co/nvidia/Cosmos3-Nano",
        "hf://nvidia/Cosmos3-Nano/",
    ):
        assert address(page) == "nvidia/Cosmos3-Nano"
    assert address("https://huggingface.co/nvidia/Cosmos3-Nano/tree/fp8") == "nvidia/Cosmos3-Nano@fp8"
    assert address("cosmos3-super@fp8") == "nvidia/Cosmos3-Super@fp8"
    assert address("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert source_of("microcosm") is None
    assert len({source.name for source in SOURCES}) == len({source.repository for source in SOURCES}) == len(SOURCES)


def test_the_documentation_has_the_table() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    for source in SOURCES:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{source.name}` |"))
        revision = f"`{source.revision}`" if source.revision else "main"
        for word in (source.repository, revision, source.licence, f"{source.gigabytes:g} GB"):
            assert word in row
        assert ("`fp8`" in row) == (source.fp8 is not None)
        assert ("to be accepted" in row) == source.gated


def test_the_library_can_be_told_to_stay_offline(
    made: dict[str, dict[str, bytes]], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    publish(home, "tiny/cosmos", "main", made["predict2-video2world"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_world("tiny/cosmos", cache=home, device="cpu").capabilities.model == "cosmos"


@pytest.fixture
def remote(made: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    wanted = {row.name: row for row in SOURCES if row.name in ("predict2.5-2b", "transfer2.5-2b", "cosmos3-nano")}
    revisions = {
        (row.repository, name): files for row in wanted.values() for name, files in published(row, made).items()
    }
    extra = {"transformer/diffusion_pytorch_model.fp16.safetensors": b"a second copy", "transformer/x.py": b"code"}
    key = ("nvidia/Cosmos3-Nano", "main")
    revisions[key] = revisions[key] | extra
    found = FakeHub(revisions)
    with serving(found) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield found


def test_only_what_is_loaded_is_downloaded_and_nothing_twice(remote: FakeHub, home: Path) -> None:
    folder = hub.pull(source_of("cosmos3-nano") or SOURCES[0], home)
    sent = {name for name, _ in remote.served}
    assert "transformer/diffusion_pytorch_model.safetensors" in sent
    assert {name.rpartition(".")[2] for name in sent} == {"json", "safetensors", "jinja"}
    assert not any("fp16" in name or "sound" in name for name in sent)
    assert load_world(str(folder), device="cpu").capabilities.family == "cosmos3"
    before = len(remote.served)
    assert load_world("cosmos3-nano", cache=home, device="cpu").capabilities.model == "Cosmos3-Nano"
    assert len(remote.served) == before


def test_a_download_that_breaks_off_is_told_and_goes_on_where_it_ended(
    remote: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RESUMED_BYTES", 100_000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    source, name = source_of("cosmos3-nano"), "transformer/diffusion_pytorch_model.safetensors"
    assert source is not None
    weights = remote.revisions["nvidia/Cosmos3-Nano", "main"][name]
    remote.break_after = 0
    with pytest.raises(ModelNotFoundError, match="cannot be had from the Hugging Face hub"):
        hub.pull(source, home)
    remote.break_after = 200_000  # goes on twice within one run
    (part,) = (home / "models--nvidia--Cosmos3-Nano" / "blobs").glob("*.part")
    part.write_bytes(weights[:50_000])
    hub.pull(source, home)
    assert sum(count for file, count in remote.served if file == name) == len(weights) - 50_000
    assert offline("cosmos3-nano", home).capabilities.family == "cosmos3"


def test_a_file_that_comes_damaged_is_refused_and_begun_anew(
    remote: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "RESUMED_BYTES", 100_000)
    source, name = source_of("cosmos3-nano"), "transformer/diffusion_pytorch_model.safetensors"
    assert source is not None
    digest = hashlib.sha256(remote.revisions["nvidia/Cosmos3-Nano", "main"][name]).hexdigest()
    part = home / "models--nvidia--Cosmos3-Nano" / "blobs" / f"{digest}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 70_000)
    with pytest.raises(ModelNotFoundError, match="came damaged; it is begun anew the next time"):
        hub.pull(source, home)
    hub.pull(source, home)
    assert offline("cosmos3-nano", home).capabilities.family == "cosmos3"


def test_the_copy_that_is_here_does_where_the_hub_cannot_be_reached(
    remote: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.pull(source_of("cosmos3-nano") or SOURCES[0], home)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert load_world("cosmos3-nano", cache=home, device="cpu").capabilities.family == "cosmos3"
    with pytest.raises(ModelNotFoundError, match=r"there is no folder 'cosmos3-nano@fp8', and it cannot be had"):
        load_world("cosmos3-nano@fp8", cache=home, device="cpu")


def test_no_room_is_told_before_anything_large_is_downloaded(
    remote: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    with pytest.raises(ModelNotFoundError, match=r"GB more, and 0\.0 GB are free in .*: make room"):
        hub.pull(source_of("predict2.5-2b") or SOURCES[0], home)
    assert not any(name.endswith(".safetensors") for name, _ in remote.served)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cosmos3-nano@fp4", r"has no revision 'fp4'; cosmos3-nano is nvidia/Cosmos3-Nano$"),
        ("nvidia/Cosmos-Predict2.5-2B@main", r"no pipeline in its revision main .*81edfebe.*take predict2\.5-2b"),
        ("nobody/nothing", "no such repository on the Hugging Face hub"),
        (
            "predict2.5-2b",
            r"is gated: accept its licence \(NVIDIA Open Model License\) at https://huggingface\.co/nvidia",
        ),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(name: str, said: str, remote: FakeHub, home: Path) -> None:
    if name == "predict2.5-2b":
        remote.gated.add("nvidia/Cosmos-Predict2.5-2B")
    with pytest.raises(ModelNotFoundError, match=said) as refused:
        load_world(name, cache=home, device="cpu")
    assert "\n" not in str(refused.value)


def test_a_variant_that_nothing_has_is_told_before_anything_large_is_downloaded(remote: FakeHub, home: Path) -> None:
    source = source_of("cosmos3-nano") or SOURCES[0]
    with pytest.raises(ModelNotFoundError, match="Cosmos3-Nano has no weights of the variant 'bf16'"):
        hub.pull(source, home, variant="bf16")
    assert not any(name.endswith(".safetensors") for name, _ in remote.served)
    hub.pull(source, home, variant="fp16")
    assert "transformer/diffusion_pytorch_model.fp16.safetensors" in {name for name, _ in remote.served}


def test_what_is_left_of_a_broken_download_is_removed_too(made: dict[str, dict[str, bytes]], home: Path) -> None:
    source = source_of("cosmos3-nano") or SOURCES[0]
    publish(home, source.repository, "main", made["cosmos3"])
    publish(home, source.repository, "fp8", made["fp8"])  # stays, and with it the folder
    blobs = home / "models--nvidia--Cosmos3-Nano" / "blobs"
    (blobs / "abc.part").write_bytes(bytes(10**6))
    (blobs / "abc.incomplete").write_bytes(bytes(10**6))
    assert hub.remove(source, home) > 2 * 10**6
    assert not [*blobs.glob("abc*")]
    (blobs / "abc.part").write_bytes(bytes(10**6))
    assert hub.remove(source, home) == 10**6
    with pytest.raises(ModelNotFoundError, match="no copy of cosmos3-nano"):
        hub.remove(source, home)


def test_models_are_listed_shown_pulled_and_removed(remote: FakeHub, home: Path) -> None:
    def cosmorama(*words: str) -> Any:
        return CliRunner().invoke(app, ["models", *words, "--cache", str(home)], catch_exceptions=False)

    listed = cosmorama("list").output
    assert all(source.name in listed for source in SOURCES)
    assert "microcosm: " in listed
    pulled = cosmorama("pull", "transfer2.5-2b", "--controls", "edge,vis")
    assert pulled.exit_code == 0
    folder = Path(pulled.stdout.strip().splitlines()[-1])
    assert {part.name for part in folder.iterdir()} >= {"transformer", "controlnet_edge", "controlnet_vis"}
    assert offline("transfer2.5-2b", home).capabilities.controls == ("edge", "vis")
    shown = cosmorama("show", "transfer2.5-2b").output
    assert "diffusers/general" in shown
    assert "here: " in shown
    assert "no copy" not in shown
    assert "freed" in cosmorama("rm", "transfer2.5-2b").output
    assert "no copy" in cosmorama("show", "transfer2.5-2b").output
    for words in (("rm", "transfer2.5-2b"), ("pull", "nope"), ("show", "predict2.5-3b"), ("rm", "microcosm")):
        failed = cosmorama(*words)
        assert failed.exit_code == 2
        assert "Traceback" not in failed.output
