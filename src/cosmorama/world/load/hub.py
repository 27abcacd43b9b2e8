"""Checkpoints on the Hugging Face hub: what of a repository is downloaded, and where it lies afterwards.

Only what is loaded is fetched: of every part its config, its tokenizer and the files that are its weights (`files`
chooses them by their names, as it does on disk); no code, no pickles, no second copies. The hub library's own cache
keeps the files, resumes what was broken off and shares them with other programs. What a model is loaded from is a
folder of links into that cache, named after the repository: a published Transfer2.5 is put together from several of
its revisions there.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.load.files import INDEXES, SMALL, choose, instead_of, parts_named, stems_of, variants
from cosmorama.world.load.read import read_json, shard_map, some
from cosmorama.world.load.sources import SOURCES, Source, check_controls

log = logging.getLogger(__name__)

RESUMED_BYTES = 50_000_000
"""Files of so many bytes go on where a download of them ended."""
_UNFINISHED = (".part", ".lock", ".incomplete")
"""Endings of what is left of a file whose download was broken off, here or in the hub library."""
_SPARE = 200_000_000
"""Bytes that a download leaves free."""


class _UnreachableError(ModelNotFoundError):
    """The hub cannot be reached, or breaks off: a copy that is here would do."""


@dataclass(frozen=True, slots=True)
class Needed:
    """What of one revision of a repository is needed.

    Attributes:
        revision: The revision; None is main.
        commit: What it is now.
        files: Names of the files, and their bytes.
        absent: Those of them that are not on this disk yet.
    """

    revision: str | None
    commit: str
    files: Mapping[str, int]
    absent: frozenset[str]


def from_hub(
    source: Source,
    cache: Path | None = None,
    *,
    download: bool = True,
    variant: str | None = None,
    controls: tuple[str, ...] = (),
) -> Path:
    """The folder of a checkpoint from the hub, downloaded where that is allowed and needed.

    Args:
        source: Which one.
        cache: Folder in which checkpoints are kept; None is the hub library's own.
        download: False takes them only from there, as does `HF_HUB_OFFLINE`.
        variant: Of the weights, taken where a part has it.
        controls: Kinds of control whose ControlNets are wanted, of a source that has some; none: all of them, or
            without downloads those that are there.

    Raises:
        ModelNotFoundError: it cannot be had, or there is no room for it; says what to do.
    """
    from huggingface_hub import constants

    check_controls(source, controls)
    base = _local(source.repository, source.revision, cache)
    if download and not constants.HF_HUB_OFFLINE:
        try:
            return pull(source, cache, variant=variant, controls=controls)
        except _UnreachableError as error:
            if base is None:
                raise
            log.warning("the copy of %s that is here is taken: %s", source.name, error)
    if base is None:
        raise ModelNotFoundError(
            f"there is no folder {source.name!r} and no copy of it in {cache or constants.HF_HUB_CACHE}, and downloads "
            "from the Hugging Face hub are switched off"
        )
    nets = {kind: _local(source.repository, source.controls[kind], cache) for kind in controls or source.controls}
    there = {kind: net for kind, net in nets.items() if net is not None}
    missing = [kind for kind in nets if kind not in there]
    if missing and (controls or not there):
        raise ModelNotFoundError(
            f"there is no copy of the ControlNet for {' and '.join(missing)} of {source.name} in "
            f"{cache or constants.HF_HUB_CACHE}, and downloads from the Hugging Face hub are switched off"
        )
    return _composed(source, base, there)


def pull(
    source: Source, cache: Path | None = None, *, variant: str | None = None, controls: tuple[str, ...] = ()
) -> Path:
    """Download what is missing of a checkpoint, to its folder; a download that was broken off is resumed.

    Raises:
        ModelNotFoundError: it cannot be had, or there is no room for it; says what to do.
    """
    check_controls(source, controls)
    with _told(source):
        revisions: dict[str | None, str | None] = {None: source.revision}
        revisions |= {kind: source.controls[kind] for kind in controls or source.controls}
        plans = {
            kind: _needed(source, revision, cache, variant, bare=kind is not None)
            for kind, revision in revisions.items()
        }
        names = (PurePosixPath(name).name for plan in plans.values() for name in plan.files)
        if variant is not None and variant not in variants(names):
            raise ModelNotFoundError(f"{source.address} has no weights of the variant {variant!r}")
        _check_room(source, plans.values(), cache)
        for plan in plans.values():
            for name in sorted(plan.absent):
                if plan.files[name] >= RESUMED_BYTES:
                    _fetch_resumed(source.repository, plan.commit, name, cache)
        found = {kind: _snapshot(source.repository, plan.revision, cache, plan.files) for kind, plan in plans.items()}
    nets = {kind: folder for kind, folder in found.items() if kind is not None}
    return _composed(source, found[None], nets)


def cached_bytes(source: Source, cache: Path | None = None) -> int:
    """Bytes of a checkpoint's files that are on this disk; 0 where there is no copy."""
    revisions = (source.revision, *source.controls.values())
    folders = {folder for revision in revisions if (folder := _local(source.repository, revision, cache)) is not None}
    files = {file.resolve() for folder in folders for file in folder.rglob("*") if file.is_file()}
    return sum(file.stat().st_size for file in files)


