"""A checkpoint in a folder that writes texts: it answers as an endpoint does, to its server alone, and ends with it."""

import dataclasses
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from cosmorama.engine.inputs import preparer_of
from cosmorama.errors import ModelNotFoundError
from cosmorama.settings import Settings
from cosmorama.text.captioning import ChatCaptioner, described
from cosmorama.text.chat import ChatEndpoint, ChatError, chat
from cosmorama.text.local import LocalChat, _Model, with_local_chats
from cosmorama.text.upsampling import ChatUpsampler


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny language model with random weights: what it writes means nothing, but is always the same."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from tests.world.checkpoints import qwen

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("writer")
    _, tokenizer = qwen()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def seer(tmp_path_factory):
    """The same with eyes."""
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    from tests.world.checkpoints import qwen

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("seer")
    _, tokenizer = qwen()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14, "num_hidden_layers": 2}
        | layers,
        text_config={"model_type": "qwen2", "num_hidden_layers": 1, "num_key_value_heads": 1}
        | layers
        | {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": None},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
    )
    LlavaForConditionalGeneration(config).save_pretrained(path)
    template = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] if c['type'] == 'text' else '<image>' }}"
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=template + "{% endfor %}{% endfor %}",
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    return path


def test_folders_write_prompts_and_captions(folder, seer):
    settings, (process, eyes) = with_local_chats(
        Settings(prompt_upsampling_checkpoint=folder, captioning_checkpoint=seer, device="cpu", captioning_max_tokens=8)
    )
    try:
        assert settings.prompt_upsampling_timeout_s == 300
        assert process.token not in repr(settings)
        preparer = preparer_of(settings)
        assert isinstance(preparer.upsampler, ChatUpsampler)
        endpoint = dataclasses.replace(preparer.upsampler.endpoint, max_tokens=8)
        told = chat(endpoint, "Write.", "a red ball")
        assert told == chat(endpoint, "Write.", "a red ball")
        picture = np.full((16, 16, 3), 200, np.uint8)
        text, said = ChatUpsampler(endpoint).expanded("a red ball", picture)
        assert text
        assert said == ("the prompt upsampling model takes no pictures: it wrote about the prompt alone",)
        assert isinstance(preparer.captioner, ChatCaptioner)
        assert described(preparer.captioner, picture[None], 24)[1] == ()
        blind = ChatCaptioner(endpoint)
        text, said = described(blind, picture[None], 24)
        assert text == "A bright picture, all grey."
        assert "the pixels was used" in said[0]
        with pytest.raises(ChatError, match="HTTP 401"):
            chat(ChatEndpoint(process.url, "any", "another key"), "Write.", "a")
        assert httpx.get(process.url, timeout=60).status_code == 501
    finally:
        process.close()
        eyes.close()
    with pytest.raises(ChatError, match="could not be asked"):
        chat(endpoint, "Write.", "a")


def test_it_ends_when_its_server_is_gone(folder):
    process = LocalChat(folder, "cpu")
    try:
        assert process._process.stdin is not None
        process._process.stdin.close()
        assert process._process.wait(timeout=60) == 0
    finally:
        process.close()


def test_a_folder_without_a_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match=r"missing config\.json"):
        LocalChat(tmp_path, "cpu")
    with pytest.raises(ValueError, match=r"prompt_upsampling_checkpoint is .*; it must be a folder with a config.json"):
        Settings(prompt_upsampling_checkpoint=tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="are both set"):
        Settings(captioning_checkpoint=tmp_path, captioning_endpoint_url="http://localhost:1/v1", captioning_model="a")
    with pytest.raises(RuntimeError, match="cannot be loaded: "):
        _Model(tmp_path, "cpu").answer([], {})
