"""The page `/docs` in a browser: it lists every route, sends requests to the server that it came
from, with keys and behind a path prefix, and can be used by keyboard and on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from predictors.operators.page_routes import page_routes
from predictors.protocol.key_file import ApiKey, digest_of, new_key, write_keys
from predictors.settings import AccessSettings
from tests.fakes import EchoEngine
from tests.http.echo import serving, small_settings
from tests.http.openai_echo import words
from tests.observe.faulty import Faults
from tests.page.conftest import START_S, SmallServer, opened
from tests.page.test_access import PHONE, Painter, Teller, behind_nginx, find_faults

KEY = new_key()
METHODS = ("get", "post", "delete")
CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
TITLES = "(all) => all.map(({ children: [method, path] }) => method.textContent + path.textContent)"
"""Method and path of each operation."""
WIDTH = "(each) => each.decode().then(() => each.naturalWidth)"
DRAW = {"model": "flux", "prompt": "a large red circle", "seed": 7, "num_inference_steps": 4}


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[str]:
    """The address of two small models that want a key, behind nginx, below `/vision/`."""
    file = tmp_path / "keys.json"
    file.write_bytes(write_keys([ApiKey("ann", digest_of(KEY))]))
    own = small_settings(server={"docs": "on"})
    own = replace(own, access=AccessSettings(keys_file=str(file)))
    models: list[Any] = [Painter("artist", EchoEngine(), own), Teller("writer", words(), own)]
    with (
        serving(*models, settings=own, routes=page_routes(own)) as running,
        behind_nginx(running, tmp_path) as url,
    ):
        yield url


async def listed(page: Page) -> Page:
    """The page, once it has read the document."""
    await page.locator("details.operation").first.wait_for()
    return page


def operation(page: Page, path: str) -> Locator:
    return page.locator("details.operation").filter(has=page.get_by_text(path, exact=True))


async def unfolded(page: Page, path: str) -> Locator:
    box = operation(page, path)
    await box.locator("summary").click()
    await box.get_by_role("button", name="Send").wait_for()
    return box


async def test_every_route_is_listed_and_found_by_words(
    browser: Browser, served: SmallServer
) -> None:
    async with httpx.AsyncClient(base_url=served.url, timeout=START_S) as http:
        spec = (await http.get("/openapi.json")).json()
    routes = {
        f"{method.upper()}{path}"
        for path, item in spec["paths"].items()
        for method in METHODS
        if method in item
    }
    async with opened(browser, f"{served.url}/docs", ready=False) as page:
        await listed(page)
        shown = await page.locator("details.operation > summary").evaluate_all(TITLES)
        assert len(shown) == len(set(shown))
        assert set(shown) == routes
        await page.locator("#find").fill("chat/completions post")
        await expect(page.locator("details.operation:visible")).to_have_count(1)
        box = await unfolded(page, CHAT)
        fields = box.locator("table").first
        await expect(fields).to_contain_text("messages (required)")
        await expect(fields).to_contain_text("max_tokens")
        await expect(box.locator("table").last).to_contain_text("429")


@pytest.mark.parametrize("has_grpc", [True, False], ids=["with gRPC", "without gRPC"])
async def test_the_playground_leads_to_it_and_it_leads_to_what_the_server_has(
    browser: Browser, has_grpc: bool
) -> None:
    own = small_settings(server={} if has_grpc else {"grpc_port": -1})
    with serving(Teller("writer", words(), own), settings=own, routes=page_routes(own)) as running:  # type: ignore[arg-type]
        async with opened(browser, f"{running.url}/") as page:
            await page.get_by_role("link", name="API", exact=True).click()
            await listed(page)
            assert page.url == f"{running.url}/docs"
            await expect(page.get_by_role("link", name="gRPC .proto")).to_have_count(int(has_grpc))
            for link in await page.get_by_role("link").all():
                address = str(await link.get_attribute("href"))
                if not address.startswith("#"):
                    answer = await page.request.get(f"{running.url}/{address}")
                    assert answer.status == 200, address


async def test_a_request_is_sent_and_its_picture_shown(
    browser: Browser, served: SmallServer
) -> None:
    expected = "status of 400"
    async with opened(browser, f"{served.url}/docs", ready=False, expected=expected) as page:
        box = await unfolded(await listed(page), IMAGES)
        body, send = box.locator("textarea"), box.get_by_role("button", name="Send")
        await body.fill(json.dumps(DRAW))
        await send.click()
        await expect(box.locator("[role=status] p")).to_contain_text("200 OK")
        await expect(box.locator("[role=status] pre")).to_contain_text("characters)")
        picture = box.locator("img.answer")
        await picture.wait_for()
        assert await picture.evaluate(WIDTH) == 128
        await body.fill(json.dumps(DRAW | {"stream": True, "partial_images": 2}))
        await send.click()
        await expect(box.locator("[role=status] pre")).to_contain_text("image_generation.completed")
        await picture.wait_for()
        await body.fill(json.dumps(DRAW | {"stepz": 4}))
        await send.click()
        await expect(box.locator("[role=status] p")).to_contain_text("400")
        await expect(box.locator("[role=status] pre")).to_contain_text("stepz")
        await expect(picture).to_have_count(0)


async def test_a_request_may_be_stopped(
    browser: Browser, served: SmallServer, faults: Faults
) -> None:
    faults.set("once-flux")
    async with opened(browser, f"{served.url}/docs", ready=False) as page:
        box = await unfolded(await listed(page), IMAGES)
        await box.locator("textarea").fill(json.dumps(DRAW | {"stream": True, "progress": True}))
        await box.get_by_role("button", name="Send").click()
        await expect(box.locator("[role=status] pre")).to_contain_text("progress")
        await box.get_by_role("button", name="Stop").click()
        await expect(box.locator("[role=status] .bad")).to_have_text("Stopped.")
        faults.clear("hang-flux")
        await expect(box.get_by_role("button", name="Send")).to_be_enabled()


async def test_a_key_is_asked_for_and_sent_behind_a_prefix(browser: Browser, keyed: str) -> None:
    how = {"ready": False, "expected": "status of 401"}
    async with opened(browser, f"{keyed}docs", **how) as page:
        state = page.locator("#state")
        await expect(state).to_have_text("This server needs an API key.")
        await expect(page.locator("#key-value")).to_be_focused()
        await page.keyboard.type("wrong")
        await page.keyboard.press("Enter")
        await expect(state).to_have_text("The server does not take this key.")
        await page.locator("#key-value").fill(KEY)
        await page.keyboard.press("Enter")
        box = await unfolded(await listed(page), CHAT)
        await box.get_by_role("button", name="Send").click()
        await expect(box.locator("[role=status] p")).to_contain_text("200 OK")
        assert await page.evaluate("sessionStorage.getItem('predictors.key')") == KEY
        assert await page.evaluate("localStorage.length + document.cookie.length") == 0
        assert KEY not in await page.content()


async def test_a_request_is_sent_with_the_keyboard_alone(
    browser: Browser, served: SmallServer
) -> None:
    async with opened(browser, f"{served.url}/docs", ready=False) as page:
        await listed(page)
        await page.keyboard.press("Tab")
        await expect(page.locator("a.skip")).to_be_focused()
        await page.locator("#find").focus()
        await page.keyboard.type("v2/health/ready")
        await page.keyboard.press("Tab")
        box = operation(page, "/v2/health/ready")
        await expect(box.locator("summary")).to_be_focused()
        await page.keyboard.press("Enter")
        send = box.get_by_role("button", name="Send")
        await send.wait_for()
        await page.keyboard.press("Tab")
        await expect(send).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(box.locator("[role=status] p")).to_contain_text("200")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_in_the_reference(
    browser: Browser, served: SmallServer, scheme: Any
) -> None:
    how = {"ready": False, "color_scheme": scheme}
    async with opened(browser, f"{served.url}/docs", **how) as page:
        await listed(page)
        assert await find_faults(page) == []
        for path in (CHAT, IMAGES):
            box = await unfolded(page, path)
        await box.locator("textarea").fill(json.dumps(DRAW))
        await box.get_by_role("button", name="Send").click()
        await box.locator("img.answer").wait_for()
        assert await find_faults(page) == []


async def test_the_reference_fits_a_phone(browser: Browser, served: SmallServer) -> None:
    async with opened(browser, f"{served.url}/docs", ready=False, **PHONE) as page:
        box = await unfolded(await listed(page), CHAT)
        await box.get_by_role("button", name="Send").click()
        await expect(box.locator("[role=status] p")).to_contain_text("200 OK")
        width = await page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, "the page scrolls sideways"
        for button in await page.locator("button:visible, summary:visible").all():
            area = await button.bounding_box()
            assert area is not None
            assert min(area["width"], area["height"]) >= 24, await button.inner_text()
            assert area["x"] >= 0
            assert area["x"] + area["width"] <= 360, await button.inner_text()
        assert await find_faults(page) == []
