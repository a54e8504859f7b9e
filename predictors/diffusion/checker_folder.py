"""The settings of the picture checker and its checkpoint folder, read without torch.

Starts and `check` refuse a folder alike. The values of the weights are read by `checker`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predictors.compute.checkpoint.folder import check_entries, read_json, reading, shown
from predictors.compute.checkpoint.headers import read_headers
from predictors.compute.checkpoint.layout import CONFIG, resolve_folder
from predictors.errors import EngineFailed
from predictors.settings import FluxSettings, InvalidSetting, variable_name

CHECKER, LABELS, THRESHOLD = (
    variable_name(FluxSettings, name) for name in ("checker", "checker_labels", "checker_threshold")
)
CLASS_ENDS_WITH = "ForImageClassification"
PROCESSOR = "preprocessor_config.json"
MAX_LABELS = 10_000
MAX_SHOWN = 20  # labels that a message lists
SEVERAL = "multi_label_classification"


@dataclass(frozen=True, slots=True)
class CheckerFolder:
    """A classifier's folder that the settings ask for."""

    path: Path
    labels: tuple[str, ...]
    """All labels, by their index in the scores."""
    refused: tuple[int, ...]
    """Indices of the labels that stand for what must not be sent, at least one."""
    is_several: bool
    """True if each label has a probability of its own: a picture may have several, or none."""


def find_checker(settings: FluxSettings) -> CheckerFolder | None:
    """The checker's folder, or None where there is no checker.

    Raises `ServingError`: `InvalidSetting` for settings that disagree, else with the file's name.
    """
    if not settings.checker:
        if settings.checker_labels:
            raise InvalidSetting(f"{LABELS} is set, but {CHECKER} is not; set it too, or neither")
        return None
    folder = resolve_folder(Path(settings.checker), CHECKER)
    with reading(f"the checker's folder {folder.name}"):
        check_entries(folder)
        config = read_json(folder, CONFIG, f"{folder.name}/{CONFIG}")
        read_json(folder, PROCESSOR, f"{folder.name}/{PROCESSOR}")
        _check_class(folder, config)
        labels = _labels(folder, config)
        read_headers(folder)
    is_several = config.get("problem_type") == SEVERAL or len(labels) == 1
    return CheckerFolder(folder, labels, _indices(settings.checker_labels, labels), is_several)


def _check_class(folder: Path, config: Mapping[str, Any]) -> None:
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    if not isinstance(name, str) or not name.endswith(CLASS_ENDS_WITH):
        raise EngineFailed(
            f"{CHECKER}: {folder.name} is a {shown(name)}; a checker is one of transformers' "
            f"classes ...{CLASS_ENDS_WITH}"
        )


def _labels(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    found = config.get("id2label")
    if isinstance(found, dict) and 0 < len(found) <= MAX_LABELS:
        labels = [found.get(str(index)) for index in range(len(found))]
        if all(isinstance(label, str) for label in labels):
            return tuple(map(str, labels))
    raise EngineFailed(
        f"{folder.name}/{CONFIG}: id2label must have a label for each index from 0, at most "
        f"{MAX_LABELS}"
    )


def _indices(text: str, labels: tuple[str, ...]) -> tuple[int, ...]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    there = f"the checkpoint's labels are {', '.join(map(shown, labels[:MAX_SHOWN]))}" + (
        f" and {len(labels) - MAX_SHOWN} more" if len(labels) > MAX_SHOWN else ""
    )
    if not wanted:
        raise InvalidSetting(f"{LABELS} must name what is not sent; {there}")
    for label in wanted:
        if label not in labels:
            raise InvalidSetting(f"{LABELS} names {shown(label)}; {there}")
    return tuple(index for index, label in enumerate(labels) if label in wanted)
