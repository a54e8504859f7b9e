"""The command line: flags and settings, the predictor of a folder, messages of a failed start."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from predictors import __main__ as root
from predictors.cli import demo
from predictors.compute.checkpoint.summary import CardFacts, FolderSummary
from predictors.compute.profiling.profiler import Profiler
from predictors.operators import serve
from predictors.serving.lifecycle import HostEvents, StartProgress
from predictors.settings import Settings
from predictors.workers.pool import Workers


class Host:
    """Takes the callbacks of a start."""

    is_left_behind = False

    def __init__(self) -> None:
        self.events = HostEvents()


class Predictor:
    """A stand-in for a predictor that keeps its arguments."""

    task = "flux"

    def __init__(
        self, name: str, checkpoint: Path, settings: Settings, workers: Any, **parts: Any
    ) -> None:
        self.name = name
        self.given = parts
        self.checkpoint = checkpoint
        self.settings = settings
        self.workers = workers
        self.host = Host()


def summarise(
    folder: Path, settings: Settings, card: CardFacts, **components: Any
) -> FolderSummary:
    """Takes any folder."""
    return FolderSummary("", "", (), ())


class Server:
    """A stand-in for the server that keeps its arguments."""

    given: tuple[Sequence[Predictor], Settings]

    def __init__(
        self,
        models: Sequence[Predictor],
        settings: Settings,
        *,
        on_drain: Callable[[int, float], object],
        on_ready: Callable[[], object],
        routes: Sequence[Any],
        admin_routes: Any,
        workers: Workers,
    ) -> None:
        assert admin_routes.keywords == {"make_profiler": Profiler}
        assert all(model.workers is workers for model in models)  # one pool for all
        Server.given = (models, settings)

    def run(self) -> int:
        return 7


@pytest.fixture(scope="module", autouse=True)
def _frozen_again() -> Iterator[None]:
    """Excludes again from garbage collections, as tests/conftest.py does: `_stand_ins` includes
    all."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Predictors and server are stand-ins; logging stays as it is, and so does this process: other
    tests' servers may still have threads here, which the end of a server would not wait for."""
    monkeypatch.setattr(serve, "PredictorServer", Server)
    monkeypatch.setattr(serve, "leave_hanging_threads", lambda models, exit_code: None)
    monkeypatch.setattr(root.logs, "configure_logging", lambda *_, **__: None)
    monkeypatch.setattr(root.logs, "redirect_library_handlers", lambda: None)
    monkeypatch.setattr(root, "MODELS", dict.fromkeys(root.MODELS, f"{__name__}:Predictor"))
    monkeypatch.setattr(root, "SUMMARIES", dict.fromkeys(root.SUMMARIES, f"{__name__}:summarise"))
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    yield
    os.environ.pop("GOMP_SPINCOUNT", None)
    gc.unfreeze()  # a start freezes all that it has imported


def checkpoint(folder: Path, file: str, content: object) -> Path:
    """A folder with one config."""
    folder.mkdir()
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    """A folder that says it is a FLUX pipeline."""
    return checkpoint(tmp_path / "f", "model_index.json", {"_class_name": "FluxPipeline"})


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """A folder that says it is a Qwen2.5-VL."""
    named = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    return checkpoint(tmp_path / "q", "config.json", named)


def test_every_model_is_built_from_its_folder_and_the_exit_code_is_the_servers(
    flux: Path, qwen: Path
) -> None:
    assert root.main(["serve", "--model", f"a={flux}", f"--model=b={qwen}"]) == 7
    models, settings = Server.given
    assert [(model.name, model.checkpoint) for model in models] == [("a", flux), ("b", qwen)]
    assert all(model.settings is settings for model in models)


