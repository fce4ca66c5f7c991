"""`prepare_emoji.py` with small packages of the real ones' names and layout, which an `npm` on the PATH packs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import prepare_emoji
import pytest
from PIL import Image
from published_emoji import published

from jscpt_peft.data.emoji import emoji_task_set

NPM = """
import os, pathlib, shutil, sys
_, pack, spec, option, folder = sys.argv
assert (pack, option) == ("pack", "--pack-destination")
registry = pathlib.Path(os.environ["REGISTRY"])
with open(registry / "log", "a") as log:
    print(spec, file=log)
name, version = spec.rsplit("@", 1)
tarball = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
if not (registry / tarball).exists():
    sys.exit(f"npm error code E404: {spec} is not in this registry")
shutil.copy(registry / tarball, folder)
"""
NODE = """
import pathlib, sys
from PIL import Image
script, resvg, svg, png = map(pathlib.Path, sys.argv[1:])
assert script.name == "emoji_render.mjs" and {each.name for each in resvg.iterdir()} == {"index.mjs", "index_bg.wasm"}
image = Image.new("RGBA", (96, 96), (0, 0, 255, 255))
image.save(png / "one.png")
data = (png / "one.png").read_bytes()
for drawing in svg.iterdir():
    assert drawing.read_bytes().startswith(b"<svg")
    (png / f"{drawing.stem}.png").write_bytes(data)
"""
INK = {"google": (255, 0, 0, 128), "twitter": (0, 255, 0, 255), "fluent3d": (0, 0, 0, 255)}
# The classes of the tasks, and few of those that are for pretraining alone.
TESTED = {each.class_name for each, split in published() if split == "test"}
PUBLISHED = [pair for pair in published() if pair[0].class_name in {*TESTED, "arts & crafts", "arrow"}]
ON_WHITE = {"google": (255, 127, 127), "twitter": (0, 255, 0), "openmoji": (0, 0, 255), "fluent3d": (0, 0, 0)}


def image(style: str, side: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", (side, side), INK[style]).save(file, kind, lossless=True)
    return file.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> str:
    """A tarball like npm's, and its integrity."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return f"sha512-{base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()}"


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """A registry with these emoji, one colour a style, and one more emoji that Fluent has not drawn."""
    registry = tmp_path_factory.mktemp("registry")
    emoji = [each for each, _ in PUBLISHED]
    entries = [
        {"short_name": each.name, "unified": each.code_points, "image": f"{each.name}.png"}
        | {"category": each.category, "subcategory": each.class_name}
        for each in emoji
    ]
    undrawn = {"short_name": "harp", "unified": "1FA89", "image": "1fa89.png"}
    entries.append({**undrawn, "category": "Objects", "subcategory": "musical-instrument"})
    texts = [
        {"hexcode": each.code_points, "annotation": f"The {each.name}", "tags": "one, two words"} for each in emoji
    ]
    contents = {
        style: {f"img/{style}/64/{entry['image']}": image(style, 64, "PNG") for entry in entries}
        for style in ("google", "twitter")
    }
    contents["google"]["emoji.json"] = json.dumps(entries).encode()
    contents["openmoji"] = {f"color/svg/{entry['unified']}.svg": b"<svg/>" for entry in entries}
    contents["openmoji"]["data/openmoji.json"] = json.dumps(texts).encode()
    contents["openmoji"] |= {"black/svg/1F600.svg": b"not to be drawn"}
    webp = image("fluent3d", 96, "WEBP")
    contents["fluent"] = {f"assets/{each.name.replace('-fe0f', '')}.webp": webp for each in emoji}
    contents["resvg"] = {"index.mjs": b"", "index_bg.wasm": b"", "index.js": b""}
    made = []
    for package, files in zip(prepare_emoji.PACKAGES, contents.values(), strict=True):
        tarball = registry / f"{package.name.removeprefix('@').replace('/', '-')}-{package.version}.tgz"
        made.append(package._replace(integrity=pack(tarball, files)))
    return registry, tuple(made)


