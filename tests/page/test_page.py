"""The page in a browser with the real models: draw, edit, ask, cancel, refusals, keys."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image, ImageChops
from playwright.async_api import Browser, Page, expect

from tests.observe.faulty import Faults
from tests.page.conftest import (
    CAPACITY,
    START_S,
    SmallServer,
    answered,
    draw,
    opened,
    screenshot,
    series,
)

SCENE = "a large red circle and a small blue square"
LONG = {"num_inference_steps": "100", "size": "512x512"}
RUNNING = 'predictors_requests_running{model="flux"}'
STEPS = 'predictors_denoise_steps_total{model="flux"}'
SEEN = """() => {
  const picture = document.getElementById("picture");
  window.seen = [];
  picture.addEventListener("load", () => {
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    canvas.getContext("2d").drawImage(picture, 0, 0);
    window.seen.push([picture.dataset.partial ?? "final", canvas.toDataURL()]);
  });
}"""
"""Keeps the pixels of every picture that is shown."""
DROP = """async ([target, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (each) => each.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "scene.png", { type: "image/png" }));
  const made = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
  const event = target === "drop" ? new DragEvent("drop", made) : new ClipboardEvent("paste", made);
  document.getElementById("question").dispatchEvent(event);
}"""


async def saved(page: Page) -> Image.Image:
    """The picture that the page saves as a file."""
    async with page.expect_download() as download:
        await page.locator("#save").click()
    return Image.open(BytesIO(_read(await (await download.value).path())))


def _read(path: Path) -> bytes:
    return path.read_bytes()


async def test_a_picture_appears_step_by_step_and_is_remembered(page: Page) -> None:
    await page.evaluate(SEEN)
    await draw(page, SCENE, seed="7")
    seen = await page.evaluate("window.seen")
    partials = [pixels for name, pixels in seen if name != "final"]
    assert len(partials) >= 2
    assert len(set(partials)) == len(partials)
    assert seen[-1][0] == "final"
    assert seen[-1][1] not in partials
    facts = page.locator("#facts")
    await expect(facts).to_contain_text("Seed 7 · 128 × 128 · 28 steps · lossless float32")
    assert (await saved(page)).size == (128, 128)
    await page.reload()
    await page.locator("html[data-ready]").wait_for()
    await page.locator("#drawn button").click()
    assert await page.locator("#prompt").input_value() == SCENE
    assert await page.locator("#seed").input_value() == "7"
    await page.locator("#history-clear").click()
    await expect(page.locator("#history")).to_be_hidden()
    assert await page.evaluate("localStorage.getItem('predictors.history')") == "[]"


async def test_a_drawn_picture_is_described_located_and_extracted(page: Page) -> None:
    await draw(page, SCENE, seed="7")
    await expect(page.locator("#live")).to_contain_text("waiting")
    await page.emulate_media(color_scheme="dark")
    await page.evaluate("scrollTo(0, 0)")
    await screenshot(page, "draw", full_page=True)
    await page.emulate_media(color_scheme="light")
    await page.locator("#describe").click()
    said = await answered(page)
    assert "red circle" in said
    assert "blue square" in said
    await page.get_by_role("button", name="Locate every shape.").click()
    await answered(page)
    boxes = page.locator(".boxed .box")
    await expect(boxes).to_have_text(["red circle", "blue square"])
    frame = await page.locator(".boxed").bounding_box()
    first = await boxes.first.bounding_box()
    assert frame is not None
    assert first is not None
    assert frame["x"] < first["x"] < first["x"] + first["width"] < frame["x"] + frame["width"]
    await page.locator("#turns").evaluate("(turns) => (turns.scrollTop = turns.scrollHeight)")
    await screenshot(page, "chat", full_page=True)
    await page.get_by_role("button", name="List the shapes as JSON.").click()
    found = json.loads(await answered(page))
    named = {(each["colour"], each["kind"]) for each in found["shapes"]}
    assert named == {("red", "circle"), ("blue", "square")}


async def test_an_adapter_changes_the_picture_and_is_remembered(page: Page) -> None:
    await page.locator("#draw details summary").click()
    adapter = page.get_by_label("all-cyan", exact=True)
    await adapter.check()
    await draw(page, "a large red circle", seed="7")
    await page.locator("#describe").click()
    assert "cyan circle" in await answered(page)
    await adapter.uncheck()
    await page.locator("#drawn button").click()
    await expect(adapter).to_be_checked()


async def test_what_the_brush_painted_is_drawn_again(page: Page) -> None:
    await draw(page, "a large red circle", seed="7")
    before = await saved(page)
    await page.locator("#edit-drawn").click()
    await page.locator("#brush-size").fill("40")
    box = await page.locator("#brush").bounding_box()
    assert box is not None
    await page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.4 * box["height"])
    await page.mouse.down()
    for right, down in ((0.8, 0.4), (0.8, 0.6), (0.2, 0.6), (0.2, 0.8), (0.8, 0.8)):
        x, y = box["x"] + right * box["width"], box["y"] + down * box["height"]
        await page.mouse.move(x, y, steps=4)
    await page.mouse.up()
    await page.locator("#strength").fill("1")
    await draw(page, "a large green circle")
    after = await saved(page)
    assert after.size == before.size
    changed = ImageChops.difference(before.convert("L"), after.convert("L"))
    corner = changed.crop((0, 0, 128, 8)).getextrema()
    middle = changed.crop((40, 50, 90, 90)).getextrema()
    assert corner[1] < 32 < middle[1], "what was not painted stays"
    await page.locator("#describe").click()
    assert "green circle" in await answered(page)


async def code_of(page: Page, folder: Path) -> dict[str, str]:
    """The programs of the open dialog, with their files saved to `folder`."""
    found = {}
    for language in ("curl", "python", "javascript"):
        await page.locator(f"[data-language={language}]").click()
        found[language] = await page.locator("#code").inner_text()
    for link in await page.locator("#code-files a").all():
        async with page.expect_download() as download:
            await link.click()
        file = await download.value
        await file.save_as(folder / file.suggested_filename)
    await page.locator("#code-close").click()
    return found


def run_code(language: str, text: str, folder: Path) -> str:
    """The output of a program that is run in `folder`."""
    node = ["node", "--input-type=module", "-e", text]
    programs = {"curl": ["bash", "-c", text], "python": [sys.executable, "-c", text]}
    command = programs.get(language, node)
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=START_S)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


async def test_copied_programs_do_what_the_page_did(page: Page, tmp_path: Path) -> None:
    prompt = "a large red circle, 'quoted' \"twice\" for $5 \\ `x` @y"
    await draw(page, prompt, seed="7", num_inference_steps="4")
    drawn = await saved(page)
    await page.locator("#draw-code").click()
    programs = {"draw": await code_of(page, tmp_path)}
    await page.locator("#describe").click()
    said = await answered(page)
    await page.locator(".answered .facts button").click()
    programs["chat"] = await code_of(page, tmp_path)
    await page.locator("#edit-drawn").click()
    await page.locator("#brush").click()
    await draw(page, prompt)
    edited = await saved(page)
    await page.locator("#draw-code").click()
    programs["edit"] = await code_of(page, tmp_path)
    for name, wanted in (("draw", drawn), ("edit", edited)):
        for language, text in programs[name].items():
            (tmp_path / "picture.png").unlink(missing_ok=True)
            run_code(language, text, tmp_path)
            with Image.open(tmp_path / "picture.png") as picture:
                difference = ImageChops.difference(picture.convert("RGB"), wanted.convert("RGB"))
            assert difference.getbbox() is None, (name, language)
    for language, text in programs["chat"].items():
        assert run_code(language, text, tmp_path).strip() == said, language


async def test_a_picture_may_be_chosen_dropped_and_pasted(page: Page, tmp_path: Path) -> None:
    import base64

    await draw(page, "a large red circle", seed="7")
    path = tmp_path / "scene.png"
    (await saved(page)).save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    await page.locator("#attach-file").set_input_files(path)
    await page.evaluate(DROP, ["drop", text])
    await page.evaluate(DROP, ["paste", text])
    await expect(page.locator("#attached img")).to_have_count(3)
    for left in (2, 1):
        await page.locator("#attached button").last.click()
        await expect(page.locator("#attached img")).to_have_count(left)
    await page.locator("#question").fill("Describe this picture.")
    await page.locator("#question").press("Enter")
    assert "red circle" in await answered(page)
    await page.locator("#open-file").set_input_files(path)
    await page.locator("#stage[data-state=edit]").wait_for()


async def test_cancelling_frees_the_slot(page: Page, served: SmallServer, faults: Faults) -> None:
    before = series(served.url, STEPS)
    faults.set("once-flux")
    for name, value in LONG.items():
        await page.locator(f"#{name}").fill(value)
    await page.locator("#draw-go").click()
    await expect(page.locator("#facts")).to_contain_text("Step 1 of ")
    await expect(page.locator("#live")).to_contain_text("running1")
    assert series(served.url, RUNNING) == {RUNNING: 1}
    await page.locator("#draw-cancel").click()
    await expect(page.locator("#facts")).to_have_text("Cancelled.")
    faults.clear("hang-flux")
    await expect(page.locator("#live")).to_contain_text("running0")
    after = series(served.url, RUNNING, STEPS)
    assert after[RUNNING] == 0
    assert after[STEPS] - before[STEPS] < 100, "it was drawn to the end"
    await draw(page, "a large red circle", num_inference_steps="4", size="128x128")


async def test_an_answer_may_be_cancelled_too(page: Page, faults: Faults) -> None:
    faults.set("once-qwen-vl")
    await page.locator("#question").fill("Hello")
    await page.locator("#chat-go").click()
    await page.locator(".said").filter(has_text=re.compile(r"\w")).last.wait_for()
    await page.locator("#chat-cancel").click()
    await page.locator("#chat-go").wait_for()
    await expect(page.locator("#turns")).to_contain_text("Not finished.")
    await expect(page.locator("#chat-error")).to_be_hidden()


@asynccontextmanager
async def full_queue(served: SmallServer, faults: Faults) -> AsyncIterator[None]:
    """The server while all slots and places of flux are taken, by pictures of which none ends."""
    body = {"model": "flux", "prompt": "a", "stream": True, "progress": True}
    held: list[httpx.Response] = []
    faults.set("hang-flux")
    async with httpx.AsyncClient(base_url=served.url, timeout=START_S) as http:
        try:
            while True:
                request = http.build_request("POST", "/v1/images/generations", json=body)
                held.append(await http.send(request, stream=True))
                if held[-1].status_code == 503:
                    break
                assert len(held) < 100
            assert len(held) - 1 > CAPACITY
            yield
        finally:
            await asyncio.gather(*(reply.aclose() for reply in held))
            faults.clear("hang-flux")


async def test_a_full_queue_is_read_as_the_server_said_it(
    browser: Browser, served: SmallServer, faults: Faults
) -> None:
    async with opened(browser, f"{served.url}/", expected="503") as page:
        error = page.locator("#draw-error")
        async with full_queue(served, faults):
            async with page.expect_response("**/images/generations") as response:
                await page.locator("#draw-go").click()
            refusal = await response.value
            message = (await refusal.json())["error"]["message"]
            assert "places are taken" in message
            await expect(error).to_contain_text(message)
            await expect(error).to_contain_text("Try again in")
            await expect(error).to_contain_text("HTTP 503 server_overloaded")
        await expect(page.locator("#live")).to_contain_text("running0")
        await page.locator("#num_inference_steps").fill("4")
        await page.locator("#draw-go").click()
        await page.locator("#stage[data-state=done]").wait_for()
        await expect(error).to_be_hidden()


async def test_a_wrong_field_is_named(browser: Browser, served: SmallServer) -> None:
    async with opened(browser, f"{served.url}/", expected="400") as page:
        await page.locator("#size").fill("17x17")
        await page.locator("#draw-go").click()
        await expect(page.locator("#draw-error")).to_contain_text("Field: size")
        await expect(page.locator("#facts")).to_have_text("")
        await page.locator("#json").check()
        await page.locator("#schema").fill("{not JSON")
        await page.locator("#question").fill("Hello")
        await page.locator("#chat-go").click()
        await expect(page.locator("#chat-error")).to_contain_text("The schema is not JSON")
        await page.locator("#schema").fill('{"type": "nothing"}')
        await page.locator("#chat-go").click()
        await expect(page.locator("#chat-error")).to_contain_text("HTTP 400")
        assert await page.locator("#question").input_value() == "Hello"


async def test_everything_works_with_the_keyboard_alone(page: Page) -> None:
    async def reach(wanted: str) -> None:
        """Press Tab until the element has the focus."""
        for _ in range(80):
            await page.keyboard.press("Tab")
            if await page.evaluate("document.activeElement.id") == wanted:
                return
        raise AssertionError(f"Tab does not reach #{wanted}")

    await reach("prompt")
    await page.keyboard.press("Control+A")
    await page.keyboard.type("a large red circle")
    await reach("seed")
    await page.keyboard.type("7")
    await page.keyboard.press("Enter")
    await page.locator("#stage[data-state=done]").wait_for()
    await reach("edit-drawn")
    await page.keyboard.press("Enter")
    await expect(page.locator("#brush")).to_be_focused()
    for key in ("Space", "ArrowRight", "Space", "ArrowDown", "Space"):
        await page.keyboard.press(key)
    await reach("draw-go")
    await page.keyboard.press("Enter")
    await page.locator("#stage[data-state=done]").wait_for()
    await expect(page.locator("#drawn .facts").first).to_contain_text("edit")
    await reach("describe")
    await page.keyboard.press("Enter")
    assert "red" in await answered(page)
    await reach("draw-code")
    await page.keyboard.press("Enter")
    await expect(page.locator("#code-dialog")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#code-dialog")).to_be_hidden()
