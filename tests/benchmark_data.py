"""Small copies of the benchmarks, with exactly the documented schemas: parquet repositories and folders on disk.

An image's colour says what it shows (see `colour`), so that a test can tell whether a row's image is the right one.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import datasets
from datasets.info import DatasetInfosDict
from hub_server import Hub
from huggingface_hub import DatasetCardData
from PIL import Image

from jscpt_peft.data.benchmarks import BENCHMARKS, Benchmark, HubTable

COOP_SPLITS = {"train": "train", "val": "validation", "test": "test"}
PER_CLASS = {"train": 6, "validation": 2, "test": 2}

RAW_NAMES = {
    "office_home": ["Alarm_Clock", "Postit_Notes", "ToothBrush", "TV", "Push_Pin"],
    "caltech101": ["airplanes", "Faces", "Leopards", "Motorbikes", "wild_cat"],
    "oxford_pets": ["Abyssinian", "great_pyrenees", "yorkshire_terrier"],
    "stanford_cars": ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"],
    "oxford_flowers": ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
    "food101": ["apple_pie", "baby_back_ribs", "waffles"],
    "fgvc_aircraft": ["707-320", "A340-200", "Yak-42"],
    "sun397": ["abbey", "airplane cabin"],
    "dtd": ["banded", "chequered", "zigzagged"],
    "eurosat": [
        *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
        *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
    ],
    "ucf101": ["ApplyEyeMakeup", "YoYo", "CleanAndJerk"],
    "mini_domainnet": [name.replace(" ", "_") for name in BENCHMARKS["mini_domainnet"].expected],
}
# Rows that are to be dropped.
FOREIGN_NAMES = {"caltech101": ["BACKGROUND_Google", "Faces_easy"], "mini_domainnet": ["The_Mona_Lisa", "zigzag"]}
FOREIGN_DOMAINS = {"mini_domainnet": ["infograph", "quickdraw"]}


def raw_names(name: str) -> list[str]:
    """Class names as the repository spells them, as many as the benchmark has."""
    names = list(RAW_NAMES[name])
    filler = "InventedClass{}" if name == "ucf101" else "invented {}" if name == "sun397" else "invented_{}"
    letters = (first + second for first in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for second in "abcdefghijklmnopqrstuvwxyz")
    while len(names) < BENCHMARKS[name].num_classes:
        names.append(filler.format(next(letters)))
    return names


def colour(label: int, number: int, domain: int = 0) -> tuple[int, int, int]:
    """Of image `number` of a class in a domain, each counted in the order of the names."""
    return label % 256, number % 256, 40 * domain + 20 * (label // 256)


def shown(image: Image.Image) -> tuple[int, int, int]:
    """(label, number, domain) of an image; exact for PNG, to about 2 for JPEG."""
    red, green, blue = image.convert("RGB").getpixel((4, 4))
    return red + 256 * round(blue % 40 / 20), green, blue // 40


@cache
def encoded(*rgb: int, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), rgb).save(buffer, "PNG" if suffix == "png" else "JPEG", quality=95)
    return buffer.getvalue()


# ---- parquet repositories -------------------------------------------------------------------------------------------


def repository(
    name: str,
    place: HubTable,
    per_class: dict[str, int] | None = None,
    filling: bytes = b"",
    shards: int = 2,
    times: int = 1,
) -> dict[str, bytes]:
    """The files of a data set repository: path -> content.

    `filling` follows the bytes of every image; `times` multiplies the images of each class.
    """
    benchmark, tables = BENCHMARKS[name], {}
    for split, ours in place.splits.items():
        count = {**PER_CLASS, "pool": 10, **(per_class or {})}[ours]
        if place.middle_frame:  # a clip is known by its columns: in another file it would still be the same one
            tables[split] = frames(name, count * times)
        else:
            tables[split] = images(benchmark, place, count, filling)
    return parquet_files(tables, shards, 100 if filling else 1000, 1 if place.middle_frame else times)


def parquet_files(
    tables: dict[str, datasets.Dataset], shards: int = 2, rows: int = 1000, times: int = 1
) -> dict[str, bytes]:
    """Splits as `push_to_hub` publishes them: several files each, in groups of `rows`, and described in the README.

    With `times`, each file is there so many times.
    """
    files, splits = {}, datasets.SplitDict()
    for split, table in tables.items():
        for number in range(shards):
            buffer = io.BytesIO()
            table.shard(shards, number, contiguous=True).to_parquet(buffer, batch_size=rows)
            for copy in range(times):
                path = f"data/{split}-{copy * shards + number:05}-of-{times * shards:05}.parquet"
                files[path] = buffer.getvalue()
        splits.add(datasets.SplitInfo(split, num_bytes=1, num_examples=times * len(table)))
    card = DatasetCardData()
    info = datasets.DatasetInfo(features=next(iter(tables.values())).features, splits=splits, dataset_size=1)
    DatasetInfosDict(default=info).to_dataset_card_data(card)
    paths = [{"split": split, "path": f"data/{split}-*"} for split in tables]
    card.configs = [{"config_name": "default", "data_files": paths}]
    return {**files, "README.md": f"---\n{card.to_yaml()}\n---\n# A data set\n".encode()}


def images(benchmark: Benchmark, place: HubTable, count: int, filling: bytes = b"") -> datasets.Dataset:
    """Rows in the order class, domain, number; with what is to be dropped between them."""
    names = sorted(raw_names(benchmark.name) + FOREIGN_NAMES.get(benchmark.name, []))
    domains = sorted([*benchmark.domains.values(), *FOREIGN_DOMAINS.get(benchmark.name, [])]) or [""]
    rows = [
        {
            "image": {"bytes": encoded(*colour(label, number, number_of_domain)) + filling, "path": f"{number}.png"},
            place.label: label,
            **({place.domain: domain} if place.domain else {}),
        }
        for label in range(len(names))
        for number_of_domain, domain in enumerate(domains)
        for number in range(count)
    ]
    kinds = {"image": datasets.Image(), place.label: datasets.ClassLabel(names=names)}
    if place.domain:  # DomainNet's domains are class labels, Office-Home's are strings
        by_label = benchmark.name == "mini_domainnet"
        kinds[place.domain] = datasets.ClassLabel(names=domains) if by_label else datasets.Value("string")
    return datasets.Dataset.from_list(rows, features=datasets.Features(kinds))


def frames(name: str, clips: int) -> datasets.Dataset:
    """UCF101 as frames: 3 or 4 of each clip, not in order; the middle one is green by its number, the others black."""
    names, rows = sorted(raw_names(name)), []
    for label, raw in enumerate(names):
        for clip in range(clips):
            length = 3 + clip % 2
            for frame in sorted(range(length), key=lambda each: (each * 2) % length):
                rgb = colour(label, clip) if frame == length // 2 else (0, 255, 255)
                ids = {"video_id": f"v_{raw}_g01", "clip_id": f"c{clip:02}", "frame": frame}
                rows.append({"image": {"bytes": encoded(*rgb), "path": None}, **ids, "label": label})
    text = datasets.Value("string")
    kinds = {"image": datasets.Image(), "video_id": text, "clip_id": text, "frame": datasets.Value("int64")}
    features = datasets.Features({**kinds, "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_list(rows, features=features)


# ---- folders --------------------------------------------------------------------------------------------------------


def folder(name: str, root: Path, per_class: dict[str, int] | None = None) -> None:
    """One data set below `root`, in the layout of CoOp, Dassl or LibMTL."""
    benchmark = BENCHMARKS[name]
    counts = {**PER_CLASS, **(per_class or {})}
    if name == "office_home":
        for domain in benchmark.domains.values():
            for _, label, raw, number in _items(name, counts):
                write(root / benchmark.folder / domain / raw / f"{number:05}.png", label, number)
    elif name == "mini_domainnet":
        _dassl(benchmark, root, counts)
    elif name == "fgvc_aircraft":
        _aircraft(benchmark, root, counts)
    else:
        _coop(benchmark, root, counts)


def libmtl_lists(root: Path) -> None:
    """LibMTL's lists of Office-Home, for a folder that is there: 6 images a class for training, 2 and 2."""
    folder = root / BENCHMARKS["office_home"].folder / "data_txt" / "office-home"
    for domain in BENCHMARKS["office_home"].domains.values():
        lists = defaultdict(list)
        for split, label, raw, number in _items("office_home", PER_CLASS):
            lists[split].append(f"{domain}/{raw}/{number:05}.png {label}")
        write_lists(folder, f"{domain.replace(' ', '_')}_{{}}.txt", lists)


