"""Settings of the server, as frozen dataclasses. `environment.py` reads them.

The field `queue.capacity` is read from `PREDICTORS_QUEUE_CAPACITY`. Each field has its default, its
range or choices and its description in one place, and is checked once, when its group is made.
`docs/configuration.md` and the chart's schema are generated from this file.
"""

from __future__ import annotations

import math
import typing
from dataclasses import Field, dataclass, field, fields

from predictors.errors import InvalidRequest

T = typing.TypeVar("T")

PREFIX = "PREDICTORS"
ALIASES = {
    "PREDICTORS_SERVER_HOST": "HOST",
    "PREDICTORS_SERVER_PORT": "PORT",
    "PREDICTORS_SERVER_GRPC_PORT": "GRPC_PORT",
}
AUTO_ON_OFF = ("auto", "on", "off")
ATTENTION = (
    "auto", "cudnn", "flash", "flash_attn_3", "fa3_fwd", "flash_attn_2", "efficient", "sdpa",
)  # fmt: skip


class InvalidSetting(InvalidRequest):
    """An environment variable has a value that can't be used; the message names the variable."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Values that a setting accepts: one of `choices` if there are any, else a range."""

    least: float = 0
    most: float = math.inf
    choices: tuple[object, ...] = ()

    def check(self, name: str, value: object) -> None:
        """Raise `InvalidSetting` if `value` of the variable `name` is out of bounds."""
        if self.choices:
            if value not in self.choices:
                choices = ", ".join(map(str, self.choices))
                raise InvalidSetting(f"{name} must be one of {choices}, not {value!r}")
        elif isinstance(value, int | float) and not (
            self.least <= value <= self.most and math.isfinite(value)
        ):
            span = f"a finite number of at least {self.least}"
            if math.isfinite(self.most):
                span = f"from {self.least} to {self.most}"
            raise InvalidSetting(f"{name} must be {span}, not {value!r}")


def bounds_of(knob: Field[typing.Any]) -> Bounds:
    """The bounds of a field; a number without any must be finite and at least 0."""
    bounds: Bounds = knob.metadata.get("bounds", Bounds())
    return bounds


def bounded(
    default: T, *, least: float = 0, most: float = math.inf, choices: tuple[T, ...] = ()
) -> T:
    """A dataclass field with a default and bounds."""
    made: T = field(default=default, metadata={"bounds": Bounds(least, most, choices)})
    return made


