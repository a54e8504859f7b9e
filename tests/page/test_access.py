"""The page with keys, behind a path prefix, on a phone, and for those who hear or magnify it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from predictors.cli.child import held_ports
from predictors.operators.page_routes import page_routes
from predictors.protocol.key_file import ApiKey, digest_of, new_key, write_keys
from predictors.settings import AccessSettings
from tests.fakes import EchoEngine
from tests.http.echo import Running, serving, small_settings
from tests.http.openai_echo import Artist, Writer, words
from tests.http.test_nginx import CONFIG, NGINX, nginx
from tests.page.conftest import SmallServer, answered, draw, opened, screenshot

KEY = new_key()
PHONE = {"viewport": {"width": 360, "height": 780}, "device_scale_factor": 2, "has_touch": True}
AXE = Path(os.environ.get("AXE_CORE", "axe-core is in no folder: run `make test-page`"))
FIND = """async () => {
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
  const { violations } = await axe.run({ runOnly: tags });
  return violations.map(({ id, impact, nodes }) =>
    [impact, id, ...nodes.map(({ target, failureSummary }) => `${target}: ${failureSummary}`)]);
}"""


class Painter(Artist):
    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "image", "datatype": "BYTES", "shape": [-1]}]


class Teller(Writer):
    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of two small models that asks for a key, which has one request now and the next one
    much later."""
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    file.write_bytes(write_keys([ApiKey("ann", digest_of(KEY), requests_per_minute=0.01)]))
    own = replace(small_settings(), access=AccessSettings(keys_file=str(file)))
    models: list[Any] = [Painter("artist", EchoEngine(), own), Teller("writer", words(), own)]
    with serving(*models, settings=own, routes=page_routes(own)) as running:
        yield running


@pytest.fixture
def prefixed(keyed: Running, tmp_path: Path) -> Iterator[str]:
    """The address of that server behind nginx."""
    with behind_nginx(keyed, tmp_path) as url:
        yield url


@contextmanager
def behind_nginx(running: Running, tmp_path: Path) -> Iterator[str]:
    """The address of a server behind nginx, below `/vision/`."""
    assert shutil.which("nginx") or Path(NGINX).exists(), "nginx is not installed"
    with held_ports(1) as (port,):
        front = running.server.http_port
        text = CONFIG.format(folder=tmp_path, port=front, front=port, buffering="off")
        text = text.replace("location / {", "location /vision/ {")
        text = text.replace("http://server;", "http://server/;")
        text = text.replace("Host localhost", "Host $http_host")
        with nginx(tmp_path, text, port) as url:
            yield f"{url}/vision/"


async def test_a_key_is_asked_for_kept_in_the_tab_and_its_limit_is_said(
    browser: Browser, prefixed: str
) -> None:
    how = {"ready": False, "expected": "status of 4"}
    async with opened(browser, prefixed, **how) as page:
        dialog = page.locator("#key-dialog")
        await dialog.wait_for()
        await page.locator("#key").fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.locator("#notice")).to_contain_text("HTTP 401")
        await page.get_by_role("button", name="Give a key").click()
        await page.locator("#key").fill(KEY)
        await page.keyboard.press("Enter")
        await page.locator("html[data-ready]").wait_for()
        assert await page.evaluate("sessionStorage.getItem('predictors.key')") == KEY
        assert await page.evaluate("localStorage.length + document.cookie.length") == 0
        await page.locator("#question").fill("a b")
        await page.locator("#question").press("Enter")
        await answered(page)
        await page.locator("#question").fill("c")
        await page.locator("#question").press("Enter")
        error = page.locator("#chat-error")
        await expect(error).to_contain_text("HTTP 429 rate_limit_exceeded")
        await expect(error).to_contain_text("Try again in")
        await page.locator(".answered .facts button").click()
        code = await page.locator("#code").inner_text()
        assert f"{prefixed}v1/chat/completions" in code
        assert "$API_KEY" in code
        assert KEY not in await page.content()


async def test_it_works_below_its_other_address_too(browser: Browser, prefixed: str) -> None:
    how = {"ready": False, "expected": "status of 401"}
    for address in ("playground", "playground/"):
        async with opened(browser, prefixed + address, **how) as page:
            await page.locator("#key").fill(KEY)
            await page.keyboard.press("Enter")
            await page.locator("html[data-ready]").wait_for()
            assert page.url == f"{prefixed}playground"


async def test_a_model_that_is_not_served_has_no_panel(browser: Browser) -> None:
    own = small_settings()
    for model, shown, hidden in (
        (Teller("writer", words(), own), "#chat", "#draw"),
        (Painter("artist", EchoEngine(), own), "#draw", "#chat"),
    ):
        with serving(model, settings=own, routes=page_routes(own)) as running:  # type: ignore[arg-type]
            async with opened(browser, f"{running.url}/") as page:
                await expect(page.locator(shown)).to_be_visible()
                await expect(page.locator(hidden)).to_be_hidden()


def axe_core() -> str:
    return AXE.read_text() + ";0"


async def find_faults(page: Page) -> list[list[str]]:
    await page.evaluate(axe_core())
    found: list[list[str]] = await page.evaluate(FIND)
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(browser: Browser, served: SmallServer, scheme: Any) -> None:
    async with opened(browser, f"{served.url}/", color_scheme=scheme) as page:
        assert await find_faults(page) == []
        await draw(page, "a large red circle", num_inference_steps="4")
        for details in await page.locator("details").all():
            await details.evaluate("(each) => (each.open = true)")
        await page.locator("#describe").click()
        await answered(page)
        await page.get_by_role("button", name="Locate every shape.").click()
        await answered(page)
        await page.get_by_role("button", name="List the shapes as JSON.").click()
        await answered(page)
        assert await find_faults(page) == []
        await page.locator("#edit-drawn").click()
        assert await find_faults(page) == []
        await page.locator("#edit-end").click()
        await page.locator("#draw-code").click()
        assert await find_faults(page) == []


async def test_it_fits_a_phone(browser: Browser, served: SmallServer) -> None:
    async with opened(browser, f"{served.url}/", **PHONE) as page:
        await draw(page, "a large red circle and a small blue square", seed="7")
        await page.locator("#describe").click()
        await answered(page)
        await page.get_by_role("button", name="Locate every shape.").click()
        await answered(page)
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, "the page scrolls sideways"
        for button in await page.locator("button:visible, summary:visible").all():
            box = await button.bounding_box()
            assert box is not None
            assert min(box["width"], box["height"]) >= 24, await button.inner_text()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360, await button.inner_text()
        assert await find_faults(page) == []
        await page.evaluate("scrollTo(0, 0)")
        await screenshot(page, "phone")
