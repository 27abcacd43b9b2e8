"""What an operator can set: by flags of `cosmorama serve`, by `COSMORAMA_*` environment variables, or in a TOML file.

Where NIM for Cosmos has a setting of the same meaning, its `NIM_*` name works too; `COSMORAMA_*` wins. `read_settings`
reads them and says what is wrong in one sentence; `notices` says what in the environment has no effect.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import logging
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AliasChoices,
    ByteSize,
    Field,
    HttpUrl,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cosmorama import strictjson
from cosmorama.errors import CosmoramaError
from cosmorama.request import VAE_TILES
from cosmorama.world.load.options import Compile, DType, Offload, Quantize

LogLevel = Literal["critical", "error", "warning", "info", "debug"]
DialectName = Literal["auto", "predict1", "predict25", "generator1", "cosmos3", "transfer25"]


_UPSTREAM: Mapping[str, Mapping[str, str]] = {
    # Weights that are stored as FP8 are known by the checkpoint itself.
    "dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "auto"},
    "log_level": {"default": "info", "trace": "debug"},
    "log_format": {"1": "json", "true": "json", "0": "text", "false": "text"},
}
"""Upstream's words for values, by setting."""


def _names(name: str, *upstream: str) -> AliasChoices:
    return AliasChoices(f"COSMORAMA_{name}", *(f"NIM_{name}" for name in upstream))