@pytest.fixture
def run(packages, tmp_path, monkeypatch, capsys):
    """Runs the tool and returns what it printed, or the error that it ended with."""
    registry, pinned = packages
    own = tmp_path / "registry"
    shutil.copytree(registry, own)
    monkeypatch.setattr(prepare_emoji, "PACKAGES", pinned)
    programs = tmp_path / "bin"
    programs.mkdir()
    executable(programs / "npm", NPM)
    executable(programs / "node", NODE)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("REGISTRY", str(own))

    def run() -> str:
        try:
            prepare_emoji.main(["--output", str(tmp_path / "emoji"), "--downloads", str(tmp_path / "npm")])
        except SystemExit as stop:
            return str(stop.code)
        return " ".join(capsys.readouterr().out.split())

    return run


def packed(tmp_path: Path) -> list[str]:
    """What npm was asked for."""
    log = tmp_path / "registry" / "log"
    return log.read_text().split() if log.exists() else []


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()} - {"bin", "registry"}


@pytest.mark.slow
def test_it_builds_the_published_split(run, tmp_path):
    root = tmp_path / "emoji"
    assert run().endswith(f"The emoji task set is in {root}: --task_set emoji")
    expected = {
        f"pretrain/{style}/{each.name}.png"
        if split == "pretrain"
        else f"tasks/{style}/{split}/{each.class_name}/{each.name}.png"
        for each, split in PUBLISHED
        for style in ON_WHITE
    }
    assert {path.relative_to(root).as_posix() for path in root.rglob("*.png")} == expected
    for style, colour in ON_WHITE.items():
        for path in (root / "tasks" / style / "test" / "animal-bird").iterdir():
            image = Image.open(path)
            assert (image.mode, image.size, image.getcolors()) == ("RGB", (64, 64), [(64 * 64, colour)])
    captions = [json.loads(line) for line in (root / "captions.jsonl").read_text().splitlines()]
    assert {(each["emoji"], each["class"], each["split"]) for each in captions} == {
        (each.name, each.class_name, split) for each, split in PUBLISHED
    }
    assert captions[0]["name"] == f"the {captions[0]['emoji']}"
    assert captions[0]["keywords"] == ["one", "two words"]
    assert "CC-BY-SA-4.0 (npm openmoji@17.0.0)" in (root / "LICENSES.md").read_text()

    # it is what the task set needs, and a second run has nothing to do
    task_set = emoji_task_set(root)
    assert [len(each) for each in task_set.split("test")] == [249] * 4
    shutil.rmtree(tmp_path / "bin")
    shutil.rmtree(tmp_path / "npm")
    assert run() == f"The emoji task set is in {root} already."


@pytest.mark.parametrize("missing", ["npm", "node"])
def test_a_missing_program_is_named_before_anything_is_downloaded(run, tmp_path, missing):
    (tmp_path / "bin" / missing).unlink()
    message = run()
    assert message.startswith(f"Error: `{missing}` is not on the PATH: install Node.js")
    assert "apt install nodejs npm" in message
    assert (packed(tmp_path), left(tmp_path)) == ([], set())


def test_a_package_that_npm_cannot_get_is_named_and_the_others_are_kept(run, tmp_path):
    (tmp_path / "registry" / "openmoji-17.0.0.tgz").unlink()
    assert "`npm pack openmoji@17.0.0` failed: npm error code E404" in run()
    assert len(list((tmp_path / "npm").iterdir())) == 2
    run()
    assert packed(tmp_path)[3:] == ["openmoji@17.0.0"]
    assert left(tmp_path) == {"npm"}


def test_a_damaged_package_is_refused_and_downloaded_again(run, tmp_path):
    tarball, kept = (tmp_path / name / "emoji-datasource-google-16.0.0.tgz" for name in ("registry", "npm"))
    whole = tarball.read_bytes()
    tarball.write_bytes(whole[:-100])
    assert "`npm pack emoji-datasource-google@16.0.0` brought another file than the one published" in run()
    assert list(kept.parent.iterdir()) == []
    tarball.write_bytes(whole)
    kept.write_bytes(b"half")
    (tmp_path / "registry" / "emoji-datasource-twitter-16.0.0.tgz").unlink()
    assert "emoji-datasource-twitter@16.0.0` failed" in run()
    assert kept.read_bytes() == whole


def test_an_output_that_holds_something_else_is_left_alone(run, tmp_path):
    output = tmp_path / "emoji"
    output.write_text("mine")
    assert "is a file: name a folder" in run()
    output.unlink()
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    assert "holds something else" in run()
    (output / "tasks" / "google").mkdir(parents=True)
    assert "has no class folders" in run()
    assert (output / "thesis.txt").read_text() == "mine"
    assert packed(tmp_path) == []