def remove(source: Source, cache: Path | None = None) -> int:
    """Delete a checkpoint's files from the cache, but for those that other revisions share; the bytes that frees.

    What downloads that were broken off have left of its repository goes too.

    Raises:
        ModelNotFoundError: there are none.
    """
    from huggingface_hub import constants, scan_cache_dir

    place = cache or Path(constants.HF_HUB_CACHE)
    revisions = {revision or "main" for revision in (source.revision, *source.controls.values())}
    found = scan_cache_dir(place) if place.is_dir() else None
    commits = {
        revision.commit_hash
        for repository in (found.repos if found is not None else ())
        if repository.repo_id == source.repository
        for revision in repository.revisions
        if revisions & ({*revision.refs, revision.commit_hash})
    }
    begun = [file for ending in _UNFINISHED for file in (_kept(source.repository, cache) / "blobs").glob(f"*{ending}")]
    if found is None or not (commits or begun):
        raise ModelNotFoundError(f"there is no copy of {source.name} in {place}")
    freed = sum(file.stat().st_size for file in begun)
    for file in begun:
        file.unlink()
    if commits:
        plan = found.delete_revisions(*commits)
        plan.execute()
        freed += int(plan.expected_freed_size)
    return freed


def _kept(repository: str, cache: Path | None) -> Path:
    """The folder that the hub library keeps a repository's copies in."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache or constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _hub() -> dict[str, Any]:
    """Where the hub is, if the environment says so: a mirror."""
    endpoint = os.environ.get("HF_ENDPOINT")
    return {"endpoint": endpoint} if endpoint else {}


def _snapshot(repository: str, revision: str | None, cache: Path | None, names: Collection[str]) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in names]
    return Path(
        str(snapshot_download(repository, revision=revision, cache_dir=cache, allow_patterns=patterns, **_hub()))
    )


def _needed(source: Source, revision: str | None, cache: Path | None, variant: str | None, *, bare: bool) -> Needed:
    """Decide what of a revision is needed; fetches the small files that say so. Bare ones hold one network alone."""
    from huggingface_hub import snapshot_download

    listed: Any = snapshot_download(source.repository, revision=revision, cache_dir=cache, dry_run=True, **_hub())
    sizes = {str(file.filename): int(file.file_size or 0) for file in listed}
    parts: tuple[str, ...] = ("",)
    tops = [name for name in INDEXES if name in sizes]
    if not bare:
        if not tops:
            raise ModelNotFoundError(_no_pipeline(source, revision, sizes))
        folder = _snapshot(source.repository, revision, cache, tops)
        parts = parts_named(read_json(folder / tops[0]), {name.partition("/")[0] for name in sizes if "/" in name})
    inside = {
        part: {path.name for path in map(PurePosixPath, sizes) if path.parent == PurePosixPath(part)} for part in parts
    }
    wanted = [*tops, *(_in(part, name) for part, names in inside.items() for name in names if name.endswith(SMALL))]
    folder = _snapshot(source.repository, revision, cache, wanted)
    for part, names in inside.items():
        config = folder / _in(part, "config.json")
        chosen = choose(names, stems_of(read_json(config) if config.is_file() else {}), variant)
        if chosen is None:
            if "config.json" in names and (there := instead_of(names)):
                raise ModelNotFoundError(f"{source.address} has no weights in {part or 'it'}{there}")
        elif chosen.endswith(".safetensors"):
            wanted.append(_in(part, chosen))
        else:
            wanted += [_in(part, shard) for shard in set(shard_map(folder / _in(part, chosen)).values())]
    missing = [name for name in wanted if name not in sizes]
    if missing:
        raise ModelNotFoundError(f"{source.address} is not a complete checkpoint: missing {some(missing)}")
    absent = frozenset(str(file.filename) for file in listed if not file.is_cached).intersection(wanted)
    return Needed(revision, str(listed[0].commit_hash), {name: sizes[name] for name in wanted}, absent)


def _fetch_resumed(repository: str, commit: str, name: str, cache: Path | None) -> None:
    """Bring one large file into the hub library's cache, from where an earlier attempt ended, in this run or another.

    The library begins a file anew in every run. What it finds among its contents (blobs) it only links.

    Raises:
        OSError: it came, but is not the file that the hub speaks of.
    """
    from filelock import FileLock
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(repository, name, revision=commit, **_hub())
    about = get_hf_file_metadata(url, **_hub())
    if about.etag is None or about.size is None or about.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        return  # nothing to tell a whole file by, or too large for plain HTTP: the library's way
    blob = _kept(repository, cache) / "blobs" / about.etag
    part = blob.with_name(f"{about.etag}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(part.with_suffix(".lock")):
        if not blob.exists():
            with part.open("ab") as opened:
                have = min(opened.tell(), about.size)
                opened.truncate(have)
                http_get(url, opened, resume_size=have, headers=build_hf_headers(), expected_size=about.size)
            _put_in_place(part, blob, about.size, name)


def _put_in_place(part: Path, blob: Path, size: int, name: str) -> None:
    """Let a file that has come whole be one of the cache's; one that is damaged is begun anew the next time."""
    with part.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if part.stat().st_size != size or (len(blob.name) == len(digest) and blob.name != digest):
        part.unlink()
        raise OSError(f"{name} came damaged; it is begun anew the next time")
    part.rename(blob)


