"""A request of each family at its published size on a GPU that is not there; prints what they took, in JSON.

    python -m tests.world.fake_gpu predict2.5-2b transfer2.5-2b

torch's fake tensors have a shape, a type and a device, and no numbers: an operation on tensors of two devices raises,
as it would on a GPU. The build of torch for CPUs cannot index fake CUDA tensors, so the device is one that is only
declared here: whatever asks for CUDA by name is not seen, nor is how long anything takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKLWan, CosmosControlNetModel
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
from diffusers.pipelines.cosmos import pipeline_cosmos3_omni
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from benchmarks import gpu_networks
from benchmarks.gpu_networks import HEADS_AND_LAYERS, Bench
from cosmorama.diffusion.solvers import SOLVER_STEPS, History
from cosmorama.request import Action, Control
from cosmorama.world.base import Inputs, TextEmbedding
from cosmorama.world.cosmos import predict1, predict25
from cosmorama.world.cosmos.predict2 import Predict2Sampling
from cosmorama.world.cosmos.predict25 import TransferSampling
from cosmorama.world.cosmos.sampling import CosmosWorld
from cosmorama.world.cosmos3 import sampling as cosmos3
from cosmorama.world.cosmos3.capabilities import capabilities_of
from cosmorama.world.cosmos3.sampling import Cosmos3Config, Cosmos3World
from cosmorama.world.vae import pixels
from cosmorama.world.vae.wan import WanAutoencoder

GPU = "gpu"
FRAMES = 5
"""Of the clip, but for Predict1's 9: a fake evaluation takes as long for every number of tokens, decoding does not."""


class Fake(Bench):
    """Networks without numbers."""

    def network(self, make: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
        """A network of this type, on the device."""
        with torch.device("meta"):
            network = make().eval()
        kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
        for name, held in [*network.named_parameters(), *network.named_buffers()]:
            owner, _, leaf = name.rpartition(".")
            kind = dtype if isinstance(held, torch.nn.Parameter) and kept.isdisjoint(name.split(".")) else held.dtype
            there = torch.empty(held.shape, dtype=kind, device=self.device)
            if isinstance(held, torch.nn.Parameter):
                there = torch.nn.Parameter(there, requires_grad=False)
            setattr(network.get_submodule(owner), leaf, there)
        return network


def world_of(family: str, bench: Fake) -> CosmosWorld:
    name, size = family.split("-")
    world = bench.world(size.upper(), "predict1" if name == "predict1" else "predict2.5")
    rows, width = (60, 1024) if name == "predict1" else (512, bench.text_width)
    states = torch.empty(1, rows, width, dtype=torch.bfloat16, device=bench.device)
    world.read_text = lambda prompt: TextEmbedding(states)
    if name == "predict2":
        world._sampling = Predict2Sampling
    if name == "transfer2.5":
        heads, _ = HEADS_AND_LAYERS[size.upper()]
        net = bench.network(
            lambda: CosmosControlNetModel(
                n_controlnet_blocks=4,
                in_channels=130,
                latent_channels=18,
                model_channels=heads * 128,
                num_attention_heads=heads,
                attention_head_dim=128,
                text_embed_dim=1024,
                use_crossattn_projection=True,
                crossattn_proj_in_channels=bench.text_width,
                encoder_hidden_states_channels=1024,
            )
        )
        world._sampling, world.controlnets, world.chunk_frames = TransferSampling, {"edge": net}, FRAMES
        world.transformer.register_to_config(controlnet_block_every_n=7)
    return world


def _with_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments, **options)

    return called


_TENSOR = torch.tensor


def _tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    """Numbers from Python, which have no way of their own to a device that is only declared."""
    made = _TENSOR(data, **options)
    return made if device is None else made.to(device)


class _Bytes:
    """A tokenizer with a token for every character."""

    eos_token_id = 0

    def convert_tokens_to_ids(self, token: str) -> int:
        return 1

    def apply_chat_template(self, turns: list[dict[str, str]], **_: object) -> str:
        return " ".join(turn["content"] for turn in turns)

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 256 for letter in text]}


def cosmos3_world(bench: Fake, layers: int, *, distilled: bool) -> Cosmos3World:
    """Cosmos3 at diffusers' own width, with actions, behind the Wan 2.2 tokenizer."""
    network = bench.network(lambda: Cosmos3OmniTransformer(action_gen=True, action_dim=64, num_hidden_layers=layers))
    vae = bench.network(
        lambda: AutoencoderKLWan(
            base_dim=160,
            decoder_base_dim=256,
            z_dim=48,
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
            latents_mean=[0.0] * 48,
            latents_std=[1.0] * 48,
        )
    )
    levels = (1.0, 0.9, 0.75, 0.5) if distilled else None
    student: dict[str, Any] = {"stochastic_sampling": True}
    teacher: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 10.0}
    config = Cosmos3Config(student if distilled else teacher, native_levels=False, system_prompt=True, distilled=levels)
    capabilities = capabilities_of("cosmos3-nano", network.config, levels)
    half: Any = SimpleNamespace(restore=lambda: None, release=lambda: None)
    return Cosmos3World(network, WanAutoencoder(vae), _Bytes(), config, capabilities, half)


