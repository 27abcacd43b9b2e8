"""Where published checkpoints are on the Hugging Face hub: short names, repositories, revisions. Needs no network.

What diffusers reads is not always on a repository's main branch: the Predict2.5 and Transfer2.5 repositories keep
NVIDIA's own `.pt` files there and the pipelines in revisions, one for each ControlNet of Transfer2.5. Cosmos3 keeps
its pipelines on main and quantized ones in the revision `fp8`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType

from cosmorama.errors import ModelNotFoundError

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on the hub.

    Attributes:
        name: What it is called here; the repository's id where it has no short name.
        repository: Its id, owner/name.
        revision: The branch, tag or commit that is read; None is main.
        about: What it is, in a few words.
        licence: Of the weights.
        gated: Whether the hub asks for the licence to be accepted, with an account, before a download.
        gigabytes: What a download takes, about: parameters times bytes, text encoder and autoencoder included, and of
            one ControlNet where there are any.
        controls: Revisions with a ControlNet each, by the kind of control as requests call it.
        fp8: The revision with weights in 8 bits, where there is one; about half of the gigabytes.
    """

    name: str
    repository: str
    revision: str | None = None
    about: str = ""
    licence: str = ""
    gated: bool = False
    gigabytes: float | None = None
    controls: Mapping[str, str] = field(default_factory=lambda: _NONE)
    fp8: str | None = None

    @property
    def address(self) -> str:
        """As it can be typed: owner/name, with @revision where it is not main."""
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


_OPEN_MODEL = "NVIDIA Open Model License"
_MDW = "OpenMDW-1.1"
_CONTROLNETS = MappingProxyType(
    {
        "edge": "diffusers/controlnet/general/edge",
        "depth": "diffusers/controlnet/general/depth",
        "seg": "diffusers/controlnet/general/seg",
        "vis": "diffusers/controlnet/general/blur",
    }
)
"""By our names, which are the NIM's; the repository says blur where they say vis."""


def _open(name: str, repository: str, about: str, gigabytes: float, revision: str | None = None) -> Source:
    return Source(name, f"nvidia/{repository}", revision, about, _OPEN_MODEL, True, gigabytes)


def _cosmos3(name: str, repository: str, about: str, gigabytes: float, *, fp8: bool = True) -> Source:
    return Source(name, f"nvidia/{repository}", None, about, _MDW, False, gigabytes, fp8="fp8" if fp8 else None)


SOURCES: tuple[Source, ...] = (
    _open(
        *("predict2.5-2b", "Cosmos-Predict2.5-2B", "text, image or video to world", 21.5),
        "diffusers/base/post-trained",
    ),
    _open(
        *("predict2.5-14b", "Cosmos-Predict2.5-14B", "text, image or video to world", 46),
        "diffusers/base/post-trained",
    ),
    replace(
        _open("transfer2.5-2b", "Cosmos-Transfer2.5-2B", "edge, depth, seg or vis clip to world", 22.5),
        revision="diffusers/general",
        controls=_CONTROLNETS,
    ),
    _open("predict2-2b-text2image", "Cosmos-Predict2-2B-Text2Image", "text to a still", 14),
    _open("predict2-14b-text2image", "Cosmos-Predict2-14B-Text2Image", "text to a still", 38.5),
    _open("predict2-2b-video2world", "Cosmos-Predict2-2B-Video2World", "image or video to world", 14),
    _open("predict2-14b-video2world", "Cosmos-Predict2-14B-Video2World", "image or video to world", 38.5),
    _open("predict1-7b-text2world", "Cosmos-1.0-Diffusion-7B-Text2World", "text to world", 24),
    _open("predict1-7b-video2world", "Cosmos-1.0-Diffusion-7B-Video2World", "image or video to world", 24),
    _open("predict1-14b-text2world", "Cosmos-1.0-Diffusion-14B-Text2World", "text to world", 38),
    _open("predict1-14b-video2world", "Cosmos-1.0-Diffusion-14B-Video2World", "image or video to world", 38),
    _cosmos3("cosmos3-edge", "Cosmos3-Edge", "text, image, video or actions to world", 9.2, fp8=False),
    _cosmos3("cosmos3-nano", "Cosmos3-Nano", "text, image, video or actions to world", 34.9),
    _cosmos3("cosmos3-super", "Cosmos3-Super", "text, image, video or actions to world", 130),
    _cosmos3("cosmos3-super-text2image", "Cosmos3-Super-Text2Image", "text to a still", 130),
    _cosmos3("cosmos3-super-image2video", "Cosmos3-Super-Image2Video", "image to world", 130),
    _cosmos3("cosmos3-super-text2image-4step", "Cosmos3-Super-Text2Image-4Step", "text to a still in 4 steps", 130),
    _cosmos3("cosmos3-super-image2video-4step", "Cosmos3-Super-Image2Video-4Step", "image to world in 4 steps", 130),
)
"""The published checkpoints that have a short name here, each where diffusers finds it."""
_HUB_ID = re.compile(r"(?P<id>\w[\w.-]*/\w[\w.-]*)")
_PAGE = re.compile(r"(hf:/|(https?://)?(www\.)?(huggingface\.co|hf\.co))/")
"""Before the id of a repository, where the address of its page is given."""
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*")


