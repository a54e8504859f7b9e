"""Settings of the process: listening, limits on requests and pictures, logging, shutdown, and its
reports to Kubernetes.
"""

from __future__ import annotations

from dataclasses import dataclass

from predictors.settings.bounds import AUTO_ON_OFF, MAX_PORT, SettingsGroup, bounded


@dataclass(frozen=True, slots=True)
class ServerSettings(SettingsGroup):
    """Listening, limits on requests, logging and shutdown."""

    section = "server"

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
    port: int = bounded(8080, most=MAX_PORT)
    """HTTP port. 0 takes a free one."""
    grpc_port: int = bounded(8081, least=-1, most=MAX_PORT)
    """gRPC port. 0 takes a free one, -1 turns gRPC off."""
    health_port: int = bounded(-1, least=-1, most=MAX_PORT)
    """Plain HTTP port of the probes and nothing else: `/`, `/v2/health/live`, `/v2/health/ready`
    and models' `/ready`. It has a thread of its own, so a busy server answers as fast as an idle
    one. The data port answers them too. 0 takes a free one, -1 is off."""
    metrics_port: int = bounded(-1, least=-1, most=MAX_PORT)
    """Plain HTTP port of `/metrics` and nothing else, which the data port then lacks. 0 takes a
    free one, -1 leaves it on the data port."""
    admin_port: int = bounded(-1, least=-1, most=MAX_PORT)
    """Port of `/debug/engine`, `/debug/profile` and `/admin/loras`, for operators. 0 takes a free
    one, -1 is off. The routes have no authentication."""
    loras: str = ""
    """Adapters (LoRA) that are loaded at the start, as `NAME=PATH` or `MODEL:NAME=PATH`,
    comma-separated, as if each were given with `--lora`. The chart sets it."""
    lora_root: str = ""
    """Folder below which `POST /admin/loras` may name files and folders. Empty: it loads none."""
    admin_host: str = "127.0.0.1"
    """Address on which the admin port listens. Anyone who can reach it sees request ids, can slow
    the server down by profiling it, and can add and remove adapters."""
    linger_s: float = bounded(0.0, most=86_400)
    """After SIGTERM readiness is false at once, but new requests are still served for this long.
    Their connections are closed (`Connection: close`, GOAWAY), because clients that keep
    connections open learn of the shutdown in no other way. The chart sets it."""
    grpc_connection_s: float = bounded(0.0, most=86_400)
    """With `linger_s`, the age at which gRPC connections are sent away (GOAWAY), since gRPC can do
    that in no other way without losing calls. 0: 0.8 of `linger_s`. A larger one makes clients
    connect less often. After SIGTERM the server then lingers on while gRPC connections from before
    are open, for at most 1.1 times this; the chart's grace period has room for that."""
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
    this time, is closed, and its request is cancelled. Over gRPC a message may take this time and
    its size by 256 KiB per second. 0 never closes it."""
    stream_comment_s: float = 15.0
    """A streamed chat that has nothing to send for this long sends a comment line, which clients
    skip, so that no proxy takes it for dead. 0 sends none."""
    max_body_bytes: int = 64 * 2**20
    """Largest HTTP request body, as sent and inflated. A larger one is answered with 413."""
    max_message_bytes: int = bounded(32 * 2**20, most=2**31 - 1)  # gRPC's own limit
    """Largest gRPC message after decompression. A larger one is answered with RESOURCE_EXHAUSTED.
    gRPC copies a message as a whole, which blocks the process for about a millisecond per MiB."""
    max_bytes_in_flight: int = 256 * 2**20
    """Bytes of request bodies that are held together, from arrival to answer. Requests beyond that
    are answered with 503, and one that has more alone with 413. The first 64 KiB of each request do
    not count."""
    max_arriving_messages: int = bounded(32, least=2)
    """gRPC messages that may take longer than a quarter of a second to arrive, and streams that
    wait for one, at a time; half of them for one caller. Each may take `server.max_message_bytes`.
    Beyond that the stream without a request in progress that has waited longest ends, or the
    message is refused with RESOURCE_EXHAUSTED."""
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
    playground: str = bounded("auto", choices=AUTO_ON_OFF)
    """Serves the playground, a page for browsers, at `/` and `/playground`. Its files need no API
    key; the requests that it makes do. `auto`: on if `host` is a loopback address."""
    repository_api: bool = False
    """Enables `/v2/repository/.../load` and `unload`. They have no authentication."""
    docs: str = bounded("auto", choices=AUTO_ON_OFF)
    """The page `/docs`, which shows `/openapi.json` and sends requests from it. `auto` is on where
    the server listens on a loopback address and needs no API key."""
    grpc_reflection: str = bounded("auto", choices=AUTO_ON_OFF)
    """gRPC server reflection, by which grpcurl and others learn the services. `auto` is on where
    the server listens on a loopback address and needs no API key."""
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
class ImageLimits(SettingsGroup):
    """Limits on a caller's pictures. They are checked on the file header, before decoding."""

    section = "images"

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
class FilmLimits(SettingsGroup):
    """Limits on a caller's films. All but the last are checked before a film is decoded."""

    section = "films"

    max_bytes: int = 32 * 2**20
    """Largest file, and most bytes of a film that is sent as pictures."""
    max_films: int = 4
    """Films per request."""
    max_frames: int = bounded(256, least=2)
    """Most frames that are read of one film; the request may ask for fewer. They are spread evenly
    over the film."""
    max_frame_pixels: int = 9_000_000
    """Largest width x height. A frame of 4096x2160 has 8,847,360 pixels."""
    max_pixels: int = 2**27
    """Most pixels of all frames that are read of one film, before resizing. They are held in memory
    together, three bytes each."""
    max_duration_s: float = bounded(1800.0, least=1.0)
    """Longest film."""
    max_tokens: int = 0
    """Most prompt tokens of one film: its frames are made smaller until it has no more. 0 takes
    half of the context."""
    decode_s: float = bounded(20.0, least=0.1)
    """Longest time of a processor core for decoding one film. It should be below
    `server.worker_timeout_s`, which ends a worker process."""


@dataclass(frozen=True, slots=True)
class ClusterSettings(SettingsGroup):
    """Reports to the Kubernetes API from inside a pod. Serving never waits for the API server."""

    section = "cluster"

    events: str = bounded("auto", choices=AUTO_ON_OFF)
    """Kubernetes events (loading, warming up, ready, draining, failed), and the warm-up progress as
    an annotation of the pod. `auto` writes them if a ServiceAccount token is mounted; `on` refuses
    to start without one; `off` writes none."""
    interval_s: float = 3.0
    """Shortest time between two writes of the warm-up progress. Everything else is written at
    once."""
    timeout_s: float = bounded(3.0, least=0.1)
    """Longest time for one call to the API server, in seconds."""
