"""Every Prometheus series of the process, declared once, with its labels, buckets and help text.

Names have one prefix, base units and `_total`. Labels are bounded: never a prompt, a seed, a caller or a raw size.
`register_model` creates every label combination of a model at zero, so that `rate()` works on the first error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram

PROTOCOLS = ("v2_rest", "v2_grpc", "openai")
REASONS = (
    "ok", "invalid_input", "too_large", "forbidden", "not_found", "not_supported", "queue_full", "deadline", "cancelled",
    "not_ready", "draining", "oom", "poisoned", "engine_failed", "internal",
)  # fmt: skip
REFUSALS = ("queue_full", "deadline", "invalid_input", "too_large", "not_ready", "draining", "engine_failed")
SPLITS = ("oom", "other")  # the step did not fit into memory; it raised anything else
RESOLUTIONS = ("le_256", "le_512", "le_768", "le_1024", "gt_1024")  # by sqrt(width x height), a closed set
CACHE_RESULTS = ("hit", "miss", "evict")
PHASES = ("load", "warmup", "capture", "compile")
STARTS = ("cold", "warm", "plain")  # something was compiled; all of it was on disk; there was nothing to compile
SOURCES = ("compiled", "cached")
GPU_MEMORY = ("allocated", "reserved", "peak", "used", "free", "total")  # the first three are torch's, of this process
XID_KINDS = ("application", "device")  # what ran on it was wrong; anything else
INPUT_STEPS = (1, 2, 4, 8, 12, 20, 28, 35, 50)

IMG = (.1, .25, .5, .75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 30, 45, 60, 90, 120, 180, 300)  # fmt: skip
STEP = (.005, .01, .02, .03, .05, .075, .1, .15, .2, .3, .5, .75, 1, 2, 5)  # fmt: skip
QUEUE = (.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)  # fmt: skip
STAGE = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 3, 5, 8, 12, 20, 30, 60)  # fmt: skip
TTFT = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)  # fmt: skip
ITL = (.002, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5)  # fmt: skip
E2E = (.05, .1, .2, *IMG[2:], 480, 960)
BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
PIX = (4096, 16384, 65536, 131072, 262144, 524288, 1048576, 1572864, 2097152, 4194304)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)

P = "predictors"

requests_total = Counter(f"{P}_requests_total", "Requests answered, by protocol and outcome.", ["model", "protocol", "operation", "reason"])
request_seconds = Histogram(f"{P}_request_duration_seconds", "From the request's head to the end of its answer.", ["model", "protocol", "outcome"], buckets=E2E)
requests_in_flight = Gauge(f"{P}_requests_in_flight", "Requests for work of this process, all models together, from their head to the end of the answer: also while they are read, prepared and encoded.")
request_bytes_in_flight = Gauge(f"{P}_request_bytes_in_flight", "Bytes of large request bodies that are held, from their arrival to their answer.")
requests_running = Gauge(f"{P}_requests_running", "Jobs that hold a slot.", ["model"])
requests_waiting = Gauge(f"{P}_requests_waiting", "Jobs in the admission queue.", ["model"])
queue_capacity = Gauge(f"{P}_queue_capacity", "Jobs that may wait.", ["model"])
queue_oldest_seconds = Gauge(f"{P}_queue_oldest_seconds", "Age of the oldest waiting job.", ["model"])
queue_seconds = Histogram(f"{P}_queue_duration_seconds", "Time in the admission queue, of expired and cancelled jobs too.", ["model"], buckets=QUEUE)
admission_rejected_total = Counter(f"{P}_admission_rejected_total", "Jobs refused at the door.", ["model", "reason"])
jobs_total = Counter(f"{P}_jobs_total", "Jobs (rows) answered by the engine, by outcome.", ["model", "reason"])
batch_size = Histogram(f"{P}_batch_size", "Jobs that shared one pass: a denoise step of one shape, or a decode step.", ["model"], buckets=BATCH)
batch_splits_total = Counter(f"{P}_batch_splits_total", "Steps that were halved: they did not fit into memory (oom), or to find who makes them fail (other).", ["model", "reason"])
stage_seconds = Histogram(f"{P}_stage_duration_seconds", "Time per stage of a request.", ["model", "stage"], buckets=STAGE)
step_seconds = Histogram(f"{P}_step_duration_seconds", "One engine step.", ["model"], buckets=STEP)
engine_steps_total = Counter(f"{P}_engine_steps_total", "Engine steps taken.", ["model"])
engine_last_step_timestamp_seconds = Gauge(f"{P}_engine_last_step_timestamp_seconds", "Unix time of the last finished step.", ["model"])
engine_failures_total = Counter(f"{P}_engine_failures_total", "Times the engine died.", ["model"])
denoise_step_seconds = Histogram(f"{P}_denoise_step_duration_seconds", "One denoise step, by class of size.", ["model", "resolution"], buckets=STEP)
denoise_steps_total = Counter(f"{P}_denoise_steps_total", "Denoise steps, counted per picture.", ["model"])
images_total = Counter(f"{P}_images_generated_total", "Pictures drawn, by class of size and tier.", ["model", "resolution", "tier"])
image_pixels = Histogram(f"{P}_image_pixels", "Pixels of drawn pictures.", ["model"], buckets=PIX)
inference_steps = Histogram(f"{P}_inference_steps", "Denoise steps per picture.", ["model"], buckets=INPUT_STEPS)
ttft_seconds = Histogram(f"{P}_time_to_first_token_seconds", "From submission to the first token.", ["model"], buckets=TTFT)
itl_seconds = Histogram(f"{P}_inter_token_latency_seconds", "Between two tokens of one sequence.", ["model"], buckets=ITL)
ttfi_seconds = Histogram(f"{P}_time_to_first_image_seconds", "From submission to the picture.", ["model"], buckets=IMG)
prompt_tokens_total = Counter(f"{P}_prompt_tokens_total", "Prompt tokens, pictures included.", ["model"])
vision_tokens_total = Counter(f"{P}_vision_tokens_total", "Prompt tokens that stand for pictures.", ["model"])
generation_tokens_total = Counter(f"{P}_generation_tokens_total", "Tokens generated.", ["model"])
request_prompt_tokens = Histogram(f"{P}_request_prompt_tokens", "Prompt tokens per sequence.", ["model"], buckets=TOKENS)
request_generation_tokens = Histogram(f"{P}_request_generation_tokens", "Tokens generated per sequence.", ["model"], buckets=TOKENS)
input_image_pixels = Histogram(f"{P}_input_image_pixels", "Pixels of received pictures.", ["model"], buckets=PIX)
kv_cache_usage_ratio = Gauge(f"{P}_kv_cache_usage_ratio", "Share of the KV pages that sequences have reserved, 0 to 1; what is only kept for later prompts is not counted.", ["model"])
cache_requests_total = Counter(f"{P}_cache_requests_total", "Look-ups in our caches.", ["model", "cache", "result"])
recompilations_total = Counter(f"{P}_recompilations_total", "Compilations after ready; must stay 0.", ["model"])
graph_captures_total = Counter(f"{P}_graph_captures_total", "CUDA graphs captured after ready; must stay 0.", ["model"])
model_phase_seconds = Gauge(f"{P}_model_phase_seconds", "Duration of the last load and warm-up; capture and compile are parts of them.", ["model", "phase"])
start_info = Gauge(f"{P}_start_info", "1 for what the last start was: cold (something was compiled), warm (all was on disk), plain (nothing to compile).", ["model", "start"])
start_compilations = Gauge(f"{P}_start_compilations", "Kernels and graphs that the last start needed, by where they came from.", ["model", "source"])
attention_info = Gauge(f"{P}_attention_info", "Constant 1; the attention kernel that serves.", ["model", "kernel"])
attention_seconds = Gauge(f"{P}_attention_seconds", "One call of each attention kernel, measured at load for the largest promised size.", ["model", "kernel"])
tier_info = Gauge(f"{P}_tier_info", "Constant 1 for each tier of quality that is loaded, with the precision of its matrix products.", ["model", "tier", "precision"])
model_ready = Gauge(f"{P}_model_ready", "1 once every promised shape is warm.", ["model"])
gpu_memory_bytes = Gauge(f"{P}_gpu_memory_bytes", "Memory of this process's GPU: allocated, reserved and peak of this process's tensors by torch, used and free of everybody by the driver.", ["device", "state"])
gpu_utilization_ratio = Gauge(f"{P}_gpu_utilization_ratio", "Share of the driver's last sample in which a kernel ran, of any process, 0 to 1.", ["device"])
gpu_temperature_celsius = Gauge(f"{P}_gpu_temperature_celsius", "Temperature of the GPU.", ["device"])
gpu_power_watts = Gauge(f"{P}_gpu_power_watts", "Power that the GPU draws.", ["device"])
gpu_power_limit_watts = Gauge(f"{P}_gpu_power_limit_watts", "Power at which the driver slows the GPU down.", ["device"])
gpu_xid_errors_total = Counter(f"{P}_gpu_xid_errors_total", "XID errors of the GPU since the start, of any process; the log has their numbers.", ["device", "kind"])
draining = Gauge(f"{P}_draining", "1 while the process shuts down.")
log_records_dropped_total = Counter(f"{P}_log_records_dropped_total", "Lines of the log that were dropped: they came faster than stderr was read.")
build_info = Gauge(f"{P}_build_info", "Constant 1; what is running.", ["model", "version", "torch", "device", "dtype"])

_PER_MODEL = (
    requests_running, requests_waiting, queue_oldest_seconds, queue_seconds, batch_size, step_seconds,
    engine_steps_total, engine_failures_total, recompilations_total, graph_captures_total, model_ready,
)  # fmt: skip

Series = Counter | Gauge | Histogram


@dataclass(frozen=True, slots=True)
class ModelSeries:
    """What one kind of model adds to the series that every model has, see `register_model`."""

    operations: tuple[str, str]
    """Values of the label `operation`: of V2 requests, and of OpenAI requests."""
    stages: tuple[str, ...] = ()
    """Values of the label `stage`, in the order of a request."""
    caches: tuple[str, ...] = ()
    """Values of the label `cache`."""
    own: Mapping[Series, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """Series that only this kind has, with the values of their labels after `model`; `((),)` where `model` is the only label."""


def resolution_class(width: int, height: int) -> str:
    """The value of the label `resolution`: the smallest class whose square has at least this area."""
    for limit, name in zip((256, 512, 768, 1024), RESOLUTIONS, strict=False):
        if width * height <= limit * limit:
            return name
    return RESOLUTIONS[-1]


def register_model(model: str, added: ModelSeries) -> None:
    """Create every series of `model` at zero: those of all models and those that its kind adds. Idempotent."""
    for series in _PER_MODEL:
        series.labels(model)
    for reason in REASONS:
        jobs_total.labels(model, reason)
        for protocol in PROTOCOLS:
            requests_total.labels(model, protocol, added.operations[protocol == "openai"], reason)
    for protocol in PROTOCOLS:
        for outcome in ("ok", "error"):
            request_seconds.labels(model, protocol, outcome)
    for reason in SPLITS:
        batch_splits_total.labels(model, reason)
    for reason in REFUSALS:
        admission_rejected_total.labels(model, reason)
    for stage in added.stages:
        stage_seconds.labels(model, stage)
    for cache in added.caches:
        for result in CACHE_RESULTS:
            cache_requests_total.labels(model, cache, result)
    for own, combinations in added.own.items():
        for values in combinations:
            own.labels(model, *values)