class SettingsGroup:
    """Base of the groups: checks every field once, when the group is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for knob in fields(self):  # type: ignore[arg-type]
            value = getattr(self, knob.name)
            bounds_of(knob).check(variable_name(type(self), knob.name), value)


@dataclass(frozen=True, slots=True)
class ServerSettings(SettingsGroup):
    """Listening, limits on requests, logging and shutdown."""

    host: str = "127.0.0.1"
    """Address on which REST and gRPC listen. The image and the chart set 0.0.0.0. `0.0.0.0` and
    `::` both mean all addresses, of IPv4 and IPv6."""
    allowed_hosts: str = ""
    """Host names, comma-separated and without ports, that a request's `Host` header may have
    besides localhost and loopback addresses. `*.example.com` allows every name below it, `*` allows
    any. Other hosts are refused with 421, except for probes and `/metrics`. Empty: only loopback
    names if `host` is a loopback address, otherwise any."""
    allowed_origins: str = ""
    """Origins of web pages that may call the server and read its answers (CORS), comma-separated,
    as `https://app.example.com`. `*` allows any page that a user visits. Empty: pages of other
    origins are refused with 403."""
    aliases: str = ""
    """Further names of models, as `ALIAS=MODEL`, comma-separated. An answer repeats the name that
    its request used; metrics and logs have the model's own."""
    port: int = 8080
    """HTTP port. 0 takes a free one."""
    grpc_port: int = bounded(8081, least=-1)
    """gRPC port. 0 takes a free one, -1 turns gRPC off."""
    admin_port: int = bounded(-1, least=-1)
    """Port of `/debug/engine` and `/debug/profile`, for operators. 0 takes a free one, -1 is off.
    The routes have no authentication."""
    admin_host: str = "127.0.0.1"
    """Address on which the admin port listens. Anyone who can reach it sees request ids and can
    slow the server down by profiling it."""
    linger_s: float = 0.0
    """After SIGTERM readiness is false at once, but new requests are still served for this long.
    Their connections are closed (`Connection: close`, GOAWAY), because clients that keep
    connections open learn of the shutdown in no other way. The chart sets it."""
    drain_timeout_s: float = 300.0
    """After SIGTERM and `linger_s`, accepted work may take this long to finish. What is left then
    fails with 503."""
    keep_alive_s: float = 65.0
    """Idle HTTP connections are closed after this time. It is longer than the usual 60 s of load
    balancers."""
    max_connections: int = 0
    """HTTP connections at once, at least 8. Beyond that, connections that have been idle longest
    are closed; if all are busy, a new one is answered with 503, except for probes. 0: the limit of
    open files less 64 or a quarter of it, whichever is more, and at most 8192."""
    write_timeout_s: float = 30.0
    """A connection whose client reads less than 1 KiB per second of its response, averaged over
    this time, is closed, and its request is cancelled. 0 never closes it."""
    stream_comment_s: float = 15.0
    """A streamed chat that has nothing to send for this long sends a comment line, which clients
    skip, so that no proxy takes it for dead. 0 sends none."""
    max_body_bytes: int = 64 * 2**20
    """Largest HTTP request body, as sent and inflated. A larger one is answered with 413."""
    max_message_bytes: int = 32 * 2**20
    """Largest gRPC message after decompression. A larger one is answered with RESOURCE_EXHAUSTED.
    gRPC copies a message as a whole, which blocks the process for about a millisecond per MiB."""
    max_bytes_in_flight: int = 256 * 2**20
    """Bytes of request bodies that are held together, from arrival to answer. Requests beyond that
    are answered with 503. The first 64 KiB of each request do not count."""
    body_timeout_s: float = 10.0
    """Every 64 KiB of a request body must arrive within this time, and the whole body within a
    minute. Otherwise the answer is 504."""
    public_url: str = ""
    """The server's address as callers reach it, such as `https://pictures.example.com`. Pictures
    asked for with `response_format: url` get one below it; empty: such a request is answered with
    400. They are held in the memory of one process, so it must be empty with several replicas."""
    picture_url_s: float = bounded(600.0, least=1.0)
    """A picture can be fetched from its address for this long."""
    picture_url_bytes: int = 256 * 2**20
    """Bytes of pictures that are held for their addresses. The oldest make room for new ones."""
    repository_api: bool = False
    """Enables `/v2/repository/.../load` and `unload`. They have no authentication."""
    access_log: bool = True
    """Writes one line per request (method, route, status, milliseconds, request id), except for
    probes."""
    log_format: str = bounded("auto", choices=("auto", "text", "json"))
    """`text`, `json` (one object per line), or `auto`: text on a terminal, JSON otherwise."""
    log_level: str = bounded("info", choices=("info", "debug", "warning", "error"))
    """Lowest level that is logged. `warning` leaves out access and outcome lines."""
    log_prompts: bool = False
    """Adds the callers' prompts to outcome lines. Off by default because prompts are private."""
    prepare_threads: int = 0
    """Threads that tokenise, cut pictures into patches and encode results, so that neither the
    event loop nor the engine thread does. 0 takes half the cores, at least 2 and at most 8. As many
    more threads, at a lower priority, take the large items."""
    workers: int = 0
    """Processes that parse large bodies and decode pictures. 0 takes half the cores, at least 2 and
    at most 4. There are always at least 2."""
    worker_memory_bytes: int = 2**30
    """Memory for parsing bodies and decoding pictures, all workers together. A request that needs
    more is refused with 413, and each worker's own memory is limited to this."""
    worker_timeout_s: float = 30.0
    """Longest time for one body or picture in a worker. After it the worker is killed and replaced,
    and the request fails with 500."""


@dataclass(frozen=True, slots=True)
class QueueSettings(SettingsGroup):
    """The admission queue. It is bounded, and a full queue is answered at once."""

    capacity: int = 64
    """Jobs that may wait, in addition to those that run. The next one is refused at once."""
    overload_status: int = bounded(503, choices=(503, 429))
    """Status of a request that meets a full queue. Gateways retry 503 on another replica; clients
    back off on 429."""
    skip_window: int = 8
    """If the first job in the queue does not fit, this many jobs behind it may be admitted before
    it."""
    skip_max_wait_s: float = 30.0
    """Once the first job has waited this long, no other job is admitted before it."""
    default_timeout_s: float = 600.0
    """Deadline of a request that sets none. 0 means no deadline."""
    stall_timeout_s: float = 120.0
    """If there is work and no step has finished for this long, the engine counts as stalled and
    liveness fails."""


