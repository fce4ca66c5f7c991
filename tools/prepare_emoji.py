"""Builds the emoji task set: four vendors' drawings of the same things, as four tasks with 57 shared classes.

    python tools/prepare_emoji.py

Downloads five npm packages (157 MB, kept for the next time) and writes below the output folder, by default the place
where `--task_set emoji` looks:

    tasks/<style>/{train,validation,test}/<class>/<emoji>.png  2732 images of 64 x 64 pixels
    pretrain/<style>/<emoji>.png                               4676 images of other emoji, to pretrain a small CLIP
    captions.jsonl                                             name, keywords, class and split of every emoji
    LICENSES.md                                                whose drawings these are

Needs npm, and nothing is installed: no package's own scripts run. The split is always the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from emoji_split import Emoji, split_emoji
from huggingface_hub import constants
from npm_packages import Package, download, program, read_files
from PIL import Image
from rich.console import Console
from rich.progress import track

from jscpt_peft.data.emoji import check_emoji, default_root
from jscpt_peft.data.files import open_image

console = Console()

SIZE = 64
VARIATION = "-FE0F"  # "draw it as an image": some vendors leave it out of their files' names

GOOGLE = Package(
    *("emoji-datasource-google", "16.0.0"),
    "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
TWITTER = Package(
    *("emoji-datasource-twitter", "16.0.0"),
    "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
)
OPENMOJI = Package(
    *("openmoji", "17.0.0"),
    "sha512-EBnYrNGdcdw+OSXmENeNE1yBNRu6tOraTmoOyUbJkTmvT/+XETp8RZLSJFzD3lrPc5N9CzsyPnRTk0Vp4UaI9w==",
)
FLUENT = Package(
    *("@lobehub/fluent-emoji-3d", "1.1.0"),
    "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
RESVG = Package(  # draws OpenMoji's SVG files
    *("@resvg/resvg-wasm", "2.6.2"),
    "sha512-FqALmHI8D4o6lk/LRWDnhw95z5eO+eAa6ORjVg09YRR7BkcM6oPHU9uyC0gtQG5vpFLvgpeU4+zEAz2H8APHNw==",
)
PACKAGES = (GOOGLE, TWITTER, OPENMOJI, FLUENT, RESVG)

LICENSES = f"""Images resized to {SIZE} px on white from:

- `google`: Noto Emoji, Apache-2.0 (npm {GOOGLE})
- `twitter`: Twemoji, CC-BY-4.0 (npm {TWITTER})
- `openmoji`: OpenMoji, CC-BY-SA-4.0 (npm {OPENMOJI})
- `fluent3d`: Fluent Emoji, MIT (npm {FLUENT})
"""


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=default_root(), help=f"folder to make ({default_root()})")
    downloads = Path(constants.HF_HOME, "jscpt_peft", "npm")
    parser.add_argument("--downloads", type=Path, default=downloads, help=f"where packages are kept ({downloads})")
    arguments = parser.parse_args(command_line)
    try:
        prepare(arguments.output, arguments.downloads)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")


def prepare(output: Path, downloads: Path) -> None:
    """Builds the task set in `output`, whole or not at all; does nothing where it is there already."""
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"`--output` {output} is a file: name a folder.")
    if (output / "tasks").exists():
        check_emoji(output)
        console.print(f"The emoji task set is in {output} already.", soft_wrap=True)
        return
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"`--output` {output} holds something else: name a folder that is not there yet.")
    program("node")  # before the downloads
    tarballs = {}
    for package in PACKAGES:
        console.print(f"npm pack {package}")
        tarballs[package.name] = download(package, downloads)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as aside:
        whole = Path(aside, "whole")
        build(whole, *tarballs.values())
        check_emoji(whole)
        os.replace(whole, output)
    console.print(f"The emoji task set is in {output}: --task_set emoji", soft_wrap=True)


def build(root: Path, google: Path, twitter: Path, openmoji: Path, fluent: Path, resvg: Path) -> None:
    """Writes the task set into `root` from the packages' tarballs."""
    images = {
        "google": _stems(read_files(google, "img/google/64/")),
        "twitter": _stems(read_files(twitter, "img/twitter/64/")),
        "openmoji": _stems(read_files(openmoji, "color/svg/")),
        "fluent3d": _stems(read_files(fluent, "assets/")),
    }
    entries = json.loads(read_files(google, "emoji.json")[""])
    drawn = {}  # code points -> style -> name of the file, of the emoji that every vendor has drawn
    for entry in entries:
        code_points = entry["unified"]
        names = [code_points.replace(VARIATION, ""), code_points]
        files = {style: next((name for name in names if name in found), None) for style, found in images.items()}
        if None not in files.values():
            drawn[code_points] = files
    chosen = split_emoji(
        Emoji(entry["short_name"], entry["unified"], entry["category"], entry["subcategory"])
        for entry in entries
        if entry["unified"] in drawn
    )
    wanted = {files["openmoji"] for files in drawn.values()}
    images["openmoji"] = render({name: images["openmoji"][name] for name in wanted}, resvg)
    for style, found in images.items():
        for emoji, split in track(chosen, style, console=console):
            image = on_white(open_image(found[drawn[emoji.code_points][style]]))
            below = Path("pretrain", style) if split == "pretrain" else Path("tasks", style, split, emoji.class_name)
            path = root / below / f"{emoji.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, optimize=True)
    texts = {entry["hexcode"]: entry for entry in json.loads(read_files(openmoji, "data/openmoji.json")[""])}
    lines = [_caption(emoji, split, texts[drawn[emoji.code_points]["openmoji"]]) for emoji, split in chosen]
    (root / "captions.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (root / "LICENSES.md").write_text(LICENSES, encoding="utf-8")


def render(drawings: dict[str, bytes], resvg: Path) -> dict[str, bytes]:
    """SVG files as PNG files, 256 pixels wide."""
    with tempfile.TemporaryDirectory() as temporary:
        package, svg, png = (Path(temporary, name) for name in ("resvg", "svg", "png"))
        for folder in (package, svg, png):
            folder.mkdir()
        for name in ("index.mjs", "index_bg.wasm"):
            (package / name).write_bytes(read_files(resvg, name)[""])
        for name, drawing in drawings.items():
            (svg / f"{name}.svg").write_bytes(drawing)
        console.print(f"Drawing {len(drawings)} SVG files")
        command = [program("node"), Path(__file__).with_name("emoji_render.mjs"), package, svg, png]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0:
            raise OSError(f"the SVG files could not be drawn: {run.stderr.strip()}")
        return {name: (png / f"{name}.png").read_bytes() for name in drawings}


def on_white(image: Image.Image) -> Image.Image:
    """The image in RGB, `SIZE` pixels wide and high, on white."""
    image = image.convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _stems(files: dict[str, bytes]) -> dict[str, bytes]:
    return {Path(name).stem.upper(): content for name, content in files.items()}


def _caption(emoji: Emoji, split: str, text: dict[str, str]) -> str:
    caption = {
        "emoji": emoji.name,
        "class": emoji.class_name,
        "category": emoji.category,
        "split": split,
        "name": text["annotation"].lower(),
        "keywords": [word.strip() for word in text["tags"].split(",")],
    }
    return json.dumps(caption)


if __name__ == "__main__":
    main()
