"""The stage between decoder and file: an image classifier that judges each picture.

It runs in float32 on the CPU, one picture at a time, on a thread of its own: verdicts then depend
on nothing else that runs, and the device is left to the engine. A picture without a verdict is not
sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from predictors import metrics
from predictors.compute.checkpoint.folder import reading
from predictors.diffusion.checker_folder import CheckerFolder, find_checker
from predictors.errors import CheckFailed, ContentRefused, EngineFailed
from predictors.observe import tracing
from predictors.settings import FluxSettings

Pixels = NDArray[np.uint8]
Scorer = Callable[[Pixels], torch.Tensor]
"""From uint8 pixels (h, w, 3) to the probability of each label, (labels,)."""

PASSED, REFUSED, BLANKED = VERDICTS = ("passed", "refused", "blanked")
REFUSE, BLANK = "refuse", "blank"


@dataclass(frozen=True, slots=True)
class CheckedPicture:
    """Pixels that may be sent."""

    pixels: Pixels
    is_blank: bool = False
    """True if they are black in place of what was drawn."""


class PictureChecker:
    """Judges the pictures of one model. Any thread; callers wait for a thread of the checker."""

    def __init__(
        self,
        model: str,
        scores: Scorer,
        folder: CheckerFolder,
        threshold: float,
        action: str,
    ) -> None:
        """`action` is `REFUSE` or `BLANK`."""
        self._model = model
        self._scores = scores
        self._refused = list(folder.refused)
        self._is_several = folder.is_several
        self._threshold = threshold
        self.blanks = action == BLANK
        # one thread: torch gives each thread that computes a team of its own
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{model}-check")

    def check(self, pixels: Pixels) -> CheckedPicture:
        """The picture, or a black one in its place. Pool thread.

        Raises `ContentRefused` where such a picture is refused, and `CheckFailed` without a
        verdict.
        """
        started = time.monotonic()
        is_refused = self._thread.submit(self._is_refused, pixels).result()
        stage = metrics.stage_seconds.labels(self._model, "check")
        stage.observe(time.monotonic() - started, tracing.exemplar())
        verdict = (BLANKED if self.blanks else REFUSED) if is_refused else PASSED
        metrics.images_checked_total.labels(self._model, verdict).inc()
        if not is_refused:
            return CheckedPicture(pixels)
        if self.blanks:
            return CheckedPicture(np.zeros_like(pixels), is_blank=True)
        raise ContentRefused(
            "the picture was drawn and then withheld by this server's content check; change the "
            "prompt or the seed"
        )

    def close(self) -> None:
        """Judge no more pictures. Returns at once."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _is_refused(self, pixels: Pixels) -> bool:
        with torch.inference_mode():
            scores = self._scores(pixels)[self._refused]
            found = float(scores.amax() if self._is_several else scores.sum())
        if not np.isfinite(found):
            raise CheckFailed(
                "the content check gave no verdict: its scores are not finite; the picture is not "
                "sent"
            )
        return found >= self._threshold


def make_checker(model: str, settings: FluxSettings) -> PictureChecker | None:
    """The checker of one model, loaded and tried out; None where there is none.

    Raises `ServingError` for settings or a folder that can't be used.
    """
    folder = find_checker(settings)
    if folder is None:
        return None
    with reading(f"the checker in {folder.path.name}"):
        scores = _load(folder)
        tried = scores(np.zeros((64, 64, 3), np.uint8))
    if tuple(tried.shape) != (len(folder.labels),):
        raise EngineFailed(
            f"the checker in {folder.path.name} has {tried.numel()} scores and "
            f"{len(folder.labels)} labels"
        )
    return PictureChecker(
        model, scores, folder, settings.checker_threshold, settings.checker_action
    )


def _load(folder: CheckerFolder) -> Scorer:
    """Reads the weights, all of them from the folder and nothing else."""
    import transformers

    library: Any = transformers  # most of its functions have no types
    library.utils.logging.disable_progress_bar()  # it would go into the log
    offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = library.AutoImageProcessor.from_pretrained(folder.path, **offline)
    classifier, report = library.AutoModelForImageClassification.from_pretrained(
        folder.path,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **offline,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(problem) or ())):
            kind = problem.replace("_keys", "")
            raise EngineFailed(
                f"the checker in {folder.path.name} has {len(names)} {kind} tensors, the first is "
                f"{names[0][:100]}; fetch it again"
            )
    classifier.eval()

    def scores(pixels: Pixels) -> torch.Tensor:
        inputs = processor(images=Image.fromarray(pixels), return_tensors="pt")
        with torch.inference_mode():
            logits: torch.Tensor = classifier(**inputs).logits[0].float()
        return logits.sigmoid() if folder.is_several else logits.softmax(-1)

    return scores
