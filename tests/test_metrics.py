"""The series of both tasks: declared once, zero at first, with names that promtool accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from predictors import metrics
from predictors.chat.sequence import SERIES as CHAT
from predictors.diffusion.predictor import SERIES as DIFFUSION
from predictors.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    TooLarge,
)
from tools.metrics import RENAMED

FLUX, QWEN_VL = "flux-under-test", "qwen-vl-under-test"

BOTH = {
    "predictors_requests",
    "predictors_request_duration_seconds",
    "predictors_requests_running",
    "predictors_requests_waiting",
    "predictors_queue_oldest_seconds",
    "predictors_queue_work_seconds",
    "predictors_callers",
    "predictors_step_width_cap",
    "predictors_queue_duration_seconds",
    "predictors_admission_rejected",
    "predictors_jobs",
    "predictors_batch_size",
    "predictors_batch_splits",
    "predictors_stage_duration_seconds",
    "predictors_step_duration_seconds",
    "predictors_engine_steps",
    "predictors_engine_failures",
    "predictors_recompilations",
    "predictors_graph_captures",
    "predictors_planned_warm_ups",
    "predictors_planned_warm_ups_left",
    "predictors_model_ready",
    "predictors_cache_requests",
    "predictors_loras_loaded",
}
FLUX_ONLY = {
    "predictors_denoise_step_duration_seconds",
    "predictors_denoise_steps",
    "predictors_images_generated",
    "predictors_image_pixels",
    "predictors_inference_steps",
    "predictors_time_to_first_image_seconds",
    "predictors_images_checked",
}
QWEN_VL_ONLY = {
    "predictors_time_to_first_token_seconds",
    "predictors_inter_token_latency_seconds",
    "predictors_prompt_tokens",
    "predictors_vision_tokens",
    "predictors_generation_tokens",
    "predictors_request_prompt_tokens",
    "predictors_request_generation_tokens",
    "predictors_input_image_pixels",
    "predictors_kv_cache_usage_ratio",
    "predictors_late_grammar_masks",
    "predictors_prefill_size",
    "predictors_preemptions",
    "predictors_preempted_tokens",
}


@pytest.fixture(scope="module")
def scrape() -> str:
    """The text of a scrape after a model of each task was registered."""
    metrics.register_model(FLUX, DIFFUSION)
    metrics.register_model(QWEN_VL, CHAT)
    return generate_latest(REGISTRY).decode()


def families(scrape: str, model: str) -> set[str]:
    """Names of the families that have a sample of `model`."""
    return {
        family.name
        for family in text_string_to_metric_families(scrape)
        if not family.name.endswith("_created")
        and any(sample.labels.get("model") == model for sample in family.samples)
    }


def declared() -> list[MetricWrapperBase]:
    """Every series object of the module."""
    return [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]


def test_promtool_accepts_the_scrape(scrape: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    ours = [line for line in scrape.splitlines() if "predictors_" in line]
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input="\n".join(ours) + "\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize(("model", "own"), [(FLUX, FLUX_ONLY), (QWEN_VL, QWEN_VL_ONLY)])
def test_a_model_has_its_series_from_the_start(scrape: str, model: str, own: set[str]) -> None:
    assert families(scrape, model) == BOTH | own


def test_every_sample_of_a_new_model_is_zero(scrape: str) -> None:
    moved = [
        sample
        for family in text_string_to_metric_families(scrape)
        for sample in family.samples
        if sample.labels.get("model") in {FLUX, QWEN_VL}
        and not sample.name.endswith("_created")
        and sample.value != 0
    ]
    assert moved == []


def test_every_outcome_of_every_protocol_exists_before_it_happens(scrape: str) -> None:
    texts = {"infer", "chat", "responses", "completions", "tokenize", "detokenize"}
    for model, operations in ((FLUX, {"infer", "images", "edits"}), (QWEN_VL, texts)):
        found = {
            (s.labels["protocol"], s.labels["operation"], s.labels["reason"])
            for family in text_string_to_metric_families(scrape)
            if family.name == "predictors_requests"
            for s in family.samples
            if s.labels["model"] == model and s.name.endswith("_total")
        }
        served = {"openai": operations - {"infer"}}
        if model == QWEN_VL:
            served["anthropic"] = {"messages", "count_tokens"}
        expected = {
            (protocol, operation, reason)
            for protocol in {*metrics.PROTOCOLS, *served}
            for operation in served.get(protocol, {"infer"})
            for reason in metrics.REASONS
        }
        assert found == expected


@pytest.mark.parametrize("model", [FLUX, QWEN_VL])
def test_every_reason_of_a_refusal_exists_before_it_happens(scrape: str, model: str) -> None:
    raised = (  # by `Host.submit`
        Overloaded, DeadlineExceeded, InvalidRequest, TooLarge, NotReady, Draining, EngineFailed,
    )  # fmt: skip
    found = {
        sample.labels["reason"]
        for family in text_string_to_metric_families(scrape)
        if family.name == "predictors_admission_rejected"
        for sample in family.samples
        if sample.labels["model"] == model and sample.name.endswith("_total")
    }
    assert found == {kind.reason for kind in raised}


def test_the_gates_and_refused_keys_series_are_there_from_the_start(scrape: str) -> None:
    for name, label, values in (
        ("refused_keys_total", "reason", metrics.REFUSED_KEYS),
        ("overload_pressure", "monitor", metrics.OVERLOAD_MONITORS),
        ("overload_active", "action", metrics.OVERLOAD_ACTIONS),
    ):
        for value in values:
            assert f'predictors_{name}{{{label}="{value}"}}' in scrape


def test_registering_twice_changes_nothing(scrape: str) -> None:
    metrics.requests_running.labels(FLUX).inc()
    metrics.register_model(FLUX, DIFFUSION)
    assert REGISTRY.get_sample_value("predictors_requests_running", {"model": FLUX}) == 1
    metrics.requests_running.labels(FLUX).dec()


def test_every_failure_is_counted_under_a_known_reason() -> None:
    def tree(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*(tree(sub) for sub in kind.__subclasses__()))

    from predictors.errors import ServingError

    assert {kind.reason for kind in tree(ServingError)} <= set(metrics.REASONS)  # type: ignore[attr-defined]


def test_names_have_one_prefix_base_units_and_a_help_text() -> None:
    for series in declared():
        name, kind = series._name, series._type
        assert name.startswith("predictors_")
        assert series._documentation.endswith(".")
        units = r"_(seconds|pixels|tokens|size|steps|joules)$"
        assert kind != "histogram" or re.search(units, name), name
        assert not re.search(r"_(ms|us|milliseconds|kb|mb)(_|$)", name), name


def test_every_series_is_written_somewhere() -> None:
    package = Path(metrics.__file__).parent
    code = "".join(p.read_text() for p in package.rglob("*.py") if p != package / "metrics.py")
    names = {k for k, v in vars(metrics).items() if isinstance(v, MetricWrapperBase)}
    # to list a series in a model's `ModelSeries` (followed by a colon) is not to write it
    written = {name for name in names if re.search(rf"\bmetrics\.{name}\b(?!:)", code)}
    assert written == names


def test_labels_are_bounded() -> None:
    allowed = {
        "model",
        "protocol",
        "operation",
        "reason",
        "outcome",
        "stage",
        "resolution",
        "cache",
        "kernel",
        "result",
        "phase",
        "start",
        "source",
        "state",
        "kind",
        "version",
        "torch",
        "device",
        "dtype",
        "tier",
        "precision",
        "monitor",
        "action",
        "caller",  # names of API keys, of which there are at most 256
        "verdict",
        "lora",  # names of the adapters that are loaded, of which there are at most 1000
    }
    assert {label for series in declared() for label in series._labelnames} <= allowed


@pytest.mark.parametrize(
    ("width", "height", "name"),
    [
        (64, 64, "le_256"),
        (256, 256, "le_256"),
        (256, 272, "le_512"),
        (512, 512, "le_512"),
        (1024, 256, "le_512"),
        (768, 768, "le_768"),
        (1024, 1024, "le_1024"),
        (1040, 1024, "gt_1024"),
    ],
)
def test_a_size_falls_into_the_class_of_its_area(width: int, height: int, name: str) -> None:
    assert metrics.resolution_class(width, height) == name


def test_the_page_sends_readers_of_other_servers_to_series_that_exist() -> None:
    names = {series._name + ("_total" * (series._type == "counter")) for series in declared()}
    assert len(RENAMED) > 10
    for theirs, ours, _ in RENAMED:
        for name in re.findall(r"predictors_\w+", ours):
            assert name.removesuffix("_count") in names, name
        for name in re.findall(r"`(\w+)`", theirs):
            assert not {f"predictors_{name}", f"predictors_{name}_total"} & names, name
    labels = {label for series in declared() for label in series._labelnames}
    assert not {"code", "priority"} & labels
    stages = {*DIFFUSION.stages, *CHAT.stages}
    assert not {"image_fetch", "image_decode", "safety"} & stages
    assert "prepare" in stages
    assert "download" not in metrics.PHASES
    kept = {*DIFFUSION.caches, *CHAT.caches}
    assert not {"compile", "cuda_graph"} & kept


def test_equal_values_taken_together_count_as_one_by_one() -> None:
    together, apart = (
        metrics.TokenHistogram(f"taken_{i}", "", ["model"], registry=CollectorRegistry()).labels(
            "m"
        )
        for i in range(2)
    )
    for amount, count in ((0.004, 3), (0.3, 1), (99.0, 2)):
        together.observe_many(amount, count)
        for _ in range(count):
            apart.observe(amount)
    found = [
        [s[2] for s in child._child_samples() if s[0] != "_created"] for child in (together, apart)
    ]
    assert found[0] == pytest.approx(found[1])
    assert found[0][-2] == 6
