"""Every knob, in frozen dataclasses, each with its unit, default and reason. The only reader of the environment.

A field `queue.capacity` is read from `PREDICTORS_QUEUE_CAPACITY`; the table in `docs/configuration.md` is made from
this file. Names that users already know are read as well (`HOST`, `PORT`, `GRPC_PORT`). Knows nothing of who uses what.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass

from predictors.errors import InvalidRequest

PREFIX = "PREDICTORS"
ALIASES = {
    "PREDICTORS_SERVER_HOST": "HOST",
    "PREDICTORS_SERVER_PORT": "PORT",
    "PREDICTORS_SERVER_GRPC_PORT": "GRPC_PORT",
}
CHOICES: Mapping[str, tuple[object, ...]] = {
    "PREDICTORS_SERVER_LOG_FORMAT": ("auto", "text", "json"),
    "PREDICTORS_SERVER_LOG_LEVEL": ("info", "debug", "warning", "error"),
    "PREDICTORS_QUEUE_OVERLOAD_STATUS": (503, 429),
    "PREDICTORS_COMPUTE_DTYPE": ("auto", "float32", "bfloat16", "float16"),
    "PREDICTORS_COMPUTE_COMPILE": ("auto", "off", "aot_eager", "inductor"),
    "PREDICTORS_COMPUTE_ATTENTION": (
        "auto",
        "cudnn",
        "flash",
        "flash_attn_3",
        "fa3_fwd",
        "flash_attn_2",
        "efficient",
        "sdpa",
    ),
    "PREDICTORS_CLUSTER_EVENTS": ("auto", "on", "off"),
    "PREDICTORS_FLUX_UNPROMISED": ("serve", "refuse"),
    "PREDICTORS_QWEN_VL_DETERMINISTIC": ("auto", "on", "off"),
    "PREDICTORS_QWEN_VL_PREFIX_CACHE": ("auto", "on", "off"),
}
LEAST: Mapping[str, float] = {
    "PREDICTORS_SERVER_GRPC_PORT": -1,
    "PREDICTORS_SERVER_ADMIN_PORT": -1,
    "PREDICTORS_SERVER_PREPARE_THREADS": 1,
    "PREDICTORS_CLUSTER_TIMEOUT_S": 0.1,
    "PREDICTORS_FLUX_SLOTS": 1,
    "PREDICTORS_QWEN_VL_DEFAULT_MAX_TOKENS": 1,
}  # every other number is at least 0


class InvalidSetting(InvalidRequest):
    """An environment variable has a value that can't be used; the message names the variable."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the process listens and how it goes."""

    host: str = "127.0.0.1"
    """Address that REST and gRPC bind. The image and the chart set 0.0.0.0; nothing else should."""
    allowed_hosts: str = ""
    """Names, comma-separated and without ports, that a request's `Host` may have besides localhost and loopback addresses; `*.example.com` allows what is below it, `*` any. Others are refused with 421, but for probes and `/metrics`. Empty: only loopback names where `host` is loopback, else any."""
    port: int = 8080
    """HTTP port; 0 takes a free one."""
    grpc_port: int = 8081
    """gRPC port; 0 takes a free one, -1 turns gRPC off."""
    admin_port: int = -1
    """Port of `/debug/engine` and `/debug/profile`, for operators; 0 takes a free one, -1 is off. They are unauthenticated."""
    admin_host: str = "127.0.0.1"
    """Address that the admin port binds. Whoever reaches it sees request ids and can slow the server down by profiling it."""
    linger_s: float = 0.0
    """After SIGTERM readiness is false at once, but whoever still comes is served for this long and told to come back elsewhere (`Connection: close`, GOAWAY): clients that keep connections learn of the end no other way. The chart sets it."""
    drain_timeout_s: float = 300.0
    """After SIGTERM, and `linger_s`, accepted work is finished for at most this long, then the rest is failed with 503."""
    keep_alive_s: float = 65.0
    """Idle HTTP connections are closed after this; longer than the usual load balancer's 60 s."""
    max_connections: int = 0
    """HTTP connections at once, at least 8; beyond them those that have waited longest for a request are closed, and when all are busy the next is answered 503, but for probes. 0: as many as the limit of open files leaves when 64 of it, or a quarter, are set aside; at most 8192."""
    write_timeout_s: float = 30.0
    """A connection whose caller takes less than 1 KiB per second of its response, on average over so many seconds, is cut off and its request's place freed; 0 waits for ever."""
    max_body_bytes: int = 64 * 2**20
    """Largest request body over HTTP; more is 413."""
    max_message_bytes: int = 32 * 2**20
    """Largest gRPC message, inflated; more is RESOURCE_EXHAUSTED. gRPC copies a message whole, and holds up everything else for about a millisecond per MiB."""
    max_bytes_in_flight: int = 256 * 2**20
    """Bytes of request bodies that are held together, from their arrival to their answer; more is 503. The first 64 KiB of each request do not count."""
    body_timeout_s: float = 10.0
    """Every 64 KiB of a request body must arrive within this time, and the whole within a minute; else 504."""
    repository_api: bool = False
    """Whether `/v2/repository/.../load` and `unload` work. Off: they are unauthenticated."""
    access_log: bool = True
    """One line per request (method, route, status, milliseconds, request id), probes excluded."""
    log_format: str = "auto"
    """`text`, `json` (one object per line), or `auto`: text on a terminal, JSON otherwise."""
    log_level: str = "info"
    """Least level that is logged; `warning` leaves out access and outcome lines."""
    log_prompts: bool = False
    """Whether outcome lines hold the callers' prompts. Off: they are private."""
    prepare_threads: int = 0
    """Threads that tokenise, cut pictures into patches and encode, so that neither loop nor engine does; 0 takes half the cores, 2 to 8. As many again, at a lower priority, do what is large."""
    workers: int = 0
    """Processes that parse large bodies and decode pictures, outside of the server's interpreter; 0 takes half the cores, 2 to 4. At least 2."""
    worker_memory_bytes: int = 2**30
    """Memory that reading bodies and decoding pictures may take at a time, all workers together; what needs more is refused with 413, and no worker can have more."""
    worker_timeout_s: float = 30.0
    """How long a worker may read one body or picture; then it is ended and replaced, and the request fails with 500."""


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Admission: bounded, answered at once when full."""

    capacity: int = 64
    """Jobs that may wait (running ones come on top). The next one is refused at once."""
    overload_status: int = 503
    """503 or 429 for a full queue. Gateways retry 503 on another replica, clients back off on 429."""
    skip_window: int = 8
    """How many jobs behind a head that does not fit may be admitted before it."""
    skip_max_wait_s: float = 30.0
    """Once the head is older than this nobody overtakes it any more."""
    default_timeout_s: float = 600.0
    """Deadline of a request that brings none; 0 means none."""
    stall_timeout_s: float = 120.0
    """With work to do and no finished step for this long, the engine counts as stalled and liveness fails."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a caller's picture may be, checked on the header before it is decoded."""

    max_bytes: int = 20 * 2**20
    """Largest encoded file."""
    max_pixels: int = 50_000_000
    """Largest width x height."""
    max_side: int = 20_000
    """Largest width or height, pixels."""
    max_aspect: float = 200.0
    """Largest ratio of the sides (transformers' limit for Qwen2.5-VL)."""
    max_images: int = 32
    """Pictures per request."""


