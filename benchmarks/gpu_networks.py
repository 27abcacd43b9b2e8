"""Networks of the published sizes with random weights, made on the device: what `benchmarks.gpu` measures, and how."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKLCosmos,
    AutoencoderKLWan,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
from torch import Tensor

from cosmorama.request import Capabilities, FrameRule, ResolvedRequest
from cosmorama.world.base import Inputs, TextEmbedding
from cosmorama.world.cosmos.predict1 import Predict1Sampling
from cosmorama.world.cosmos.predict25 import Predict25Sampling
from cosmorama.world.cosmos.sampling import CosmosSampling, CosmosWorld
from cosmorama.world.vae.cosmos import CosmosAutoencoder
from cosmorama.world.vae.wan import WanAutoencoder

Figures = dict[str, Any]
Work = Callable[[], object]
GB = 1e9
HEADS_AND_LAYERS = {"2B": (16, 28), "14B": (40, 36), "7B": (32, 28)}
"""Of Predict2.5 and Predict2 (2B, 14B) and Predict1 (7B); a head is 128 wide."""


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and how large.

    Attributes:
        device: Of the networks.
        tiny: Networks and clips that a CPU makes in seconds: shows that a section runs, and nothing of its speed.
    """

    device: torch.device
    tiny: bool = False

    @property
    def cuda(self) -> bool:
        """Whether times and memory are a GPU's."""
        return self.device.type == "cuda"

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, height and frames of the clip that is measured: Predict2.5's default at 720p."""
        return (64, 64, 5) if self.tiny else (1280, 704, 93)

    def network(self, make: Callable[[], torch.nn.Module], dtype: torch.dtype = torch.bfloat16) -> Any:
        """A network with small random weights, filled where it is to be: no copy on the CPU.

        Buffers are what the network itself makes of them: wavelets, frequencies, whatever is not learned.
        """
        with init_empty_weights(include_buffers=False):
            network: Any = make().eval().requires_grad_(False)
        generator = torch.Generator(self.device).manual_seed(0)
        for name, parameter in list(network.named_parameters()):
            owner, _, leaf = name.rpartition(".")
            filled = torch.empty(parameter.shape, dtype=dtype, device=self.device)
            if "norm" in name and parameter.ndim == 1:
                filled.fill_(1.0)
            else:
                filled.normal_(0, 0.02, generator=generator)
            setattr(network.get_submodule(owner), leaf, torch.nn.Parameter(filled, requires_grad=False))
        return network.to(self.device)

    def transformer(self, size: str, family: str) -> Any:
        """A Cosmos transformer."""
        heads, layers = (2, 2) if self.tiny else HEADS_AND_LAYERS[size]
        first = family == "predict1"
        options: dict[str, Any] = {
            "in_channels": 16 if first else 17,
            "out_channels": 16,
            "num_attention_heads": heads,
            "attention_head_dim": 32 if self.tiny else 128,
            "num_layers": layers,
            "text_embed_dim": 64 if self.tiny else 1024,
            "adaln_lora_dim": 16 if self.tiny else 256,
            "rope_scale": (2.0, 1.0, 1.0) if first else (1.0, 3.0, 3.0),
            "extra_pos_embed_type": "learnable" if first else None,
        }
        if not first:
            options |= {
                "use_crossattn_projection": True,
                "crossattn_proj_in_channels": self.text_width,
                "encoder_hidden_states_channels": 64 if self.tiny else 1024,
            }
        return self.network(lambda: CosmosTransformer3DModel(**options))

    @property
    def text_width(self) -> int:
        """Of Qwen2.5-VL's joined layers, which Predict2.5 reads."""
        return 128 if self.tiny else 100352

    def cosmos3(self) -> Any:
        """The transformer of Cosmos3 at diffusers' default size, 14.5 B."""
        small = {
            "hidden_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_hidden_layers": 2,
            "intermediate_size": 512,
        }
        network = self.network(lambda: Cosmos3OmniTransformer(**(small if self.tiny else {})))
        network.time_embedder.float()
        return network

    def wan(self, dtype: torch.dtype = torch.bfloat16) -> Any:
        """Wan 2.1's autoencoder."""
        small = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} if self.tiny else {}
        return self.network(lambda: AutoencoderKLWan(**small), dtype)

    def world(self, size: str = "2B", family: str = "predict2.5") -> CosmosWorld:
        """A model without its text encoder: prompts are random states of the right shape."""
        if family == "predict1":
            small: dict[str, Any] = {
                "encoder_block_out_channels": (8, 16, 16, 16),
                "decode_block_out_channels": (8, 16, 16, 16),
            }
            small = small if self.tiny else {}
            tokenizer: Any = CosmosAutoencoder(self.network(lambda: AutoencoderKLCosmos(**small)))
            capabilities = Capabilities(model=size, family=family, size_multiple=16, frames=FrameRule(8, 121))
            scheduler: Any = EDMEulerScheduler(
                sigma_min=0.002, sigma_max=80, sigma_data=0.5, final_sigmas_type="sigma_min"
            )
            kind: type[CosmosSampling] = Predict1Sampling
        else:
            tokenizer = WanAutoencoder(self.wan())
            capabilities = Capabilities(model=size, family=family, size_multiple=16, frames=FrameRule(4, 93))
            scheduler = UniPCMultistepScheduler(
                use_karras_sigmas=True,
                use_flow_sigmas=True,
                prediction_type="flow_prediction",
                sigma_max=200.0,
                sigma_min=0.01,
            )
            kind = Predict25Sampling

        def read(prompt: str) -> TextEmbedding:
            generator = torch.Generator(self.device).manual_seed(len(prompt))
            rows, width = (60, 64 if self.tiny else 1024) if family == "predict1" else (512, self.text_width)
            states = torch.randn(1, rows, width, device=self.device, generator=generator).bfloat16()
            return TextEmbedding(states, repeats=453 if family == "predict1" else 1)

        network = self.transformer(size, family)
        return CosmosWorld(network, tokenizer, read, dict(scheduler.config), capabilities, kind)

    def request(self, **changes: Any) -> ResolvedRequest:
        """A request at the size that is measured."""
        width, height, frames = self.size
        usual: dict[str, Any] = {
            "prompt": "a robot arm",
            "negative_prompt": "blurry",
            "prompt_upsampling": False,
            "seed": 1,
            "solver": "unipc",
            "steps": 2,
            "width": width,
            "height": height,
            "frames": frames,
            "fps": 16,
            "guidance_scale": 7.0,
        }
        return ResolvedRequest(**usual | changes)

    def begun(self, world: CosmosWorld, **changes: Any) -> tuple[Any, torch.Tensor]:
        """A request that has begun, and its first latents."""
        sampling = world.begin(Inputs(request=self.request(**changes), prompt="a robot arm"), world.encode_text)
        return sampling, sampling.initial()


def interleaved(bench: Bench, sides: dict[str, Work], rounds: int = 3) -> Figures:
    """Median milliseconds of each side, measured in turns after one turn that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range((1 if bench.tiny else rounds) + 1):
        for name, work in sides.items():
            wait(bench)
            begun = time.perf_counter()
            work()
            wait(bench)
            if turn:
                taken[name].append((time.perf_counter() - begun) * 1e3)
    return {f"{name}_ms": round(statistics.median(times), 2) for name, times in taken.items()}


def wait(bench: Bench) -> None:
    """Until the device is done."""
    if bench.cuda:
        torch.cuda.synchronize()


def peak_gb(bench: Bench, work: Work) -> float | None:
    """What the work takes on the device beside what is there; None on a CPU."""
    if not bench.cuda:
        work()
        return None
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    wait(bench)
    return round((torch.cuda.max_memory_allocated() - before) / GB, 2)


def drained(chunks: Iterable[Any]) -> None:
    """Take every chunk, and keep none."""
    for _ in chunks:
        pass


def relative_error(ours: Tensor, theirs: Tensor, of: Tensor) -> float:
    """How far two estimates are apart, as a part of how far they are from where they began."""
    return float((ours - theirs).norm() / (theirs - of).norm())
