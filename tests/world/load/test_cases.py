"""Checkpoints as people have them: incomplete, damaged, quantized, with stray files. Each loads rightly or is refused.

The table says of each what comes: SAME (the weights of the untouched checkpoint), CLOSE (the same within what its type
rounds away), or the words with which loading refuses it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import CosmosTransformer3DModel, LTXVideoTransformer3DModel, WanTransformer3DModel
from diffusers.models.controlnets.controlnet_cosmos import CosmosControlNetModel
from diffusers.models.transformers.transformer_cosmos3 import Cosmos3OmniTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer

from cosmorama.errors import ModelNotFoundError
from cosmorama.world.generic.load import check_packages
from cosmorama.world.load.config import check_config
from cosmorama.world.microcosm.sampling import CosmosFlowWorld
from cosmorama.world.registry import MICROCOSM, load_world
from tests.world.checkpoints import save_predict, wan_vae
from tests.world.cosmos.transfer_checkpoints import save_transfer
from tests.world.cosmos3.test_distilled import save_distilled
from tests.world.cosmos3_checkpoints import save_cosmos3
from tests.world.generic_checkpoints import save_ltx, save_wan

SAME, CLOSE = "same", "close"
WEIGHTS, TEXT = "transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
CONTROL = "controlnet_depth/diffusion_pytorch_model.safetensors"
SHARD = "diffusion_pytorch_model-00001-of-00002.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
BASES: dict[str, Callable[[Path], Any]] = {
    "predict2.5": lambda folder: save_predict("predict2.5", folder),
    "predict1": lambda folder: save_predict("predict1-text2world", folder),
    "predict2": lambda folder: save_predict("predict2-video2world", folder),
    "transfer": lambda folder: save_transfer(folder, ("edge", "depth")),
    "cosmos3": save_cosmos3,
    "distilled": save_distilled,
    "wan": save_wan,
    "ltx": save_ltx,
    "microcosm": lambda folder: shutil.copytree(MICROCOSM.folder, folder),
}
Change = Callable[[Path], object]


def edited(file: str, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Change:
    """The weights of a file, changed."""

    def apply(folder: Path) -> None:
        save_file(dict(change(load_file(folder / file))), folder / file, metadata={"format": "pt"})

    return apply


def cut(file: str, count: int) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-count])


def written(file: str, content: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content)


def appended(file: str, content: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes() + content)


def marked(file: str) -> Change:
    """A byte order mark in front, as editors on Windows write it."""
    return lambda folder: (folder / file).write_bytes(b"\xef\xbb\xbf" + (folder / file).read_bytes())


def removed(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def configured(file: str, **values: Any) -> Change:
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def unwritten(file: str, *, hole: bool) -> Change:
    """The second half of a file was reserved and never written: zeros on the disk, or nothing at all."""

    def apply(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        with (folder / file).open("wb") as opened:
            opened.write(whole[: len(whole) // 2])
            if hole:
                opened.seek(len(whole) - 1000)
                opened.write(whole[-1000:])
            else:
                opened.write(bytes(len(whole) - len(whole) // 2))

    return apply


def modular(folder: Path) -> None:
    """Only the index that diffusers' modular pipelines save."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").unlink()
    parts = {name: [*entry, {"subfolder": name}] for name, entry in index.items() if isinstance(entry, list)}
    whole = index | parts | {"_class_name": "Cosmos3OmniModularPipeline", "_blocks_class_name": "Cosmos3OmniBlocks"}
    (folder / "modular_model_index.json").write_text(json.dumps(whole))


def doubled(folder: Path) -> None:
    """All weights in 64 bits, which hold the same numbers."""
    for file in folder.glob("*/*.safetensors"):
        edited(str(file.relative_to(folder)), lambda found: {name: t.double() for name, t in found.items()})(folder)


def dangling(file: str) -> Change:
    """A link into a cache whose contents are gone."""
    return both(removed(file), lambda folder: (folder / file).symlink_to(folder / "blobs" / "gone"))


def renamed(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


def copied(name: str, change: Callable[[Tensor], Tensor], file: str = WEIGHTS) -> Change:
    """A changed copy beside the weights, under another name."""

    def apply(folder: Path) -> None:
        save_file({key: change(tensor) for key, tensor in load_file(folder / file).items()}, folder / name)

    return apply


def sharded(*, keep: bool = False, stale: bool = False, lie: bool = False) -> Change:
    """Two shards and their index instead of the single file; with leftovers of an earlier save, or an index that lies.

    Args:
        keep: The single file stays, with other numbers.
        stale: A shard of a save in three is left over.
        lie: The index names a tensor that no shard has.
    """

    def apply(folder: Path) -> None:
        part, weights = folder / "transformer", load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(weights)
        halves = {"00001-of-00002": names[::2], "00002-of-00002": names[1::2]}
        owners = {}
        for number, inside in halves.items():
            file = f"diffusion_pytorch_model-{number}.safetensors"
            save_file({name: weights[name] for name in inside}, part / file)
            owners |= dict.fromkeys(inside, file)
        if lie:
            owners["proj_out.scale"] = file
        (part / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": owners}))
        noise = {name: torch.full_like(tensor, 3.0) for name, tensor in weights.items()}
        if keep:
            save_file(noise, folder / WEIGHTS)
        if stale:
            save_file(noise, part / "diffusion_pytorch_model-00003-of-00003.safetensors")

    return apply


def in_one_shard(folder: Path) -> None:
    shard = SHARD.replace("00002", "00001")
    (folder / WEIGHTS).rename(folder / "transformer" / shard)
    owners = dict.fromkeys(load_file(folder / "transformer" / shard), shard)
    (folder / "transformer" / INDEX).write_text(json.dumps({"weight_map": owners}))


def in_8_bits(
    *, scale: str = "weight_scale", rows: bool = False, beside: tuple[str, ...] = (), lose: int = 0
) -> Change:
    """The matrices of the blocks in float8 with a scale each, as ModelOpt and others write them.

    Args:
        scale: What the scale is called in the place of `weight`; empty: there is none, as plain copies are.
        rows: A scale for every row.
        beside: Names of more numbers, that only multiplying in 8 bits needs.
        lose: How many scales are missing.
    """

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        lost = lose
        for name, tensor in weights.items():
            if tensor.ndim != 2 or not any(part in name for part in ("blocks", "mlp", "self_attn")):
                found[name] = tensor.bfloat16()
                continue
            factor = tensor.abs().amax(1, keepdim=True) / 448 if rows else tensor.abs().max() / 448
            found[name] = ((tensor / factor) if scale or lose else tensor).to(torch.float8_e4m3fn)
            if scale and not (lost := lost - 1) >= 0:
                found[name.removesuffix("weight") + scale] = factor
            for other in beside:
                found[name.removesuffix("weight") + other] = torch.tensor(1.0)
        return found

    return edited(WEIGHTS, change)


def modelopt(algorithm: str = "FP8", method: str = "modelopt") -> Change:
    return configured("transformer/config.json", quantization_config={"quant_method": method, "quant_algo": algorithm})


def without(*names: str, file: str) -> Change:
    return edited(file, lambda found: {name: tensor for name, tensor in found.items() if name not in names})


def prefixed(prefix: str, file: str) -> Change:
    return edited(file, lambda found: {prefix + name: tensor for name, tensor in found.items()})


def first_as(kind: torch.dtype, suffix: str = "") -> Change:
    def change(found: dict[str, Tensor]) -> dict[str, Tensor]:
        name = "transformer_blocks.0.attn1.to_q.weight"
        more = {name.removesuffix("weight") + suffix: torch.tensor(1.0)} if suffix else {}
        return {**found, name: found[name].to(kind), **more}

    return edited(WEIGHTS, change)


def rebuilt(kind: Any, part: str, **changes: Any) -> Change:
    """A network made anew with another config, so that it is whole in itself."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / part / "config.json").read_text()) | changes
        kind.from_config(config).save_pretrained(folder / part)

    return apply


def replaced(part: str, make: Callable[[], Any]) -> Change:
    """Another checkpoint's part in the place of its own."""
    return lambda folder: make().save_pretrained(folder / part)


def wan_vae_of(channels: int, **changes: Any) -> Any:
    return wan_vae(**{"z_dim": channels, "latents_mean": [0.0] * channels, "latents_std": [1.0] * channels, **changes})


def words_added(part: str) -> Change:
    def apply(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder / part)
        tokenizer.add_tokens([f"word{number}" for number in range(500)])
        tokenizer.save_pretrained(folder / part)

    return apply


def deeper(folder: Path) -> None:
    """As archives are often unpacked."""
    inner = folder.with_name("inner")
    folder.rename(inner)
    folder.mkdir()
    inner.rename(folder / "inner")


def words_twice(difference: float) -> Change:
    """T5's table of words under both of its names."""

    def change(found: dict[str, Tensor]) -> dict[str, Tensor]:
        words = next(found[name] for name in ("shared.weight", "encoder.embed_tokens.weight") if name in found)
        return {**found, "shared.weight": words.clone(), "encoder.embed_tokens.weight": words + difference}

    return edited(TEXT, change)


def packed(names: tuple[str, ...]) -> Change:
    """Matrices of the blocks under the names that those who pack them in fewer bits have for the pieces."""

    def change(found: dict[str, Tensor]) -> dict[str, Tensor]:
        made = {name: tensor for name, tensor in found.items() if tensor.ndim != 2 or "blocks" not in name}
        owners = [name.removesuffix("weight") for name in found.keys() - made.keys()]
        return made | {f"{owner}{name}": torch.ones(4, 4, dtype=torch.int32) for owner in owners for name in names}

    return edited(WEIGHTS, change)


def beside_first(more: Mapping[str, Tensor]) -> Change:
    """More tensors beside the first matrix."""

    def change(found: dict[str, Tensor]) -> dict[str, Tensor]:
        owner = next(name for name in found if name.endswith(".weight")).removesuffix("weight")
        return found | {owner + name: tensor for name, tensor in more.items()}

    return edited(WEIGHTS, change)


def edited_after(first: Change, change: Callable[[str, Tensor], Tensor]) -> Change:
    return both(first, edited(WEIGHTS, lambda found: {name: change(name, tensor) for name, tensor in found.items()}))


def only(*begins: str, respell: Callable[[str], str] = str) -> Change:
    """Of a text encoder the weights whose names begin so, respelt."""
    return edited(TEXT, lambda found: {respell(name): t for name, t in found.items() if name.startswith(begins)})


def inner_name(name: str) -> str:
    """What a weight of a Qwen is called in it without its head."""
    return name.replace("model.", "language_model.", 1) if name.startswith("model.") else name


def in_text_config(**values: Any) -> Change:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "text_encoder/config.json").read_text())
        configured("text_encoder/config.json", text_config=config["text_config"] | values)(folder)

    return apply


