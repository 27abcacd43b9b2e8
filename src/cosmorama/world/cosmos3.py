"""Cosmos3: one model for stills, clips, continuations, and for what robots do in them.

The network is diffusers' `Cosmos3OmniTransformer`. It has no text encoder: text runs through its own understanding
half (`cosmos3_forward.understand`), and what generated tokens see of it is kept as the prompt's embedding. Given frames
are clean latents at the start of the clip; actions are further tokens. Noise, levels, positions and texts are those of
`Cosmos3OmniPipeline`, so the same seed gives the same clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmorama.request import Capabilities, Defaults, FrameRule, Mode, Range, Size
from cosmorama.world.base import Inputs, ReadText, TextEmbedding
from cosmorama.world.checkpoint import PIPELINE, LoadOptions, check_parts, read_json
from cosmorama.world.cosmos3_action import ACTION_MODES, known_domains
from cosmorama.world.cosmos3_forward import understand
from cosmorama.world.cosmos3_sampling import Cosmos3Sampling
from cosmorama.world.cosmos3_weights import TextHalf, load_transformer
from cosmorama.world.savings import Savings
from cosmorama.world.unipc_schedule import check_unipc
from cosmorama.world.vae_tiles import TilingAutoencoder, with_tiles
from cosmorama.world.wan_vae import WanAutoencoder


@dataclass(frozen=True, slots=True)
class Cosmos3Config:
    """What sampling depends on besides the networks.

    Attributes:
        scheduler: Of the `UniPCMultistepScheduler`.
        native_levels: Space the levels as the pipeline's `use_native_flow_schedule` does.
        system_prompt: Begin the chat with the system prompt.
        savings: What is computed once instead of again and again.
    """

    scheduler: dict[str, Any]
    native_levels: bool
    system_prompt: bool
    savings: Savings


class Cosmos3World:
    """A Cosmos3 model, ready to sample from."""

    def __init__(
        self,
        transformer: torch.nn.Module,
        autoencoder: TilingAutoencoder,
        tokenizer: Any,
        config: Cosmos3Config,
        capabilities: Capabilities,
        text_half: TextHalf,
    ) -> None:
        self.transformer: Any = transformer
        self.autoencoder = autoencoder
        self.tokenizer = tokenizer
        self.config = config
        self.text_half = text_half
        self._capabilities = capabilities
        self._ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|vision_start|>")]

    @property
    def capabilities(self) -> Capabilities:
        """What requests this model takes."""
        return self._capabilities

    @torch.inference_mode()
    def encode_text(self, prompt: str) -> TextEmbedding:
        """Run a text through the understanding half.

        Args:
            prompt: Chat as `cosmos3_prompt.chat` writes it: what the model reads depends on the clip too.

        Returns:
            Keys and values of every layer.
        """
        self.text_half.restore()
        return TextEmbedding(understand(self.transformer, self.tokens(prompt)))

    def tokens(self, chat: str) -> Tensor:
        """Token numbers `[S]` of a text."""
        ids = self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        return torch.tensor([*ids, *self._ends], device=self.transformer.device)

    @torch.inference_mode()
    def begin(self, inputs: Inputs, read: ReadText) -> Cosmos3Sampling:
        """Read the prompts and encode the given frames of a request.

        Raises:
            InvalidRequestError: the inputs do not fit the mode.
        """
        sampling = Cosmos3Sampling(self, inputs, read)
        if self.config.savings.release_text_half:
            self.text_half.release()
        return sampling


def load(folder: Path, options: LoadOptions) -> Cosmos3World:
    """Load a checkpoint in the layout of diffusers' `Cosmos3OmniPipeline`.

    Raises:
        ModelNotFoundError: it is incomplete, or its scheduler is none that is supported.
    """
    from transformers import AutoTokenizer

    check_parts(folder, ("transformer", "vae"), "text_tokenizer")
    index = read_json(folder / PIPELINE)
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    check_unipc(scheduler, str(folder / "scheduler"))
    transformer = load_transformer(folder / "transformer", options)
    return Cosmos3World(
        transformer,
        WanAutoencoder.load(folder / "vae", options),
        AutoTokenizer.from_pretrained(folder / "text_tokenizer", local_files_only=True),
        Cosmos3Config(
            scheduler,
            native_levels=bool(index.get("use_native_flow_schedule", False)),
            system_prompt=bool(index.get("default_use_system_prompt", True)),
            # Offloaded, that half waits where it is.
            savings=replace(options.savings, release_text_half=False) if options.offload != "none" else options.savings,
        ),
        with_tiles(capabilities_of(folder.name, transformer.config), options),
        TextHalf(transformer, folder / "transformer"),
    )


def capabilities_of(name: str, config: Any) -> Capabilities:
    """What a Cosmos3 transformer of this configuration takes; ranges and shapes of the Cosmos3 NIM."""
    domains = known_domains(config.action_dim, config.num_embodiment_domains) if config.action_gen else ()
    modes: tuple[Mode, ...] = ("text2world", "image2world", "video2world")
    return Capabilities(
        model=name,
        family="cosmos3",
        modes=(*modes, *ACTION_MODES) if domains else modes,
        sizes=tuple(Size(width, height) for width, height in _SIZES),
        size_multiple=16,
        max_pixels=960 * 960,
        frames=FrameRule(4, 397),
        fps=Range(1, 60),
        guidance_scale=Range(1, 7),
        steps=Range(1, 100),
        prompt_words=4000,
        conditioning_frames=(5, 1),
        solvers=("unipc", "euler", "dpmpp_2m"),
        default_solver="unipc",
        defaults=Defaults(width=1280, height=720, frames=189, fps=24, steps=35, guidance_scale=6.0, negative_prompt=""),
        flow_shift=Range(0.1, 30),
        action_domains=domains,
    )


_SIZES = (
    *((1280, 720), (960, 960), (720, 1280), (1104, 832), (832, 1104)),
    *((832, 480), (640, 640), (480, 832), (736, 544), (544, 736)),
    *((320, 192), (256, 256), (192, 320), (320, 256), (256, 320)),
)
"""Width and height of the tiers 720, 480 and 256, each as 16:9, 1:1, 9:16, 4:3 and 3:4."""
