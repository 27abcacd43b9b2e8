"""LoRA adapters: as diffusers applies them, chosen by each request, and gone where none is chosen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import cosmorama
from cosmorama.engine.prepare import PreparedRequest
from cosmorama.engine.rollout import Rollout
from cosmorama.errors import InvalidRequestError, ModelNotFoundError
from cosmorama.request import Adapter, AdapterPreset, GenerationRequest, ResolvedRequest, Usual
from cosmorama.resolve import resolve
from cosmorama.world.load.adapters import AdaptedWorld
from cosmorama.world.microcosm.loader import load_microcosm
from cosmorama.world.registry import load_world
from tests.tiny import save_tiny
from tests.world.checkpoints import save_predict
from tests.world.cosmos3_checkpoints import save_cosmos3
from tests.world.generic_checkpoints import save_wan, save_wan_2_2

REQUEST = ResolvedRequest(
    prompt="a red ball",
    negative_prompt="blurred",
    prompt_upsampling=False,
    seed=5,
    steps=2,
    width=64,
    height=32,
    frames=5,
    fps=16,
    guidance_scale=3.0,
)
TARGETS = ("attn1.to_q", "attn1.to_v", "attn2.to_k", "attn2.to_out.0", "ff.net.2")
Saved = tuple[Any, Path, dict[str, Path]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("predict25")
    pipeline = save_predict("predict2.5", folder / "model", concat_padding_mask=False)  # which needs torchvision
    adapters = {}
    for number, name in enumerate(("crayon", "noir")):
        torch.manual_seed(number)
        weights = {}
        for module, linear in pipeline.transformer.named_modules():
            if module.endswith(TARGETS):
                rows, columns = linear.weight.shape
                weights[f"transformer.{module}.lora_A.weight"] = torch.randn(4, columns) * 0.3
                weights[f"transformer.{module}.lora_B.weight"] = torch.randn(rows, 4) * 0.3
        assert len(weights) == 2 * 2 * len(TARGETS)
        adapters[name] = folder / name / "pytorch_lora_weights.safetensors"
        adapters[name].parent.mkdir()
        save_file(weights, adapters[name])
    return pipeline, folder / "model", adapters


@pytest.fixture(scope="module")
def adapted(saved: Saved) -> AdaptedWorld:
    return AdaptedWorld(load_world(str(saved[1]), dtype="float32"), saved[2])


@pytest.fixture(scope="module")
def plain_world(saved: Saved) -> Any:
    return load_world(str(saved[1]), dtype="float32")


def rollout(world: Any, *adapters: Adapter) -> Rollout:
    request = resolve(replace(REQUEST, adapters=adapters), world.capabilities)
    return Rollout(world, PreparedRequest(request, request.prompt or "", None))


def latents(world: Any, *adapters: Adapter) -> Tensor:
    going = rollout(world, *adapters)
    while not going.done:
        going.advance()
    return going.latents


def test_without_an_adapter_or_at_scale_0_the_numbers_are_the_plain_models(adapted: AdaptedWorld, saved: Saved) -> None:
    plain = latents(load_world(str(saved[1]), dtype="float32"))
    acted = latents(adapted, Adapter("crayon"))
    assert not torch.allclose(acted, plain, atol=1e-3)
    assert torch.equal(latents(adapted), plain)
    assert torch.equal(latents(adapted, Adapter("crayon", 0.0)), plain)


def test_an_adapter_acts_as_in_diffusers_pipeline(adapted: AdaptedWorld, saved: Saved) -> None:
    pipeline, _, adapters = saved
    pipeline.load_lora_weights(str(adapters["crayon"].parent), adapter_name="crayon")
    try:
        for scale in (1.0, 0.4):
            pipeline.transformer.set_adapters(["crayon"], [scale])
            expected = pipeline(
                prompt=REQUEST.prompt,
                negative_prompt=REQUEST.negative_prompt,
                height=REQUEST.height,
                width=REQUEST.width,
                num_frames=REQUEST.frames,
                num_inference_steps=REQUEST.steps,
                guidance_scale=REQUEST.guidance_scale,
                generator=torch.Generator().manual_seed(5),
                output_type="latent",
            ).frames
            ours = latents(adapted, Adapter("crayon", scale))
            assert (ours - expected).norm() / expected.norm() < 1e-5
    finally:
        pipeline.unload_lora_weights()


def test_requests_with_different_adapters_are_interleaved(adapted: AdaptedWorld) -> None:
    choices: list[tuple[Adapter, ...]] = [
        (Adapter("crayon"),),
        (),
        (Adapter("noir", 0.5),),
        (Adapter("crayon", 0.7), Adapter("noir", 0.7)),
    ]
    alone = [latents(adapted, *choice) for choice in choices]
    together = [rollout(adapted, *choice) for choice in choices]
    while not all(going.done for going in together):
        for going in together:
            going.advance()
    for going, expected in zip(together, alone, strict=True):
        assert torch.equal(going.latents, expected)
    assert not torch.allclose(alone[0], alone[3], atol=1e-3)


def test_adapters_are_published_and_others_refused(adapted: AdaptedWorld) -> None:
    assert adapted.capabilities.adapters == ("crayon", "noir")
    with pytest.raises(InvalidRequestError, match="one of crayon, noir"):
        rollout(adapted, Adapter("sepia"))


def test_what_is_no_adapter_for_the_model_is_refused_at_the_start(
    saved: Saved, tmp_path: Path, tiny_world: Any
) -> None:
    _, folder, _ = saved
    world = load_world(str(folder), dtype="float32")
    other = tmp_path / "other.safetensors"
    save_file(
        {
            "transformer.nowhere.lora_A.weight": torch.zeros(4, 8),
            "transformer.nowhere.lora_B.weight": torch.zeros(8, 4),
        },
        other,
    )
    pickled = tmp_path / "adapter.bin"
    torch.save({}, pickled)
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"no header")
    for path in (tmp_path / "missing", pickled, other, garbage):
        with pytest.raises(ModelNotFoundError):
            AdaptedWorld(world, {"bad": path})
    with pytest.raises(ModelNotFoundError, match=r"none of its weights fits this model: transformer\.nowhere"):
        AdaptedWorld(tiny_world, {"bad": other})


def test_microcosm_takes_adapters_too(tmp_path: Path) -> None:
    world = load_microcosm(save_tiny(tmp_path / "model"))
    layer = world.networks[0].transformer_blocks[0].attn1.to_q  # type: ignore[union-attr,index]
    x = torch.randn(1, layer.in_features)
    before, name = layer(x), "transformer.transformer_blocks.0.attn1.to_q"
    down, up = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "a.safetensors")
    adapted = AdaptedWorld(world, {"a": tmp_path / "a.safetensors"})
    adapted.select((Adapter("a", 0.5),))
    after = world.networks[0].transformer_blocks[0].attn1.to_q(x)  # type: ignore[union-attr,index]
    torch.testing.assert_close(after, before + 0.5 * x @ down.T @ up.T, rtol=1e-4, atol=1e-4)


Pairs = dict[str, tuple[Tensor, Tensor]]


def pairs_of(file: Path) -> Pairs:
    """An adapter's two matrices by layer."""
    weights = load_file(file)
    names = [name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix("transformer."): (weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"])
        for name in names
    }


def spelt(pairs: Pairs, down: str, up: str, respell: Callable[[str], str] = str) -> dict[str, Tensor]:
    return {
        f"{respell(layer)}{ending}": tensor.contiguous()
        for layer, (a, b) in pairs.items()
        for ending, tensor in ((down, a), (up, b))
    }


def by_nvidia(layer: str) -> str:
    for ours, theirs in (
        ("transformer_blocks", "blocks"),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        ("to_q", "q_proj"),
        ("to_k", "k_proj"),
        ("to_v", "v_proj"),
        ("to_out.0", "output_proj"),
        ("ff.net.2", "mlp.layer2"),
    ):
        layer = layer.replace(ours, theirs)
    return layer


def flat(layer: str) -> str:
    return layer.replace(".", "_")


AB, DU = (".lora_A.weight", ".lora_B.weight"), (".lora_down.weight", ".lora_up.weight")
SPELLINGS: dict[str, Callable[[Pairs], dict[str, Tensor]]] = {
    "diffusers": lambda pairs: spelt(pairs, *AB, lambda layer: f"transformer.{layer}"),
    "without a prefix": lambda pairs: spelt(pairs, *AB),
    "PEFT with a name": lambda pairs: spelt(pairs, ".lora_A.default.weight", ".lora_B.default.weight"),
    "a PEFT model": lambda pairs: spelt(pairs, *AB, lambda layer: f"base_model.model.{layer}"),
    "lora.down": lambda pairs: spelt(pairs, ".lora.down.weight", ".lora.up.weight"),
    "kohya": lambda pairs: spelt(pairs, *DU, lambda layer: f"lora_unet_{flat(layer)}"),
    "NVIDIA": lambda pairs: spelt(pairs, *AB, lambda layer: f"net.{by_nvidia(layer)}"),
    "NVIDIA in PEFT": lambda pairs: spelt(pairs, *AB, lambda layer: f"base_model.model.net.{by_nvidia(layer)}"),
    "ComfyUI": lambda pairs: spelt(pairs, *DU, lambda layer: f"diffusion_model.{by_nvidia(layer)}"),
    "kohya on NVIDIA's": lambda pairs: spelt(pairs, *DU, lambda layer: f"lora_unet_{flat(by_nvidia(layer))}"),
    "a compiled network": lambda pairs: spelt(pairs, *AB, lambda layer: f"transformer._orig_mod.{layer}"),
    "blocks that were recomputed": lambda pairs: spelt(
        pairs, *AB, lambda layer: layer.replace(".attn", "._checkpoint_wrapped_module.attn")
    ),
    "alpha as large as the rank": lambda pairs: spelt(pairs, *DU) | {f"{n}.alpha": torch.tensor(4.0) for n in pairs},
    "in 16 bits": lambda pairs: {name: tensor.half() for name, tensor in spelt(pairs, *AB).items()},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_adapter_acts_the_same_however_it_is_spelt(
    spelling: str, adapted: AdaptedWorld, saved: Saved, tmp_path: Path
) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file(SPELLINGS[spelling](pairs_of(saved[2]["crayon"])), file)
    world = AdaptedWorld(load_world(str(saved[1]), dtype="float32"), {"v1.5": file})
    expected = latents(adapted, Adapter("crayon"))
    found = latents(world, Adapter("v1.5"))
    assert (found - expected).norm() / expected.norm() < (1e-2 if "16" in spelling else 1e-6)
    assert world.capabilities.adapter_layers == {"v1.5": len(pairs_of(saved[2]["crayon"]))}


def test_a_preset_beside_an_adapter_is_what_its_requests_leave_open(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    shutil.copy(saved[2]["crayon"], tmp_path / "fast")
    preset: dict[str, Any] = {"steps": 4, "guidance_scale": 0, "solver": "euler"}
    (tmp_path / "fast" / "preset.json").write_text(json.dumps(preset))
    adapters = {"fast": tmp_path / "fast", "noir": saved[2]["noir"]}
    own = AdaptedWorld(load_world(str(saved[1]), dtype="float32"), adapters).capabilities
    assert own.adapter_presets == {"fast": AdapterPreset(**preset)}

    def made(*names: str, **fields: Any) -> tuple[int, float, str | None]:
        adapters = tuple(Adapter(name) for name in names)
        resolved = resolve(GenerationRequest(prompt="a", adapters=adapters, **fields), own)
        return resolved.steps, resolved.guidance_scale, resolved.solver

    assert made("fast") == made("noir", "fast") == (4, 0, "euler")
    assert made("fast", usual=Usual(steps=30)) == (4, 0, "euler")
    assert made("fast", steps=6, solver="unipc") == (6, 0, "unipc")
    assert made() == made("noir") == (36, 7, "unipc")
    for wrong in (
        {"steps": 0},
        {"steps": 4.5},
        {"guidance_scale": "1"},
        {"flow_shift": 5},
        {"solver": "lcm"},
        {"cfg": 1},
    ):
        (tmp_path / "fast" / "preset.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelNotFoundError, match=f"preset of the adapter fast: {next(iter(wrong))} is"):
            AdaptedWorld(load_world(str(saved[1]), dtype="float32"), adapters)


@pytest.mark.parametrize("name", ["realism-v1.5", "half", "train", "cpu", "forward", "a b", "größe", "adapter_0"])
def test_an_adapter_may_have_any_name(name: str, saved: Saved) -> None:
    world = AdaptedWorld(
        load_world(str(saved[1]), dtype="float32"), {name: saved[2]["noir"], "crayon": saved[2]["crayon"]}
    )
    assert world.capabilities.adapters == (name, "crayon")
    assert not torch.equal(latents(world, Adapter(name)), latents(world, Adapter("crayon")))


def peft_folder(folder: Path, pairs: Pairs, respell: Callable[[str], str] = str, **config: Any) -> Path:
    folder.mkdir()
    weights = spelt(pairs, *AB, lambda layer: f"base_model.model.{respell(layer)}")
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4} | config))
    return folder


def kohya(file: Path, pairs: Pairs, more: Mapping[str, Tensor] | None = None, **said: str) -> Path:
    save_file(spelt(pairs, *DU, lambda layer: f"lora_unet_{flat(layer)}") | dict(more or {}), file, metadata=said)
    return file


def header(file: Path, pairs: Pairs, **said: Any) -> Path:
    save_file(spelt(pairs, *AB), file, metadata={"lora_adapter_metadata": json.dumps(said)})
    return file


def test_an_adapters_own_scale_is_applied(adapted: AdaptedWorld, saved: Saved, tmp_path: Path) -> None:
    pairs = pairs_of(saved[2]["crayon"])
    alphas = {f"{layer}.alpha": torch.tensor(2.0) for layer in pairs}
    save_file(spelt(pairs, *AB) | alphas, tmp_path / "alpha.safetensors")
    one = next(iter(pairs))
    files = {
        "alpha": tmp_path / "alpha.safetensors",
        "peft": peft_folder(tmp_path / "peft", pairs, lora_alpha=2),
        "square root": peft_folder(tmp_path / "root", pairs, lora_alpha=1, use_rslora=True),
        "header": header(tmp_path / "header.safetensors", pairs, **{"transformer.r": 4, "transformer.lora_alpha": 2}),
        "pattern": peft_folder(
            tmp_path / "pattern", pairs, lora_alpha=4, alpha_pattern={name: 2 for name in pairs if name != one}
        ),
        "ranks": peft_folder(tmp_path / "ranks", pairs, r=8, lora_alpha=2, rank_pattern={".*": 4}),
        "NVIDIA's names": peft_folder(
            *(tmp_path / "nvidia", pairs, lambda layer: f"net.{by_nvidia(layer)}"),
            lora_alpha=4,
            alpha_pattern={by_nvidia(name): 2 for name in pairs},
        ),
        "kohya": kohya(tmp_path / "kohya.safetensors", pairs, ss_network_dim="4", ss_network_alpha="2.0"),
        "kohya's weights": kohya(
            *(tmp_path / "both.safetensors", pairs, alphas), ss_network_dim="Dynamic", ss_network_alpha="9"
        ),
        "negated": kohya(tmp_path / "negated.safetensors", pairs, {name: -alpha for name, alpha in alphas.items()}),
        "whole": kohya(tmp_path / "whole.safetensors", pairs, ss_network_dim="4", ss_network_alpha="None"),
        "unsaid": peft_folder(tmp_path / "unsaid", pairs),  # PEFT's 8
    }
    world = AdaptedWorld(load_world(str(saved[1]), dtype="float32"), files)
    for name in files:
        expected = latents(adapted, Adapter("crayon", {"unsaid": 2.0, "whole": 1.0, "negated": -0.5}.get(name, 0.5)))
        close = (latents(world, Adapter(name)) - expected).norm() / expected.norm() < 1e-6
        assert close == (name != "pattern"), name


@pytest.mark.parametrize("key", ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.default.weight"])
def test_a_magnitude_acts_as_dora_says(key: str, saved: Saved, tmp_path: Path) -> None:
    pairs = pairs_of(saved[2]["crayon"])
    torch.manual_seed(4)
    magnitudes = {layer: torch.rand(len(b)) + 0.5 for layer, (_, b) in pairs.items()}
    shape = (-1, 1) if key == "dora_scale" else (-1,)
    more = {f"{layer}.{key}": magnitude.reshape(shape) for layer, magnitude in magnitudes.items()}
    alphas = {f"{layer}.alpha": torch.tensor(2.0) for layer in pairs}
    save_file(spelt(pairs, *AB) | more | alphas, tmp_path / "dora.safetensors")
    world = AdaptedWorld(load_world(str(saved[1]), dtype="float32"), {"dora": tmp_path / "dora.safetensors"})
    plain: Any = load_world(str(saved[1]), dtype="float32")
    with torch.no_grad():
        for layer, (a, b) in pairs.items():
            weight = plain.transformer.get_submodule(layer).weight
            summed = weight + 0.5 * b @ a
            weight.copy_(magnitudes[layer][:, None] * summed / summed.norm(dim=1, keepdim=True))
    expected = latents(plain)
    assert (latents(world, Adapter("dora")) - expected).norm() / expected.norm() < 1e-5
    assert torch.equal(latents(world), latents(load_world(str(saved[1]), dtype="float32")))


def without(pairs: Pairs, ending: str) -> dict[str, Tensor]:
    weights = spelt(pairs, *AB)
    del weights[next(name for name in weights if name.endswith(ending))]
    return weights


ONE = "transformer_blocks.0.attn1.to_q"
REFUSED: dict[str, tuple[Callable[[Pairs], dict[str, Tensor]], str]] = {
    "half of its layers are unknown": (
        lambda pairs: spelt(
            pairs, *AB, lambda layer: layer.replace("attn1", "attention") if "blocks.0" in layer else layer
        ),
        r"of its \d+ weights have no place in this model: transformer_blocks\.0\.attention",
    ),
    "blocks that the model has not": (
        lambda pairs: spelt(pairs, *AB, lambda layer: layer.replace("blocks.1", "blocks.27")),
        r"no place in this model: transformer_blocks\.27",
    ),
    "a bias": (lambda pairs: spelt(pairs, *AB) | {f"{ONE}.diff_b": torch.zeros(32)}, r"no place .*diff_b"),
    "a bias of lora_B": (
        lambda pairs: spelt(pairs, *AB) | {f"{layer}.lora_B.bias": torch.zeros(32) for layer in pairs},
        r"no place .*lora_B\.bias",
    ),
    "weights kept whole": (
        lambda pairs: spelt(pairs, *AB) | {f"{ONE}.modules_to_save.default.weight": torch.zeros(32, 32)},
        r"no place .*modules_to_save",
    ),
    "a text encoder's too": (
        lambda pairs: spelt(pairs, *AB) | {"text_encoder.layers.0.q_proj.lora_A.weight": torch.zeros(4, 32)},
        r"no place .*text_encoder\.layers",
    ),
    "a difference": (lambda pairs: spelt(pairs, *AB) | {f"{ONE}.diff": torch.zeros(32, 32)}, r"no place .*\.diff"),
    **{
        f"{kind}, {name}": (
            lambda pairs, name=name: {f"lycoris_{flat(ONE)}.{name}": torch.zeros(2, 2)},
            rf"is {kind} \(lycoris_.*{name}\): only LoRA and DoRA are applied",
        )
        for kind, name in (
            *(("LoKr", "lokr_w1"), ("LoHa", "hada_w1_a"), ("OFT", "oft_blocks"), ("OFT", "boft_blocks")),
            *(("IA3", "ia3_l"), ("VeRA", "vera_lambda_b"), ("GLoRA", "a1.weight"), ("AdaLoRA", "lora_E")),
            ("LoCon with a third matrix", "lora_mid.weight"),
        )
    },
    "a name of two lines": (lambda pairs: {"a\nb.lora_A.weight": torch.ones(2, 2)}, r"none .*: a\?b\.lora_A"),
    "no lora_B": (lambda pairs: without(pairs, "lora_B.weight"), "has no lora_B"),
    "no lora_A": (lambda pairs: without(pairs, "lora_A.weight"), "has no lora_A"),
    "alpha alone": (lambda pairs: spelt(pairs, *AB) | {"proj_out.alpha": torch.tensor(1.0)}, "no lora_A .*proj_out"),
    "the same layer twice": (
        lambda pairs: spelt(pairs, *AB) | spelt(pairs, *DU, lambda layer: f"lora_unet_{flat(layer)}"),
        "20 of its 40 weights have no place in this model",
    ),
    "a model of another size": (
        lambda pairs: {name: torch.cat([tensor, tensor], -1) for name, tensor in spelt(pairs, *AB).items()},
        "for a model of another size: transformer_blocks",
    ),
    "not a number": (
        lambda pairs: {name: tensor * float("nan") for name, tensor in spelt(pairs, *AB).items()},
        "holds numbers that are not finite",
    ),
    "magnitudes of some layers": (
        lambda pairs: spelt(pairs, *AB) | {f"{ONE}.dora_scale": torch.ones(32, 1)},
        r"some layers have a magnitude \(DoRA\), but not",
    ),
    "magnitudes of columns": (
        lambda pairs: (
            spelt(pairs, *AB) | {f"{layer}.dora_scale": torch.ones(1, a.shape[1]) for layer, (a, _) in pairs.items()}
        ),
        "the magnitudes of .* have the shape",
    ),
    "whole numbers": (lambda pairs: {name: t.to(torch.int8) for name, t in spelt(pairs, *AB).items()}, "torch.int8"),
    "nothing": (lambda pairs: {}, "has no weights"),
    "what is not trained": (
        lambda pairs: {name: t * ("lora_A" in name) for name, t in spelt(pairs, *AB).items()},
        "adds nothing: its matrices or its alpha are zero",
    ),
    "an alpha of zero": (
        lambda pairs: spelt(pairs, *AB) | {f"{layer}.alpha": torch.zeros(()) for layer in pairs},
        "adds nothing",
    ),
    "matrices of different ranks": (
        lambda pairs: {name: t[:, :3] if "lora_B" in name else t for name, t in spelt(pairs, *AB).items()},
        r"the adapter's matrices are \[32, 3\] and \[4, 32\]",
    ),
    "no rank at all": (
        lambda pairs: {name: t[:, :0] if "lora_B" in name else t[:0] for name, t in spelt(pairs, *AB).items()},
        "adds nothing",
    ),
    "an alpha that is no number": (
        lambda pairs: spelt(pairs, *AB) | {f"{layer}.alpha": torch.tensor(float("nan")) for layer in pairs},
        "alpha holds numbers that are not finite",
    ),
    "an alpha for every rank": (
        lambda pairs: spelt(pairs, *AB) | {f"{layer}.alpha": torch.ones(4) for layer in pairs},
        "the alpha of .* is 4 numbers, not one",
    ),
    "a text encoder's layers too": (
        lambda pairs: spelt(pairs, *AB) | {f"text_encoder.q.{end}": torch.zeros(4, 4) for end in AB},
        r"2 of its \d+ weights have no place in this model: text_encoder\.q",
    ),
    "an alpha of nothing": (
        lambda pairs: spelt(pairs, *AB) | {f"{layer}.alpha": torch.empty(0) for layer in pairs},
        "the alpha of .* is 0 numbers",
    ),
}
SAID: dict[str, tuple[dict[str, Any], str]] = {
    "an alpha in words": ({"lora_alpha": "x"}, "lora_alpha is 'x'; it must be a number"),
    "an alpha that is none": ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    "alphas as a list": ({"lora_alpha": 2, "alpha_pattern": ["x"]}, "alpha_pattern is .*; it must be a number"),
    "alphas of no pattern": ({"lora_alpha": 2, "alpha_pattern": {"(": 2}}, "is no regular expression"),
    "another rank": ({"r": 16, "lora_alpha": 16}, "says that its rank is 16; that of .* is 4"),
    "an alpha of yes": ({"lora_alpha": True}, "lora_alpha is True; it must be a number"),
    "other ranks": ({"r": 4, "rank_pattern": {"to_q": 8}}, "says that its rank is 8; that of .*to_q is 4"),
    "a rank that not all have": ({"r": 8, "rank_pattern": {"to_[qvk]": 4}}, "its rank is 8; that of .*to_out.0 is 4"),
    "ranks of no pattern": ({"r": 4, "rank_pattern": {"(": 4}}, "in rank_pattern is no regular expression"),
    "a root in words": ({"lora_alpha": 4, "use_rslora": "false"}, "use_rslora is 'false'; it must be true or false"),
    "layers kept whole": ({"lora_alpha": 4, "modules_to_save": ["proj_out"]}, "modules_to_save is set"),
    "biases": ({"lora_alpha": 4, "lora_bias": True}, "lora_bias is set"),
    "a magnitude that is not there": ({"lora_alpha": 4, "use_dora": True}, "says use_dora, but has no magnitude"),
    "matrices the other way": ({"lora_alpha": 4, "fan_in_fan_out": True}, "fan_in_fan_out is set"),
    "weights that were changed": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    "weights that a gradient changed": ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga'"),
    "layers that are there twice": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set"),
    "from some tokens on": ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is set"),
    "singular values between": ({"kasa_config": {"beta": 0.1}}, "kasa_config is set"),
    "parameters of no layer": ({"target_parameters": ["experts.gate"]}, "target_parameters is set"),
    "another kind": ({"peft_type": "LOKR"}, "is that of LOKR"),
}


@pytest.mark.parametrize("where", ["beside", "header"])
@pytest.mark.parametrize("case", SAID)
def test_what_an_adapter_says_of_itself_is_applied_or_refused(
    case: str, where: str, saved: Saved, plain_world: Any, tmp_path: Path
) -> None:
    config, said = SAID[case]
    pairs = pairs_of(saved[2]["crayon"])
    if where == "beside":
        path = peft_folder(tmp_path / "folder", pairs, **config)
    elif "peft_type" in config:
        pytest.skip("diffusers writes none into the header")
    else:
        path = header(
            tmp_path / "a.safetensors", pairs, **{f"transformer.{key}": value for key, value in config.items()}
        )
    with pytest.raises(ModelNotFoundError, match=said) as refused:
        AdaptedWorld(plain_world, {"mine": path})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("said", ["{", "[1]", '"x"'])
def test_a_header_that_cannot_be_read_is_refused(said: str, saved: Saved, plain_world: Any, tmp_path: Path) -> None:
    save_file(
        spelt(pairs_of(saved[2]["crayon"]), *AB), tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": said}
    )
    with pytest.raises(ModelNotFoundError, match=r"a\.safetensors: the lora_adapter_metadata in its header"):
        AdaptedWorld(plain_world, {"mine": tmp_path / "a.safetensors"})


@pytest.mark.parametrize(("key", "value"), [("ss_network_alpha", "x"), ("ss_network_dim", "16")])
def test_what_kohyas_header_says_wrong_is_refused(
    key: str, value: str, saved: Saved, plain_world: Any, tmp_path: Path
) -> None:
    file = kohya(tmp_path / "a.safetensors", pairs_of(saved[2]["crayon"]), **{key: value})
    with pytest.raises(ModelNotFoundError, match=f"{key} in its header is 'x'|its rank is 16; that of"):
        AdaptedWorld(plain_world, {"mine": file})


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_would_not_act_whole_is_refused(
    case: str, saved: Saved, plain_world: Any, tmp_path: Path
) -> None:
    make, said = REFUSED[case]
    file = tmp_path / "other.safetensors"
    save_file({name: t.clone().contiguous() for name, t in make(pairs_of(saved[2]["crayon"])).items()}, file)
    with pytest.raises(ModelNotFoundError, match=said) as refused:
        AdaptedWorld(plain_world, {"my.adapter": file})
    assert "my.adapter" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_damaged_adapters_are_told_by_their_file(plain_world: Any, saved: Saved, tmp_path: Path) -> None:
    whole = saved[2]["crayon"].read_bytes()
    for content, said in (
        (whole[:-10], "cut off"),
        (whole + b"more", "4 bytes too many"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    ):
        file = tmp_path / "adapter.safetensors"
        file.write_bytes(content)
        with pytest.raises(ModelNotFoundError, match=rf"adapter\.safetensors .*{said}"):
            AdaptedWorld(plain_world, {"a": file})
        with pytest.raises(ModelNotFoundError, match=said):
            cosmorama.load("microcosm", adapters={"a": file})
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").touch()
    with pytest.raises(ModelNotFoundError, match=r"there is adapter_model\.bin, but pickles are not read"):
        AdaptedWorld(plain_world, {"a": tmp_path / "pickled"})
    folder = peft_folder(tmp_path / "loha", pairs_of(saved[2]["crayon"]), peft_type="LOHA")
    with pytest.raises(ModelNotFoundError, match="LOHA: only LoRA and DoRA are applied"):
        AdaptedWorld(plain_world, {"a": folder})


@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model.", "", "lora_unet_"])
def test_wans_own_spelling_is_read_whole_or_refused(prefix: str, tmp_path: Path) -> None:
    folder = save_wan(tmp_path / "wan")
    world: Any = load_world(str(folder))
    torch.manual_seed(0)
    net = world.pipeline.transformer
    weights = {}
    for theirs, ours in (
        *(("blocks.0.self_attn.q", "blocks.0.attn1.to_q"), ("blocks.0.cross_attn.o", "blocks.0.attn2.to_out.0")),
        *(("blocks.0.ffn.2", "blocks.0.ffn.net.2"), ("time_projection.1", "condition_embedder.time_proj")),
    ):
        rows, columns = net.get_submodule(ours).weight.shape
        name = prefix + (flat(theirs) if prefix.endswith("_") else theirs)
        weights[f"{name}.lora_down.weight"] = torch.randn(2, columns)
        weights[f"{name}.lora_up.weight"] = torch.randn(rows, 2)
    dropped = {
        "diffusion_model.blocks.9.ffn.2.lora_down.weight": torch.zeros(2, 2),
        "diffusion_model.blocks.0.norm3.diff": torch.ones(24),
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(24),
        "diffusion_model.blocks.9.self_attn.q.dora_scale": torch.ones(24, 1),
    }
    for name, tensor in dropped.items():
        save_file({**weights, name: tensor}, tmp_path / "b.safetensors")
        with pytest.raises(ModelNotFoundError, match=f"no place in this model: {name}"):
            AdaptedWorld(world, {"wan": tmp_path / "b.safetensors"})
    save_file(weights, tmp_path / "wan.safetensors")
    assert AdaptedWorld(world, {"wan": tmp_path / "wan.safetensors"}).capabilities.adapter_layers == {"wan": 4}


def test_a_model_of_two_denoisers_takes_no_adapter_for_one(tmp_path: Path) -> None:
    world = load_world(str(save_wan_2_2(tmp_path / "wan")), device="cpu")
    with pytest.raises(ModelNotFoundError, match="takes no adapters: it has two denoisers"):
        AdaptedWorld(world, {"x": tmp_path / "x.safetensors"})


@pytest.mark.parametrize(
    ("kind", "layer", "original"),
    [
        ("predict1-text2world", "transformer_blocks.1.attn1.to_q", "blocks.block1.blocks.0.block.attn.to_q.0"),
        ("predict1-text2world", "transformer_blocks.0.attn2.to_out.0", "blocks.block0.blocks.1.block.attn.to_out.0"),
        ("predict1-text2world", "transformer_blocks.0.ff.net.0.proj", "blocks.block0.blocks.2.block.layer1"),
        ("predict2.5", "transformer_blocks.1.ff.net.0.proj", "blocks.1.mlp.layer1"),
        ("predict2.5", "transformer_blocks.1.norm3.linear_2", "blocks.1.adaln_modulation_mlp.2"),
        ("cosmos3", "layers.0.self_attn.to_out", "model.layers.0.self_attn.o_proj"),
    ],
)
def test_names_of_nvidias_code_are_known(kind: str, layer: str, original: str, tmp_path: Path) -> None:
    if kind == "cosmos3":
        save_cosmos3(tmp_path / "model")
    else:
        save_predict(kind, tmp_path / "model")
    world: Any = load_world(str(tmp_path / "model"), device="cpu")
    net = world.transformer
    rows, columns = net.get_submodule(layer).weight.shape
    down, up = torch.ones(1, columns), torch.ones(rows, 1)
    save_file({f"net.{original}.lora_A.weight": down, f"net.{original}.lora_B.weight": up}, tmp_path / "a.safetensors")
    AdaptedWorld(world, {"a": tmp_path / "a.safetensors"})
    assert list(net.get_submodule(layer).lora_B) == ["adapter_0"]