def flat_config(folder: Path) -> None:
    """As the models of the first Qwen2.5-VL have it: the language half's members beside those of the whole."""
    config = json.loads((folder / "text_encoder/config.json").read_text())
    inner = config.pop("text_config")
    rope = inner.pop("rope_parameters")
    old = {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (folder / "text_encoder/config.json").write_text(json.dumps(inner | old | config))


def language_half(folder: Path) -> None:
    """As Qwen's class for text alone saves it."""
    config = json.loads((folder / "text_encoder/config.json").read_text())["text_config"]
    (folder / "text_encoder/config.json").write_text(json.dumps(config))
    only("model.", respell=lambda name: name.removeprefix("model."))(folder)


def untold(token: str) -> Change:
    """A tokenizer that calls a token something else."""

    def apply(folder: Path) -> None:
        for file in (folder / "text_tokenizer").iterdir():
            file.write_text(file.read_text().replace(token, "<|unknown|>"))

    return apply


def rescheduled(name: str) -> Change:
    return both(
        configured("model_index.json", scheduler=["diffusers", name]),
        replaced("scheduler", lambda: getattr(diffusers, name)()),
    )


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
EXTRA = {"leftover.weight": torch.zeros(2)}
Q = "transformer_blocks.0.attn1.to_q"

CASES: dict[str, tuple[str, Change, str]] = {
    # Which files are the model.
    "full and fp16": ("predict2.5", copied(WEIGHTS.replace(".s", ".fp16.s"), Tensor.half), SAME),
    "a copy that is averaged": ("predict2.5", copied(WEIGHTS.replace(".s", ".ema.s"), lambda t: t + 1), SAME),
    "a copy that is not averaged": ("predict2.5", copied(WEIGHTS.replace(".s", ".non_ema.s"), lambda t: t + 1), SAME),
    "a copy under another name": ("predict2.5", copied("transformer/a.safetensors", lambda t: t + 1), SAME),
    "the other library's name beside": ("predict2.5", copied("transformer/model.safetensors", lambda t: t + 1), SAME),
    "a stray damaged file": ("predict2.5", written("transformer/a.safetensors", b"nothing"), SAME),
    "an unused part": ("predict2.5", lambda folder: shutil.copytree(folder / "vae", folder / "sound_tokenizer"), SAME),
    "shards": ("predict2.5", sharded(), SAME),
    "a shard alone": ("predict2.5", in_one_shard, SAME),
    "shards and an older single file": ("predict2.5", sharded(keep=True), SAME),
    "shards and one of another save": ("predict2.5", sharded(stale=True), SAME),
    "shards of another index": ("predict2.5", sharded(lie=True), r"00002\.safetensors has no proj_out\.scale"),
    "a missing shard": (
        "predict2.5",
        both(sharded(), removed("transformer/diffusion_pytorch_model-00002-of-00002.safetensors")),
        r"missing transformer/diffusion_pytorch_model-00002-of-00002\.safetensors",
    ),
    "shards without their index": (
        "predict2.5",
        both(sharded(), removed(f"transformer/{INDEX}")),
        r"there are shards, but not diffusion_pytorch_model\.safetensors\.index\.json",
    ),
    "only a variant": ("predict2.5", renamed(WEIGHTS, WEIGHTS.replace(".s", ".bf16.s")), "--variant bf16"),
    "only another name": ("predict2.5", renamed(WEIGHTS, "transformer/ema.safetensors"), r"there is ema\.safetensors"),
    "shards that are pickles": (
        "predict2.5",
        written(f"transformer/{INDEX}", b'{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}'),
        r"index\.json names pytorch_model-00001-of-00001\.bin, and only safetensors are read",
    ),
    "a folder in a folder": ("ltx", deeper, r"missing model_index\.json, but .*inner has one: give that folder"),
    "a pickle": ("predict2.5", renamed(WEIGHTS, "transformer/a.bin"), "pickles are not read"),
    # Damaged files.
    "cut off": ("predict2.5", cut(TEXT, 1000), r"text_encoder/model\.safetensors is damaged: it is cut off"),
    "cut off in its header": ("cosmos3", written(WEIGHTS, b"\xff\x0f\0\0\0\0\0\0{"), r"model\.safetensors is damaged"),
    "empty": ("predict1", written(WEIGHTS, b""), r"safetensors is damaged: it has 0 bytes"),
    "bytes behind the end": ("cosmos3", appended(WEIGHTS, b"abc"), "3 bytes too many"),
    "text": ("wan", written(TEXT, b"<html>404</html>" * 9), r"text_encoder/model\.safetensors is damaged"),
    **{
        f"{base}: a part of {file} that was never written, {'a hole' if hole else 'zeros'}": (
            base,
            unwritten(file, hole=hole),
            f"{file.replace('.', '[.]')} is damaged: its bytes [0-9]+ to [0-9]+ of [0-9]+ were never written",
        )
        for hole in (False, True)
        for base, file in (
            ("predict2.5", WEIGHTS),
            ("predict1", WEIGHTS),
            ("cosmos3", "vae/diffusion_pytorch_model.safetensors"),
            ("transfer", CONTROL),
        )
    },
    "a pointer of Git LFS": ("predict2.5", written(WEIGHTS, LFS), "Git LFS pointer, not the weights: run git lfs pull"),
    "a config that is a pointer": ("wan", written("vae/config.json", LFS), r"vae/config\.json is a Git LFS pointer"),
    "a tokenizer that is a pointer": ("ltx", written("tokenizer/tokenizer.json", LFS), r"tokenizer\.json is a Git LFS"),
    "a damaged tokenizer": ("predict2.5", cut("tokenizer/tokenizer.json", 100), r"tokenizer/tokenizer\.json"),
    "a damaged config": ("cosmos3", cut("vae/config.json", 5), r"vae/config\.json cannot be read as JSON"),
    "a damaged index": ("ltx", cut("model_index.json", 5), r"model_index\.json cannot be read as JSON"),
    "an index that is a list": ("ltx", written("model_index.json", b"[]"), r"model_index\.json cannot be read"),
    "a damaged list of shards": ("cosmos3", written(f"transformer/{INDEX}", b"{}"), r"index\.json is damaged"),
    "a list of shards elsewhere": (
        "cosmos3",
        written(f"transformer/{INDEX}", b'{"weight_map": {"a": "../../x.safetensors"}}'),
        "is no name of a file beside it",
    ),
    "a list of shards by their whole paths": (
        "predict2.5",
        written(f"transformer/{INDEX}", b'{"weight_map": {"a": "/models/x/diffusion_pytorch_model.safetensors"}}'),
        "is no name of a file beside it",
    ),
    "no template for a chat": ("predict2.5", removed("tokenizer/chat_template.jinja"), r"missing chat_template\.jinja"),
    "no template for Cosmos3's": (
        "cosmos3",
        removed("text_tokenizer/chat_template.jinja"),
        r"text_tokenizer .* missing chat_template\.jinja",
    ),
    "a template of a processor": (
        "predict2.5",
        both(
            lambda folder: (folder / "tokenizer/chat_template.json").write_text(
                json.dumps({"chat_template": (folder / "tokenizer/chat_template.jinja").read_text()})
            ),
            removed("tokenizer/chat_template.jinja"),
        ),
        SAME,
    ),
    "a template that fails": (
        "predict2.5",
        written("tokenizer/chat_template.jinja", b"{% for %}"),
        "its chat template fails",
    ),
    "a template that takes no system prompt": (
        "predict2.5",
        written(
            "tokenizer/chat_template.jinja",
            b"{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
        ),
        "its chat template fails: no system",
    ),
    **{
        f"a template that says the same of every prompt, {base}": (
            base,
            written(f"{part}/chat_template.jinja", b"hello"),
            rf"{part} cannot be loaded: its chat template leaves the prompt out",
        )
        for base, part in (("predict2.5", "tokenizer"), ("cosmos3", "text_tokenizer"))
    },
    "a mark before the index": ("predict2.5", marked("model_index.json"), SAME),
    "a mark before Wan's index": ("wan", marked("model_index.json"), SAME),
    "a mark before a config": ("predict2.5", marked("transformer/config.json"), SAME),
    "a mark before a text encoder's config": ("wan", marked("text_encoder/config.json"), SAME),
    "a mark before a scheduler's": ("ltx", marked("scheduler/scheduler_config.json"), SAME),
    "a mark before a tokenizer's": (
        "predict1",
        marked("tokenizer/tokenizer_config.json"),
        r"tokenizer/tokenizer_config\.json begins with a byte order mark",
    ),
    "words that are a pointer": ("wan", written("tokenizer/spiece.model", LFS), r"spiece\.model is a Git LFS pointer"),
    "a link to nothing": (
        "predict1",
        dangling("tokenizer/tokenizer.json"),
        r"tokenizer\.json is a link to a file that",
    ),
    "weights that are a link to nothing": (
        "ltx",
        dangling(WEIGHTS),
        r"missing transformer/\*\.s.*_model.s.*: a link to",
    ),
    "a shard that is a link to nothing": (
        "cosmos3",
        both(sharded(), dangling(f"transformer/{SHARD}")),
        rf"missing transformer/{SHARD} \({SHARD}: a link to a file that is not there; download it again",
    ),
    "a link to itself": (
        "predict2.5",
        both(removed("vae/config.json"), lambda folder: (folder / "vae/config.json").symlink_to("config.json")),
        r"vae/config\.json is a link to a file that is not there",
    ),
    "a file in the place of a part": (
        "predict2.5",
        both(lambda folder: shutil.rmtree(folder / "vae"), written("vae", b"")),
        r"missing vae/config\.json",
    ),
    "a file in the place of Wan's tokenizer": (
        "wan",
        both(lambda folder: shutil.rmtree(folder / "tokenizer"), written("tokenizer", b"")),
        "missing tokenizer",
    ),
    **{
        f"{base}: nothing to fill prompts up with": (
            base,
            configured("tokenizer/tokenizer_config.json", pad_token=None),
            "tokenizer cannot be loaded: it has no pad_token",
        )
        for base in ("predict1", "predict2.5", "wan", "ltx")
    },
    "a length that is a word": (
        "predict2.5",
        configured("tokenizer/tokenizer_config.json", model_max_length="x"),
        "tokenizer cannot be loaded: '>' not supported",
    ),
    # Of every system and tool that puts files beside the model's.
    "files of macOS": (
        "predict2.5",
        both(
            *(written(file, b"\0\5\26\7") for file in ("transformer/._config.json", "._model_index.json")),
            *(written(f"{part}/._x.json", b"\0\5\26\7") for part in ("tokenizer", "scheduler", "vae")),
            written("transformer/._diffusion_pytorch_model.safetensors", b"\0\5"),
        ),
        SAME,
    ),
    "files of macOS in Wan's": (
        "wan",
        both(*(written(f"{part}/._x.json", b"\0\5\26\7") for part in ("tokenizer", "scheduler", "text_encoder"))),
        SAME,
    ),
    "a damaged file of a trainer": ("predict2.5", written("transformer/trainer_state.json", b"{"), SAME),
    "pickles beside": ("predict2.5", written("transformer/diffusion_pytorch_model.bin", b"x"), SAME),
    "a list of pickles beside": ("wan", written(f"transformer/{INDEX.replace('safetensors', 'bin')}", b"{}"), SAME),
    "an averaged part": (
        "wan",
        lambda folder: shutil.copytree(folder / "transformer", folder / "transformer_ema"),
        SAME,
    ),
    "the other library's name alone": ("predict2.5", renamed(WEIGHTS, "transformer/model.safetensors"), SAME),
    "diffusers' name of a text encoder": (
        "wan",
        renamed(TEXT, "text_encoder/diffusion_pytorch_model.safetensors"),
        SAME,
    ),
    "an index of half of its tensors": (
        "predict2.5",
        both(
            sharded(),
            lambda folder: configured(f"transformer/{INDEX}", weight_map={"crossattn_proj.0.bias": SHARD})(folder),
        ),
        "its index says nothing of .*: the files are of different saves",
    ),
    "a name of two lines": (
        "predict2.5",
        edited(WEIGHTS, lambda found: found | {"left\nover": torch.zeros(1)}),
        r"no place for left\?over",
    ),
    "a name of any length": (
        "predict2.5",
        edited(WEIGHTS, lambda found: found | {"x" * 5000: torch.zeros(1)}),
        "no place for x{200}$",
    ),
    "no words of T5": ("wan", removed("tokenizer/tokenizer.json"), "tokenizer is not a .* missing tokenizer.json"),
    "words that are none": (
        "wan",
        both(removed("tokenizer/tokenizer.json"), written("tokenizer/spiece.model", b"x" * 99)),
        r"tokenizer/spiece\.model cannot be loaded: .*could not parse",
    ),
    "a part in words": ("wan", configured("model_index.json", vae="AutoencoderKLWan"), "must be a list of a library"),
    "a part of nothing": ("wan", configured("model_index.json", transformer=None), "names no transformer, which Wan"),
    # Configs that say something else than the weights.
    "a text encoder's config without a word": (
        "predict2.5",
        written("text_encoder/config.json", b"{}"),
        "is that of a network of more than",
    ),
    "another config in the generic's code": ("ltx", configured("transformer/config.json", patch_size="x"), "'x'"),
    "statistics of other channels": ("wan", configured("vae/config.json", latents_mean=[0, 0]), "latents_mean has 2"),
    "no deviation": ("cosmos3", configured("vae/config.json", latents_std=[0.0] * 8), "latents_std .* numbers above 0"),
    "deviations that are none": (
        "predict1",
        configured("vae/config.json", latents_std=[float("nan")] * 16),
        "latents_std must be a list of finite numbers",
    ),
    "means that are words": ("predict2.5", configured("vae/config.json", latents_mean="x"), "latents_mean must be a"),
    "another scheduler": (
        "predict2.5",
        configured("scheduler/scheduler_config.json", _class_name="DDIMScheduler"),
        "scheduler: _class_name is 'DDIMScheduler'",
    ),
    "a scheduler's words": (
        "cosmos3",
        configured("scheduler/scheduler_config.json", num_train_timesteps="x"),
        "its numbers give no noise levels",
    ),
    "timesteps of nothing": (
        "predict2.5",
        configured("scheduler/scheduler_config.json", num_train_timesteps=0),
        "its numbers give timesteps of nothing",
    ),
    "levels that rise": (
        "predict1",
        configured("scheduler/scheduler_config.json", sigma_min=-1),
        "noise levels that do not fall",
    ),
    "no scale of the data": (
        "predict1",
        configured("scheduler/scheduler_config.json", sigma_data=0),
        "sigma_data is 0",
    ),
    # Parts that are each whole, and do not fit each other.
    **{
        f"{base}: {part} with {', '.join(changes)}": (base, rebuilt(kind, part, **changes), told)
        for base, kind, part, changes, told in (
            ("predict2.5", CosmosTransformer3DModel, "transformer", {"in_channels": 36}, "in_channels is 36; .* be 17"),
            (
                "predict2.5",
                CosmosTransformer3DModel,
                "transformer",
                {"out_channels": 17},
                "out_channels is 17; .* be 16",
            ),
            ("predict2.5", CosmosTransformer3DModel, "transformer", {"patch_size": (2, 2, 2)}, r"must be \[1, 2, 2\]"),
            (
                *("predict2.5", CosmosTransformer3DModel, "transformer", {"crossattn_proj_in_channels": 48}),
                "channels is 48; it must be 64, since .* text states are 64 wide",
            ),
            (
                *("predict2.5", CosmosTransformer3DModel, "transformer", {"use_crossattn_projection": False}),
                "text_embed_dim is 32; it must be 64",
            ),
            (
                *("predict2.5", CosmosTransformer3DModel, "transformer", {"encoder_hidden_states_channels": 48}),
                "encoder_hidden_states_channels is 48; it must be 32",
            ),
            ("predict1", CosmosTransformer3DModel, "transformer", {"in_channels": 17}, "in_channels is 17; .* be 16"),
            (
                "predict1",
                CosmosTransformer3DModel,
                "transformer",
                {"text_embed_dim": 40},
                "text_embed_dim is 40; .* 32",
            ),
            ("predict2", CosmosTransformer3DModel, "transformer", {"in_channels": 16}, "in_channels is 16; .* be 17"),
            (
                *("transfer", CosmosTransformer3DModel, "transformer", {"controlnet_block_every_n": None}),
                "every_n is None; it must be 2",
            ),
            (
                "transfer",
                CosmosControlNetModel,
                "controlnet_depth",
                {"in_channels": 17},
                "depth.* is 17; it must be 18",
            ),
            ("transfer", CosmosControlNetModel, "controlnet_edge", {"latent_channels": 17}, "edge.* is 17; .* be 18"),
            ("transfer", CosmosControlNetModel, "controlnet_depth", {"model_channels": 48}, "is 48; it must be 32"),
            ("transfer", CosmosControlNetModel, "controlnet_depth", {"num_attention_heads": 1}, "dim is 16; .* be 32"),
            (
                *("transfer", CosmosControlNetModel, "controlnet_depth", {"crossattn_proj_in_channels": 48}),
                "is 48; it must be 64",
            ),
            ("cosmos3", Cosmos3OmniTransformer, "transformer", {"patch_latent_dim": 48}, "dim is 48; it must be 32"),
            ("cosmos3", Cosmos3OmniTransformer, "transformer", {"latent_channel": 16}, "is 16; it must be 8"),
            ("cosmos3", Cosmos3OmniTransformer, "transformer", {"vocab_size": 100}, "has 260 tokens, and .* knows 100"),
            ("distilled", Cosmos3OmniTransformer, "transformer", {"latent_channel": 16}, "is 16; it must be 8"),
            ("ltx", LTXVideoTransformer3DModel, "transformer", {"caption_channels": 48}, "do not fit each other: mat1"),
            ("ltx", LTXVideoTransformer3DModel, "transformer", {"in_channels": 16, "out_channels": 16}, "do not fit"),
            ("wan", WanTransformer3DModel, "transformer", {"text_dim": 48}, "do not fit each other: mat1"),
            ("wan", WanTransformer3DModel, "transformer", {"in_channels": 48}, "do not fit each other: The size"),
            ("wan", WanTransformer3DModel, "transformer", {"out_channels": 8}, "do not fit each other: The size"),
        )
    },
    "a narrower autoencoder": ("predict2.5", replaced("vae", lambda: wan_vae_of(8)), "is 17; it must be 9"),
    "another model's autoencoder": ("cosmos3", replaced("vae", lambda: wan_vae_of(16)), "channel is 8; it must be 16"),
    "a narrower autoencoder of Wan's": ("wan", replaced("vae", lambda: wan_vae_of(8)), "do not fit each other"),
    "frames that are not put together": (
        "predict2",
        replaced("vae", lambda: wan_vae_of(16, temperal_downsample=[False, False, False])),
        "scale_factor_temporal is 4; it must be 1",
    ),
    "pixels of four colors": ("predict2.5", replaced("vae", lambda: wan_vae_of(16, out_channels=4)), "is 4; .* be 3"),
    "no size of a latent": ("cosmos3", configured("vae/config.json", scale_factor_spatial=0), "is 0; it must be 16"),
    "no statistics": ("predict2.5", configured("vae/config.json", latents_mean=None), "has no latents_mean and"),
    "a pipeline for pictures, of a network for text": (
        "wan",
        configured(
            "model_index.json",
            _class_name="WanImageToVideoPipeline",
            image_encoder=[None, None],
            image_processor=[None, None],
        ),
        "do not fit each other: .*to have 16 channels, but got 36",
    ),
    "a pipeline for pictures, of a network that takes them": (
        "ltx",
        configured("model_index.json", _class_name="LTXImageToVideoPipeline"),
        SAME,
    ),
    "a pipeline for clips, of a network for text": (
        "predict1",
        configured("model_index.json", _class_name="CosmosVideoToWorldPipeline"),
        "in_channels is 16; it must be 17",
    ),
    "a boundary between two networks of one": (
        "wan",
        configured("model_index.json", boundary_ratio=0.9),
        "do not fit each other",
    ),
    **{
        f"{base}: more words than are known": (base, words_added(part), r"tokens, and the network .* knows \d+")
        for base, part in (
            *(("predict1", "tokenizer"), ("predict2.5", "tokenizer"), ("transfer", "tokenizer"), ("ltx", "tokenizer")),
            *(("wan", "tokenizer"), ("cosmos3", "text_tokenizer"), ("distilled", "text_tokenizer")),
        )
    },
    **{
        f"{base}: {name} samples no flow": (base, rescheduled(name), f"{name} does not sample flows")
        for base in ("wan", "ltx")
        for name in ("EDMEulerScheduler", "DDIMScheduler", "UniPCMultistepScheduler")
    },
    "Wan's scheduler, for noise": (
        "wan",
        configured("scheduler/scheduler_config.json", prediction_type="epsilon"),
        "UniPCMultistepScheduler does not sample flows",
    ),
    "another scheduler of flows": ("wan", rescheduled("FlowMatchEulerDiscreteScheduler"), SAME),
    "a number that is a word": ("cosmos3", configured("transformer/config.json", timestep_scale="x"), "valid number"),
    "two sides of three": (
        "predict2.5",
        configured("transformer/config.json", max_size=[16, 32]),
        "max_size is .16, 32.; .* required",
    ),
    "unknown positions": (
        "predict2",
        configured("transformer/config.json", extra_pos_embed_type="x"),
        "'x'; .* None|'x'",
    ),
    # Configs that ask for any amount of memory or time, or for what is none.
    **{
        f"{base}: {member} of {part} is {value!r}": (base, configured(f"{part}/{name}", **{member: value}), told)
        for base, part, member, value, told in (
            (
                "predict2.5",
                "transformer",
                "num_layers",
                10**9,
                r"num_layers is 1,000,000,000; .* 49 tensors",
            ),
            ("predict2.5", "transformer", "num_layers", 999, "num_layers is 999; .*its weights are 49 tensors"),
            ("predict2.5", "transformer", "num_layers", "six", "num_layers is 'six'; it must be a whole number"),
            ("predict2.5", "transformer", "num_layers", -1, "num_layers is -1; it must be a whole number"),
            ("predict2.5", "transformer", "num_layers", 2.0, "num_layers is 2.0; it must be a whole"),
            (
                "predict2.5",
                "transformer",
                "num_attention_heads",
                10**6,
                "more than .* num_attention_heads is 1,000,000",
            ),
            ("predict2.5", "transformer", "num_attention_heads", 0, r"has the shape .* config\.json makes it"),
            ("predict2.5", "transformer", "mlp_ratio", 10**9, "mlp_ratio is 1,000,000,000; its weights are"),
            (
                "predict2.5",
                "transformer",
                "patch_size",
                [1, 10**9, 2],
                r"patch_size\[1\] is 1,000,000,000",
            ),
            ("predict2.5", "transformer", "max_size", [1] * 10**5, "max_size is a list of 100,000; its weights are"),
            ("predict2.5", "text_encoder", "vision_config", {"depth": 10**9}, "vision_config.depth is 1,0"),
            ("predict2.5", "text_encoder", "text_config", {"vocab_size": 10**6}, "text_config.vocab_size is 1,0"),
            ("predict1", "vae", "num_layers", 10**9, "num_layers is 1,000,000,000"),
            ("predict1", "text_encoder", "num_layers", 10**9, "num_layers is 1,000,000,000"),
            ("predict1", "text_encoder", "d_ff", "x", "makes no network: .*Field 'd_ff' expected int, got str"),
            ("predict1", "scheduler", "num_train_timesteps", 10**9, "num_train_timesteps is 1,000,000,000; at most"),
            ("cosmos3", "transformer", "num_hidden_layers", 10**9, "num_hidden_layers is 1,000,000,000"),
            ("cosmos3", "transformer", "vocab_size", 10**6, "more than .* vocab_size is 1,000,000"),
            ("cosmos3", "vae", "dim_mult", [1] * 2000, "config.json makes no network|of a network of more than"),
            ("cosmos3", "vae", "base_dim", 10**6, "base_dim is 1,000,000; its weights are"),
            ("cosmos3", "scheduler", "num_train_timesteps", 10**9, "num_train_timesteps is 1,000,000,000; at most"),
            ("wan", "transformer", "num_layers", 10**9, "num_layers is 1,000,000,000"),
            ("wan", "transformer", "rope_max_seq_len", 10**9, "rope_max_seq_len is 1,000,000,000"),
            ("wan", "scheduler", "num_train_timesteps", 10**9, "num_train_timesteps is 1,000,000,000; at most"),
            ("wan", "scheduler", "solver_order", 10**9, "solver_order is 1,000,000,000; at most"),
            ("ltx", "vae", "layers_per_block", [10**9] * 5, r"layers_per_block\[0\] is 1,000,000,000"),
            ("ltx", "text_encoder", "num_heads", 10**6, "more than .* num_heads is 1,000,000"),
            ("microcosm", "transformer", "num_layers", 10**9, "num_layers is 1,000,000,000"),
            ("microcosm", "text_encoder", "width", -4, "width is -4; it must be a whole number"),
        )
        for name in ("scheduler_config.json" if part == "scheduler" else "config.json",)
    },
    **{
        f"{base}: {member} is {value!r}": (
            base,
            configured(f"{part}/config.json", **{member: value}),
            f"{part}/config[.]json: {member}.* it must be a number above 0",
        )
        for base, part, member, value in (
            ("cosmos3", "transformer", "base_fps", 0),
            ("cosmos3", "transformer", "rope_theta", -1.0),
            ("cosmos3", "transformer", "timestep_scale", float("nan")),
            ("predict2.5", "transformer", "rope_scale", [1.0, 0.0, 1.0]),
        )
    },
    "a switch that is a word": (
        "cosmos3",
        configured("model_index.json", use_native_flow_schedule="false"),
        "use_native_flow_schedule in its index is 'false'; it must be true or false",
    ),
    "a switch of Wan's that is a word": (
        "wan",
        configured("model_index.json", expand_timesteps="false"),
        "expand_timesteps is 'false'; it must be true or false",
    ),
    "only a modular index": ("cosmos3", modular, SAME),
    "in 64 bits": ("predict2.5", doubled, SAME),
    "Cosmos3 in 64 bits": ("cosmos3", doubled, SAME),
    # Of the other families, what is theirs alone.
    "a ControlNet for blur, as NVIDIA calls it": (
        "transfer",
        renamed("controlnet_depth", "controlnet_blur"),
        SAME,
    ),
    "a ControlNet for nothing that is known": (
        "transfer",
        renamed("controlnet_depth", "controlnet_canny"),
        "controlnet_canny is for no kind of control: it may be called .*controlnet_blur",
    ),
    "two ControlNets for the same": (
        "transfer",
        both(
            renamed("controlnet_depth", "controlnet_blur"),
            renamed("controlnet_edge", "controlnet_vis"),
        ),
        "two ControlNets for one kind: controlnet_blur and controlnet_vis",
    ),
    "a cut ControlNet": (
        "transfer",
        cut(CONTROL, 9),
        r"controlnet_depth/diffusion.*is damaged",
    ),
    "a ControlNet without weights": ("transfer", removed(CONTROL), r"missing controlnet_depth/\*\.safetensors"),
    "a ControlNet that is too much": (
        "transfer",
        configured("controlnet_depth/config.json", n_controlnet_blocks=10**9),
        "n_controlnet_blocks is 1,000,000,000",
    ),
    "a ControlNet with a tensor too many": (
        "transfer",
        edited(CONTROL, lambda found: found | EXTRA),
        r"controlnet_depth cannot be loaded: CosmosControlNetModel has no place for leftover\.weight",
    ),
    "a ControlNet in the place of the denoiser": (
        "transfer",
        configured("transformer/config.json", _class_name="CosmosControlNetModel"),
        "is that of a CosmosControlNetModel, not of a CosmosTransformer3DModel",
    ),
    "no ControlNet": (
        "transfer",
        lambda folder: [shutil.rmtree(found) for found in folder.glob("controlnet*")],
        r"missing controlnet/config\.json",
    ),
    "another scheduler of Predict2": (
        "predict2",
        configured("scheduler/scheduler_config.json", _class_name="UniPCMultistepScheduler"),
        "only a FlowMatchEulerDiscreteScheduler",
    ),
    "Predict2 without its tokenizer": (
        "predict2",
        lambda folder: shutil.rmtree(folder / "tokenizer"),
        "missing token",
    ),
    "a student's levels that are none": (
        "distilled",
        configured("modular_model_index.json", distilled_sigmas=["x"]),
        "distilled_sigmas is",
    ),
    "a student's levels that rise": (
        "distilled",
        configured("modular_model_index.json", distilled_sigmas=[0.1, 0.9]),
        "noise levels that do not fall",
    ),
    "a student's damaged index": (
        "distilled",
        cut("modular_model_index.json", 9),
        r"index\.json cannot be read as JSON",
    ),
    # Of everything else that people do to a folder.
    "unknown members of the index": (
        "predict2.5",
        configured("model_index.json", more=["diffusers", "No"]),
        SAME,
    ),
    "an unknown member of a config": ("predict2.5", configured("transformer/config.json", brand_new=True), SAME),
    "a member that is no number": ("predict2.5", configured("vae/config.json", more=float("nan")), SAME),
    "no pipeline": ("predict2.5", configured("model_index.json", _class_name=None), "names no pipeline in _class_name"),
    "a list of pipelines": ("predict2.5", configured("model_index.json", _class_name=["x"]), "which is no pipeline"),
    "no scheduler": (
        "predict2.5",
        lambda folder: shutil.rmtree(folder / "scheduler"),
        r"missing scheduler/scheduler_config\.json",
    ),
    "a scheduler of nothing": (
        "predict2.5",
        written("scheduler/scheduler_config.json", b"{}"),
        "prediction_type is 'epsilon'",
    ),
    "no tokenizer": (
        "predict2.5",
        lambda folder: shutil.rmtree(folder / "tokenizer"),
        "missing tokenizer/token",
    ),
    "a config that is no text": (
        "predict2.5",
        written("vae/config.json", b"\xff\xfe{}"),
        r"vae/config\.json cannot",
    ),
    "no tensors": ("predict2.5", edited(WEIGHTS, lambda found: {}), r"model\.safetensors holds no tensors"),
    "a number for a matrix": (
        "predict2.5",
        edited(WEIGHTS, lambda found: found | {"proj_out.weight": torch.tensor(1.0)}),
        r"proj_out\.weight has the shape \[\]",
    ),
    "yes and no": ("predict2.5", first_as(torch.bool), rf"{Q}\.weight is stored as BOOL"),
    "positions beside the weights": (
        "predict2.5",
        edited(WEIGHTS, lambda found: found | {"position_ids": torch.arange(3)}),
        "has no place for position_ids",
    ),
    "a tensor in two shards": (
        "predict2.5",
        both(sharded(), copied(f"transformer/{SHARD}", lambda t: t + 9, f"transformer/{SHARD.replace('1-', '2-')}")),
        r"in diffusion_pytorch_model-00001-of-00002\.safetensors and in|has no",
    ),
    "patches of another size": (
        "predict2.5",
        configured("transformer/config.json", patch_size=[2, 2, 2]),
        r"patch_embed\.proj\.weight has the shape",
    ),
    "text of another width": ("predict2.5", configured("transformer/config.json", text_embed_dim=7), "has the shape"),
    # Microcosm's own, whose parts are read by the same code.
    "Microcosm with a tensor too many": (
        "microcosm",
        edited(WEIGHTS, lambda found: found | EXTRA),
        "no place for left",
    ),
    "Microcosm with a tensor too few": (
        "microcosm",
        without("proj_out.weight", file=WEIGHTS),
        "no weights for proj_out",
    ),
    "Microcosm in whole numbers": (
        "microcosm",
        edited(WEIGHTS, lambda found: found | {"proj_out.weight": found["proj_out.weight"].int()}),
        "proj_out.weight is stored as I32",
    ),
    "Microcosm of another size": (
        "microcosm",
        configured("transformer/config.json", mlp_ratio=10_000),
        "that of a network of",
    ),
    "Microcosm of no size": ("microcosm", written("transformer/config.json", b"{}"), "makes no network: .*in_channels"),
    "Microcosm of another width": (
        "microcosm",
        configured("transformer/config.json", num_attention_heads=3),
        "has the shape",
    ),
    "Microcosm in shards": ("microcosm", sharded(), SAME),
    "Microcosm of nothing": ("microcosm", written("text_encoder/config.json", b"{}"), "no network: .*vocabulary"),
    "Microcosm without sizes": ("microcosm", configured("world.json", sizes=None), "cannot be loaded"),
    "GGUF": ("wan", both(removed(WEIGHTS), written("transformer/wan-q4.gguf", b"GGUF")), "GGUF is not read"),
    # Every tensor is used, every parameter is given.
    "a tensor too many": ("predict2.5", edited(WEIGHTS, lambda found: found | EXTRA), r"no place for leftover\.weight"),
    "too many in Cosmos3": ("cosmos3", edited(WEIGHTS, lambda found: found | EXTRA), r"no place for leftover\.weight"),
    "too many in a text encoder": ("predict2.5", edited(TEXT, lambda found: found | EXTRA), r"no place for leftover"),
    "too many in Wan": ("wan", edited(WEIGHTS, lambda found: found | EXTRA), r"no place for leftover\.weight"),
    "a tensor too few": ("predict2.5", without(f"{Q}.weight", file=WEIGHTS), rf"no weights for {Q}\.weight"),
    "too few in Cosmos3": ("cosmos3", without("proj_in.weight", file=WEIGHTS), r"no weights for proj_in\.weight"),
    "too few in LTX": ("ltx", without("proj_in.weight", file=WEIGHTS), r"transformer .*no weights for proj_in\.weight"),
    "names with a prefix": ("predict2.5", prefixed("net.", WEIGHTS), r"no weights for .* no place for net\."),
    "a text encoder with a prefix": ("wan", prefixed("module.", TEXT), r"text_encoder .* no weights for"),
    "a text encoder's layer": (
        "ltx",
        without("encoder.block.1.layer.0.SelfAttention.q.weight", file=TEXT),
        r"no weights for encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight",
    ),
    "a text encoder's words": ("wan", without("shared.weight", file=TEXT), r"no weights for .*(shared|embed_tokens)"),
    "words that are there twice": ("predict2", words_twice(0), SAME),
    "two tables of words": ("predict2", words_twice(1), r"embed_tokens\.weight must be the same as shared\.weight"),
    "two tables of Wan's words": ("wan", words_twice(1), r"embed_tokens\.weight must be the same as shared\.weight"),
    "no word for what follows": ("cosmos3", untold("<|vision_start|>"), r"text_tokenizer .* has no <\|vision_start\|>"),
    "no end": (
        "cosmos3",
        configured("text_tokenizer/tokenizer_config.json", eos_token=None),
        "text_tokenizer cannot be loaded: it has no eos_token",
    ),
    "a translator's other half": (
        "predict1",
        edited(TEXT, lambda found: {**found, "decoder.final_layer_norm.weight": torch.zeros(4)}),
        SAME,
    ),
    "a Qwen without the head that predicts text": ("predict2.5", only("model.", "visual."), SAME),
    "a Qwen that sees nothing": ("predict2.5", only("model.", "lm_head."), SAME),
    "a Qwen without its outermost name": ("predict2.5", only("model.", "visual.", respell=inner_name), SAME),
    "a Qwen under its newer names": (
        "predict2.5",
        only("model.", "visual.", respell=lambda n: f"model.{inner_name(n)}"),
        SAME,
    ),
    "a Qwen's config without its halves": ("predict2.5", flat_config, SAME),
    "a Qwen whose positions are for other heads": (
        "predict2.5",
        in_text_config(rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}),
        r"text_encoder/config\.json: mrope_section is \[16, 24, 24\]; it must sum to 8, half a head",
    ),
    "no positions": (
        "predict2.5",
        configured("transformer/config.json", max_size=[0, 0, 0]),
        r"max_size is \[0, 0, 0\]; it must be at least \[1, 2, 2\]",
    ),
    "the language half of a Qwen alone": ("predict2.5", language_half, SAME),
    "the head that predicts text": (
        "cosmos3",
        edited(WEIGHTS, lambda found: {**found, "audio_proj_in.weight": torch.zeros(4)}),
        SAME,
    ),
    "another number of layers": ("cosmos3", configured("transformer/config.json", num_hidden_layers=2), "no place for"),
    "another width": ("predict2.5", configured("transformer/config.json", num_attention_heads=3), "has the shape"),
    "another width of a text encoder": ("wan", configured("text_encoder/config.json", d_ff=40), "another shape"),
    "a config of another class": (
        "predict2.5",
        configured("transformer/config.json", _class_name="WanTransformer3DModel"),
        r"transformer/config\.json is that of a WanTransformer3DModel",
    ),
    "a config of another model": (
        "predict1",
        configured("text_encoder/config.json", model_type="umt5"),
        r"text_encoder/config\.json is that of a model of type umt5",
    ),
    "a part that is nowhere": ("wan", lambda folder: shutil.rmtree(folder / "vae"), "missing vae"),
    "no weights of a part": ("wan", removed(WEIGHTS), r"missing transformer/\*\.safetensors"),
    "an unknown class of a part": (
        "ltx",
        configured("model_index.json", text_encoder=["transformers", "NoSuchModel"]),
        "'NoSuchModel' of 'transformers' as text_encoder",
    ),
    "no mention of a part": ("ltx", configured("model_index.json", vae=None), "names no vae, which LTXPipeline needs"),
    # Quantized.
    "ModelOpt's FP8": ("cosmos3", both(in_8_bits(beside=("input_scale",)), modelopt()), CLOSE),
    "ModelOpt's FP8 as diffusers saves it": (
        "cosmos3",
        both(
            in_8_bits(scale="weight_quantizer._scale", beside=("input_quantizer._amax", "weight_quantizer._amax")),
            modelopt(),
        ),
        CLOSE,
    ),
    "FP8 in another family": ("predict2.5", both(in_8_bits(beside=("input_scale",)), modelopt()), CLOSE),
    "FP8 in Wan": ("wan", both(in_8_bits(), modelopt()), CLOSE),
    "FP8 with a scale per row": ("cosmos3", in_8_bits(rows=True), CLOSE),
    "FP8 as ComfyUI has it": (
        "predict2.5",
        both(
            in_8_bits(scale="scale_weight"),
            edited(WEIGHTS, lambda found: {**found, "scaled_fp8": torch.empty(0).to(torch.float8_e4m3fn)}),
        ),
        CLOSE,
    ),
    "a plain copy in FP8": ("predict2.5", in_8_bits(scale=""), CLOSE),
    "FP8 without its scales": ("cosmos3", both(in_8_bits(scale="", lose=99), modelopt()), "has no weight_scale"),
    "FP8 without a word of it": ("cosmos3", in_8_bits(scale="", lose=99), "the scale that belongs to it is missing"),
    "FP8 without one scale": ("cosmos3", both(in_8_bits(lose=1), modelopt()), "has no weight_scale"),
    "FP8 in blocks": (
        "cosmos3",
        edited(
            WEIGHTS,
            lambda found: {
                **found,
                "layers.0.mlp.up_proj.weight": found["layers.0.mlp.up_proj.weight"].to(torch.float8_e4m3fn),
                "layers.0.mlp.up_proj.weight_scale": torch.ones(3, 2),
            },
        ),
        r"weight_scale has the shape \[3, 2\], which is not read: take the checkpoint in bfloat16",
    ),
    **{
        f"FP8 with scales of {value}": (
            "cosmos3",
            both(
                in_8_bits(),
                edited(
                    WEIGHTS,
                    lambda found, value=value: {
                        name: torch.full_like(tensor, value) if name.endswith("weight_scale") else tensor
                        for name, tensor in found.items()
                    },
                ),
            ),
            "weight_scale must have numbers above 0",
        )
        for value in (0.0, -1.0, float("inf"), float("nan"))
    },
    **{
        f"FP8 with a scale per row, as {method} {kind}": (
            base,
            both(
                in_8_bits(rows=True),
                configured(
                    "transformer/config.json",
                    quantization_config={
                        "quant_method": method,
                        "quant_algo" if method == "modelopt" else "format": kind,
                    },
                ),
            ),
            CLOSE,
        )
        for base, method, kind in (
            ("cosmos3", "modelopt", "FP8_PER_CHANNEL_PER_TOKEN"),
            ("predict2.5", "compressed-tensors", "float-quantized"),
        )
    },
    "FP8 as ModelOpt exports it": (
        "cosmos3",
        both(
            in_8_bits(beside=("input_scale",)),
            configured(
                "transformer/config.json",
                quantization_config={"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
            ),
        ),
        CLOSE,
    ),
    **{
        f"quantized as {kind}": (base, beside_first({name: torch.ones(2, 2)}), f"are quantized as {kind} by .*: take")
        for base, kind, name in (
            ("cosmos3", "FP8 in blocks", "weight_scale_inv"),
            ("cosmos3", "NVFP4", "weight_scale_2"),
            ("predict2.5", "ComfyUI's own", "comfy_quant"),
            ("predict2.5", "GPTQ, AWQ or Nunchaku", "qweight"),
            ("wan", "bitsandbytes", "weight.quant_state.bitsandbytes__nf4"),
            ("wan", "bitsandbytes", "SCB"),
            ("predict1", "compressed-tensors", "weight_packed"),
            ("ltx", "quanto or torchao", "weight._data"),
        )
    },
    "FP8 with scales in whole numbers": (
        "cosmos3",
        edited_after(in_8_bits(), lambda name, tensor: tensor.int() if name.endswith("weight_scale") else tensor),
        "weight_scale is stored as I32, which is not read as a scale",
    ),
    "said to be FP8 and is not": ("cosmos3", modelopt(), "no weight has a scale"),
    "NVFP4": ("cosmos3", modelopt("NVFP4"), r"config\.json has a quantization_config of modelopt NVFP4"),
    "bitsandbytes": ("wan", modelopt("nf4", "bitsandbytes"), "quantization_config of bitsandbytes nf4"),
    "a text encoder in 4 bits": (
        "predict2.5",
        configured("text_encoder/config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"text_encoder/config\.json has a quantization_config of gptq",
    ),
    "packed by GPTQ": ("predict2.5", packed(("qweight", "qzeros", "scales", "g_idx")), "quantized as GPTQ.*qweight"),
    "packed by compressed-tensors": ("predict2.5", packed(("weight_packed", "weight_shape")), "as compressed-tensors"),
    "whole numbers": ("predict2.5", first_as(torch.int8), rf"{Q}\.weight is stored as I8"),
    "whole numbers with scales": ("predict2.5", first_as(torch.int8, "weight_scale"), "is stored as I8"),
    "whole numbers under another name": (
        "wan",
        edited(WEIGHTS, lambda found: {**found, "scale_shift_table": found["scale_shift_table"].to(torch.int8)}),
        r"scale_shift_table is stored as torch\.int8",
    ),
    "complex numbers": ("predict2.5", first_as(torch.complex64), rf"{Q}\.weight is stored as C64, which is not read"),
    "packed numbers": ("predict2.5", first_as(torch.uint8, "weight.absmax"), "quantized as bitsandbytes by .*absmax"),
    "scales of what is not in 8 bits": (
        "predict2.5",
        first_as(torch.bfloat16, "weight_scale"),
        "is stored as BF16, but has weight_scale beside it",
    ),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, save in BASES.items():
        made[name] = tmp_path_factory.mktemp("bases") / name
        save(made[name])
    return made


@pytest.fixture(scope="module")
def right(bases: dict[str, Path]) -> dict[str, dict[str, Tensor]]:
    """The weights of the untouched checkpoints."""
    return {name: weights_of(load_world(str(folder), dtype="float32", device="cpu")) for name, folder in bases.items()}


def weights_of(world: Any) -> dict[str, Tensor]:
    """The weights of all networks of a model, by part and name."""
    if hasattr(world, "pipeline"):
        parts = {name: part for name, part in world.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    elif isinstance(world, CosmosFlowWorld):
        parts = {"transformer": world.transformer, "vae": world.autoencoder}
    else:
        holder = getattr(world, "parts", world)
        reader = getattr(holder, "read_text", None)
        parts = {"transformer": holder.transformer, "vae": holder.autoencoder.vae}
        if reader is not None:
            parts["text_encoder"] = getattr(reader, "_encoder", None) or reader._model
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_each_case_is_right_or_refused(
    case: str, bases: dict[str, Path], right: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    base, change, outcome = CASES[case]
    folder = Path(shutil.copytree(bases[base], tmp_path / "model"))
    change(folder)
    if outcome not in (SAME, CLOSE):
        with pytest.raises(ModelNotFoundError, match=outcome) as refused:
            load_world(str(folder), device="cpu")
        assert "\n" not in str(refused.value)
        assert str(folder) in str(refused.value) or "model_index.json" in str(refused.value)
        return
    found = weights_of(load_world(str(folder), dtype="float32", device="cpu"))
    assert found.keys() == right[base].keys()
    for name, tensor in right[base].items():
        if outcome == SAME:
            assert torch.equal(found[name], tensor), name
        else:  # three bits of mantissa
            assert (found[name] - tensor).abs().max() <= 0.07 * tensor.abs().max() + 1e-6, name


@pytest.mark.parametrize(
    ("spelt", "said"),
    [
        ("model/", SAME),
        ("model", SAME),
        ("~/model", SAME),
        ("./model/../model", SAME),
        ("c m\u00f6del \u4e16 #1", SAME),
        ("linked", SAME),
        ("dead", "'dead' is a link to a folder that is not there: nowhere"),
        (f"model/{WEIGHTS}", "is a file: give the folder of a checkpoint"),
        ("model/model_index.json", "is a file: give the folder of a checkpoint"),
        ("model/transformer", "is one part of a pipeline"),
        ("model\0", "there is no model"),
        ("", r"missing model_index\.json"),
        ("m" * 5000, "there is no model"),
    ],
)
def test_a_folder_is_found_however_it_is_spelt(
    spelt: str, said: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "c m\u00f6del \u4e16 #1"):
        shutil.copytree(bases["predict2.5"], tmp_path / name)
    (tmp_path / "linked").symlink_to("model")
    (tmp_path / "dead").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    if said == SAME:
        assert load_world(spelt, device="cpu").capabilities.family == "predict2.5"
        return
    with pytest.raises(ModelNotFoundError, match=said) as refused:
        load_world(spelt, device="cpu")
    assert len(str(refused.value)) < 1000


ENCODERS = (
    *(
        "t5",
        "umt5",
        "qwen2_5_vl",
        "qwen3_vl",
        "gemma2",
        "gemma3",
        "mistral3",
        "ministral3",
        "llama",
        "llava",
        "gpt_neo",
    ),
    *("clip", "siglip", "dinov2", "dinov2_with_registers", "gpt_neo", "xlnet"),
)
NETWORKS = (
    *("CosmosTransformer3DModel", "CosmosControlNetModel", "Cosmos3OmniTransformer", "WanTransformer3DModel"),
    *("WanAnimateTransformer3DModel", "LTXVideoTransformer3DModel", "HunyuanVideoTransformer3DModel"),
    *("CogVideoXTransformer3DModel", "MochiTransformer3DModel", "AllegroTransformer3DModel", "AutoencoderKLWan"),
    *("AutoencoderKLCosmos", "AutoencoderKLLTXVideo", "AutoencoderKLHunyuanVideo", "AutoencoderKLCogVideoX"),
    *("UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"),
)


def test_what_the_libraries_configs_say_by_themselves_is_not_refused() -> None:
    import inspect

    import diffusers
    from transformers import CONFIG_MAPPING

    said = {name: CONFIG_MAPPING[name]().to_dict() for name in ENCODERS}
    for name in NETWORKS:
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
        said[name] = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    for name, config in said.items():
        check_config(Path(name), json.loads(json.dumps(config, default=str)), {})


def test_damage_is_told_before_anything_large_is_imported(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["wan"], tmp_path / "model"))
    cut(TEXT, 10)(folder)
    code = (
        "import sys\nfrom cosmorama.errors import ModelNotFoundError\nfrom cosmorama.world.registry import load_world\n"
        "try:\n    load_world(sys.argv[1])\n"
        "except ModelNotFoundError as error:\n    print(error, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(folder)], check=True, capture_output=True, text=True).stdout
    assert "cut off" in said
    assert said.strip().endswith("False")


def test_what_is_in_8_bits_becomes_the_type_of_the_rest(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["cosmos3"], tmp_path / "model"))
    both(in_8_bits(), modelopt())(folder)
    world: Any = load_world(str(folder), device="cpu")
    types = {name: tensor.dtype for name, tensor in world.transformer.named_parameters()}
    assert set(types.values()) == {torch.bfloat16, torch.float32}
    assert all(name.startswith("time_embedder.") for name, kind in types.items() if kind == torch.float32)
    whole = world.text_half.nbytes
    world.text_half.release()
    world.text_half.restore()
    assert world.text_half.nbytes == whole


@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn", "int8", "bf16", torch.float64])
def test_types_that_no_family_computes_in_are_refused(dtype: Any, bases: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"dtype is .* one of float32, bfloat16, float16"):
        load_world(str(bases["cosmos3"]), dtype=dtype, device="cpu")


def test_numbers_in_64_bits_are_computed_with_in_32(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["predict2.5"], tmp_path / "model"))
    doubled(folder)
    found = weights_of(load_world(str(folder), device="cpu"))
    assert {tensor.dtype for tensor in found.values() if tensor.is_floating_point()} == {torch.float32}


def test_a_variant_is_taken_where_it_is(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bases["predict2.5"], tmp_path / "model"))
    copied(WEIGHTS.replace(".s", ".bf16.s"), Tensor.bfloat16)(folder)
    usual, chosen = (load_world(str(folder), device="cpu", variant=variant) for variant in (None, "bf16"))
    assert weights_of(usual)["transformer.proj_out.weight"].dtype == torch.float32
    assert weights_of(chosen)["transformer.proj_out.weight"].dtype == torch.bfloat16
    assert weights_of(chosen)["vae.quant_conv.weight"].dtype == torch.float32  # has none
    (folder / WEIGHTS).unlink()
    load_world(str(folder), device="cpu", variant="bf16")
    with pytest.raises(ModelNotFoundError, match=r"variant 'fp16': there is only bf16|--variant bf16"):
        load_world(str(folder), device="cpu", variant="fp16")


def test_code_of_a_checkpoint_is_not_run_nor_asked_about(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(bases["predict2.5"], tmp_path / "model"))
    own = {"auto_map": {"AutoTokenizer": ["code.Own", None]}, "tokenizer_class": "Own"}
    configured("tokenizer/tokenizer_config.json", **own)(folder)
    (folder / "tokenizer/code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    asked: list[object] = []
    monkeypatch.setattr("builtins.input", lambda *said: asked.append(said) or "y")
    with pytest.raises(ModelNotFoundError, match=r"tokenizer cannot be loaded: .*custom code"):
        load_world(str(folder), device="cpu")
    assert not asked
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("module", "pipeline", "name", "package"),
    [
        ("wan.pipeline_wan", "WanPipeline", "ftfy", "ftfy"),
        ("wan.pipeline_wan_i2v", "WanImageToVideoPipeline", "ftfy", "ftfy"),
        ("skyreels_v2.pipeline_skyreels_v2", "SkyReelsV2Pipeline", "ftfy", "ftfy"),
        ("kandinsky5.pipeline_kandinsky", "Kandinsky5T2VPipeline", "ftfy", "ftfy"),
        ("allegro.pipeline_allegro", "AllegroPipeline", "BeautifulSoup", "beautifulsoup4"),
        ("consisid.pipeline_consisid", "ConsisIDPipeline", "cv2", "opencv-python-headless"),
    ],
)
def test_a_package_that_some_prompts_need_is_named_before_there_are_any(
    module: str, pipeline: str, name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = getattr(diffusers, pipeline)
    check_packages(kind)
    monkeypatch.delattr(f"diffusers.pipelines.{module}.{name}")
    with pytest.raises(ModelNotFoundError, match=f"{pipeline} needs {package}: pip install {package}"):
        check_packages(kind)
