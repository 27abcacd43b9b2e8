"""What a GPU makes of the published sizes: ours against diffusers in turns, with random weights; nothing is downloaded.

    python -m benchmarks.gpu --out gpu.json                     # everything: about 25 minutes on an H100
    python -m benchmarks.gpu env attention denoiser --out x.json
    python -m benchmarks.gpu --tiny --device cpu                # that it runs, on any machine

Prints a JSON object per section as it ends; a section that fails is told and stops no other. With `--out` the file is
whole after every section, so that a run that is cut short keeps what it had.

    env         versions, the kernels that attention prefers, allocator policy
    attention   self-attention at 84,480 tokens by backend; cross-attention with folded rows and with a mask
    denoiser    Predict2.5 2B at 720p, 93 frames: ms and peak memory, ours and diffusers', error, what its kernels take
    big         14B: one evaluation in bfloat16 and int8
    decode      Wan 2.1, 93 frames: ours and diffusers', channels last
    predict1    7B: one evaluation, decoding, and a preview of it
    cosmos3     14.5 B: the text half, and one evaluation at 720p
    engine      whole requests: the same bytes alone, again and beside another; seconds per stage
    sync        whether a step waits for the device
    fragment    three sizes in turns: memory reserved beyond what was allocated
    oom         too little memory: the request ends, the next one is made, what was taken is given back
    offload     layers that wait on the host: the same numbers, ms, pinned memory
    stills      a still's launch time against its whole time: whether a graph is worth it
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_networks import GB, Bench, Figures, Work, drained, interleaved, peak_gb, relative_error, wait
from benchmarks.gpu_requests import engine, fragment, offload, oom, stills, sync
from cosmorama.world.cosmos3 import forward as cosmos3_forward
from cosmorama.world.load.quantize import quantize_blocks
from cosmorama.world.vae.wan import WanAutoencoder


def env(bench: Bench) -> Figures:
    """Versions, and what torch is set to."""
    found: Figures = {"torch": torch.__version__, "cuda": torch.version.cuda, "diffusers": diffusers.__version__}
    if bench.cuda:
        query = torch.zeros(1, 2, 256, 128, device=bench.device, dtype=torch.bfloat16)
        scaled_dot_product_attention(query, query, query)  # the order is decided at the first use
        order = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "overrideable"}
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "cudnn": torch.backends.cudnn.version(),
            "attention_order": [order.get(int(kind), kind) for kind in torch._C._get_sdp_priority_order()],
            "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF"),
            "free_gb": round(torch.cuda.mem_get_info()[0] / GB, 1),
        }
    return found


def attention(bench: Bench) -> Figures:
    """Which kernel is how fast, and whether each new length of a text costs a plan."""
    tokens, heads = (64, 2) if bench.tiny else (84480, 16)
    q, k, v = (
        torch.randn(1, tokens, heads, 128, device=bench.device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)
    )
    found: Figures = {"tokens": tokens}
    backends = {
        "default": None,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    for name, backend in backends.items():

        def attend(backend: SDPBackend | None = backend) -> None:
            if backend is None:
                scaled_dot_product_attention(q, k, v)
            else:
                with sdpa_kernel(backend):
                    scaled_dot_product_attention(q, k, v)

        try:
            ms = interleaved(bench, {name: attend}, 2)[f"{name}_ms"]
        except RuntimeError as error:
            found[name] = {"not_there": str(error).splitlines()[0][:120]}
        else:
            found[name] = {"ms": ms, "tflops": round(4 * tokens**2 * heads * 128 / ms / 1e9)}
    text = torch.randn(1, heads, 512, 128, device=bench.device, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, 1, 512, device=bench.device, dtype=torch.bool)
    bias = torch.zeros(1, 1, 1, 512, device=bench.device, dtype=torch.bfloat16)

    def cross(rows: int, mask: Tensor | None) -> None:
        scaled_dot_product_attention(q, text[:, :, :rows], text[:, :, :rows], attn_mask=mask)

    found["cross"] = interleaved(
        bench,
        {
            "512_rows": lambda: cross(512, None),
            "64_rows_folded": lambda: cross(64, bias[..., :64]),
            "512_rows_masked": lambda: cross(512, mask),
        },
    )
    first = {}
    for rows in (57, 58, 59):
        wait(bench)
        begun = time.perf_counter()
        cross(rows, bias[..., :rows])
        wait(bench)
        first[str(rows)] = round((time.perf_counter() - begun) * 1e3, 1)
    return found | {"first_call_by_rows_ms": first}


def _by_diffusers(network: Any, latents: Tensor, mask: Tensor, states: Tensor, sigma: float) -> Tensor:
    # diffusers resizes the padding mask by torchvision, which need not be there; a mask of zeros stays one.
    from diffusers.models.transformers import transformer_cosmos

    def resize(padding: Tensor, size: tuple[int, int], interpolation: object = None) -> Tensor:
        return padding.new_zeros(padding.shape[0], 1, *size)

    standing_in = SimpleNamespace(
        functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST=0)
    )
    transformer_cosmos.transforms = standing_in
    answer = network(
        hidden_states=latents,
        condition_mask=mask,
        timestep=torch.full((1, 1, latents.shape[2], 1, 1), sigma, device=latents.device),
        encoder_hidden_states=states,
        padding_mask=latents.new_zeros(1, 1, latents.shape[3] * 8, latents.shape[4] * 8),
        return_dict=False,
    )
    return torch.as_tensor(answer[0])


@torch.inference_mode()
def denoiser(bench: Bench) -> Figures:
    """One evaluation of Predict2.5 2B."""
    world = bench.world()
    sampling, latents = bench.begun(world)
    network, states = world.transformer, world.read_text("a robot arm").states
    sigma = sampling.schedule.sigmas[0]
    x = latents.to(world.dtype)
    mask = sampling.mask(0).to(world.dtype)

    def ours() -> Tensor:
        return torch.as_tensor(sampling.denoise(latents, 0))

    def theirs() -> Tensor:
        return torch.as_tensor(latents - sigma * _by_diffusers(network, x, mask, states, sigma).float())

    found: Figures = interleaved(bench, {"ours": ours, "diffusers": theirs})
    found |= {"ours_peak_gb": peak_gb(bench, ours), "diffusers_peak_gb": peak_gb(bench, theirs)}
    found["relative_error"] = relative_error(ours(), theirs(), latents)
    found["same_twice"] = torch.equal(ours(), ours())
    if bench.cuda:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            ours()
            wait(bench)
        slowest = sorted(profiled.key_averages(), key=lambda kernel: -kernel.device_time_total)[:14]
        found["kernels_ms"] = {kernel.key[:90]: round(kernel.device_time_total / 1e3, 1) for kernel in slowest}
    return found


@torch.inference_mode()
def big(bench: Bench) -> Figures:
    """One evaluation of the 14B, and what int8 makes of it."""
    world = bench.world("14B")
    sampling, latents = bench.begun(world)

    def go() -> Tensor:
        return torch.as_tensor(sampling.denoise(latents, 0))

    exact = go()
    found = {"bfloat16": interleaved(bench, {"evaluation": go}, 1) | {"peak_gb": peak_gb(bench, go)}}
    quantize_blocks(world.transformer, lambda name: bench.device)
    gc.collect()
    found["int8"] = interleaved(bench, {"evaluation": go}, 1) | {"peak_gb": peak_gb(bench, go)}
    found["int8"]["relative_error"] = relative_error(go(), exact, latents)
    return found


@torch.inference_mode()
def decode(bench: Bench) -> Figures:
    """A clip's latents to frames."""
    width, height, frames = bench.size
    network = bench.wan()
    ours = WanAutoencoder(network)
    latents = torch.randn(ours.latents_shape(frames, height, width), device=bench.device)
    plain = latents.to(network.dtype)
    sides: dict[str, Work] = {
        "ours": lambda: drained(ours.decode_pixels(latents)),
        "ours_to_the_cpu": lambda: drained(chunk.numpy() for chunk in ours.decode_stream(latents, height, width)),
        "diffusers": lambda: network.decode(plain),
    }
    found: Figures = interleaved(bench, sides, 1)
    found |= {f"{name}_peak_gb": peak_gb(bench, sides[name]) for name in ("ours", "diffusers")}
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.to(memory_format=torch.channels_last_3d)
    found["channels_last"] = interleaved(bench, {"ours": sides["ours"], "diffusers": sides["diffusers"]}, 1)
    return found


