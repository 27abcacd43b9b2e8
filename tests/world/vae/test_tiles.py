"""Tiles: diffusers' own result where it has one, one tile's memory at a time, asked for by a server or by a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError
from cosmorama.request import VAE_TILES, ResolvedRequest
from cosmorama.resolve import resolve
from cosmorama.world.registry import load_world
from cosmorama.world.vae.cosmos import CosmosAutoencoder
from cosmorama.world.vae.wan import WanAutoencoder
from tests.world.checkpoints import save_predict, wan_vae
from tests.world.cosmos3_checkpoints import save_cosmos3

TILE, STRIDE = 128, 96
HALF_A_LEVEL = 0.5 / 127.5
REQUEST = ResolvedRequest(
    prompt="a red ball", prompt_upsampling=False, seed=5, steps=1, width=192, height=64, frames=5, fps=16
)
Load = Callable[..., Any]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads a small model by its kind."""
    folders: dict[str, Path] = {}

    def loaded(kind: str, **options: Any) -> Any:
        if kind not in folders:
            folder = folders[kind] = tmp_path_factory.mktemp(kind)
            save_cosmos3(folder) if kind == "cosmos3" else save_predict(kind, folder)
        return load_world(str(folders[kind]), device="cpu", **options)

    return loaded


@pytest.fixture
def wan_2_1() -> WanAutoencoder:
    torch.manual_seed(0)
    return WanAutoencoder(wan_vae())


@pytest.fixture
def wan_2_2(load: Load) -> WanAutoencoder:
    autoencoder = load("cosmos3").autoencoder
    assert isinstance(autoencoder, WanAutoencoder)
    return autoencoder


@pytest.fixture
def cosmos(load: Load) -> CosmosAutoencoder:
    autoencoder = load("predict1-video2world").autoencoder
    assert isinstance(autoencoder, CosmosAutoencoder)
    return autoencoder