@dataclass(frozen=True, slots=True)
class ImageLimits(SettingsGroup):
    """Limits on a caller's pictures. They are checked on the file header, before decoding."""

    max_bytes: int = 20 * 2**20
    """Largest encoded file."""
    max_pixels: int = 50_000_000
    """Largest width x height."""
    max_side: int = 20_000
    """Largest width or height, in pixels."""
    max_aspect: float = 200.0
    """Largest ratio of the sides. The default is transformers' limit for Qwen2.5-VL."""
    max_images: int = 32
    """Pictures per request."""


@dataclass(frozen=True, slots=True)
class ComputeSettings(SettingsGroup):
    """Device, precision and compilation, for all models of the process."""

    device: str = "auto"
    """`auto` (CUDA if there is a GPU), `cpu`, `cuda` or `cuda:N`."""
    dtype: str = bounded("auto", choices=("auto", "float32", "bfloat16", "float16"))
    """`auto` (bfloat16 on CUDA, float32 on the CPU), `float32`, `bfloat16` or `float16`."""
    compile: str = bounded("auto", choices=("auto", "off", "aot_eager", "inductor"))
    """`auto` (`inductor` on CUDA, `off` on the CPU), `off`, `aot_eager` or `inductor`. On the CPU
    Inductor needs a C++ compiler."""
    attention: str = bounded("auto", choices=ATTENTION)
    """Attention kernel on CUDA. `auto` measures the installed ones while loading and takes the
    fastest."""
    threads: int = 0
    """Intra-op threads of torch on the CPU. 0 leaves torch's default."""
    cache_dir: str = ""
    """Folder that keeps compiled code between starts. Empty: Triton and torch keep theirs where
    they always do. The content is executed, so only the operator may have write access: servers may
    mount it read-only, and a folder that anyone may write is not used."""
    weights_variant: str = ""
    """Variant of the weights files that is read where a folder has it, such as `fp16` for
    `model.fp16.safetensors`. Empty: the plain files, or the only variant there is."""


@dataclass(frozen=True, slots=True)
class ClusterSettings(SettingsGroup):
    """Reports to the Kubernetes API from inside a pod. Serving never waits for the API server."""

    events: str = bounded("auto", choices=AUTO_ON_OFF)
    """Kubernetes events (loading, warming up, ready, draining, failed), and the warm-up progress as
    an annotation of the pod. `auto` writes them if a ServiceAccount token is mounted; `on` refuses
    to start without one; `off` writes none."""
    interval_s: float = 3.0
    """Shortest time between two writes of the warm-up progress. Everything else is written at
    once."""
    timeout_s: float = bounded(3.0, least=0.1)
    """Longest time for one call to the API server, in seconds."""


@dataclass(frozen=True, slots=True)
class FluxSettings(SettingsGroup):
    """Text-to-image models (FLUX.1)."""

    slots: int = bounded(4, least=1)
    """Pictures in progress at once. On a GPU the warm-up measures how many of them share a pass;
    those of the tier `lossless` never share one there."""
    max_pixels: int = 1536 * 1536
    """Largest width x height that is accepted."""
    max_side: int = 2048
    """Largest width or height, in pixels."""
    min_side: int = 64
    """Smallest width or height, in pixels."""
    max_steps: int = 100
    """Largest `num_inference_steps`."""
    default_steps: int = 0
    """Steps of a request that names none. 0 takes the checkpoint's: 28 if it has a guidance
    embedding, otherwise 4."""
    default_size: str = ""
    """Size (`WxH`) of a request that names none. Empty takes the checkpoint's (`sample_size` of its
    autoencoder, squared)."""
    sizes: str = ""
    """Sizes (`WxH`, comma-separated) that are compiled and warmed before the model is ready. Empty
    takes the default size only."""
    unpromised: str = bounded("serve", choices=("serve", "refuse"))
    """Requests for a size outside of `sizes`: `serve` draws them without compiling, `refuse`
    answers with 400 and the list of sizes."""
    max_sequence_length: int = 0
    """T5 tokens per prompt. 0 takes the checkpoint's (the tokenizer's limit, at most 512 with a
    guidance embedding and 256 without)."""
    prompt_cache_bytes: int = 256 * 2**20
    """Largest size of the prompt-embedding cache."""
    png_level: int = bounded(1, most=9)
    """Compression level of PNG output. 0 stores, 1 is ISA-L's fast deflate, 2 to 9 are zlib's: ten
    times slower, and smaller only for drawings."""
    tiers: str = "auto"
    """Quality tiers that are loaded, comma-separated: `lossless`, `high` (fp8), `turbo`. `auto`
    loads all, but `high` only on GPUs with fp8 units."""
    default_tier: str = ""
    """Tier of a request that names none. Empty takes the first that is loaded of `lossless`,
    `high`, `turbo`."""
    fp8_attention: bool = True
    """Lets the tiers with fp8 weights use fp8 in attention too, if FlashAttention 3 (`pip install
    vision-predictors[fa3]`) and a Hopper GPU are present."""
    conditioning_precision: str = bounded("auto", choices=("auto", "fp8"))
    """`fp8`: T5 and the modulation are quantised while loading, which saves 7.3 GiB of GPU memory
    and changes pictures. It needs `tiers` of fp8 weights alone. `auto`: `compute.dtype`."""
    age_limit_s: float = 30.0
    """The picture with the fewest steps left goes first, until another one has been passed over for
    this many seconds in all. 0 always serves the one that has waited longest."""