def _in(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name


def _known(source: Source) -> Source | None:
    """What has a short name of the same repository."""
    return next((other for other in SOURCES if other.repository == source.repository), None)


def _no_pipeline(source: Source, revision: str | None, names: Iterable[str]) -> str:
    """What is said of a repository without a pipeline."""
    known = _known(source)
    where = f"{source.repository} has no pipeline in its revision {revision or 'main'} (no {INDEXES[0]}"
    pickles = sorted(name for name in names if name.endswith((".pt", ".pth", ".ckpt")))
    where += f"; it holds NVIDIA's own {pickles[0]}, a pickle)" if pickles else ")"
    return where + (f": take {known.name}, which is {known.address}" if known is not None else "")


def _check_room(source: Source, plans: Iterable[Needed], cache: Path | None) -> None:
    from huggingface_hub import constants

    place = Path(cache or constants.HF_HUB_CACHE)
    place.mkdir(parents=True, exist_ok=True)
    missing, free = sum(plan.files[name] for plan in plans for name in plan.absent), shutil.disk_usage(place).free
    if missing:
        log.info("downloading %.1f GB of %s to %s", missing / 1e9, source.address, place)
    if missing and missing + _SPARE > free:
        raise ModelNotFoundError(
            f"{source.address} takes {missing / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are free in {place}: make "
            "room, or set COSMORAMA_CACHE_PATH (or HF_HOME) to a larger disk"
        )


@contextmanager
def _told(source: Source) -> Iterator[None]:
    """Whatever the hub answers is told in one sentence that says what to do."""
    from huggingface_hub.errors import DryRunError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{source.repository}"
    try:
        yield
    except (ModelNotFoundError, MemoryError):
        raise
    except Exception as found:  # the library's own, those of its HTTP client, of the disk  # noqa: BLE001
        error = found.__cause__ or found if isinstance(found, DryRunError) else found
        if isinstance(error, GatedRepoError):
            raise ModelNotFoundError(
                f"{source.repository} is gated: accept its licence ({source.licence or 'see there'}) at {page} with "
                "your account, then run hf auth login or set HF_TOKEN"
            ) from error
        if isinstance(error, RevisionNotFoundError):
            known = _known(source)
            hint = f"; {known.name} is {known.address}" if known is not None else ""
            raise ModelNotFoundError(
                f"{source.repository} has no revision {source.revision or 'main'!r}{hint}"
            ) from error
        if isinstance(error, RepositoryNotFoundError):
            raise ModelNotFoundError(
                f"there is no folder {source.name!r} and no such repository on the Hugging Face hub; if {page} is "
                "private, run hf auth login or set HF_TOKEN"
            ) from error
        said = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise _UnreachableError(
            f"there is no folder {source.name!r}, and it cannot be had from the Hugging Face hub: {said}"
        ) from error


def _local(repository: str, revision: str | None, cache: Path | None) -> Path | None:
    """The folder of a revision in the cache, whole or not."""
    kept = _kept(repository, cache)
    reference = kept / "refs" / (revision or "main")
    commit = reference.read_text(errors="replace").strip() if reference.is_file() else revision or ""
    folder = kept / "snapshots" / commit
    return folder if commit and "/" not in commit and folder.is_dir() else None


def _composed(source: Source, base: Path, nets: Mapping[str, Path]) -> Path:
    """A folder of links to a checkpoint's parts, named after its repository."""
    indexes = [name for name in INDEXES if (base / name).is_file()]
    if not indexes and (gone := next((base / name for name in INDEXES if (base / name).is_symlink()), None)):
        raise ModelNotFoundError(
            f"the copy of {source.name} here is not whole: {gone} is a link to a file that is not there; remove it "
            f"with cosmorama models rm {source.name} and pull it again"
        )
    if not indexes:
        names = [str(file.relative_to(base)) for file in base.rglob("*") if file.is_file()]
        raise ModelNotFoundError(_no_pipeline(source, source.revision, names))
    folders = [folder.name for folder in base.iterdir() if folder.is_dir()]
    links = {name: base / name for name in (*indexes, *parts_named(read_json(base / indexes[0]), folders))}
    links |= {f"controlnet_{kind}": folder for kind, folder in nets.items()}
    key = hashlib.sha256(json.dumps({name: str(target) for name, target in links.items()}).encode()).hexdigest()[:16]
    name = source.repository.rpartition("/")[2]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cosmorama" / "checkpoints" / key
    try:
        return _linked(home, name, links)
    except OSError:  # nothing can be written there
        return _linked(Path(tempfile.mkdtemp(prefix="cosmorama-")), name, links)


def _linked(home: Path, name: str, links: Mapping[str, Path]) -> Path:
    if (home / name).is_dir():
        return home / name
    home.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=home))
    for link, target in links.items():
        (made / link).symlink_to(target.absolute())
    try:
        made.rename(home / name)
    except OSError:  # another process was first
        shutil.rmtree(made)
        if not (home / name).is_dir():
            raise
    return home / name
