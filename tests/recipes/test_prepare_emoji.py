"""`prepare_emoji.py` with small packages of the real ones' names and layout, which an `npm` on the PATH packs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
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
picture = Image.new("RGBA", (256, 256), (0, 0, 255, 255))
picture.save(png / "one.png")
data = (png / "one.png").read_bytes()
for drawing in svg.iterdir():
    assert drawing.read_bytes().startswith(b"<svg")
    (png / f"{drawing.stem}.png").write_bytes(data)
"""
INK = {"google": (255, 0, 0, 128), "twitter": (0, 255, 0, 255), "fluent3d": (0, 0, 0, 255)}
ON_WHITE = {"google": (255, 127, 127), "twitter": (0, 255, 0), "openmoji": (0, 0, 255), "fluent3d": (0, 0, 0)}


def picture(style: str, side: int, kind: str) -> bytes:
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
    """A registry with every published emoji, one colour a style, and one more emoji that Fluent has not drawn."""
    registry = tmp_path_factory.mktemp("registry")
    emoji = [each for each, _ in published()]
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
        style: {f"img/{style}/64/{entry['image']}": picture(style, 64, "PNG") for entry in entries}
        for style in ("google", "twitter")
    }
    contents["google"]["emoji.json"] = json.dumps(entries).encode()
    contents["openmoji"] = {f"color/svg/{entry['unified']}.svg": b"<svg/>" for entry in entries}
    contents["openmoji"]["data/openmoji.json"] = json.dumps(texts).encode()
    contents["openmoji"] |= {"black/svg/1F600.svg": b"not to be drawn"}
    webp = picture("fluent3d", 256, "WEBP")
    contents["fluent"] = {f"assets/{each.name.replace('-fe0f', '')}.webp": webp for each in emoji}
    contents["resvg"] = {"index.mjs": b"", "index_bg.wasm": b"", "index.js": b""}
    made = []
    for package, files in zip(prepare_emoji.PACKAGES, contents.values(), strict=True):
        tarball = registry / f"{package.name.removeprefix('@').replace('/', '-')}-{package.version}.tgz"
        made.append(replace(package, integrity=pack(tarball, files)))
    return registry, tuple(made)


@pytest.fixture
def run(packages, tmp_path, monkeypatch, capsys):
    """Runs the recipe: the message that it ends with, and whether it ended well."""
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

    def run(*arguments: str) -> tuple[str, bool]:
        ended_well = True
        try:
            prepare_emoji.main(["--output", str(tmp_path / "emoji"), "--downloads", str(tmp_path / "npm"), *arguments])
        except SystemExit as stop:
            ended_well = stop.code == 0
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return " ".join(captured.out.split()), ended_well

    return run


def packed(tmp_path: Path) -> list[str]:
    """What npm was asked for."""
    log = tmp_path / "registry" / "log"
    return log.read_text().split() if log.exists() else []


def left(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()} - {"bin", "registry"}