COSMOS3: dict[str, dict[str, Any]] = {
    "text": {},
    "transfer": {"task": "transfer", "controls": (Control("edge", source=b"x"),), "chunk_frames": FRAMES},
    "policy": {"task": "policy", "image": b"x", "action": Action(8, None, FRAMES - 1), "vae_tiling": 1024},
    "forward_dynamics": {
        "task": "forward_dynamics",
        "image": b"x",
        "action": Action(8, ((0.0,) * 10,) * 3, FRAMES - 1),
    },
    "distilled": {"image": b"x"},
}
"""What of Cosmos3 goes its own way, and the requests that do."""


def made_by_cosmos3(mode: str) -> dict[str, Any]:
    """The same as `made_by` in one of the modes of Cosmos3, and a preview."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        bench = Fake(torch.device(GPU))
        # All of its layers in one mode: they are alike.
        world = cosmos3_world(bench, 36 if mode == "text" else 2, distilled=mode == "distilled")
        request = bench.request(frames=2 * FRAMES - 1 if mode == "transfer" else FRAMES, **COSMOS3[mode])
        clip = torch.zeros(request.frames, request.height, request.width, 3, dtype=torch.uint8)
        given = 1 if request.image else request.conditioning_frames or 0
        inputs = Inputs(
            request=request,
            prompt="a robot arm",
            frames=clip[:given] if given else None,
            controls={"edge": clip} if mode == "transfer" else {},
        )
        sampling = world.begin(inputs, world.encode_text)
        latents = sampling.initial()
        estimate = sampling.denoise(latents, 0)
        if sampling.guidance_weight != 1:
            estimate = sampling.denoise(latents, 0, negative=True)
        following = sampling.renoise(estimate, 0)
        if following is None:
            following, _ = SOLVER_STEPS["unipc"](latents, estimate, sampling.schedule, 0, History())
        previewed = sum(len(frames) for frames in islice(sampling.preview(estimate), 2))
        shown = sum(len(frames) for frames in sampling.decode(following))
        if mode == "transfer":
            following = sampling.next_chunk(following)
            shown += sum(len(frames) for frames in sampling.decode(following, 1))
        actions = sampling.actions(following)
        weights = [*world.transformer.parameters()]
        return {
            "frames": shown,
            "previewed": previewed,
            "places": sorted({str(tensor.device) for tensor in (latents, estimate, following, *weights)}),
            "dtype": str(estimate.dtype),
            "actions": None if actions is None else list(actions.shape),
            "denoiser_gb": round(sum(weight.nbytes for weight in weights) / 1e9, 2),
        }


def made_by(family: str) -> dict[str, Any]:
    """Begin a request, take a step with guidance, decode; from given frames, or chunk after chunk, where it can."""
    if family.startswith("cosmos3-"):
        return made_by_cosmos3(family.removeprefix("cosmos3-"))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        bench = Fake(torch.device(GPU))
        world = world_of(family, bench)
        follows = family.startswith("transfer")
        tiles = 1024 if family.startswith("predict2-") else 0
        frames = 9 if follows or family.startswith("predict1") else FRAMES
        request = bench.request(frames=frames, vae_tiling=tiles)
        clip = torch.zeros(request.frames, request.height, request.width, 3, dtype=torch.uint8)
        if follows:
            request = replace(request, controls=(Control("edge", source=b"x"),), task="transfer")
        inputs = Inputs(
            request=request,
            prompt="a robot arm",
            frames=None if follows or family.startswith("predict1") else clip[:1],
            controls={"edge": clip} if follows else {},
        )
        sampling = world.begin(inputs, world.encode_text)
        latents = sampling.initial()
        places = {str(latents.device)}
        for negative in (False, True):
            estimate = sampling.denoise(latents, 0, negative=negative)
            places.add(str(estimate.device))
        latents, _ = SOLVER_STEPS["unipc"](latents, estimate, sampling.schedule, 0, History())
        previewed = sum(len(frames) for frames in islice(sampling.preview(estimate), 2))
        shown = sum(len(frames) for frames in sampling.decode(latents))
        if follows:
            latents = sampling.next_chunk(latents)
            sampling.denoise(latents, 0)
            shown += sum(len(frames) for frames in sampling.decode(latents, 1))
        weights = [*world.transformer.parameters()]
        return {
            "frames": shown,
            "previewed": previewed,
            "places": sorted(places | {str(weight.device) for weight in weights}),
            "dtype": str(estimate.dtype),
            "latents": list(latents.shape),
            "denoiser_gb": round(sum(weight.nbytes for weight in weights) / 1e9, 2),
        }


def main(families: list[str]) -> dict[str, Any]:
    """What a request of each of them took."""
    _setup_privateuseone_for_python_backend(GPU)
    getattr(torch, GPU).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]  # rotary embedding asks
    pixels.all_finite = lambda x: True  # there are no numbers to ask about
    torch.tensor = _tensor
    # Levels and positions are numbers, from diffusers' own code.
    for module, name in (
        (gpu_networks, "EDMEulerScheduler"),
        (gpu_networks, "UniPCMultistepScheduler"),
        (predict1, "edm_levels"),
        (predict25, "unipc_levels"),
        (cosmos3, "unipc_levels"),
        (cosmos3, "distilled_levels"),
        (pipeline_cosmos3_omni, "get_3d_mrope_ids_vae_tokens"),
    ):
        setattr(module, name, _with_numbers(getattr(module, name)))
    with FakeTensorMode():
        try:
            torch.empty(2, 2, device=GPU) @ torch.empty(2, 2)
        except RuntimeError:
            pass  # as it should
        else:
            raise AssertionError("tensors of two devices are multiplied: nothing is shown by what follows")
    return {family: made_by(family) for family in families}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
