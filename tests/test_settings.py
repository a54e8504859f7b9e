"""Defaults of the settings, bounds, and reading the environment."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable

import pytest

from predictors.environment import from_env
from predictors.settings import (
    ALIASES,
    ComputeSettings,
    FluxSettings,
    InvalidSetting,
    QueueSettings,
    QwenVLSettings,
    Settings,
    bounds_of,
    variable_name,
)

DEFAULTS = {
    "server.host": "127.0.0.1",
    "server.allowed_hosts": "",
    "server.allowed_origins": "",
    "server.aliases": "",
    "server.port": 8080,
    "server.grpc_port": 8081,
    "server.health_port": -1,
    "server.metrics_port": -1,
    "server.admin_port": -1,
    "server.loras": "",
    "server.lora_root": "",
    "server.admin_host": "127.0.0.1",
    "server.linger_s": 0.0,
    "server.grpc_connection_s": 0.0,
    "server.drain_timeout_s": 300.0,
    "server.keep_alive_s": 65.0,
    "server.max_connections": 0,
    "server.write_timeout_s": 30.0,
    "server.stream_comment_s": 15.0,
    "server.max_body_bytes": 64 * 2**20,
    "server.public_url": "",
    "server.picture_url_s": 600.0,
    "server.picture_url_bytes": 256 * 2**20,
    "server.playground": "auto",
    "server.repository_api": False,
    "server.docs": "auto",
    "server.grpc_reflection": "auto",
    "server.access_log": True,
    "server.log_format": "auto",
    "server.log_level": "info",
    "server.log_prompts": False,
    "server.prepare_threads": 0,
    "server.workers": 0,
    "server.worker_memory_bytes": 2**30,
    "server.worker_timeout_s": 30.0,
    "server.max_message_bytes": 32 * 2**20,
    "server.max_bytes_in_flight": 256 * 2**20,
    "server.max_arriving_messages": 32,
    "server.body_timeout_s": 10.0,
    "access.keys_file": "",
    "access.reload_s": 5.0,
    "access.open": False,
    "access.metrics_key": False,
    "access.caller_header": "",
    "access.trusted_proxies": "",
    "tls.cert_file": "",
    "tls.key_file": "",
    "tls.client_ca_file": "",
    "tls.reload_s": 10.0,
    "overload.close_at": 0.9,
    "overload.refuse_at": 0.97,
    "overload.memory_bytes": 0,
    "overload.loop_lag_s": 0.5,
    "overload.prepare_backlog": 256,
    "queue.capacity": 64,
    "queue.capacity_s": 0.0,
    "queue.overload_status": 503,
    "queue.refusals_per_s": 200.0,
    "queue.skip_window": 8,
    "queue.skip_max_wait_s": 30.0,
    "queue.default_timeout_s": 600.0,
    "queue.stall_timeout_s": 120.0,
    "images.max_bytes": 20 * 2**20,
    "images.max_pixels": 50_000_000,
    "images.max_side": 20_000,
    "images.max_aspect": 200.0,
    "images.max_images": 32,
    "films.max_bytes": 32 * 2**20,
    "films.max_films": 4,
    "films.max_frames": 256,
    "films.max_frame_pixels": 9_000_000,
    "films.max_pixels": 2**27,
    "films.max_duration_s": 1800.0,
    "films.max_tokens": 0,
    "films.decode_s": 20.0,
    "compute.device": "auto",
    "compute.dtype": "auto",
    "compute.compile": "auto",
    "compute.attention": "auto",
    "compute.threads": 0,
    "compute.cache_dir": "",
    "compute.weights_variant": "",
    "compute.verify": "auto",
    "cluster.events": "auto",
    "cluster.interval_s": 3.0,
    "cluster.timeout_s": 3.0,
    "sharing.policy": "auto",
    "sharing.picture_share": 0.8,
    "sharing.token_wait_ms": 30.0,
    "sharing.step_pieces": 12,
    "flux.memory_fraction": 0.0,
    "flux.slots": 4,
    "flux.max_pixels": 1536 * 1536,
    "flux.max_side": 2048,
    "flux.min_side": 64,
    "flux.max_steps": 100,
    "flux.default_steps": 0,
    "flux.default_size": "",
    "flux.sizes": "",
    "flux.warm": "all",
    "flux.unpromised": "serve",
    "flux.max_sequence_length": 0,
    "flux.prompt_cache_bytes": 256 * 2**20,
    "flux.png_level": 1,
    "flux.tiers": "auto",
    "flux.default_tier": "",
    "flux.fp8_attention": True,
    "flux.conditioning_precision": "auto",
    "flux.lora_max_active": 0,
    "flux.lora_max_rank": 0,
    "flux.edits": "auto",
    "flux.kind": "auto",
    "flux.preview": "auto",
    "flux.age_limit_s": 30.0,
    "flux.provenance": "xmp",
    "flux.c2pa_cert_file": "",
    "flux.c2pa_key_file": "",
    "flux.checker": "",
    "flux.checker_labels": "",
    "flux.checker_threshold": 0.5,
    "flux.checker_action": "refuse",
    "qwen_vl.memory_fraction": 0.0,
    "qwen_vl.slots": 0,
    "qwen_vl.page_tokens": 0,
    "qwen_vl.kv_tokens": 0,
    "qwen_vl.max_context": 0,
    "qwen_vl.prefill_chunk": 0,
    "qwen_vl.prefill_steps": 0.0,
    "qwen_vl.mixed_passes": True,
    "qwen_vl.default_max_tokens": 0,
    "qwen_vl.min_pixels": 0,
    "qwen_vl.max_pixels": 0,
    "qwen_vl.default_max_pixels": 0,
    "qwen_vl.warm": "all",
    "qwen_vl.films": "auto",
    "qwen_vl.embedding_cache_bytes": 256 * 2**20,
    "qwen_vl.prefix_cache": "auto",
    "qwen_vl.precision": "auto",
    "qwen_vl.deterministic": "auto",
    "qwen_vl.lora_max_active": 0,
    "qwen_vl.lora_max_rank": 0,
    "activator.max_held": 100,
    "activator.max_held_bytes": 256 * 2**20,
    "activator.max_wait_s": 300.0,
    "activator.probe_s": 0.25,
    "activator.scale_s": 2.0,
    "activator.connect_timeout_s": 2.0,
}


def links_to(service: str) -> dict[str, str]:
    """The variables that Kubernetes sets in every pod for a Service of this name."""
    name = service.upper().replace("-", "_")
    return {
        f"{name}_SERVICE_HOST": "10.96.0.7",
        f"{name}_SERVICE_PORT": "80",
        f"{name}_SERVICE_PORT_HTTP1": "80",
        f"{name}_PORT": "tcp://10.96.0.7:80",
        f"{name}_PORT_80_TCP": "tcp://10.96.0.7:80",
        f"{name}_PORT_80_TCP_ADDR": "10.96.0.7",
    }


@pytest.mark.parametrize(
    "service", ["predictors", "predictors-metrics", "predictors-server", "grpc"]
)
def test_variables_of_a_kubernetes_service_set_nothing(service: str) -> None:
    assert from_env(links_to(service)) == Settings()


def test_a_port_set_by_the_operator_is_read_beside_such_variables() -> None:
    environ = links_to("grpc") | {"GRPC_PORT": "9000"}
    assert from_env(environ).server.grpc_port == 9000


def test_an_unknown_name_is_refused_beside_such_variables() -> None:
    with pytest.raises(InvalidSetting, match="PREDICTORS_SERVER_PROT"):
        from_env(links_to("predictors-server") | {"PREDICTORS_SERVER_PROT": "1"})


BASE = "SettingsGroup"
CHOICES = {
    variable_name(kind, field.name): bounds_of(field).choices
    for kind in (type(getattr(Settings(), group.name)) for group in dataclasses.fields(Settings))
    for field in dataclasses.fields(kind)
}


def flat(settings: Settings) -> dict[str, object]:
    """Values by `group.knob`."""
    groups = dataclasses.asdict(settings)
    return {f"{g}.{k}": v for g, knobs in groups.items() for k, v in knobs.items()}


def env_name(knob: str) -> str:
    """The variable of `group.knob`."""
    return "PREDICTORS_" + knob.replace(".", "_").upper()


def test_the_promised_defaults_hold() -> None:
    assert flat(Settings()) == DEFAULTS


def test_an_empty_environment_gives_the_defaults() -> None:
    assert from_env({}) == Settings()
    assert from_env({"PATH": "/bin", "HOME": "/root"}) == Settings()


@pytest.mark.parametrize("knob", DEFAULTS)
def test_every_setting_is_read_from_its_own_variable(knob: str) -> None:
    default = DEFAULTS[knob]
    other = {bool: "true", int: "7", float: "7.5", str: "other"}[type(default)]
    if default is True:
        other = "false"
    shares = ("overload", "threshold", "memory_fraction", "picture_share")
    if any(share in knob for share in shares) and type(default) is float:
        other = "0.75"  # a share
    choices = CHOICES.get(env_name(knob))
    if choices:
        other = str(choices[1])
    changed = flat(from_env({env_name(knob): other}))
    differing = {name for name in DEFAULTS if changed[name] != DEFAULTS[name]}
    assert differing == {knob}
    assert type(changed[knob]) is type(default)


@pytest.mark.parametrize(("long", "short"), ALIASES.items())
def test_a_short_name_works_and_the_full_name_wins(long: str, short: str) -> None:
    group, knob = long.removeprefix("PREDICTORS_").split("_", 1)
    read = lambda environ: getattr(getattr(from_env(environ), group.lower()), knob.lower())  # noqa: E731
    assert str(read({short: "1234"})) == "1234"
    assert str(read({short: "1234", long: "4321"})) == "4321"


@pytest.mark.parametrize("raw", ["1", "true", "YES", "On"])
def test_true_has_four_spellings(raw: str) -> None:
    assert from_env({"PREDICTORS_SERVER_REPOSITORY_API": raw}).server.repository_api is True


@pytest.mark.parametrize("raw", ["0", "false", "NO", "Off", ""])
def test_false_has_five_spellings(raw: str) -> None:
    assert from_env({"PREDICTORS_SERVER_ACCESS_LOG": raw}).server.access_log is False


@pytest.mark.parametrize(
    ("name", "raw", "word"),
    [
        ("PREDICTORS_QUEUE_CAPACITY", "many", "int"),
        ("PREDICTORS_QUEUE_CAPACITY", "1.5", "int"),
        ("PREDICTORS_QUEUE_DEFAULT_TIMEOUT_S", "soon", "float"),
        ("PREDICTORS_SERVER_ACCESS_LOG", "maybe", "true or false"),
        ("PORT", "http", "int"),
        ("PORT", "-1", "from 0 to 65535"),
        ("PREDICTORS_QUEUE_DEFAULT_TIMEOUT_S", "nan", "a finite number"),
        ("PREDICTORS_QUEUE_DEFAULT_TIMEOUT_S", "inf", "a finite number"),
        ("PREDICTORS_FLUX_SLOTS", "0", "a finite number of at least 1"),
        ("PREDICTORS_FLUX_UNPROMISED", "maybe", "one of serve, refuse"),
        ("PREDICTORS_QUEUE_OVERLOAD_STATUS", "500", "one of 503, 429"),
        ("PREDICTORS_COMPUTE_DTYPE", "float8", "one of auto, float32"),
    ],
)
def test_a_bad_value_is_refused_and_named(name: str, raw: str, word: str) -> None:
    full = {short: long for long, short in ALIASES.items()}.get(name, name)
    with pytest.raises(InvalidSetting, match=f"{full} must be {word}"):
        from_env({name: raw})


@pytest.mark.parametrize("name", ["PORT", "GRPC_PORT", "PREDICTORS_SERVER_ADMIN_PORT"])
def test_a_port_above_the_last_is_refused(name: str) -> None:
    with pytest.raises(InvalidSetting, match=r"PORT must be from -?[01] to 65535, not 80000"):
        from_env({name: "80000"})


@pytest.mark.parametrize("name", ["MAX_MESSAGE_BYTES", "LINGER_S"])
def test_a_number_that_grpc_can_not_take_is_refused(name: str) -> None:
    with pytest.raises(InvalidSetting, match=rf"{name} must be from 0 to \d+, not 3000000000"):
        from_env({f"PREDICTORS_SERVER_{name}": "3000000000"})


def test_grpc_is_turned_off_by_port_minus_one() -> None:
    assert from_env({"GRPC_PORT": "-1"}).server.grpc_port == -1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: QueueSettings(overload_status=500),
            "OVERLOAD_STATUS must be one of 503, 429",
        ),
        (lambda: ComputeSettings(dtype="int8"), "COMPUTE_DTYPE must be one of auto, float32"),
        (lambda: ComputeSettings(compile="fast"), "COMPUTE_COMPILE must be one of auto, off"),
        (lambda: ComputeSettings(attention="fast"), "COMPUTE_ATTENTION must be one of auto, cudnn"),
        (lambda: FluxSettings(unpromised="maybe"), "FLUX_UNPROMISED must be one of serve, refuse"),
        (lambda: FluxSettings(png_level=10), "FLUX_PNG_LEVEL must be from 0 to 9, not 10"),
        (lambda: FluxSettings(slots=0), "FLUX_SLOTS must be a finite number of at least 1, not 0"),
        (lambda: QwenVLSettings(slots=-1), "QWEN_VL_SLOTS must be .* at least 0"),
        (lambda: QwenVLSettings(default_max_tokens=-1), "QWEN_VL_DEFAULT_MAX_TOKENS must be .* 0"),
        (lambda: QwenVLSettings(max_context=-1), "QWEN_VL_MAX_CONTEXT must be .* at least 0"),
        (
            lambda: QwenVLSettings(deterministic="maybe"),
            "DETERMINISTIC must be one of auto, on",
        ),
        (lambda: QwenVLSettings(prefix_cache="maybe"), "PREFIX_CACHE must be one of auto, on, off"),
        (lambda: QwenVLSettings(precision="int4"), "PRECISION must be one of auto, fp8"),
    ],
)
def test_a_group_cannot_be_made_with_a_value_out_of_bounds(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(InvalidSetting, match=f"PREDICTORS_.*{message}"):
        make()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("PREDICTORS_QUEUE_CAPACTY", "did you mean PREDICTORS_QUEUE_CAPACITY?"),
        ("PREDICTORS_FLUX_TIER", "did you mean PREDICTORS_FLUX_TIERS?"),
        ("PREDICTORS_QWEN_VL_MAXCONTEXT", "did you mean PREDICTORS_QWEN_VL_MAX_CONTEXT?"),
        ("PREDICTORS_SERVER_LOGLEVEL", "did you mean PREDICTORS_SERVER_LOG_LEVEL?"),
        ("PREDICTORS_", "docs/configuration.md lists all"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    with pytest.raises(InvalidSetting) as failure:
        from_env({name: "1"})
    assert failure.value.message == f"unknown setting {name}; {hint}"


def test_settings_without_compiled_code_are_no_part_of_those_of_drawing() -> None:
    signed = FluxSettings(provenance="c2pa", c2pa_cert_file="x", checker="y", checker_threshold=0.1)
    assert signed.of_drawing == FluxSettings()
    assert FluxSettings(slots=2, provenance="none").of_drawing == FluxSettings(slots=2)
    assert FluxSettings(slots=2, warm="minimal").of_drawing == FluxSettings(slots=2)


def test_all_can_be_asked_to_be_warm_before_ready() -> None:
    minimal = {"warm": "minimal"}
    flux, chat = FluxSettings(slots=2, **minimal), QwenVLSettings(slots=2, **minimal)
    whole = Settings(flux=FluxSettings(slots=2), qwen_vl=QwenVLSettings(slots=2))
    assert Settings(flux=flux, qwen_vl=chat).with_all_warm() == whole
    assert chat.of_passes == whole.qwen_vl


def test_settings_cannot_be_changed_once_made() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().queue.capacity = 1  # type: ignore[misc]


def test_every_setting_has_a_description() -> None:
    undocumented = []
    for group in dataclasses.fields(Settings):
        kind = type(getattr(Settings(), group.name))
        assert kind.section == group.name
        body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
        for field, after in zip(body, [*body[1:], None], strict=True):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and not is_text:
                undocumented.append(ast.unparse(field.target))
    assert undocumented == []
