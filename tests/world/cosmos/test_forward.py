"""`cosmos_forward` against the stock modules of diffusers, with adaLN evaluated once per token as `forward` does."""

from typing import Any

import pytest
import torch
from diffusers import CosmosTransformer3DModel
from torch import Tensor

from cosmorama.world.cosmos.forward import cosmos_forward


def _model(**changes: Any) -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "in_channels": 5,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 18,
        "num_layers": 2,
        "mlp_ratio": 2.0,
        "text_embed_dim": 12,
        "adaln_lora_dim": 6,
        "max_size": (8, 16, 16),
        "patch_size": (1, 2, 2),
        "concat_padding_mask": False,
        "extra_pos_embed_type": None,
    }
    net = CosmosTransformer3DModel(**{**options, **changes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


def _stock(net: Any, x: Tensor, timesteps: Tensor, text: Tensor, mask: Tensor, condition: Tensor, fps: float) -> Tensor:
    """`CosmosTransformer3DModel.forward`, module by module, without its resizing of a padding mask of zeros."""
    x = torch.cat([x, condition], dim=1)
    if net.config.concat_padding_mask:
        x = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
    batch, _, frames, height, width = x.shape
    rope = net.rope(x, fps=fps)
    position = net.learnable_pos_embed(x) if net.config.extra_pos_embed_type else None
    tokens = net.patch_embed(x).flatten(1, 3)
    temb, embedded = (
        part.view(batch, frames, 1, 1, -1).expand(-1, -1, height // 2, width // 2, -1).flatten(1, 3)
        for part in net.time_embed(tokens, timesteps.flatten())
    )
    if net.config.use_crossattn_projection:
        text = net.crossattn_proj(text)
    for block in net.transformer_blocks:
        tokens = block(tokens, text, embedded, temb, rope, position, mask[:, None, None, :])
    tokens = net.proj_out(net.norm_out(tokens, embedded, temb))
    tokens = tokens.unflatten(2, (2, 2, 1, -1)).unflatten(1, (frames, height // 2, width // 2))
    result: Tensor = tokens.permute(0, 7, 1, 6, 2, 4, 3, 5).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return result


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"concat_padding_mask": True},
        {"extra_pos_embed_type": "learnable"},
        {"use_crossattn_projection": True, "crossattn_proj_in_channels": 9, "encoder_hidden_states_channels": 12},
    ],
    ids=["microcosm", "padding mask", "learnable positions", "text projection"],
)
def test_same_numbers_as_the_stock_modules(changes: dict[str, Any]) -> None:
    net = _model(**changes)
    x = torch.randn(2, 4, 3, 4, 6)
    timesteps = torch.tensor([[0.0, 300.0, 300.0], [700.0, 700.0, 700.0]])
    text = torch.randn(2, 5, 9 if "use_crossattn_projection" in changes else 12)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    condition = torch.zeros(2, 1, 3, 4, 6)
    condition[0, :, 0] = 1
    with torch.inference_mode():
        expected = _stock(net, x, timesteps, text, mask, condition, 16.0)
        got = cosmos_forward(net, x, timesteps, text, text_mask=mask, condition_mask=condition, fps=16.0)
    trained = cosmos_forward(net, x, timesteps, text, text_mask=mask, condition_mask=condition, fps=16.0)
    assert got.shape == x.shape
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-4)  # where nothing can be computed in place
    trained.square().sum().backward()
    # The last block's cross-attention and feed-forward layers included.
    assert all(weight.grad is not None for block in net.transformer_blocks for weight in block.parameters())


def test_masked_text_changes_nothing() -> None:
    net, x, timesteps = _model(in_channels=4), torch.randn(1, 4, 2, 4, 4), torch.full((1, 2), 500.0)
    text = torch.randn(1, 3, 12)
    padded = torch.cat([text, torch.randn(1, 4, 12)], dim=1)
    mask = torch.tensor([[True] * 3 + [False] * 4])
    with torch.inference_mode():
        torch.testing.assert_close(
            cosmos_forward(net, x, timesteps, padded, text_mask=mask), cosmos_forward(net, x, timesteps, text)
        )


def test_temporal_patches_are_refused() -> None:
    net = _model(patch_size=(2, 2, 2))
    with pytest.raises(ValueError, match="temporal patch size"):
        cosmos_forward(net, torch.randn(1, 5, 2, 4, 4), torch.zeros(1, 2), torch.randn(1, 3, 12))
