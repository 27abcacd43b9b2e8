"""What an operator can set, from `COSMORAMA_*` environment variables or in code.

Where NIM for Cosmos has a setting of the same meaning, its `NIM_*` name works too; `COSMORAMA_*` wins.
"""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, ByteSize, Field, HttpUrl, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cosmorama.request import VAE_TILES

LogLevel = Literal["critical", "error", "warning", "info", "debug"]
DialectName = Literal["auto", "predict1", "predict25", "generator1", "cosmos3", "transfer25"]

DType = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES_UPSTREAM = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_LOG_LEVELS_UPSTREAM = {"default": "info", "trace": "debug"}
_LOG_FORMATS_UPSTREAM = {"1": "json", "true": "json", "0": "text", "false": "text"}


def _names(name: str, upstream: str) -> AliasChoices:
    return AliasChoices(f"COSMORAMA_{name}", f"NIM_{upstream}")


def _state_dir() -> Path:
    """Where programs of one user keep what must outlive them (XDG Base Directory specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cosmorama"


class Settings(BaseSettings):
    """The settings of a server and of its worker process. Immutable; secrets do not show when it is printed."""

    model_config = SettingsConfigDict(
        env_prefix="COSMORAMA_", populate_by_name=True, frozen=True, extra="ignore", env_ignore_empty=True
    )

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535, validation_alias=_names("PORT", "HTTP_API_PORT"))
    log_level: LogLevel = Field("info", validation_alias=_names("LOG_LEVEL", "LOG_LEVEL"))
    log_format: Literal["text", "json"] = Field("text", validation_alias=_names("LOG_FORMAT", "LOGGING_JSONL"))
    """json: an object per line, with the job it is about."""
    otel: bool = Field(False, validation_alias=_names("OTEL", "ENABLE_OTEL"))
    """Send traces with OpenTelemetry, where the standard OTEL_* variables say."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), validation_alias=AliasChoices("COSMORAMA_API_KEYS", "COSMORAMA_API_KEY")
    )
    """Any of these lets a client in (comma-separated); none: everyone is let in. NAME:KEY gives a key a name."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of web pages that may call this server (comma-separated; * for all); none: only its own."""
    drain_s: float = Field(30, ge=0)
    """After SIGTERM, for how long jobs that run may go on; what is left then stays in the queue."""

    role: Literal["all", "api", "worker"] = "all"
    """all: answers and generates; api: answers only, for workers that share its database; worker: generates only."""
    model: str = Field("microcosm", min_length=1, validation_alias=_names("MODEL", "MODEL_PATH"))
    """A known model's name, or the folder of a checkpoint."""
    models: Annotated[dict[str, str], NoDecode] = {}
    """Several models by name (comma-separated NAME=SOURCE, or SOURCE alone), the default one first; none: `model`."""
    model_memory: ByteSize | None = None
    """Of several models, at most so many bytes are kept loaded at a time; None: no limit."""
    model_idle_s: float | None = Field(None, gt=0)
    """Of several models, one that was not used for so long is unloaded; None: never."""
    cache_path: Path | None = Field(None, validation_alias=_names("CACHE_PATH", "CACHE_PATH"))
    """Folder in which models from the Hugging Face hub are kept; None: the hub library's own, as `HF_HOME` says."""
    disable_model_download: bool = Field(
        False, validation_alias=_names("DISABLE_MODEL_DOWNLOAD", "DISABLE_MODEL_DOWNLOAD")
    )
    """True: models from the hub are taken from that folder only."""
    warmup: bool = Field(False, validation_alias=_names("WARMUP", "ENABLE_WARMUP"))
    """Whether a worker makes one small clip before it is ready."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """Where the model runs: cpu, cuda or cuda:N; auto: on a GPU where there is one. Microcosm runs on the CPU."""
    dtype: DType = Field("auto", validation_alias=_names("DTYPE", "PRECISION"))
    """Of the weights; auto: as they are stored."""
    offload: Literal["none", "model", "layer"] = Field("none", validation_alias=_names("OFFLOAD", "OFFLOAD_MODE"))
    """What waits in the CPU's memory: nothing, the text encoder, or every layer of it and of the denoiser."""
    quantize: Literal["none", "int8"] = "none"
    """What the matrices of the denoiser's blocks are held as instead of the dtype: int8 changes frames a little."""
    variant: str | None = None
    """Of the weights, for example fp16, taken where a part of the model has it; None: the usual files."""
    vae_tiling: int = 0
    """Where a request does not say: frames are encoded and decoded in tiles of so many pixels a side; 0 is exact."""
    adapters: Annotated[dict[str, Path], NoDecode] = Field(default_factory=dict)
    """LoRA adapters that requests may choose: name=path, comma-separated; safetensors."""
    parallel: Literal["none", "guidance", "sequence"] = "none"
    """guidance: a second process, on the second GPU, evaluates the negative prompt at the same time; sequence: several
    processes, each on a GPU of its own, share the tokens of every clip."""
    parallel_processes: int = Field(2, ge=2)
    """With `parallel`, how many; guidance takes 2."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the worker; None: all."""
    max_active: int = Field(2, ge=1)
    """Generations held by the worker at once; one more where it goes before all of them."""
    max_queue: int = Field(32, ge=0)
    """Generations that may wait for their turn; one more is refused with 429."""
    request_timeout_s: float = Field(1800, gt=0)
    """From the arrival of a synchronous request to the end of its generation."""
    hang_s: float = Field(120, gt=0)
    """A worker is replaced when a unit of work takes longer than this, and 20 times longer than the longest so far; the
    first of its size has five times as long on a GPU, and on a CPU as long as it computes."""
    upstream_request_timeout_us: float | None = Field(
        None, gt=0, validation_alias="NIM_TRITON_REQUEST_TIMEOUT", exclude=True
    )
    """The same in microseconds, as upstream has it."""
    state_dir: Path = Field(default_factory=_state_dir)
    """Where jobs live unless `database_url` and `artifacts` say otherwise, and clips while they are made."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL of the job store, sqlite:///FILE or postgresql://...; None: a SQLite file in `state_dir`."""
    artifacts: str | None = None
    """Folder or fsspec URL (s3://bucket/prefix, ...) of inputs and results; None: in `state_dir`."""
    retention_s: float = Field(7 * 86400, gt=0)
    """Age, since its end, at which a job and its files are removed."""
    max_artifact_bytes: int = Field(50_000_000_000, ge=1)
    """Above it the files of the oldest finished jobs are removed first."""
    lease_s: float = Field(15, ge=1)
    """After so long without a sign of life from a server, others that share its store take over its jobs."""
    max_jobs_per_key: int | None = Field(None, ge=1)
    """Unfinished jobs of one API key; None: only `max_queue` counts."""
    webhook_secret: SecretStr | None = None
    """Signs webhooks (Standard Webhooks: whsec_ and base64 of 24 to 64 bytes); None: no webhooks."""

    allow_url_input: bool = Field(True, validation_alias=_names("ALLOW_URL_INPUT", "ALLOW_URL_INPUT"))
    allow_private_urls: bool = False
    """Let image and video URLs point at private addresses: for trusted clients only."""
    max_input_bytes: int = Field(75_000_000, ge=1)
    """Of an image or a video, decoded from base64 or downloaded."""
    url_timeout_s: float = Field(30, gt=0)
    video_quality: int = Field(7, ge=1, le=9, validation_alias=_names("VIDEO_QUALITY", "VIDEO_SAVE_QUALITY"))
    """Used where a request does not say."""
    reuse: float = Field(0, ge=0, le=1)
    """Step reuse where a request does not say: the accepted relative change of the network's answers; 0 is exact."""

    dialect: DialectName = "auto"
    """Wire format of `POST /v1/infer`; auto: told from each body's shape."""
    size_policy: Literal["strict", "fit"] = "strict"
    """What becomes of a Predict1 body with a size or rate that the model lacks: refused, or resampled to."""

    blocked_words: Path | None = None
    """File of words and phrases, one per line, that prompts may not contain; None: no such check."""
    text_guardrail: bool = Field(False, validation_alias=_names("TEXT_GUARDRAIL", "ENABLE_TEXT_GUARDRAILS"))
    """Whether NVIDIA's published guardrail looks at prompts."""
    video_guardrail: bool = Field(False, validation_alias=_names("VIDEO_GUARDRAIL", "ENABLE_VIDEO_GUARDRAILS"))
    """Whether it looks at frames, and pixelates faces."""

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

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _is_a_webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                key = base64.b64decode(value.get_secret_value().removeprefix("whsec_"), validate=True)
            except binascii.Error:
                key = b""
            if not 24 <= len(key) <= 64:
                raise ValueError("webhook_secret must be whsec_ and base64 of 24 to 64 bytes")
        return value

    @field_validator("vae_tiling")
    @classmethod
    def _is_a_tile(cls, value: int) -> int:
        if value not in (0, *VAE_TILES):
            raise ValueError(f"vae_tiling is {value}; it must be one of 0, {', '.join(map(str, VAE_TILES))}")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _named_models(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found: dict[str, str] = {}
        for part in filter(None, map(str.strip, value.split(","))):
            name, equals, source = part.partition("=")
            name, source = (name, source) if equals else (Path(part).name if Path(part).is_dir() else part, part)
            if not name or not source or name in found:
                raise ValueError(f"models: {part!r} is not accepted; expected NAME=SOURCE with a name of its own")
            found[name] = source
        return found

    @field_validator("adapters", mode="before")
    @classmethod
    def _split_adapters(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(name.strip() and path.strip() for name, _, path in pairs):
            raise ValueError(f"adapters is {value!r}; it must be name=path, comma-separated")
        return {name.strip(): path.strip() for name, _, path in pairs}

    @field_validator("dtype", mode="before")
    @classmethod
    def _known_dtype(cls, value: Any) -> Any:
        return _DTYPES_UPSTREAM.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _known_level(cls, value: Any) -> Any:
        return _LOG_LEVELS_UPSTREAM.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @field_validator("log_format", mode="before")
    @classmethod
    def _upstream_log_format(cls, value: Any) -> Any:
        return _LOG_FORMATS_UPSTREAM.get(value.lower(), value.lower()) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _upstream_timeout(cls, values: dict[str, Any]) -> dict[str, Any]:
        microseconds = values.get("NIM_TRITON_REQUEST_TIMEOUT")
        if microseconds is not None and "request_timeout_s" not in values:
            return {**values, "request_timeout_s": float(microseconds) / 1e6}
        return values

    @model_validator(mode="after")
    def _guidance_has_two_halves(self) -> Self:
        if self.parallel == "guidance" and self.parallel_processes != 2:
            raise ValueError(f"parallel_processes is {self.parallel_processes}; with parallel=guidance it must be 2")
        return self

    @model_validator(mode="after")
    def _endpoints_name_a_model(self) -> Self:
        for name in ("prompt_upsampling", "captioning"):
            if getattr(self, f"{name}_endpoint_url") is not None and not getattr(self, f"{name}_model"):
                raise ValueError(f"{name}_endpoint_url needs {name}_model, the model's name at that endpoint")
        return self