def source_of(name: str) -> Source | None:
    """What a name means on the hub.

    Args:
        name: A short name, or owner/name, hf://owner/name or the address of its page; each may end in @revision or
            :revision, and a page's in /tree/revision.

    Returns:
        None for what is no such name at all. A repository that is known here is read at the revision that holds its
        pipeline unless the name says which.

    Raises:
        ModelNotFoundError: the name begins with hf:// and goes on with something else, or its revision is none.
    """
    page = _PAGE.match(name)
    address = name[page.end() :].strip("/").replace("/tree/", "@", 1) if page else name
    base, mark, revision = _split(address)
    known = next((source for source in SOURCES if base.lower() in (source.name, source.repository.lower())), None)
    if known is None and _HUB_ID.fullmatch(base) is None:
        if address != name:
            raise ModelNotFoundError(f"{name!r} is not understood: write hf://owner/name or hf://owner/name:revision")
        return None
    if mark and _REVISION.fullmatch(revision) is None:
        raise ModelNotFoundError(f"{name!r} is not understood: {revision!r} is no revision of a repository")
    found = known or Source(base, base)
    return found if not mark else _at(found, revision)


def closest(name: str) -> tuple[str, ...]:
    """Short names that are spelt much like this one."""
    return tuple(get_close_matches(name.lower(), [source.name for source in SOURCES], n=3, cutoff=0.6))


def check_controls(source: Source, controls: tuple[str, ...]) -> None:
    """Refuse kinds of control that a checkpoint has no ControlNet for.

    Raises:
        ModelNotFoundError: names one, and those there are.
    """
    for kind in controls:
        if kind not in source.controls:
            there = ", ".join(source.controls) or "none: it is no Transfer2.5"
            raise ModelNotFoundError(f"{source.name} has no ControlNet for {kind!r}; it has {there}")


def _split(address: str) -> tuple[str, str, str]:
    """A name, the mark before its revision (or nothing), the revision."""
    at = min((place for mark in "@:" if (place := address.find(mark)) > 0), default=-1)
    return (address, "", "") if at < 0 else (address[:at], address[at], address[at + 1 :])


def _at(source: Source, revision: str) -> Source:
    """The same repository at another revision: nothing is known of its size."""
    if revision == (source.revision or "main"):
        return source
    half = source.gigabytes / 2 if source.gigabytes and revision == source.fp8 else None
    return replace(source, name=f"{source.name}@{revision}", revision=revision, gigabytes=half, fp8=None)