@pytest.mark.slow
def test_it_builds_the_published_split(run, tmp_path):
    message, ended_well = run()
    assert ended_well, message
    root = tmp_path / "emoji"
    expected = {
        f"pretrain/{style}/{each.name}.png"
        if split == "pretrain"
        else f"tasks/{style}/{split}/{each.class_name}/{each.name}.png"
        for each, split in published()
        for style in ON_WHITE
    }
    assert {path.relative_to(root).as_posix() for path in root.rglob("*.png")} == expected
    for style, colour in ON_WHITE.items():
        for path in (root / "tasks" / style / "test" / "animal-bird").iterdir():
            image = Image.open(path)
            assert (image.mode, image.size, image.getcolors()) == ("RGB", (64, 64), [(64 * 64, colour)])
    captions = [json.loads(line) for line in (root / "captions.jsonl").read_text().splitlines()]
    assert {(each["emoji"], each["class"], each["split"]) for each in captions} == {
        (each.name, each.class_name, split) for each, split in published()
    }
    assert captions[0]["name"] == f"the {captions[0]['emoji']}"
    assert captions[0]["keywords"] == ["one", "two words"]
    assert "CC-BY-SA-4.0 (npm openmoji@17.0.0)" in (root / "LICENSES.md").read_text()

    # it is what the task set needs, and a second run has nothing to do
    task_set = emoji_task_set(root)
    assert [len(each) for each in task_set.split("test")] == [249] * 4
    shutil.rmtree(tmp_path / "bin")
    shutil.rmtree(tmp_path / "npm")
    assert run() == (f"The emoji task set is in {root} already.", True)


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing_half_done_and_goes_on(run, tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def interrupt(image, path, **options):
        saved.append(path)
        if len(saved) == 100:
            raise KeyboardInterrupt
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert left(tmp_path) == {"npm"}
    assert len(packed(tmp_path)) == 5
    monkeypatch.setattr(Image.Image, "save", save)
    message, ended_well = run()
    assert ended_well, message
    assert len(packed(tmp_path)) == 5  # nothing is downloaded twice
    assert emoji_task_set(tmp_path / "emoji").name == "emoji"


def test_without_npm_it_says_what_to_install(run, tmp_path):
    (tmp_path / "bin" / "npm").unlink()
    message, ended_well = run()
    assert not ended_well
    assert "`npm` is not on the PATH: install Node.js" in message
    assert "apt install nodejs npm" in message
    assert left(tmp_path) == set()


def test_without_node_nothing_is_downloaded(run, tmp_path):
    (tmp_path / "bin" / "node").unlink()
    message, ended_well = run()
    assert not ended_well
    assert "`node` is not on the PATH: install Node.js" in message
    assert packed(tmp_path) == []


def test_a_package_that_npm_cannot_get_is_named_and_the_others_are_kept(run, tmp_path):
    (tmp_path / "registry" / "openmoji-17.0.0.tgz").unlink()
    message, ended_well = run()
    assert not ended_well
    assert "`npm pack openmoji@17.0.0` failed: npm error code E404" in message
    assert len(list((tmp_path / "npm").iterdir())) == 2
    run()
    assert packed(tmp_path)[3:] == ["openmoji@17.0.0"]
    assert left(tmp_path) == {"npm"}


@pytest.mark.parametrize("damage", [lambda content: content[:-100], lambda content: content + b" "])
def test_a_broken_download_is_refused_and_fetched_again(run, tmp_path, damage):
    tarball = tmp_path / "registry" / "emoji-datasource-google-16.0.0.tgz"
    whole = tarball.read_bytes()
    tarball.write_bytes(damage(whole))
    message, ended_well = run()
    assert not ended_well
    assert "`npm pack emoji-datasource-google@16.0.0` brought another file than the one published" in message
    assert list((tmp_path / "npm").iterdir()) == []
    tarball.write_bytes(whole)
    (tmp_path / "registry" / "emoji-datasource-twitter-16.0.0.tgz").unlink()
    assert "emoji-datasource-twitter@16.0.0` failed" in run()[0]
    assert [path.read_bytes() == whole for path in (tmp_path / "npm").iterdir()] == [True]


def test_a_kept_package_that_was_damaged_is_downloaded_again(run, tmp_path):
    (tmp_path / "npm").mkdir()
    (tmp_path / "npm" / "emoji-datasource-google-16.0.0.tgz").write_bytes(b"half")
    (tmp_path / "registry" / "emoji-datasource-twitter-16.0.0.tgz").unlink()
    run()
    assert packed(tmp_path)[0] == "emoji-datasource-google@16.0.0"
    assert (tmp_path / "npm" / "emoji-datasource-google-16.0.0.tgz").stat().st_size > 4


def test_an_output_that_holds_something_else_is_left_alone(run, tmp_path):
    (tmp_path / "emoji").write_text("mine")
    assert "is a file: name a folder" in run()[0]
    (tmp_path / "emoji").unlink()
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "thesis.txt").write_text("mine")
    message, ended_well = run()
    assert not ended_well
    assert "holds something else" in message
    (tmp_path / "emoji" / "tasks" / "google").mkdir(parents=True)
    assert "has no class folders" in run()[0]
    assert (tmp_path / "emoji" / "thesis.txt").read_text() == "mine"
    assert packed(tmp_path) == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_draws_every_svg_file(tmp_path):
    for name in ("resvg", "svg", "png"):
        (tmp_path / name).mkdir()
    (tmp_path / "resvg" / "index_bg.wasm").write_text("wasm")
    (tmp_path / "resvg" / "index.mjs").write_text(
        "let module;"
        "export async function initWasm(bytes) { module = bytes.toString(); }"
        "export class Resvg {"
        "  constructor(svg, options) { this.text = `${module} ${svg} ${JSON.stringify(options)}`; }"
        "  render() { return { asPng: () => Buffer.from(this.text), free: () => {} }; }"
        "  free() {}"
        "}"
    )
    for name in ("1F600", "1F601"):
        (tmp_path / "svg" / f"{name}.svg").write_text(f"<svg>{name}</svg>")
    script = Path(prepare_emoji.__file__).with_name("emoji_render.mjs")
    subprocess.run(["node", script, *(tmp_path / name for name in ("resvg", "svg", "png"))], check=True)
    assert sorted(os.listdir(tmp_path / "png")) == ["1F600.png", "1F601.png"]
    drawn = (tmp_path / "png" / "1F600.png").read_text()
    assert drawn == 'wasm <svg>1F600</svg> {"fitTo":{"mode":"width","value":256}}'
