"""The playground in Debian's Chromium, before the real server with both embedded checkpoints.

A test's page ends with an empty console, and has asked no other host. `make test-page` makes the
environment.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from predictors.cli.child import ServerProcess
from predictors.cli.demo import MODELS
from tests.observe.faulty import FOLDER, Faults

ROOT = Path(__file__).resolve().parents[2]
START_S = 300.0
PATIENCE_MS = 90_000  # of one event, on a busy machine
CAPACITY = 2  # jobs that may wait
PICTURES = os.environ.get("PAGE_PICTURES")  # a folder for screenshots


expect.set_options(timeout=PATIENCE_MS)


class SmallServer(ServerProcess):
    """A server with a short queue, an adapter, and faults that a test switches on. Its loop may be
    late, and its steps may take as long as a test wants."""

    def __init__(self, folder: Path) -> None:
        models = {name: ROOT / path for name, path in MODELS.items()}
        loras = {"flux:all-cyan": ROOT / "checkpoints/shapes-loras/all-cyan"}
        super().__init__(models, folder / "server.log", loras)
        self._folder = folder
        self.faults = Faults(folder)

    def command(self) -> Sequence[str]:
        settings = {
            "PREDICTORS_QUEUE_CAPACITY": CAPACITY,
            "PREDICTORS_OVERLOAD_LOOP_LAG_S": 0,
            "PREDICTORS_QUEUE_STALL_TIMEOUT_S": 3600,
            FOLDER: self._folder,
        }
        python, _, _, *rest = super().command()
        given = [f"{name}={value}" for name, value in settings.items()]
        return ["env", *given, python, "-m", "tests.observe.faulty", *rest]


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallServer]:
    with SmallServer(tmp_path_factory.mktemp("served")) as server:
        server.wait_ready(START_S, lambda what: None)
        yield server


@pytest.fixture
def faults(served: SmallServer) -> Iterator[Faults]:
    """The faults of that server, which are off when the test ends."""
    yield served.faults
    for name in ("once-flux", "hang-flux", "once-qwen-vl", "hang-qwen-vl"):
        served.faults.clear(name)


def series(url: str, *wanted: str) -> dict[str, float]:
    """The values of these series, with their labels, in `/metrics`."""
    lines = httpx.get(f"{url}/metrics", timeout=START_S).raise_for_status().text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(found[name]) for name in wanted}


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A browser, of which nothing is left when the test ends."""
    path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    assert path, "there is no chromium on PATH: run `make test-page`"
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    own = psutil.Process()
    before = set(own.children(recursive=True))
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        children = set(own.children(recursive=True)) - before
        await started.close()
    gone, left = psutil.wait_procs(children, PATIENCE_MS / 1000)
    assert gone
    assert not left, left


class Watch:
    """The errors and warnings on a page's console, and the hosts of its requests."""

    def __init__(self, page: Page) -> None:
        self.said: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.text} ({message.location.get('url')})")


@asynccontextmanager
async def opened(
    browser: Browser, url: str, *, expected: str | None = None, ready: bool = True, **how: Any
) -> AsyncIterator[Page]:
    """The page at `url` in a context of its own. A line of the console must contain `expected`."""
    context = await browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | how))
    context.set_default_timeout(PATIENCE_MS)
    page = await context.new_page()
    watch = Watch(page)
    await page.goto(url)
    if ready:
        await page.locator("html[data-ready]").wait_for()
    yield page
    await context.close()
    wrong = [line for line in watch.said if expected is None or expected not in line]
    assert wrong == []
    assert watch.hosts - {""} == {urlsplit(url).netloc}  # data: and blob: have none


@pytest.fixture
async def page(browser: Browser, served: SmallServer) -> AsyncIterator[Page]:
    async with opened(browser, f"{served.url}/") as found:
        yield found


async def draw(page: Page, prompt: str, **fields: str) -> None:
    """Fill the form, draw, and wait for the picture."""
    await page.locator("#prompt").fill(prompt)
    for name, value in fields.items():
        await page.locator(f"#{name}").fill(value)
    await page.locator("#draw-go").click()
    await page.locator("#stage[data-state=done]").wait_for()


async def answered(page: Page) -> str:
    """Wait for the end of the last answer, and return its text."""
    last = page.locator(".turn.answered").last
    await last.locator(".facts").last.wait_for()
    await page.locator("#chat-go").wait_for()
    return await last.locator(".said").inner_text()


async def screenshot(page: Page, name: str, **how: Any) -> None:
    """Write `page-NAME.png`, in a palette of 128 colours, where screenshots are asked for."""
    if PICTURES is None:
        return
    from io import BytesIO

    from PIL import Image

    await page.evaluate("document.activeElement?.blur()")
    await page.mouse.move(0, 0)
    taken = Image.open(BytesIO(await page.screenshot(animations="disabled", **how))).convert("RGB")
    path = Path(PICTURES) / f"page-{name}.png"
    taken.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