def _state_dir() -> Path:
    """Where programs of one user keep what must outlive them (XDG Base Directory specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cosmorama"


_FILE: ContextVar[Path | None] = ContextVar("settings file", default=None)


class SettingsError(CosmoramaError):
    """A setting that cannot be used; the message names it as the operator wrote it, and holds no secret."""


class Settings(BaseSettings):
    """The settings of a server and of its worker process. Immutable; secrets do not show when it is printed."""

    model_config = SettingsConfigDict(
        env_prefix="COSMORAMA_",
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all of this machine's."""
    port: int = Field(8000, ge=0, le=65535, validation_alias=_names("PORT", "HTTP_API_PORT"))
    """Port to listen on; 0: any that is free."""
    log_level: LogLevel = Field("info", validation_alias=_names("LOG_LEVEL", "LOG_LEVEL"))
    """The least that is logged."""
    log_format: Literal["text", "json"] = Field(
        "text", validation_alias=_names("LOG_FORMAT", "LOGGING_JSONL", "JSONL_LOGGING")
    )
    """json: an object per line, with the job it is about."""
    otel: bool = Field(False, validation_alias=_names("OTEL", "ENABLE_OTEL"))
    """Send traces with OpenTelemetry, where the standard OTEL_* variables say."""
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), validation_alias=AliasChoices("COSMORAMA_API_KEYS", "COSMORAMA_API_KEY")
    )
    """Comma-separated keys, any of which lets a client in (`Authorization: Bearer`); `NAME:KEY` names a key in logs;
    not set: everyone, but see `COSMORAMA_ALLOWED_HOSTS`; set and empty: the server does not start."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Without keys: names in `Host`, comma-separated, that are served besides addresses, `localhost`, this machine's
    name, names without a dot, and `*.local`, `*.internal`."""
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins of web pages that may call this server (comma-separated; * for all); none: only its own."""
    studio_servers: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses of other servers (comma-separated) whose jobs the studio's history shows too; each of them has to let
    this one's pages in, with `COSMORAMA_CORS_ORIGINS`."""
    drain_s: float = Field(30, ge=0)
    """After SIGTERM, for how long jobs that run may go on; what is left then stays in the queue."""

    role: Literal["all", "api", "worker", "fleet"] = "all"
    """`api`: answers and generates nothing, for `cosmorama worker` processes that share its database and artifact
    store; `worker`: generates and answers health and metrics only; `fleet`: answers, and generates on a Ray cluster
    ([fleet.md](fleet.md))."""
    model: str = Field("microcosm", min_length=1, validation_alias=_names("MODEL", "MODEL_PATH"))
    """A known model's name, a checkpoint folder, or `owner/name@revision` on the model hub (also as
    `hf://owner/name:revision`)."""
    models: Annotated[dict[str, str], NoDecode] = {}
    """Several models, comma-separated `NAME=SOURCE` or known names; the first is the default one, and `COSMORAMA_MODEL`
    may not be set; the flag `--model` wins over this. None: `model`."""
    name: str | None = Field(None, min_length=1)
    """What clients call the one model that is served; None: its own name."""
    model_variant: str | None = Field(None, validation_alias=_names("MODEL_VARIANT", "MODEL_VARIANT"))
    """What `/v1/metadata` calls the model: nano, super...; clients of the Cosmos3 NIM look at it. None: by its name."""
    model_aliases: Annotated[dict[str, str], NoDecode] = {}
    """Other names of models (comma-separated ALIAS=NAME): sora-2=microcosm. The alias * is any name that is none."""
    model_memory: ByteSize | None = None
    """Of several models, at most so many bytes are kept loaded at a time; None: no limit."""
    model_idle_s: float | None = Field(None, gt=0)
    """Of several models, one that was not used for so long is unloaded; None: never."""
    cache_path: Path | None = Field(None, validation_alias=_names("CACHE_PATH", "CACHE_PATH"))
    """Folder in which models from the Hugging Face hub are kept; None: the hub library's own, as `HF_HOME` says."""
    disable_model_download: bool = Field(
        False, validation_alias=_names("DISABLE_MODEL_DOWNLOAD", "DISABLE_MODEL_DOWNLOAD")
    )
    """True: a model from the hub is taken from that folder only; where it is not there, the server does not become
    ready and says so."""
    warmup: bool = Field(False, validation_alias=_names("WARMUP", "ENABLE_WARMUP"))
    """True: a worker makes one small clip (two steps at the smallest size) before it is ready, so that the first
    request does not pay for what is done once; not with a model that starts only from a clip."""
    device: str = Field("auto", pattern=r"^(cpu|(auto|cuda)(:\d+)?)$")
    """Where the model runs: cpu, cuda or cuda:N; auto: on a GPU where there is one. Microcosm runs on the CPU."""
    dtype: Literal["auto", DType] = Field("auto", validation_alias=_names("DTYPE", "PRECISION"))
    """Of the weights: float32, bfloat16 or float16; auto: as they are stored. See [memory](memory.md)."""
    offload: Offload = Field("none", validation_alias=_names("OFFLOAD", "OFFLOAD_MODE"))
    """What waits in the CPU's memory: nothing, the text encoder, or every layer of it and of the denoiser."""
    quantize: Quantize = "none"
    """What the matrices of the denoiser's blocks are held as instead of the dtype: int8, or float8 on newer GPUs; both
    change frames a little."""
    variant: str | None = None
    """Which of several copies of the weights is loaded, for example `fp16`: the files with that word in their names, of
    every part that has them; see [models.md](models.md#which-files-are-the-model). None: the usual files."""
    controls: Annotated[tuple[str, ...], NoDecode] = ()
    """Of Transfer2.5 from the hub: the kinds of control to load, comma-separated; see
    [models.md](models.md#on-the-hugging-face-hub). None: all there are."""
    compile: Compile = "kernels"
    """What torch.compile makes faster on a GPU: `none`, `kernels` (norm and rotary embedding of queries and keys as
    one), `blocks`; see [speed](speed.md#compiled)."""
    attention: str = Field("auto", pattern=r"^[a-z0-9_]+$")
    """Kernel of the denoiser's self-attention, by diffusers' names: native, _native_cudnn, _flash_3_hub, sage, ...;
    auto is torch's own choice. What is not installed is refused at the start."""
    fps_modulation: bool = False
    """Predict2 only: positions in time follow the frame rate, as in diffusers; NVIDIA's released models have it off."""
    vae_tiling: int = 0
    """Where a request does not say: frames in tiles of so many pixels a side (128, 192, 256, 384, 512 or 768), 0 is
    exact; see [memory](memory.md)."""
    adapters: Annotated[dict[str, Path], NoDecode] = Field(default_factory=dict)
    """LoRA adapters that requests may choose: name=path, comma-separated; safetensors."""
    parallel: Literal["none", "guidance", "sequence"] = "none"
    """guidance: a second process, on the second GPU, evaluates the negative prompt at the same time; sequence: several
    processes, each on a GPU of its own, share the tokens of every clip."""
    parallel_processes: int = Field(2, ge=2)
    """With `parallel`, how many; guidance takes 2."""
    threads: int | None = Field(None, ge=1)
    """CPU threads of the worker; None: all cores, in a container no more than its quota."""
    replicas: int = Field(1, ge=1, le=1024)
    """Workers with the same model behind one queue, each on the next GPU (with `COSMORAMA_PARALLEL` each on the next
    few); not with several models. Of a fleet: replicas of each model at most."""
    min_replicas: int | None = Field(None, ge=0)
    """Of a fleet: so many replicas of each model stay when there is no work; between the two Ray adds one when all have
    `COSMORAMA_MAX_ACTIVE` jobs. None: all."""
    replica_idle_s: float = Field(600, gt=0)
    """Of a fleet: a replica is given back when for so long fewer were needed; a model takes minutes to load."""
    max_active: int = Field(2, ge=1)
    """Generations held by the worker at once; one more where it goes before all of them."""
    max_queue: int = Field(32, ge=0)
    """Generations that may wait for their turn; one more is refused with 429."""
    request_timeout_s: float = Field(1800, gt=0)
    """From the arrival of a synchronous request to the end of its generation."""
    hang_s: float = Field(120, gt=0)
    """A worker is replaced when a unit of work (a step, a few frames) takes longer than this and 20 times longer than
    the longest of its size so far; the first of a size has five times as long on a GPU, and on a CPU as long as it
    computes."""
    upstream_request_timeout_us: float | None = Field(
        None, gt=0, validation_alias="NIM_TRITON_REQUEST_TIMEOUT", exclude=True
    )
    """The same in microseconds, as upstream has it."""
    state_dir: Path = Field(default_factory=_state_dir)
    """Where jobs live unless `COSMORAMA_DATABASE_URL` and `COSMORAMA_ARTIFACTS` say otherwise, and clips while they are
    made."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL of the job store, sqlite:///FILE or postgresql://...; None: a SQLite file in `state_dir`."""
    artifacts: str | None = None
    """Inputs and results: a folder, or an [fsspec](https://filesystem-spec.readthedocs.io) URL such as
    `s3://bucket/prefix` (needs `pip install s3fs`). None: in `state_dir`."""
    retention_s: float = Field(7 * 86400, gt=0)
    """Age, since its end, at which a job and its files are removed."""
    max_artifact_bytes: int = Field(50_000_000_000, ge=1)
    """Above it the files of the oldest finished jobs are removed first."""
    lease_s: float = Field(15, ge=1)
    """After so long without a sign of life from a server, others that share its store take over its jobs."""
    max_jobs_per_key: int | None = Field(None, ge=1)
    """Unfinished jobs of one API key; None: half of all that may be, where there are several keys."""
    webhook_secret: SecretStr | None = None
    """Signs webhooks (Standard Webhooks: whsec_ and base64 of 24 to 64 bytes); None: no webhooks."""

    allow_url_input: bool = Field(True, validation_alias=_names("ALLOW_URL_INPUT", "ALLOW_URL_INPUT"))
    """False: images and videos only as data."""
    allow_private_urls: bool = False
    """Let image and video URLs point at private addresses: for trusted clients only."""
    max_input_bytes: int = Field(75_000_000, ge=1)
    """Of an image or a video, decoded from base64 or downloaded."""
    url_timeout_s: float = Field(30, gt=0)
    """For the whole download of an image or a video."""
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
    """The model's name there."""
    prompt_upsampling_api_key: SecretStr | None = Field(
        None, validation_alias=_names("PROMPT_UPSAMPLING_API_KEY", "PROMPT_UPSAMPLING_API_KEY")
    )
    """Sent there as a bearer token."""
    prompt_upsampling_timeout_s: float = Field(
        30, gt=0, validation_alias=_names("PROMPT_UPSAMPLING_TIMEOUT_S", "PROMPT_UPSAMPLING_TIMEOUT_S")
    )
    """For one expansion; not set: 120 for Cosmos3. On any failure the prompt is used as it is, which a warning says."""
    prompt_upsampling_max_tokens: int = Field(
        512, ge=1, validation_alias=_names("PROMPT_UPSAMPLING_MAX_TOKENS", "PROMPT_UPSAMPLING_MAX_TOKENS")
    )
    """The longest expansion that is asked for; not set: 8192 for Cosmos3."""
    prompt_upsampling_temperature: float = Field(
        0.01, ge=0, le=2, validation_alias=_names("PROMPT_UPSAMPLING_TEMPERATURE", "PROMPT_UPSAMPLING_TEMPERATURE")
    )
    """Sent there; not set: not sent for Cosmos3."""
    prompt_upsampling_template_style: Literal["external_api", "reasoner"] = Field(
        "external_api", validation_alias=_names("PROMPT_UPSAMPLING_TEMPLATE_STYLE", "PROMPT_UPSAMPLING_TEMPLATE_STYLE")
    )
    """Whether that server is told what to write in a system turn, or, as a reasoner wants it, beside the prompt."""
    prompt_upsampling_top_p: float | None = Field(
        None, gt=0, le=1, validation_alias=_names("PROMPT_UPSAMPLING_TOP_P", "PROMPT_UPSAMPLING_TOP_P")
    )
    """None: it is not sent."""
    prompt_upsampling_top_k: int | None = Field(
        None, ge=1, validation_alias=_names("PROMPT_UPSAMPLING_TOP_K", "PROMPT_UPSAMPLING_TOP_K")
    )
    """None: it is not sent."""
    prompt_upsampling_extra_body: Annotated[dict[str, Any], NoDecode] = Field(
        {}, validation_alias=_names("PROMPT_UPSAMPLING_EXTRA_BODY", "PROMPT_UPSAMPLING_EXTRA_BODY")
    )
    """JSON object whose fields are sent to that server too."""

    prompt_upsampling_checkpoint: Path | None = None
    """Instead of a server: folder of a transformers checkpoint with a chat template, run in a process of its own on
    `COSMORAMA_DEVICE`; its timeout is 300 where none is set."""

    captioning_checkpoint: Path | None = None
    """The same as `COSMORAMA_PROMPT_UPSAMPLING_CHECKPOINT` for captions; a model that takes pictures. Both may be one
    folder, which is loaded once."""
    captioning_endpoint_url: HttpUrl | None = None
    """Base URL of an OpenAI-compatible server with a vision model; None: the pixels are measured."""
    captioning_model: str | None = None
    """The model's name there."""
    captioning_api_key: SecretStr | None = None
    """Sent there as a bearer token."""
    captioning_timeout_s: float = Field(30, gt=0)
    """For one description; on any failure the pixels are measured instead."""
    captioning_max_tokens: int = Field(512, ge=1)
    """The longest description that is asked for."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code wins over the environment, and that over the file."""
        file = _FILE.get()
        toml = () if file is None else (TomlConfigSettingsSource(settings_cls, file),)
        return (init_settings, env_settings, *toml)

    @field_validator("model", mode="before")
    @classmethod
    def _hub_address(cls, value: Any) -> Any:
        """hf://owner/name:revision, as upstream writes it, is owner/name@revision here."""
        return _from_hub_address(value) if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        keys = value.split(",") if isinstance(value, str) else value
        if isinstance(keys, (list, tuple)):
            for key in keys:
                text = key.get_secret_value() if isinstance(key, SecretStr) else str(key)
                if not any(map(str.isalnum, text.partition(":")[2] if ":" in text else text)):
                    raise ValueError("api_keys: an empty key would let everybody in; expected KEY or NAME:KEY, ...")
            return tuple(key.strip() if isinstance(key, str) else key for key in keys)
        return value

    @model_validator(mode="after")
    def _keys_that_are_set_are_some(self) -> Self:
        # Elsewhere an empty variable is as good as none; here it is a secret that was not filled in.
        if not self.api_keys and any(name in os.environ for name in ("COSMORAMA_API_KEYS", "COSMORAMA_API_KEY")):
            raise ValueError("api_keys: COSMORAMA_API_KEYS is set and holds no key; unset it to let everybody in")
        return self

    @field_validator("controls", "cors_origins", "allowed_hosts", "studio_servers", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("studio_servers")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # They become part of a header that says whom the page may ask.
        for each in value:
            if not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?", each):
                raise ValueError(f"studio_servers: {each!r} is not the http(s) address of a server")
        return tuple(each.rstrip("/") + "/" for each in value)

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
            source = _from_hub_address(source)
            if not name or not source or name in found:
                raise ValueError(f"models: {part!r} is not accepted; expected NAME=SOURCE with a name of its own")
            found[name] = source
        return found

    @field_validator("model_aliases", "adapters", mode="before")
    @classmethod
    def _pairs(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(name.strip() and meant.strip() for name, _, meant in pairs):
            form = "name=path" if info.field_name == "adapters" else "ALIAS=NAME"
            raise ValueError(f"{info.field_name} is {value!r}; it must be {form}, comma-separated")
        return {name.strip(): meant.strip() for name, _, meant in pairs}

    @field_validator("prompt_upsampling_extra_body", mode="before")
    @classmethod
    def _is_an_object(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return strictjson.loads(value)
        except strictjson.RepeatedFieldError:
            raise
        except ValueError:
            raise ValueError("it must be a JSON object") from None

    @field_validator("dtype", "log_level", "log_format", mode="before")
    @classmethod
    def _upstream_words(cls, value: Any, info: ValidationInfo) -> Any:
        return _UPSTREAM[str(info.field_name)].get(value.lower(), value.lower()) if isinstance(value, str) else value

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
    def _replicas_have_one_model(self) -> Self:
        if self.role == "fleet":
            if self.min_replicas is not None and self.min_replicas > self.replicas:
                raise ValueError(f"min_replicas is {self.min_replicas}; it must be at most replicas, {self.replicas}")
            for name in ("model_memory", "model_idle_s"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for one machine; of a fleet, min_replicas 0 gives up idle models")
            for name in ("prompt_upsampling", "captioning"):
                if getattr(self, f"{name}_checkpoint") is not None:
                    raise ValueError(f"{name}_checkpoint is for one machine; replicas need {name}_endpoint_url")
        elif self.replicas > 1 and self.models:
            raise ValueError(f"replicas is {self.replicas}; with several models it must be 1")
        elif self.min_replicas is not None:
            raise ValueError("min_replicas is for a fleet ('cosmorama fleet'); here all replicas stay")
        return self

    @property
    def places(self) -> int:
        """Generations that are worked on at once, by all replicas."""
        return self.max_active * self.replicas

    @model_validator(mode="after")
    def _endpoints_name_a_model(self) -> Self:
        for name in ("prompt_upsampling", "captioning"):
            url, checkpoint = getattr(self, f"{name}_endpoint_url"), getattr(self, f"{name}_checkpoint")
            if url is not None and checkpoint is not None:
                raise ValueError(f"{name}_endpoint_url and {name}_checkpoint are both set; one of them writes")
            if checkpoint is not None and not (checkpoint / "config.json").is_file():
                raise ValueError(f"{name}_checkpoint is {checkpoint}; it must be a folder with a config.json")
            if url is not None and not getattr(self, f"{name}_model"):
                raise ValueError(f"{name}_endpoint_url needs {name}_model, the model's name at that endpoint")
        return self


CLIENT_VARIABLES = frozenset(
    {"COSMORAMA_SERVER", "COSMORAMA_API_KEY", "COSMORAMA_CONFIG", "COSMORAMA_DEBUG", "COSMORAMA_TESTS"}
    | {"COSMORAMA_JUDGE_URL", "COSMORAMA_JUDGE_MODEL", "COSMORAMA_JUDGE_API_KEY"}
)
"""Variables of ours that are no settings of a server."""
_SERVICE_LINK = re.compile(r".*_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
"""What Kubernetes sets for a service called cosmorama."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "NIM_MODEL_PROFILE": "there are no prebuilt profiles; COSMORAMA_DTYPE, COSMORAMA_OFFLOAD, COSMORAMA_QUANTIZE and "
    "COSMORAMA_PARALLEL say how a model runs",
    "NIM_PERF_PROFILE": "there are no two modes of scheduling; COSMORAMA_MAX_ACTIVE says how many generations take "
    "turns",
    "NIM_TAGS_SELECTOR": "there are no prebuilt profiles to choose from",
    "NIM_MODEL_TYPE": "a server generates; there is no reasoner",
    "NIM_MODEL_SIZE": "COSMORAMA_MODEL says which model is served",
    "NIM_ENABLE_TORCH_COMPILE": "COSMORAMA_COMPILE says what is compiled",
    "NIM_MAX_SEQUENCE_LENGTH": "the model's own length counts",
    "NIM_GRPC_API_PORT": "there is no gRPC",
    "NIM_TRITON_LOG_VERBOSE": "there is no Triton; COSMORAMA_LOG_LEVEL=debug logs more",
    "NIM_FT_CHECKPOINT": "COSMORAMA_MODEL takes the folder of a fine-tuned checkpoint",
    "NIM_ALLOW_UNSAFE_TRANSFER": "what does not fit in memory is refused",
    "NIM_OFFLOAD_TEXT_GUARDRAIL": "a guardrail stays where it is loaded",
    "NIM_OFFLOAD_VIDEO_GUARDRAIL": "a guardrail stays where it is loaded",
}
"""Names of NIM for Cosmos that nothing follows from, and why; others are told of without a reason."""


def read_settings(flags: Mapping[str, Any] | None = None, file: Path | None = None) -> Settings:
    """The settings from flags, the environment and a TOML file, in this order of precedence.

    Args:
        flags: Values by the names of `Settings`' fields, as text or as what they are.
        file: None: the one that `COSMORAMA_CONFIG` names, if any.

    Raises:
        SettingsError: a value that is not accepted, an unknown name in the file, or a file that cannot be read.
    """
    flags = dict(flags or {})
    named = os.environ.get("COSMORAMA_CONFIG")
    file = file or (Path(named) if named else None)
    in_file = _read(file) if file is not None else {}
    # Whoever names one model means it, also where several are set somewhere less close at hand.
    places = (flags, {name: True for name in ("model", "models") if _variable_of(name)}, in_file)
    for place in places:
        if "model" in place and "models" in place:
            raise SettingsError("one model and several are set (model, models); set one of the two")
        if "model" in place and any("models" in other for other in places):
            flags["models"] = {}
            break
        if "models" in place:
            break
    token = _FILE.set(file)
    try:
        return Settings(**flags)
    except ValidationError as error:
        problems = [_told(problem, flags, in_file) for problem in error.errors(include_url=False)]
        raise SettingsError("; ".join(problems)) from None
    except ValueError as error:  # a variable that should hold JSON
        raise SettingsError(_first_line(error)) from None
    finally:
        _FILE.reset(token)


def notices(settings: Settings, environment: Mapping[str, str]) -> list[tuple[int, str]]:
    """What an operator should know about the environment, each with its level of logging.

    Every `NIM_*` name that is set and not read is told of, and every `COSMORAMA_*` name that is no setting.
    """
    found = []
    known = set(CLIENT_VARIABLES) | {name for field in Settings.model_fields for name in variables_of(field)}
    for name, value in sorted(environment.items()):
        if not value.strip() or name in known:
            continue
        if name.startswith("NIM_"):
            why = WITHOUT_EFFECT.get(name, "this server does not know it")
            if _safety(name) and value.strip().lower() not in ("0", "false", "no", "off"):
                text = (
                    f"{name}={value} ASKS FOR A SAFETY CHECK THAT IS NOT MADE HERE: {why}; see COSMORAMA_TEXT_GUARDRAIL"
                )
                found.append((logging.ERROR, f"{text}, COSMORAMA_VIDEO_GUARDRAIL and COSMORAMA_BLOCKED_WORDS"))
            else:
                shown = "" if re.search("KEY|TOKEN|SECRET|PASSWORD", name) else f"={value}"
                found.append((logging.WARNING, f"{name}{shown} has no effect: {why}"))
        elif name.startswith("COSMORAMA_") and not _SERVICE_LINK.fullmatch(name):
            found.append((logging.WARNING, f"{name} has no effect: there is no such setting{_meant(name, known)}"))
    if settings.role in ("api", "worker") and (settings.database_url is None or settings.artifacts is None):
        name, what = ("ARTIFACTS", "clips") if settings.database_url is not None else ("DATABASE_URL", "jobs")
        found.append(
            (
                logging.WARNING,
                f"COSMORAMA_{name} is not set: {what} are shared only with servers of this machine "
                f"that have the same COSMORAMA_STATE_DIR, {settings.state_dir}",
            )
        )
    if environment.get("NIM_PRECISION", "").lower() == "fp8" and settings.dtype == "auto":
        found.append((logging.WARNING, "NIM_PRECISION=fp8: the type of the weights is the checkpoint's own"))
    variant = environment.get("NIM_MODEL_VARIANT", "").strip()
    if variant and not settings.models and settings.model == Settings.model_fields["model"].default:
        found.append(
            (
                logging.WARNING,
                f"NIM_MODEL_VARIANT={variant} chooses no weights: {settings.model} is served, and stands in for it; "
                f"COSMORAMA_MODEL=cosmos3-{variant.lower()} serves the model",
            )
        )
    return found


def variables_of(field: str) -> tuple[str, ...]:
    """The names that a setting has in the environment, ours first."""
    alias = Settings.model_fields[field].validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(str(choice) for choice in alias.choices)
    return (alias if isinstance(alias, str) else f"COSMORAMA_{field.upper()}",)


def _safety(name: str) -> bool:
    return "GUARDRAIL" in name and "OFFLOAD" not in name


def _from_hub_address(source: str) -> str:
    if not source.startswith("hf://"):
        return source
    name, _, revision = source.removeprefix("hf://").partition(":")
    return f"{name}@{revision}" if revision else name


def _variable_of(field: str) -> str | None:
    return next((name for name in variables_of(field) if os.environ.get(name)), None)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"the settings file {file} cannot be read: {_first_line(error)}") from None
    for name in found:
        if name not in Settings.model_fields:
            raise SettingsError(f"{file}: there is no setting {name!r}{_meant(name, Settings.model_fields)}")
    return found


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    if not close:  # COSMORAMA_MAXQUEUE
        close = [one for one in known if one.replace("_", "") == name.replace("_", "")]
    return f"; did you mean {close[0]}?" if close else ""


def _told(problem: Any, flags: Mapping[str, Any], in_file: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    place = str(problem["loc"][0])
    field = next((name for name in Settings.model_fields if place in (name, *variables_of(name))), place)
    if field not in Settings.model_fields:
        return f"{place}: {message}"
    value: Any
    variable = _variable_of(field)
    if field in flags:
        said, value = "--" + field.replace("_", "-"), flags[field]
    elif variable is not None:
        said, value = variable, os.environ[variable]
    else:
        said, value = field, in_file.get(field)
    shown = "" if "Secret" in str(Settings.model_fields[field].annotation) else f" {str(value)[:80]!r} is not accepted:"
    return f"{said}:{shown} {message[:1].lower()}{message[1:]}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