def write(path: Path, label: int, number: int, domain: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(*colour(label, number, domain), suffix=path.suffix[1:]))


def write_lists(folder: Path, name: str, lists: Mapping[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, lines in lists.items():
        (folder / name.format(split)).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _items(name: str, counts: dict[str, int]) -> Iterator[tuple[str, int, str, int]]:
    """(CoOp's split, label, raw name, number of the image in its class)."""
    for label, raw in enumerate(sorted(raw_names(name))):
        number = 0
        for theirs, ours in COOP_SPLITS.items():
            for _ in range(counts[ours]):
                yield theirs, label, raw, number
                number += 1


def coop_name(name: str, raw: str) -> str:
    """What CoOp's split files call a class."""
    if name == "stanford_cars":
        *model, year = raw.split(" ")
        return " ".join([year, *model])
    renamed = BENCHMARKS[name].renamed.get(raw.lower())
    if name == "ucf101":
        return "".join("_" + each if each.isupper() else each for each in raw).lstrip("_")
    return renamed or raw


def _coop(benchmark: Benchmark, root: Path, counts: dict[str, int]) -> None:
    home = root / benchmark.folder
    splits = defaultdict(list)
    for split, label, raw, number in _items(benchmark.name, counts):
        path = f"{raw}/image_{number:04}.png"
        write(home / benchmark.images / path, label, number)
        splits[split].append([path, label, coop_name(benchmark.name, raw)])
    (home / benchmark.split_file).write_text(json.dumps(splits), encoding="utf-8")


def _aircraft(benchmark: Benchmark, root: Path, counts: dict[str, int]) -> None:
    home = root / benchmark.folder
    lists = defaultdict(list)
    for split, label, raw, number in _items(benchmark.name, counts):
        image = f"{1_000_000 + 100 * label + number}"
        write(home / benchmark.images / f"{image}.jpg", label, number)
        lists[split].append(f"{image} {raw}")
    write_lists(home, "images_variant_{}.txt", lists)
    write_lists(home, "{}.txt", {"variants": raw_names(benchmark.name)})


def _dassl(benchmark: Benchmark, root: Path, counts: dict[str, int]) -> None:
    home = root / benchmark.folder
    for number_of_domain, domain in enumerate(benchmark.domains.values()):
        lists = defaultdict(list)
        for split, label, raw, number in _items(benchmark.name, counts):
            path = f"{domain}/{raw}/{number}.png"
            write(home / path, label, number, number_of_domain)
            lists["test" if split == "test" else "train"].append(f"{path} {label}")
        write_lists(home / "splits_mini", f"{domain}_{{}}.txt", lists)


def coop_zip(name: str, folder_of: Path) -> bytes:
    """The data set's folder below `folder_of` as a zip file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted((folder_of / BENCHMARKS[name].folder).rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder_of))
    return buffer.getvalue()


# ---- from the stand-in of the Hub -----------------------------------------------------------------------------------


def publish(hub: Hub, name: str, place: HubTable | None = None, revision: str | None = None, **options) -> str:
    """One of a benchmark's repositories (`options` as for `repository`); returns the commit."""
    place = place or next(each for each in BENCHMARKS[name].hub if isinstance(each, HubTable))
    files = repository(name, place, **options)
    return hub.add(place.repository, files, kind="datasets", revision=revision or place.revision or "main")


def publish_archive(hub: Hub, name: str, folder_of: Path) -> None:
    """The zip file of a benchmark's first choice, with what is made below `folder_of`."""
    folder(name, folder_of)
    archive = BENCHMARKS[name].hub[0]
    hub.add(archive.repository, {archive.file: coop_zip(name, folder_of)}, revision=archive.revision)


def load(hub: Hub, home: Path, *options: dict, **environment: str) -> tuple[list[dict], str]:
    """What `load_program` says of each of `options`, and its log."""
    program = str(Path(__file__).with_name("load_program.py"))
    done = hub.run([sys.executable, program, json.dumps(options)], home=home, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr
