"""Every Prometheus series of the process, declared once, with its labels, buckets and help text.

Names have one prefix, base units and `_total`. Labels are bounded: never a prompt, a seed, an address or a raw size.
`register_model` creates every label combination of a model at zero, so that `rate()` works on the first error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram

PROTOCOLS = ("v2_rest", "v2_grpc", "openai")  # of every model
ANTHROPIC = "anthropic"  # of chat models
REASONS = (
    "ok", "invalid_input", "too_large", "content_policy", "unauthorized", "forbidden", "not_found", "not_supported", "quota", "queue_full", "overloaded",
    "deadline", "cancelled", "not_ready", "draining", "oom", "poisoned", "engine_failed", "internal",
)  # fmt: skip
REFUSALS = ("queue_full", "deadline", "invalid_input", "too_large", "not_ready", "draining", "engine_failed")
CALLER_OUTCOMES = ("ok", "invalid", "refused", "late", "cancelled", "failed")
OUTCOME_OF = {
    "ok": "ok", "deadline": "late", "cancelled": "cancelled",
    **dict.fromkeys(("invalid_input", "too_large", "content_policy", "unauthorized", "forbidden", "not_found", "not_supported"), "invalid"),
    **dict.fromkeys(("quota", "queue_full", "overloaded", "not_ready", "draining"), "refused"),
    **dict.fromkeys(("oom", "poisoned", "engine_failed", "internal"), "failed"),
}  # fmt: skip
"""A request's reason -> the label `outcome` of its caller's series."""
ACTIVATOR_OUTCOMES = ("proxied", "queue_full", "deadline", "draining", "cancelled", "failed")
REFUSED_KEYS = ("missing", "unknown", "expired")
OVERLOAD_MONITORS = ("memory", "connections", "busy_connections", "bodies", "loop_lag", "backlog")
OVERLOAD_ACTIONS = ("close", "refuse_large", "refuse")  # connections; requests with a large body; all requests
SPLITS = ("oom", "other")  # the step ran out of memory; it raised any other error
RESOLUTIONS = ("le_256", "le_512", "le_768", "le_1024", "gt_1024")  # by sqrt(width x height)
CACHE_RESULTS = ("hit", "miss", "evict")
PHASES = ("load", "warmup", "capture", "compile")
STARTS = ("cold", "warm", "plain")  # something was compiled; all was on disk; nothing needed compiling
SOURCES = ("compiled", "cached")
WARM_UP_OUTCOMES = ("ok", "failed")
GPU_MEMORY = ("allocated", "reserved", "peak", "used", "free", "total")  # the first three are torch's, for this process
XID_KINDS = ("application", "device")  # caused by the program that ran; anything else
INPUT_STEPS = (1, 2, 4, 8, 12, 20, 28, 35, 50)

IMG = (.1, .25, .5, .75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12.5, 15, 20, 30, 45, 60, 90, 120, 180, 300)  # fmt: skip
STEP = (.005, .01, .02, .03, .05, .075, .1, .15, .2, .3, .5, .75, 1, 2, 5)  # fmt: skip
QUEUE = (.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)  # fmt: skip
STAGE = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 3, 5, 8, 12, 20, 30, 60)  # fmt: skip
TTFT = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)  # fmt: skip
ITL = (.002, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5)  # fmt: skip
E2E = (.05, .1, .2, *IMG[2:], 480, 960)
ROWS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
PIX = (4096, 16384, 65536, 131072, 262144, 524288, 1048576, 1572864, 2097152, 4194304)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)
JOULES = (.5, 1, 2, 5, 10, 20, 50, 100, 200, 350, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 6000, 10000, 20000)  # fmt: skip

P = "predictors"


class TokenHistogram(Histogram):
    """A histogram that takes equal values together: all tokens of a step come at once."""

    def observe_many(self, amount: float, count: int) -> None:
        """As `count` calls of `observe`."""
        self._sum.inc(amount * count)
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            if amount <= bound:
                bucket.inc(count)
                return



requests_total = Counter(f"{P}_requests_total", "Requests answered, by protocol and outcome.", ["model", "protocol", "operation", "reason"])
request_seconds = Histogram(f"{P}_request_duration_seconds", "Time from a request's head to the end of its answer.", ["model", "protocol", "outcome"], buckets=E2E)
requests_in_flight = Gauge(f"{P}_requests_in_flight", "Inference requests in progress, all models, from head to end of answer.")
request_bytes_in_flight = Gauge(f"{P}_request_bytes_in_flight", "Bytes of large request bodies that are held until they are answered.")
requests_running = Gauge(f"{P}_requests_running", "Jobs that hold a slot of the engine.", ["model"])
requests_waiting = Gauge(f"{P}_requests_waiting", "Jobs in the admission queue.", ["model"])
queue_capacity = Gauge(f"{P}_queue_capacity", "Size of the admission queue, in jobs.", ["model"])
queue_oldest_seconds = Gauge(f"{P}_queue_oldest_seconds", "Age of the oldest job in the admission queue.", ["model"])
queue_work_seconds = Gauge(f"{P}_queue_work_seconds", "Engine seconds that the jobs in the admission queue need, as learned from others.", ["model"])
callers = Gauge(f"{P}_callers", "Callers with jobs that wait or run.", ["model"])
queue_seconds = Histogram(f"{P}_queue_duration_seconds", "Time in the admission queue, including expired and cancelled jobs.", ["model"], buckets=QUEUE)
admission_rejected_total = Counter(f"{P}_admission_rejected_total", "Jobs refused before they were queued.", ["model", "reason"])
jobs_total = Counter(f"{P}_jobs_total", "Jobs answered by the engine, by outcome. A request has one job per row.", ["model", "reason"])
batch_size = Histogram(f"{P}_batch_size", "Jobs per forward pass: of a denoise step of one shape, or a decode step.", ["model"], buckets=BATCH)
prefill_size = Histogram(f"{P}_prefill_size", "Rows of a pass over prompts, padding included.", ["model"], buckets=ROWS)
batch_splits_total = Counter(f"{P}_batch_splits_total", "Steps split in two: out of memory (oom), or to find the failing job (other).", ["model", "reason"])
step_width_cap = Gauge(f"{P}_step_width_cap", "Most jobs per step, since wider ones ran out of memory; 0 without a cap.", ["model"])
stage_seconds = Histogram(f"{P}_stage_duration_seconds", "Time per stage of a request.", ["model", "stage"], buckets=STAGE)
step_seconds = Histogram(f"{P}_step_duration_seconds", "Time of one engine step.", ["model"], buckets=STEP)
engine_steps_total = Counter(f"{P}_engine_steps_total", "Engine steps taken.", ["model"])
engine_last_step_timestamp_seconds = Gauge(f"{P}_engine_last_step_timestamp_seconds", "Unix time of the last finished engine step.", ["model"])
engine_failures_total = Counter(f"{P}_engine_failures_total", "Failures that ended the engine.", ["model"])
denoise_step_seconds = Histogram(f"{P}_denoise_step_duration_seconds", "Time of one denoise step, by class of picture size.", ["model", "resolution"], buckets=STEP)
denoise_steps_total = Counter(f"{P}_denoise_steps_total", "Denoise steps, counted per picture.", ["model"])
images_total = Counter(f"{P}_images_generated_total", "Pictures generated, by class of size and quality tier.", ["model", "resolution", "tier"])
images_checked_total = Counter(f"{P}_images_checked_total", "Pictures judged by the content check, by verdict.", ["model", "verdict"])
image_pixels = Histogram(f"{P}_image_pixels", "Pixels per generated picture.", ["model"], buckets=PIX)
loras_loaded = Gauge(f"{P}_loras_loaded", "Adapters (LoRA) that requests may use.", ["model"])
lora_images_total = Counter(f"{P}_lora_images_total", "Pictures generated with an adapter (LoRA), by its name. A picture with several counts for each.", ["model", "lora"])
inference_steps = Histogram(f"{P}_inference_steps", "Denoise steps per picture.", ["model"], buckets=INPUT_STEPS)
request_energy_joules = Histogram(f"{P}_request_energy_joules", "Energy of the GPU per answered job: its engine seconds at the mean power of each window.", ["model"], buckets=JOULES)
energy_joules_total = Counter(f"{P}_energy_joules_total", "Energy of the GPU that jobs took. Idle time is not in it.", ["model"])
ttft_seconds = Histogram(f"{P}_time_to_first_token_seconds", "Time from submission to the first token.", ["model"], buckets=TTFT)
itl_seconds = TokenHistogram(f"{P}_inter_token_latency_seconds", "Time between two tokens of one sequence.", ["model"], buckets=ITL)
ttfi_seconds = Histogram(f"{P}_time_to_first_image_seconds", "Time from submission to the picture.", ["model"], buckets=IMG)
prompt_tokens_total = Counter(f"{P}_prompt_tokens_total", "Prompt tokens, including those of pictures.", ["model"])
vision_tokens_total = Counter(f"{P}_vision_tokens_total", "Prompt tokens of pictures.", ["model"])
generation_tokens_total = Counter(f"{P}_generation_tokens_total", "Tokens generated.", ["model"])
request_prompt_tokens = Histogram(f"{P}_request_prompt_tokens", "Prompt tokens per sequence.", ["model"], buckets=TOKENS)
request_generation_tokens = Histogram(f"{P}_request_generation_tokens", "Tokens generated per sequence.", ["model"], buckets=TOKENS)
input_image_pixels = Histogram(f"{P}_input_image_pixels", "Pixels per received picture.", ["model"], buckets=PIX)
kv_cache_usage_ratio = Gauge(f"{P}_kv_cache_usage_ratio", "Share of KV pages reserved by sequences, 0 to 1, without the prefix cache.", ["model"])
preemptions_total = Counter(f"{P}_preemptions_total", "Sequences that gave their KV pages back to others and were read again.", ["model"])
preempted_tokens_total = Counter(f"{P}_preempted_tokens_total", "Tokens in KV pages that sequences gave back to others.", ["model"])
late_masks_total = Counter(f"{P}_late_grammar_masks_total", "Passes whose choice of tokens waited for the masks of grammars: the device was idle.", ["model"])
cache_requests_total = Counter(f"{P}_cache_requests_total", "Cache look-ups, by cache and result.", ["model", "cache", "result"])
recompilations_total = Counter(f"{P}_recompilations_total", "Compilations after ready that were not planned; must stay 0.", ["model"])
graph_captures_total = Counter(f"{P}_graph_captures_total", "CUDA graphs captured after ready that were not planned; must stay 0.", ["model"])
planned_warm_ups_total = Counter(f"{P}_planned_warm_ups_total", "Promised shapes warmed after ready, as planned (flux.warm, qwen_vl.warm).", ["model", "outcome"])
planned_warm_ups_left = Gauge(f"{P}_planned_warm_ups_left", "Promised shapes that are still to be warmed after ready.", ["model"])
model_phase_seconds = Gauge(f"{P}_model_phase_seconds", "Duration of the last load and warm-up. Capture and compile are parts of them.", ["model", "phase"])
start_info = Gauge(f"{P}_start_info", "1 for the kind of the last start: cold (compiled), warm (from disk) or plain.", ["model", "start"])
start_compilations = Gauge(f"{P}_start_compilations", "Kernels and graphs of the last start, by source.", ["model", "source"])
attention_info = Gauge(f"{P}_attention_info", "Constant 1; the attention kernel in use.", ["model", "kernel"])
attention_seconds = Gauge(f"{P}_attention_seconds", "Time per call of each attention kernel, measured at load for the largest size.", ["model", "kernel"])
tier_info = Gauge(f"{P}_tier_info", "Constant 1 per loaded quality tier, with the precision of its matrix products.", ["model", "tier", "precision"])
model_ready = Gauge(f"{P}_model_ready", "1 once requests are served: every promised shape is warm, or with the setting warm minimal the first.", ["model"])
gpu_memory_bytes = Gauge(f"{P}_gpu_memory_bytes", "GPU memory: of this process by torch, of all processes by the driver.", ["device", "state"])
gpu_utilization_ratio = Gauge(f"{P}_gpu_utilization_ratio", "Share of the driver's last sample in which any kernel ran, 0 to 1.", ["device"])
gpu_temperature_celsius = Gauge(f"{P}_gpu_temperature_celsius", "Temperature of the GPU.", ["device"])
gpu_power_watts = Gauge(f"{P}_gpu_power_watts", "Power that the GPU draws.", ["device"])
gpu_power_limit_watts = Gauge(f"{P}_gpu_power_limit_watts", "Power at which the driver slows the GPU down.", ["device"])
gpu_energy_joules_total = Counter(f"{P}_gpu_energy_joules_total", "Energy that the GPU took since the start, idle time included, of all processes.", ["device"])
gpu_xid_errors_total = Counter(f"{P}_gpu_xid_errors_total", "XID errors of the GPU since the start, of any process. The log has the numbers.", ["device", "kind"])
tls_certificate_expiry_timestamp_seconds = Gauge(f"{P}_tls_certificate_expiry_timestamp_seconds", "Unix time at which the first certificate served by TLS expires; 0 without TLS.")
c2pa_certificate_expiry_timestamp_seconds = Gauge(f"{P}_c2pa_certificate_expiry_timestamp_seconds", "Unix time at which the certificate that signs pictures expires; 0 without one.")
tls_last_reload_timestamp_seconds = Gauge(f"{P}_tls_last_reload_timestamp_seconds", "Unix time at which the TLS files in use were read; 0 without TLS.")
tls_reload_failing = Gauge(f"{P}_tls_reload_failing", "1 while the TLS files can't be used and older content stays in use.")
tls_handshake_failures_total = Counter(f"{P}_tls_handshake_failures_total", "REST connections that ended before the end of their TLS handshake.")
caller_requests_total = Counter(f"{P}_caller_requests_total", "Requests answered, by the name of their API key; `other` without one in use.", ["caller", "outcome"])
caller_engine_seconds_total = Counter(f"{P}_caller_engine_seconds_total", "Engine seconds spent, by the name of the API key.", ["caller"])
caller_jobs = Gauge(f"{P}_caller_jobs", "Jobs that are prepared, wait or run, by the name of their API key.", ["caller"])
refused_keys_total = Counter(f"{P}_refused_keys_total", "Requests refused for their API key.", ["reason"])
keys_loaded = Gauge(f"{P}_keys_loaded", "API keys in use. 0: none is needed.")
keys_reload_success = Gauge(f"{P}_keys_reload_success", "1 if the keys file was usable when it was read last.")
keys_reload_timestamp_seconds = Gauge(f"{P}_keys_reload_timestamp_seconds", "Unix time at which the keys in use were read.")
overload_pressure = Gauge(f"{P}_overload_pressure", "Reading of a monitor as a share of its limit, 0 to 1; 0 for one without a limit.", ["monitor"])
overload_active = Gauge(f"{P}_overload_active", "1 while the action is on: each response closes its connection, or new requests are refused.", ["action"])
event_loop_lag_seconds = Histogram(f"{P}_event_loop_lag_seconds", "How late the event loop ran a timer of each 100 ms: the wait of all it had to do then.", buckets=STAGE)
draining = Gauge(f"{P}_draining", "1 while the process shuts down.")
log_records_dropped_total = Counter(f"{P}_log_records_dropped_total", "Log lines dropped because stderr was read too slowly.")
activator_requests_total = Counter(f"{P}_activator_requests_total", "Requests to an activator; the model answered those that are `proxied`.", ["model", "protocol", "outcome"])
activator_requests_in_progress = Gauge(f"{P}_activator_requests_in_progress", "Requests that the activator holds or has passed on. An autoscaler keeps the model for them.", ["model"])
activator_requests_held = Gauge(f"{P}_activator_requests_held", "Requests that wait in the activator for the model to be ready.", ["model"])
activator_held_bytes = Gauge(f"{P}_activator_held_bytes", "Bytes of bodies that wait in the activator, and of gRPC messages on their way.", ["model"])
activator_wait_seconds = Histogram(f"{P}_activator_wait_duration_seconds", "Time that requests were held by the activator, answered or not.", ["model"], buckets=QUEUE)
activator_wakes_total = Counter(f"{P}_activator_wakes_total", "Times that the activator set a model's replicas from 0 to 1.", ["model"])
activator_scale_failures_total = Counter(f"{P}_activator_scale_failures_total", "Calls to the scale API that failed or were refused.", ["model"])
build_info = Gauge(f"{P}_build_info", "Constant 1; the running version and device.", ["model", "version", "torch", "device", "dtype"])

_PER_MODEL = (
    requests_running, requests_waiting, queue_oldest_seconds, queue_work_seconds, callers, queue_seconds, batch_size, step_seconds,
    step_width_cap, engine_steps_total, engine_failures_total, recompilations_total, graph_captures_total, model_ready,
    planned_warm_ups_left,
)  # fmt: skip

for _labels in REFUSED_KEYS:
    refused_keys_total.labels(_labels)
for _labels in OVERLOAD_MONITORS:
    overload_pressure.labels(_labels)
for _labels in OVERLOAD_ACTIONS:
    overload_active.labels(_labels)

Series = Counter | Gauge | Histogram


@dataclass(frozen=True, slots=True)
class ModelSeries:
    """Label values and series that a kind of model adds to those of every model."""

    operations: tuple[str, ...]
    """Values of the label `operation`: of V2 requests first, then of OpenAI requests."""
    anthropic: tuple[str, ...] = ()
    """Those of Anthropic's requests; empty for a model that answers none."""
    stages: tuple[str, ...] = ()
    """Values of the label `stage`, in the order of a request."""
    caches: tuple[str, ...] = ()
    """Values of the label `cache`."""
    own: Mapping[Series, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    """Series that only this kind has, with the values of their labels after `model`; `((),)` where `model` is the only label."""

    @property
    def by_protocol(self) -> dict[str, tuple[str, ...]]:
        """Operations by protocol."""
        first, *others = self.operations
        found = {"v2_rest": (first,), "v2_grpc": (first,), "openai": tuple(others)}
        return found | ({ANTHROPIC: self.anthropic} if self.anthropic else {})


def resolution_class(width: int, height: int) -> str:
    """The value of the label `resolution`: the smallest class whose square has at least this area."""
    for limit, name in zip((256, 512, 768, 1024), RESOLUTIONS, strict=False):
        if width * height <= limit * limit:
            return name
    return RESOLUTIONS[-1]


def register_caller(caller: str) -> None:
    """Create every series of the name of an API key at zero. Idempotent."""
    for outcome in CALLER_OUTCOMES:
        caller_requests_total.labels(caller, outcome)
    caller_engine_seconds_total.labels(caller)
    caller_jobs.labels(caller)


def unregister_caller(caller: str) -> None:
    """End the series of a name that has no API key any more, so that their number stays bounded."""
    for outcome in CALLER_OUTCOMES:
        caller_requests_total.remove(caller, outcome)
    caller_engine_seconds_total.remove(caller)
    caller_jobs.remove(caller)


def register_activator(model: str) -> None:
    """Create the series of the activator of a model at zero."""
    for series in (activator_requests_in_progress, activator_requests_held, activator_held_bytes, activator_wait_seconds, activator_wakes_total):
        series.labels(model)
    activator_scale_failures_total.labels(model)
    for protocol in PROTOCOLS:
        for outcome in ACTIVATOR_OUTCOMES:
            activator_requests_total.labels(model, protocol, outcome)


def register_lora(model: str, lora: str) -> None:
    """Create the series of an adapter at zero."""
    lora_images_total.labels(model, lora)


def unregister_lora(model: str, lora: str) -> None:
    """End the series of an adapter that is gone, so that their number stays bounded."""
    lora_images_total.remove(model, lora)


def register_model(model: str, added: ModelSeries) -> None:
    """Create every series of `model` at zero: those of all models and those that its kind adds. Idempotent."""
    for series in _PER_MODEL:
        series.labels(model)
    for reason in REASONS:
        jobs_total.labels(model, reason)
        for protocol, operations in added.by_protocol.items():
            for operation in operations:
                requests_total.labels(model, protocol, operation, reason)
    for protocol in added.by_protocol:
        for outcome in ("ok", "error"):
            request_seconds.labels(model, protocol, outcome)
    for outcome in WARM_UP_OUTCOMES:
        planned_warm_ups_total.labels(model, outcome)
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