@torch.inference_mode()
def predict1(bench: Bench) -> Figures:
    """Predict1 7B: a preview must cost much less than the clip."""
    world = bench.world("7B", "predict1")
    sampling, latents = bench.begun(world, frames=bench.size[2] if bench.tiny else 121, solver="edm_euler")
    sides: dict[str, Work] = {
        "evaluation": lambda: sampling.denoise(latents, 0),
        "decode": lambda: drained(sampling.decode(latents)),
    }
    if (preview := getattr(sampling, "preview", None)) is not None:
        sides["preview"] = lambda: preview(latents)
    found: Figures = interleaved(bench, sides, 1)
    return found | {f"{name}_peak_gb": peak_gb(bench, sides[name]) for name in ("evaluation", "decode")}


@torch.inference_mode()
def cosmos3(bench: Bench) -> Figures:
    """Cosmos3 at 720p, 189 frames."""
    network = bench.cosmos3()
    frames, rows, columns = (2, 6, 8) if bench.tiny else (48, 45, 80)
    patch = network.config.latent_patch_size
    tokens = frames * -(-rows // patch) * -(-columns // patch)
    positions = torch.arange(tokens, device=bench.device).expand(3, -1)
    layout = cosmos3_forward.Layout(
        rows,
        columns,
        cosmos3_forward.rotary_embedding(network, positions),
        torch.ones(tokens, 1, device=bench.device, dtype=torch.bool),
    )
    ids = torch.randint(0, 1000, (300,), device=bench.device)
    memory = cosmos3_forward.text_memory(network, cosmos3_forward.understand(network, ids))
    latents = torch.randn(1, network.config.latent_channel, frames, rows, columns, device=bench.device)

    def evaluation() -> object:
        return cosmos3_forward.generate(network, memory, layout, latents, 500.0)

    found: Figures = {"weights_gb": round(sum(p.nbytes for p in network.parameters()) / GB, 1), "tokens": tokens}
    sides: dict[str, Work] = {
        "text_half": lambda: cosmos3_forward.understand(network, ids),
        "evaluation": evaluation,
    }
    return found | interleaved(bench, sides, 2) | {"evaluation_peak_gb": peak_gb(bench, evaluation)}


SECTIONS: dict[str, Callable[[Bench], Figures]] = {
    section.__name__: section
    for section in (
        env, attention, denoiser, big, decode, predict1, cosmos3, engine, sync, fragment, oom, offload, stills,
    )
}  # fmt: skip


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="all, if none is named")
    parser.add_argument("--tiny", action="store_true", help="small networks and clips: only that it runs")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, help="also write all figures to this file, after every section")
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - SECTIONS.keys():
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    bench = Bench(torch.device(arguments.device), arguments.tiny)
    figures: Figures = {}
    for name in arguments.sections or SECTIONS:
        begun = time.perf_counter()
        try:
            figures[name] = SECTIONS[name](bench)
        except Exception as error:  # a section that fails stops no other  # noqa: BLE001
            traceback.print_exc()
            figures[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        figures[name]["section_s"] = round(time.perf_counter() - begun, 1)
        print(json.dumps({name: figures[name]}), flush=True)
        gc.collect()
        if bench.cuda:
            torch.cuda.empty_cache()
        if arguments.out:
            arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(any("failed" in section for section in figures.values()))


if __name__ == "__main__":
    main()
