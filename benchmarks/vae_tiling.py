"""What tiles save of a video tokenizer's memory, and what they cost.

Memory is counted, not measured: every tensor that is alive on the device while the published architectures run over a
clip in bfloat16. PyTorch's meta device stands for the GPU: it has shapes, but no numbers and no memory. What kernels
take inside is not in it, nor are weights, nor the frames that wait in the CPU's memory. Only one tile is held at a
time, so tiles are counted on two by two of them, and one piece at its full size.

Seams are measured on a mid-size tokenizer with random weights, in float32, against the same clip in one piece: PSNR of
the frames in uint8. Random weights exaggerate them: what a trained tokenizer shows depends less on what is far away.

    python -m benchmarks.vae_tiling            JSON; a few minutes of CPU time
    python -m benchmarks.vae_tiling --count    memory alone
"""

from __future__ import annotations

import argparse
import json
import math
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import AutoencoderKLCosmos
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cosmorama.world.vae.cosmos import CosmosAutoencoder
from cosmorama.world.vae.tiles import stride_of
from cosmorama.world.vae.wan import WanAutoencoder

WIDTH, HEIGHT = 1280, 704
COUNTED = (0, 512, 256)
SEEN = (128,)
CLIP = (5, 192, 288)
"""Frames, height and width of the clip that is looked at."""
_WAN_2_2: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
TOKENIZERS: dict[str, tuple[Callable[[], Any], int]] = {
    "wan_2_1": (lambda: WanAutoencoder(_bare(AutoencoderKLWan())), 13),
    "wan_2_2": (lambda: WanAutoencoder(_bare(AutoencoderKLWan(**_WAN_2_2))), 13),
    "cosmos": (lambda: CosmosAutoencoder(_bare(AutoencoderKLCosmos())), 121),
}
"""As published, and a number of frames: that of Wan's changes nothing from the fourth latent frame on."""


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made on a device within it, and the most that were alive at once."""

    def __init__(self, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it gives."""
        kwargs = kwargs or {}
        asked = (*args[1:], *kwargs.values())
        if args and isinstance(args[0], Tensor) and args[0].is_meta and any(map(_is_cpu, asked)):
            # There are no numbers to copy.
            return torch.zeros(args[0].shape, dtype=next(a for a in asked if isinstance(a, torch.dtype)))
        given = func(*args, **kwargs)
        for tensor in tree_iter(given):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device:
                self._count(tensor.untyped_storage())
        return given

    def _count(self, storage: Any) -> None:
        number, size = storage._cdata, storage.nbytes()
        if number in self._known:
            return
        self._known.add(number)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, number, size)

    def _gone(self, number: int, size: int) -> None:
        self._known.discard(number)
        self.now -= size


def _is_cpu(argument: object) -> bool:
    return isinstance(argument, torch.device) and argument.type == "cpu"


def _bare(vae: Any) -> Any:
    return vae.to(torch.bfloat16).eval().requires_grad_(False)


def counted(name: str) -> list[dict[str, Any]]:
    """Memory of decoding a clip, and of encoding the nine frames that one is continued from."""
    build, frames = TOKENIZERS[name]
    rows = []
    with torch.inference_mode():
        with torch.device("meta"):
            tokenizer = build()
        for tile in COUNTED:
            tiled = tokenizer.tiled(tile)
            height, width = (tile + stride_of(tile),) * 2 if tile else (HEIGHT, WIDTH)
            latents = torch.empty(tokenizer.latents_shape(frames, height, width), device="meta")
            given = torch.empty(1, 3, 9, height, width, device="meta")
            with Alive("meta") as decoding:
                _drain(tiled.decode_pixels(latents))
            with Alive("meta") as encoding:
                tiled.encode(given)
            rows.append(
                {
                    "tokenizer": name,
                    "tile": tile,
                    "decode_gb": round(decoding.peak / 1e9, 2),
                    "encode_gb": round(encoding.peak / 1e9, 2),
                }
            )
    return rows


def _drain(pieces: Tensor | Iterable[Tensor]) -> None:
    for _ in pieces:
        pass


def seen() -> list[dict[str, Any]]:
    """What tiles change and cost, on a tokenizer of a quarter of Wan 2.1's width."""
    torch.manual_seed(0)
    tokenizer = WanAutoencoder(AutoencoderKLWan(base_dim=24).eval().requires_grad_(False))
    _, height, width = CLIP
    t, y, x = (torch.arange(length, dtype=torch.float32) for length in CLIP)
    phase = x / 29 + y[:, None] / 23 + t[:, None, None] / 3
    clip = torch.stack([phase.sin(), (phase / 2).cos(), (phase / 3).sin()])[None]
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        latents = tokenizer.encode(clip)
        exact = torch.empty(0)
        for tile in (0, *SEEN):
            began = time.process_time()
            with Alive("cpu") as alive:
                shown = torch.cat(list(tokenizer.tiled(tile).decode_stream(latents, height, width)))
            cpu_s = time.process_time() - began
            exact = exact if tile else shown
            rows.append(
                {
                    "tile": tile,
                    "psnr": _psnr(shown, exact) if tile else None,
                    "changed_by_more_than_one_level": _share(shown, exact),
                    "cpu_s": round(cpu_s, 1),
                    "decode_gb": round(alive.peak / 1e9, 2),
                }
            )
    return rows


def _psnr(shown: Tensor, exact: Tensor) -> float:
    error = (shown.float() - exact.float()).square().mean().item()
    return round(10 * math.log10(255**2 / error), 1) if error else math.inf


def _share(shown: Tensor, exact: Tensor) -> float:
    return round(((shown.int() - exact.int()).abs() > 1).float().mean().item(), 3)


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="Memory alone.")
    parser.add_argument("--seams", action="store_true", help="Seams alone.")
    parser.add_argument("--only", choices=tuple(TOKENIZERS), help="One tokenizer.")
    arguments = parser.parse_args()
    names = [arguments.only] if arguments.only else list(TOKENIZERS)
    result: dict[str, Any] = {"size": f"{WIDTH}x{HEIGHT}"}
    if not arguments.seams:
        result["memory"] = [row for name in names for row in counted(name)]
    if not arguments.count:
        result["seams"] = seen()
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