@dataclass(frozen=True, slots=True)
class ComputeSettings:
    """How both rooms use the machine."""

    device: str = "auto"
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`."""
    dtype: str = "auto"
    """`auto` (bfloat16 on CUDA, float32 on the CPU), `float32`, `bfloat16`, `float16`."""
    compile: str = "auto"
    """`auto` (`inductor` on CUDA, `off` on the CPU), `off`, `aot_eager`, `inductor`. On the CPU Inductor needs a C++ compiler."""
    attention: str = "auto"
    """Attention kernel on CUDA: `auto` measures those installed at load, or `cudnn`, `flash`, `flash_attn_3`, `fa3_fwd`, `flash_attn_2`, `efficient`, `sdpa`."""
    threads: int = 0
    """Intra-op threads of torch on the CPU; 0 leaves torch's default."""
    cache_dir: str = ""
    """Folder that keeps compiled code between starts; empty leaves Triton's and torch's own. Its content is executed: only the operator may write it (servers may mount it read-only), and one that anybody may write is not used."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What the Kubernetes API is told from inside a pod. Nobody waits for it to answer."""

    events: str = "auto"
    """Kubernetes events (loading, warming up, ready, draining, failed) and warm-up progress as an annotation of the pod: `auto` where a ServiceAccount token is mounted, `on` refuses to start without one, `off`."""
    interval_s: float = 3.0
    """Warm-up progress is written once in so many seconds at most; everything else at once."""
    timeout_s: float = 3.0
    """How long one call to the API server may take, seconds."""


@dataclass(frozen=True, slots=True)
class FluxSettings:
    """The text-to-image room."""

    slots: int = 4
    """Pictures in the making at once. How many of them share a pass is measured on a GPU while warming; `lossless` never shares there."""
    max_pixels: int = 1536 * 1536
    """Largest width x height that is accepted."""
    max_side: int = 2048
    """Largest width or height."""
    min_side: int = 64
    """Smallest width or height."""
    max_steps: int = 100
    """Largest num_inference_steps."""
    default_steps: int = 0
    """Steps when the request names none; 0 takes the checkpoint's: 28 with a guidance embedding, 4 without."""
    default_size: str = ""
    """`WxH` when the request names none; empty takes the checkpoint's (`sample_size` of its autoencoder, squared)."""
    sizes: str = ""
    """Comma-separated `WxH` that are compiled and warmed (the promise); empty is the default size alone."""
    unpromised: str = "serve"
    """What happens to a size outside the promise: `serve` (eagerly, never compiling) or `refuse` (400 with the list)."""
    max_sequence_length: int = 0
    """T5 tokens per prompt; 0 takes the checkpoint's (tokenizer's limit, at most 512 with a guidance embedding, else 256)."""
    prompt_cache_bytes: int = 256 * 2**20
    """Bound of the prompt-embedding cache."""
    png_level: int = 1
    """Level of PNG output: 0 stores, 1 is ISA-L's fast deflate, 2 to 9 are zlib's, ten times slower and only smaller on drawings."""
    tiers: str = "auto"
    """Quality tiers that are loaded, comma-separated, of `lossless`, `high` (fp8), `turbo`; `auto`: all, but `high` only on GPUs with fp8 units."""
    default_tier: str = ""
    """Tier of a request that names none; empty is the first that is loaded of `lossless`, `high`, `turbo`."""
    fp8_attention: bool = True
    """Whether the tiers with fp8 weights attend in fp8 too, where FlashAttention 3 (`pip install vision-predictors[fa3]`) and a Hopper GPU are there."""
    age_limit_s: float = 30.0
    """The picture with the least left to do steps first, until another has stood still in its slot for this many seconds in all; 0 serves the longest wait first."""


@dataclass(frozen=True, slots=True)
class QwenVLSettings:
    """The image-to-text room."""

    slots: int = 0
    """Sequences that decode together; 0 takes 8 on the CPU and 64 on a GPU."""
    page_tokens: int = 0
    """Tokens per KV page; 0 takes 16 on the CPU and 64 on a GPU."""
    kv_tokens: int = 0
    """KV pool in tokens; 0 is `slots` x `max_context` on the CPU, and what memory allows on a GPU."""
    max_context: int = 0
    """Longest prompt plus answer in tokens; 0 takes min(checkpoint's limit, 4096 on the CPU, 32768 on a GPU)."""
    prefill_chunk: int = 0
    """Prompt tokens per prefill turn; decoding goes on between the chunks. 0 takes 256 on the CPU and 1536 on a GPU, where several prompts share a turn."""
    default_max_tokens: int = 512
    """`max_tokens` of a request that names none, cut to the context."""
    min_pixels: int = 0
    """Smallest picture area after resizing; 0 takes the checkpoint's."""
    max_pixels: int = 0
    """Largest picture area after resizing; 0 takes the checkpoint's, capped at 1,003,520 (transformers' class default)."""
    embedding_cache_bytes: int = 256 * 2**20
    """Bound of the picture-embedding cache, keyed by a hash of bytes and target size."""
    prefix_cache: str = "auto"
    """Whether prompts that begin alike (same text, same pictures) share what was computed for it, in KV pages that nobody else needs: `on`, `off`; `auto`: on a GPU unless `deterministic`. How fast an answer begins then tells a caller whether somebody has sent the same before."""
    precision: str = "auto"
    """`fp8`: the decoder's linears in 8-bit floating point, quantised at load; needs a GPU with fp8 units to be fast, runs anywhere. `auto`: `compute.dtype`."""
    deterministic: str = "auto"
    """`on`: one fixed decode width, so neighbours never change a bit; `off`; `auto`: on for float32 on the CPU."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All groups together."""

    server: ServerSettings = field(default_factory=ServerSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    images: ImageLimits = field(default_factory=ImageLimits)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    flux: FluxSettings = field(default_factory=FluxSettings)
    qwen_vl: QwenVLSettings = field(default_factory=QwenVLSettings)


def from_env(environ: Mapping[str, str]) -> Settings:
    """Settings from `environ`; raises `InvalidSetting` for a bad value or an unknown `PREDICTORS_*` name."""
    environ = _without_service_links(environ)
    known: set[str] = set()
    groups = {}
    for group in fields(Settings):
        group_type = typing.get_type_hints(Settings)[group.name]
        groups[group.name] = _group_from_env(
            group_type, f"{PREFIX}_{group.name.upper()}", environ, known
        )
    unknown = sorted(k for k in environ if k.startswith(f"{PREFIX}_") and k not in known)
    if unknown:
        raise InvalidSetting(f"unknown setting {unknown[0]}; known are {', '.join(sorted(known))}")
    return Settings(**groups)


def _without_service_links(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment less what Kubernetes puts there for each Service: one called `predictors-x` gives `PREDICTORS_X_PORT`, one called `grpc` gives `GRPC_PORT`."""
    links = {name.removesuffix("_SERVICE_HOST") for name in environ if name.endswith("_SERVICE_HOST")}
    written = {f"{link}{rest}" for link in links for rest in ("_SERVICE_HOST", "_SERVICE_PORT")}
    begins = tuple(f"{link}{rest}" for link in links for rest in ("_SERVICE_PORT_", "_PORT_"))
    ports = {f"{link}_PORT" for link in links}  # an operator may have set this one himself
    return {
        name: value for name, value in environ.items()
        if not (name in written or (begins and name.startswith(begins)) or (name in ports and "://" in value))
    }


def _group_from_env(
    group_type: type, prefix: str, environ: Mapping[str, str], known: set[str]
) -> typing.Any:
    assert is_dataclass(group_type)
    hints = typing.get_type_hints(group_type)
    values = {}
    for knob in fields(group_type):
        name = f"{prefix}_{knob.name.upper()}"
        known.add(name)
        raw = environ.get(name, environ.get(ALIASES.get(name, name)))
        if raw is not None:
            values[knob.name] = _checked(name, _parse(name, raw, hints[knob.name]))
    return group_type(**values)


def _parse(name: str, raw: str, kind: type | types.UnionType) -> object:
    if kind is bool:
        if raw.lower() in {"1", "true", "yes", "on"}:
            return True
        if raw.lower() in {"0", "false", "no", "off", ""}:
            return False
        raise InvalidSetting(f"{name} must be true or false, not {raw!r}")
    try:
        return kind(raw)  # type: ignore[operator]
    except ValueError as error:
        raise InvalidSetting(
            f"{name} must be {getattr(kind, '__name__', kind)}, not {raw!r}"
        ) from error


def _checked(name: str, value: object) -> object:
    """The value if it is one of the choices and not below the least; raises `InvalidSetting`."""
    choices = CHOICES.get(name)
    if choices is not None and value not in choices:
        raise InvalidSetting(f"{name} must be one of {', '.join(map(str, choices))}, not {value!r}")
    if isinstance(value, int | float) and not LEAST.get(name, 0) <= value < math.inf:
        raise InvalidSetting(
            f"{name} must be a finite number of at least {LEAST.get(name, 0)}, not {value!r}"
        )
    return value