def test_components_reach_their_model_and_no_other(flux: Path, qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    component = f"--component=a.transformer={tmp_path / 'mine'}"
    root.main(["serve", f"--model=a={flux}", f"--model=b={qwen}", component])
    one, other = Server.given[0]
    assert one.given == {"parts": {"transformer": tmp_path / "mine"}}
    assert other.given == {}


def test_a_flag_beats_the_environment(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1111")
    monkeypatch.setenv("GRPC_PORT", "2222")
    root.main(["serve", f"--model=a={flux}", "--port=3333", "--host", "::1"])
    own = Server.given[1].server
    assert (own.host, own.port, own.grpc_port) == ("::1", 3333, 2222)


def test_idle_threads_of_torch_stop_spinning_soon_unless_the_environment_says_otherwise(
    flux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.main(["serve", f"--model=a={flux}"])
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    root.main(["serve", f"--model=a={flux}"])
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_each_warmed_shape_is_a_line_in_the_log(
    flux: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root.main(["serve", f"--model=a={flux}"])
    (report,) = Server.given[0][0].host.events.on_progress
    with caplog.at_level(logging.INFO, "predictors"):
        report(StartProgress("load"))
        report(StartProgress("warmup", "128x128", 1, 3))
    assert [record.getMessage() for record in caplog.records] == ["warming: a 128x128 (1/3)"]


def test_objects_that_are_loaded_when_a_model_is_warm_are_frozen(flux: Path) -> None:
    root.main(["serve", f"--model=a={flux}"])
    (freeze,) = Server.given[0][0].host.events.on_warm
    gc.unfreeze()
    freeze()
    assert gc.get_freeze_count() > 1000


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("flux", "--model takes NAME=PATH, not 'flux'"),
        ("=x", "--model takes NAME=PATH, not '=x'"),
        (
            "checkpoints/shapes-flux",
            "--model takes NAME=PATH, not 'checkpoints/shapes-flux'; for example --model "
            "shapes-flux=checkpoints/shapes-flux",
        ),
        (
            "flux=black-forest-labs/FLUX.1-schnell",
            "--model flux: there is no folder 'black-forest-labs/FLUX.1-schnell'; nothing is "
            "fetched: `hf download black-forest-labs/FLUX.1-schnell --local-dir FOLDER` does it "
            "for a model of Hugging Face's hub, then give FOLDER",
        ),
        ("flux=", "--model takes NAME=PATH, not 'flux='"),
        ("flux=nowhere", "--model flux: there is no folder 'nowhere'"),
    ],
)
def test_a_model_flag_without_name_and_folder_is_refused(
    model: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert root.main(["serve", "--model", model]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("README.md", "", "e is a folder whose config names no class; served are"),
        ("config.json", "{not json", "e is a folder whose config names no class; config.json is"),
        ("config.json", [], "e is a folder whose config names no class; config.json holds a list"),
        ("config.json", {"architectures": []}, "e is a folder whose config names no class"),
        ("config.json", {"architectures": ["LlamaForCausalLM"]}, "e is a LlamaForCausalLM; served"),
        ("model_index.json", {"_class_name": "SanaPipeline"}, "e is a SanaPipeline; served are"),
    ],
)
def test_a_folder_that_no_model_serves_is_refused_with_what_is_served(
    file: str, content: object, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "e", file, content)
    assert root.main(["serve", f"--model=a={folder}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert str(tmp_path) not in error


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"adapter_config.json": "{}", "adapter_model.safetensors": ""}, "with --lora NAME=PATH"),
        ({"pytorch_lora_weights.safetensors": ""}, "it holds an adapter"),
        (
            {"config.json": '{"_class_name": "FluxTransformer2DModel"}'},
            "model_index.json, and this one with --component transformer",
        ),
        ({"flux1-dev.safetensors": ""}, "weights in one file ('flux1-dev.safetensors')"),
        ({"model.gguf": ""}, "weights in one file ('model.gguf')"),
        ({"model_index.json": "{"}, "model_index.json is no JSON, or cut short (1 bytes)"),
        ({"config.json": "[]"}, "config.json holds a list, not an object"),
    ],
)
def test_the_refusal_of_a_folder_near_a_checkpoint_names_the_folder_to_give(
    files: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in files.items():
        (tmp_path / "e" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "e" / name).write_text(content)
    assert root.main(["serve", f"--model=a={tmp_path / 'e'}"]) == 2
    assert said in capsys.readouterr().err


def test_a_bad_setting_ends_the_process_and_is_named(
    flux: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREDICTORS_FLUX_SLOTS", "none")
    assert root.main(["serve", f"--model=a={flux}"]) == 2
    assert capsys.readouterr().err == "error: PREDICTORS_FLUX_SLOTS must be int, not 'none'\n"


def test_a_bad_tls_file_ends_the_process_before_anything_is_loaded(
    flux: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREDICTORS_TLS_CERT_FILE", "/nowhere/tls.crt")
    monkeypatch.setenv("PREDICTORS_TLS_KEY_FILE", "/nowhere/tls.key")
    assert root.main(["serve", f"--model=a={flux}"]) == 2
    assert capsys.readouterr().err == (
        "error: the file of PREDICTORS_TLS_CERT_FILE can't be read: No such file or directory\n"
    )


@pytest.mark.parametrize("argv", [[], ["serve"], ["fly"], ["serve", "--model"]])
def test_a_wrong_command_line_prints_the_usage(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        root.main(argv)
    assert ended.value.code == 2
    assert "usage: predictors" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["serve", "warm", "profile"])
def test_a_missing_model_is_asked_for_with_the_architectures_that_are_served(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        root.main([verb])
    said = capsys.readouterr().err
    assert f"--model NAME=PATH is required: the folder of a {', '.join(root.MODELS)}" in said


def test_profile_says_that_it_takes_one_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        root.main(["profile", "--help"])
    model = capsys.readouterr().out.partition("--model NAME=PATH  ")[2].splitlines()[0]
    assert model.strip() == "the model; once"


def test_the_demo_takes_prompts_and_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Sequence[str], Path, Mapping[str, Path]]] = []
    monkeypatch.setattr(demo, "run_demo", lambda *given, as_json: calls.append(given) or 3)  # type: ignore[func-returns-value]
    assert root.main(["demo"]) == 3
    assert root.main(["demo", "a red star", "--out", "elsewhere", "--lora", "a=b"]) == 3
    assert calls == [
        (demo.PROMPTS, Path("out"), {}),
        (["a red star"], Path("elsewhere"), {"a": Path("b")}),
    ]
