"""Checkpoints on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from cosmorama.errors import ModelNotFoundError

_HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HUB_FILES = ("model_index.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.jinja", "*/spiece.model")
"""Configs, tokenizers and safetensors of a pipeline's parts; no code, and nothing that has to be unpickled."""


def is_hub_id(name: str) -> bool:
    """Whether this is `owner/name` or `owner/name@revision`."""
    return _HUB_ID.fullmatch(name) is not None


def from_hub(name: str, cache: Path | None, *, download: bool) -> Path:
    """The folder of a checkpoint from the hub, downloaded where that is allowed and needed.

    Args:
        name: An `is_hub_id`.
        cache: Folder in which checkpoints are kept; None is the hub library's own.
        download: False takes them only from there.

    Raises:
        ModelNotFoundError: it cannot be had.
    """
    import httpx
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub_id = _HUB_ID.fullmatch(name)
    assert hub_id is not None
    try:
        found = snapshot_download(
            hub_id["id"],
            revision=hub_id["revision"],
            allow_patterns=list(_HUB_FILES),
            cache_dir=cache,
            local_files_only=not download,
        )
        return Path(found)
    except LocalEntryNotFoundError as error:
        if download:  # the hub cannot be reached, and there is no copy
            raise ModelNotFoundError(
                f"there is no folder {name!r}, and it cannot be had from the Hugging Face hub: {error}"
            ) from error
        raise ModelNotFoundError(
            f"there is no folder {name!r} and no copy of it in {cache or constants.HF_HUB_CACHE}, and downloads from "
            "the Hugging Face hub are switched off"
        ) from None
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ModelNotFoundError(
            f"there is no folder {name!r}, and it cannot be had from the Hugging Face hub: {error}"
        ) from error