@dataclass(frozen=True, slots=True)
class QwenVLSettings(SettingsGroup):
    """Chat models that read pictures (Qwen2.5-VL and other models of the chat family)."""

    slots: int = 0
    """Sequences that decode together. 0 takes 8 on the CPU and 64 on a GPU."""
    page_tokens: int = 0
    """Tokens per page of the KV cache. 0 takes 16 on the CPU and 64 on a GPU."""
    kv_tokens: int = 0
    """Size of the KV cache in tokens. 0 takes `slots` x `max_context` on the CPU, and what the
    memory allows on a GPU."""
    max_context: int = 0
    """Longest prompt plus answer, in tokens. 0 takes the checkpoint's limit, at most 4096 on the
    CPU and 32768 on a GPU."""
    prefill_chunk: int = 0
    """Prompt tokens per prefill step. Running sequences decode between the chunks. 0 takes 256 on
    the CPU and 1536 on a GPU, where several prompts share a step."""
    default_max_tokens: int = bounded(512, least=1)
    """`max_tokens` of a request that names none, limited to what the context leaves."""
    min_pixels: int = 0
    """Smallest area of a picture after resizing, in pixels. 0 takes the checkpoint's."""
    max_pixels: int = 0
    """Largest area of a picture after resizing, in pixels, that a request may ask for. 0 takes the
    checkpoint's, at most 1,103,872, which leaves a picture of 1024x1024 as it is."""
    default_max_pixels: int = 0
    """Largest area of a picture whose request asks for none. 0 takes `max_pixels`."""
    embedding_cache_bytes: int = 256 * 2**20
    """Largest size of the cache of picture embeddings. Its key is a hash of the file and of the
    target size."""
    prefix_cache: str = bounded("auto", choices=AUTO_ON_OFF)
    """Lets prompts that begin alike (same text, same pictures) share what was computed for the
    beginning, in unused pages of the KV cache. `auto`: on a GPU, unless `deterministic`. The time
    to the first token then shows a caller that the same beginning was sent before."""
    precision: str = bounded("auto", choices=("auto", "fp8"))
    """`fp8`: the decoder's linear layers are quantised to 8-bit floating point while loading. That
    is fast only on a GPU with fp8 units, and works anywhere. `auto`: `compute.dtype`."""
    deterministic: str = bounded("auto", choices=AUTO_ON_OFF)
    """`on`: decoding always uses the same batch width, so that other requests never change a bit of
    an answer. `auto`: on for float32 on the CPU."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All groups."""

    server: ServerSettings = field(default_factory=ServerSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    images: ImageLimits = field(default_factory=ImageLimits)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    flux: FluxSettings = field(default_factory=FluxSettings)
    qwen_vl: QwenVLSettings = field(default_factory=QwenVLSettings)


def variable_name(group: type[SettingsGroup], knob: str) -> str:
    """The environment variable of a field: `PREDICTORS_QUEUE_CAPACITY` for `queue.capacity`."""
    section = next(each.name for each in fields(Settings) if each.default_factory is group)
    return f"{PREFIX}_{section}_{knob}".upper()
