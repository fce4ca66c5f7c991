"""The documentation builds without a warning, and the built pages load nothing from elsewhere."""

from __future__ import annotations

import os
import re
import sys

import fork_server
import pytest
from paths import ROOT


@pytest.mark.slow
def test_strict_build(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = fork_server.run(command, cwd=ROOT, env=quiet)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {str(page.relative_to(tmp_path / "site")): page.read_text() for page in tmp_path.rglob("*.html")}
    assert "lower_steps" in pages["training/index.html"]
    assert "inter_task_affinity" in pages["api/scheduling/index.html"]
    elsewhere = re.compile(r'<(?:script|img|link)[^>]+(?:src|href)="(\w+://[^"]+)')
    assert {url for text in pages.values() for url in elsewhere.findall(text)} == set()
