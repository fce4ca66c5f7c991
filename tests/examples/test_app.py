"""`examples/app.py` in a real browser: an image is classified under the chosen task, and nobody else is asked."""

from __future__ import annotations

import shutil
import socket
import sys

import pytest
from paths import ROOT, TINY_CLIP
from peft import get_peft_model
from transformers import CLIPImageProcessorPil, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import shapes_task_set

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
TASKS = {"plants": ["tree", "leaf"], "flat": ["heart", "star", "moon"]}
LOCAL = ("127.0.0.1", b"127.0.0.1", "localhost", "::1", None)


@pytest.fixture
def adapted(tmp_path):
    """An adapter of two tasks, its folder, and an image."""
    clip = CLIPModel.from_pretrained(TINY_CLIP)
    options = {"num_shared_tokens": 1, "num_task_tokens": 1, "tokenizer_name_or_path": str(TINY_CLIP)}
    model = get_peft_model(clip, JSCPTConfig(tasks=TASKS, class_template="a photo of a {}.", **options))
    model.save_pretrained(tmp_path / "adapter")
    shapes_task_set().tasks[0].test[5]["image"].save(tmp_path / "image.png")
    return model, tmp_path / "adapter", tmp_path / "image.png"


@pytest.fixture
def connections(monkeypatch):
    """Hosts other than this one that the process asks for, or would ask for if it had a network."""
    elsewhere, look_up = set(), socket.getaddrinfo

    def recorded(host, *args, **kwargs):
        if host not in LOCAL:
            elsewhere.add(host)
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", recorded)
    return elsewhere


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium on PATH")
def test_an_image_is_classified_under_the_chosen_task(adapted, connections, monkeypatch):
    from playwright.sync_api import expect, sync_playwright

    model, adapter, image = adapted
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import app

    page_served = app.make_page(str(adapter))
    _, url, _ = page_served.launch(prevent_thread_lock=True, quiet=True, **app.LAUNCH)
    requests = []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
            page = browser.new_page()
            page.on("request", lambda request: requests.append(request.url))
            page.goto(url)
            page.locator("input[type=file]").first.set_input_files(image)
            page.get_by_label("task").click()
            page.get_by_role("option", name="flat").click()
            page.get_by_role("button", name="Submit").click()
            shown = page.get_by_test_id("label-output-value")
            expect(shown).to_be_visible(timeout=60_000)
            best = shown.inner_text()
            browser.close()
    finally:
        page_served.close()
        del sys.modules["app"]
    processor = CLIPImageProcessorPil.from_pretrained(TINY_CLIP)
    expected = model.predict(image, "flat", image_mean=processor.image_mean, image_std=processor.image_std)[0]
    assert best == next(iter(expected))
    assert connections == set()
    assert [each for each in requests if not each.startswith((url, "data:", "blob:"))] == []
