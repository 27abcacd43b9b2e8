"""What an operator can set, from `COSMORAMA_*` environment variables or in code.

Where NIM for Cosmos has a setting of the same meaning, its `NIM_*` name works too; `COSMORAMA_*` wins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, HttpUrl, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

LogLevel = Literal["critical", "error", "warning", "info", "debug"]

_LOG_LEVELS_UPSTREAM = {"default": "info", "trace": "debug"}


def _names(name: str, upstream: str) -> AliasChoices:
    return AliasChoices(f"COSMORAMA_{name}", f"NIM_{upstream}")


class Settings(BaseSettings):
    """The settings of a server and of its worker process. Immutable; secrets do not show when it is printed."""

    model_config = SettingsConfigDict(
        env_prefix="COSMORAMA_", populate_by_name=True, frozen=True, extra="ignore", env_ignore_empty=True
    )

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, validation_alias=_names("PORT", "HTTP_API_PORT"))
    log_level: LogLevel = Field("info", validation_alias=_names("LOG_LEVEL", "LOG_LEVEL"))
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), validation_alias=AliasChoices("COSMORAMA_API_KEYS", "COSMORAMA_API_KEY")
    )
    """Any of these lets a client in (comma-separated); none: everyone is let in."""

    model: str = Field("microcosm", min_length=1, validation_alias=_names("MODEL", "MODEL_PATH"))
    """A known model's name, or the folder of a checkpoint."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the worker; None: all."""
    max_active: int = Field(2, ge=1)
    """Generations advanced in turn."""
    max_queue: int = Field(32, ge=0)
    """Generations that may wait for their turn; one more is refused with 429."""
    request_timeout_s: float = Field(1800, gt=0)
    """From the arrival of a request to the end of its generation."""
    upstream_request_timeout_us: float | None = Field(
        None, gt=0, validation_alias="NIM_TRITON_REQUEST_TIMEOUT", exclude=True
    )
    """The same in microseconds, as upstream has it."""
    artifacts: Path | None = None
    """Folder for the clips being made; None: a private temporary one."""

    allow_url_input: bool = Field(True, validation_alias=_names("ALLOW_URL_INPUT", "ALLOW_URL_INPUT"))
    allow_private_urls: bool = False
    """Let image and video URLs point at private addresses: for trusted clients only."""
    max_input_bytes: int = Field(75_000_000, ge=1)
    """Of an image or a video, decoded from base64 or downloaded."""
    url_timeout_s: float = Field(30, gt=0)
    video_quality: int = Field(7, ge=1, le=9, validation_alias=_names("VIDEO_QUALITY", "VIDEO_SAVE_QUALITY"))
    """Used where a request does not say."""

    prompt_upsampling: bool = Field(True, validation_alias=_names("PROMPT_UPSAMPLING", "ENABLE_PROMPT_UPSAMPLING"))
    """False: prompts are used as they are, whatever a request says."""
    prompt_upsampling_endpoint_url: HttpUrl | None = Field(
        None, validation_alias=_names("PROMPT_UPSAMPLING_ENDPOINT_URL", "PROMPT_UPSAMPLING_ENDPOINT_URL")
    )
    """Base URL of an OpenAI-compatible chat server that expands prompts; None: the built-in scene language."""
    prompt_upsampling_model: str | None = Field(
        None, validation_alias=_names("PROMPT_UPSAMPLING_MODEL", "PROMPT_UPSAMPLING_MODEL")
    )
    prompt_upsampling_api_key: SecretStr | None = Field(
        None, validation_alias=_names("PROMPT_UPSAMPLING_API_KEY", "PROMPT_UPSAMPLING_API_KEY")
    )
    prompt_upsampling_timeout_s: float = Field(
        30, gt=0, validation_alias=_names("PROMPT_UPSAMPLING_TIMEOUT_S", "PROMPT_UPSAMPLING_TIMEOUT_S")
    )
    prompt_upsampling_max_tokens: int = Field(
        512, ge=1, validation_alias=_names("PROMPT_UPSAMPLING_MAX_TOKENS", "PROMPT_UPSAMPLING_MAX_TOKENS")
    )

    captioning_endpoint_url: HttpUrl | None = None
    """Base URL of an OpenAI-compatible server with a vision model; None: the pixels are measured."""
    captioning_model: str | None = None
    captioning_api_key: SecretStr | None = None
    captioning_timeout_s: float = Field(30, gt=0)
    captioning_max_tokens: int = Field(512, ge=1)

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(key.strip() for key in value.split(",") if key.strip())
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _known_level(cls, value: Any) -> Any:
        return _LOG_LEVELS_UPSTREAM.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _upstream_timeout(cls, values: dict[str, Any]) -> dict[str, Any]:
        microseconds = values.get("NIM_TRITON_REQUEST_TIMEOUT")
        if microseconds is not None and "request_timeout_s" not in values:
            return {**values, "request_timeout_s": float(microseconds) / 1e6}
        return values

    @model_validator(mode="after")
    def _endpoints_name_a_model(self) -> Self:
        for name in ("prompt_upsampling", "captioning"):
            if getattr(self, f"{name}_endpoint_url") is not None and not getattr(self, f"{name}_model"):
                raise ValueError(f"{name}_endpoint_url needs {name}_model, the model's name at that endpoint")
        return self