def noise(autoencoder: Any, frames: int, height: int, width: int) -> Tensor:
    shape = autoencoder.latents_shape(frames, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def decoded_by_diffusers(autoencoder: WanAutoencoder, latents: Tensor) -> Tensor:
    vae = autoencoder.vae
    vae.enable_tiling(TILE, TILE, STRIDE, STRIDE)
    pixels: Tensor = vae.decode(latents * autoencoder._deviation + autoencoder._mean).sample
    vae.disable_tiling()
    return pixels


@pytest.mark.parametrize("which", ["wan_2_1", "wan_2_2"])
@torch.inference_mode()
def test_tiles_are_decoded_as_diffusers_does(which: str, request: pytest.FixtureRequest) -> None:
    autoencoder: WanAutoencoder = request.getfixturevalue(which)
    latents = noise(autoencoder, 9, 32, 3 * STRIDE)
    pixels = torch.cat(list(autoencoder.tiled(TILE).decode_pixels(latents)), dim=2)
    assert (pixels - decoded_by_diffusers(autoencoder, latents)).abs().max() < HALF_A_LEVEL / 4
    whole = torch.cat(list(autoencoder.decode_pixels(latents)), dim=2)
    assert (pixels - whole).abs().max() > HALF_A_LEVEL  # or nothing was in tiles


@torch.inference_mode()
def test_only_where_four_tiles_meet_is_it_blended_more_evenly(wan_2_1: WanAutoencoder) -> None:
    latents = noise(wan_2_1, 5, 2 * STRIDE, 2 * STRIDE)
    pixels = torch.cat(list(wan_2_1.tiled(TILE).decode_pixels(latents)), dim=2)
    different = (pixels - decoded_by_diffusers(wan_2_1, latents)).abs().amax((0, 1, 2)) > HALF_A_LEVEL / 4
    assert different[STRIDE:TILE, STRIDE:TILE].any()
    different[STRIDE:TILE, STRIDE:TILE] = False
    assert not different.any()


@torch.inference_mode()
def test_frames_are_encoded_in_tiles_as_diffusers_does(wan_2_1: WanAutoencoder) -> None:
    frames = torch.rand(1, 3, 5, 32, 2 * STRIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wan_2_1.vae.enable_tiling(TILE, TILE, STRIDE, STRIDE)
    expected = wan_2_1.encode(frames)
    wan_2_1.vae.disable_tiling()
    assert torch.allclose(wan_2_1.tiled(TILE).encode(frames), expected, atol=1e-5)
    assert not torch.allclose(wan_2_1.encode(frames), expected, atol=1e-5)


@torch.inference_mode()
def test_the_tokenizer_of_predict1_sees_no_further_than_its_tile(cosmos: CosmosAutoencoder) -> None:
    tiled = cosmos.tiled(TILE)
    latents = noise(cosmos, 9, 64, 2 * STRIDE)
    first, second = (cosmos.decode_pixels(latents[..., cut]) for cut in (slice(0, 16), slice(12, 24)))
    pixels = tiled.decode_pixels(latents)
    assert (pixels[..., :STRIDE] - first[..., :STRIDE]).abs().max() < 0.01
    assert (pixels[..., TILE:] - second[..., TILE - STRIDE :]).abs().max() < 0.01
    halfway = (STRIDE + TILE) // 2
    mean = (first[..., halfway] + second[..., halfway - STRIDE]) / 2
    assert (pixels[..., halfway] - mean).abs().max() < 0.01
    frames = torch.rand(1, 3, 9, 64, 2 * STRIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.allclose(tiled.encode(frames)[..., :12], cosmos.encode(frames[..., :TILE])[..., :12], atol=1e-5)


@pytest.mark.parametrize("which", ["wan_2_1", "cosmos"])
@torch.inference_mode()
def test_a_frame_that_is_no_larger_than_a_tile_stays_whole(which: str, request: pytest.FixtureRequest) -> None:
    autoencoder: Any = request.getfixturevalue(which)
    latents = noise(autoencoder, 9, 32, TILE)
    for tile in (0, TILE, VAE_TILES[-1]):
        shown = torch.cat(list(autoencoder.tiled(tile).decode_stream(latents, 32, TILE)))
        assert torch.equal(shown, torch.cat(list(autoencoder.decode_stream(latents, 32, TILE))))


@torch.inference_mode()
def test_a_preview_does_not_decode_the_whole_clip(wan_2_1: WanAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    forward = wan_2_1.vae.decoder.mid_block.forward  # once for a latent frame
    monkeypatch.setattr(wan_2_1.vae.decoder.mid_block, "forward", lambda *a, **k: asked.append(1) or forward(*a, **k))
    clip = wan_2_1.tiled(TILE).decode_stream(noise(wan_2_1, 21, 32, 2 * STRIDE), 32, 2 * STRIDE)
    assert [len(next(clip)), len(next(clip))] == [1, 4]
    tiles = 2
    assert len(asked) == 2 * tiles
    assert sum(len(frames) for frames in clip) == 16
    assert len(asked) == (2 + 6) * tiles


def picture(height: int, width: int) -> NDArray[np.uint8]:
    y, x, c = np.ogrid[:height, :width, :3]
    return (127.5 + 127.5 * np.sin(x / 9 + y / 7 + c))[None].astype(np.uint8)


def shown(world: Any, **changes: Any) -> Tensor:
    """The frames of a request, through the engine's own rollout."""
    given = None
    if "text2world" not in world.capabilities.modes:
        changes["image"], given = b"a picture", picture(REQUEST.height, REQUEST.width)
    request = resolve(replace(REQUEST, **changes), world.capabilities)
    rollout = Rollout(world, PreparedRequest(request, request.prompt or "", given))
    while not rollout.done:
        rollout.advance()
    return torch.cat([torch.from_numpy(chunk) for chunk in rollout.decode()])


@pytest.mark.parametrize("kind", ["predict1-video2world", "predict2-video2world", "predict2.5", "cosmos3"])
def test_the_server_decides_unless_a_request_does(load: Load, kind: str) -> None:
    exact, tiling = load(kind), load(kind, vae_tiling=TILE)
    assert exact.capabilities.vae_tiles == tiling.capabilities.vae_tiles == VAE_TILES
    plain = shown(exact)
    in_tiles = shown(exact, vae_tiling=TILE)
    assert plain.shape == in_tiles.shape == (REQUEST.frames, REQUEST.height, REQUEST.width, 3)
    assert not torch.equal(plain, in_tiles)
    assert torch.equal(shown(tiling), in_tiles)
    assert torch.equal(shown(tiling, vae_tiling=0), plain)


@pytest.mark.parametrize("tile", [1, 100, -128, True, 1024])
def test_other_tiles_are_refused_with_those_that_there_are(load: Load, tile: int) -> None:
    with pytest.raises(InvalidRequestError, match=r"vae_tiling: .* one of 0, 128, 192, 256, 384, 512, 768"):
        resolve(replace(REQUEST, vae_tiling=tile), load("predict2.5").capabilities)


def test_a_model_without_tiles_takes_only_zero(load: Load) -> None:
    capabilities = replace(load("predict2.5").capabilities, vae_tiles=())
    assert resolve(replace(REQUEST, vae_tiling=0), capabilities).vae_tiling == 0
    with pytest.raises(InvalidRequestError, match=r"vae_tiling: .* 0: this model has no tiles"):
        resolve(replace(REQUEST, vae_tiling=TILE), capabilities)
