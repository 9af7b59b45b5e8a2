"""The page of `alignzeg web` in a real browser: upload, type, see the image change."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from helpers import CONFIGS, REPOSITORY, TINY_OPTS
from PIL import Image

from alignzeg.data.zeroshapes import render_scene, scene_rng
from alignzeg.engine import AlignZegCheckpointer, setup_config

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Milliseconds; the machines of a continuous integration are slow.
PATIENCE = 120_000
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window. In continuous integration it has to be there."""
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        reason = "no Chromium on the PATH: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with sync_api.sync_playwright() as play:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = play.chromium.launch(
            executable_path=found, args=options, timeout=PATIENCE, chromium_sandbox=False
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained model whose correction is off, and an image."""
    result = tmp_path_factory.mktemp("web")
    seed_all_rng(0)
    opts = [*TINY_OPTS, "ALIGNZEG.CORRECTOR.GAMMA", "0", "ALIGNZEG.CORRECTOR.THRESHOLD", "0.1"]
    cfg = setup_config(CONFIGS / "zeroshapes" / "alignzeg.yaml", opts)
    AlignZegCheckpointer(build_model(cfg), str(result), config=cfg.dump()).save("model")
    Image.fromarray(render_scene(scene_rng(3, "val", 0), 96).image).save(result / "mine.png")
    return result


@pytest.fixture(scope="module")
def address(folder: Path, browser: Any) -> Iterator[str]:
    """Where the command serves the page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["web", "--weights", str(folder / "model.pth"), "--port", str(port)]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "alignzeg", *words, "--classes", "red star, brick"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
        # Where this suite runs in the background, the signal may be ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        line = process.stdout.readline().strip()
        if line != f"http://127.0.0.1:{port}":
            process.kill()
            pytest.fail(f"the page did not start: {line}\n{process.stderr.read()}")
        try:
            yield line
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()


def opened(browser: Any, address: str, size: dict[str, int], **options: Any) -> Any:
    """The page, and in its attribute `elsewhere` what it asked other machines for."""
    page = browser.new_context(viewport=size, **options).new_page()
    page.set_default_timeout(PATIENCE)
    page.elsewhere = []
    page.on(
        "request",
        lambda request: (
            page.elsewhere.append(request.url)
            if not request.url.startswith((address, "data:", "blob:"))
            else None
        ),
    )
    page.goto(address)
    page.locator("#segment").wait_for()
    return page


def picture(page: Any, place: str) -> str:
    """The image and the names of its regions."""
    return page.locator(f"#{place} svg.overlay").evaluate("found => found.outerHTML")


def changed(page: Any, place: str, before: str) -> str:
    """The picture of a place once it is another."""
    page.wait_for_function(
        "([place, old]) => { const found = document.querySelector(`#${place} svg.overlay`);"
        " return found && found.outerHTML !== old }",
        arg=[place, before],
        timeout=PATIENCE,
    )
    return picture(page, place)


def fill(page: Any, slider: str, value: str) -> None:
    box = page.locator(f"#{slider} input[type=number]")
    box.fill(value)
    box.press("Enter")


def wide(page: Any) -> int:
    """Pixels by which the page is wider than the window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def count(page: Any, selector: str, number: int) -> None:
    """Waits until so many elements are there."""
    page.wait_for_function(
        "([selector, number]) => document.querySelectorAll(selector).length === number",
        arg=[selector, number],
        timeout=PATIENCE,
    )


def shows(page: Any, place: str, picture: str) -> None:
    """Waits until a place has this picture."""
    page.wait_for_function(
        "([place, wanted]) =>"
        " document.querySelector(`#${place} svg.overlay`)?.outerHTML === wanted",
        arg=[place, picture],
        timeout=PATIENCE,
    )


def says(page: Any, text: str) -> None:
    page.locator("#note", has_text=text).wait_for()


def test_upload_type_and_see_the_image_change(browser: Any, address: str, folder: Path) -> None:
    page = opened(browser, address, DESKTOP)
    page.locator("#image input[type=file]").set_input_files(str(folder / "mine.png"))
    plain = changed(page, "before", "")
    count(page, "#seen input[type=checkbox]", 2)
    assert page.locator("#seen label", has_text="brick").locator("input").is_checked()
    assert not page.locator("#seen label", has_text="red star").locator("input").is_checked()

    page.locator("#classes textarea").fill("grass, sand, wood, nuts & bolts")
    page.locator("#segment").click()
    plain = changed(page, "before", plain)
    shows(page, "after", plain)
    says(page, "gamma is 0: there is no correction.")
    count(page, "#seen input[type=checkbox]", 4)
    titles = page.locator("#before svg.overlay title").all_text_contents()
    assert titles and all(re.match(r"(grass|sand|wood|nuts & bolts)", t) for t in titles)
    count(page, "#proposals img", 9)

    # The largest class counts as seen and all others as unseen: the correction takes its pixels.
    largest = page.locator("#areas tbody th").first.inner_text().removesuffix("unseen").strip()
    for name in ("grass", "sand", "wood", "nuts & bolts"):
        box = page.locator("#seen label", has_text=name).locator("input")
        box.set_checked(name == largest)
    fill(page, "gamma", "14")
    corrected = changed(page, "after", plain)
    says(page, "The correction renames")
    shows(page, "before", plain)
    fill(page, "gamma", "0")
    assert changed(page, "after", corrected) == plain

    page.locator("#classes textarea").fill("cat, classes.txt")
    page.locator("#segment").click()
    says(page, "is called like a file")
    assert picture(page, "before") == plain
    assert page.elsewhere == []


def test_an_example_on_a_phone(browser: Any, address: str) -> None:
    page = opened(browser, address, PHONE, is_mobile=True, has_touch=True, color_scheme="dark")
    assert wide(page) <= 0
    page.locator(".gallery-item, table tr.tr-body, .table-wrap tbody tr").first.tap()
    changed(page, "after", "")
    count(page, "#seen input[type=checkbox]", 6)
    assert "green triangle" in page.locator("#classes textarea").input_value()
    assert wide(page) <= 0
    box = page.locator("#after svg.overlay").bounding_box()
    assert 300 <= box["width"] <= 390
