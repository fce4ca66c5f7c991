"""Benchmarks on disk, in the layouts of CoOp (split JSONs), Dassl (`splits_mini`) and LibMTL (lists of a domain)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jscpt_peft.data.benchmarks import Benchmark, plain
from jscpt_peft.data.files import leading_out
from jscpt_peft.data.found import POOL, FilesOnDisk, FoundTask, Source, keys_of
from jscpt_peft.data.layout import classes_of, subfolders
from jscpt_peft.data.tree import Scan
from jscpt_peft.reading import one_line, read_json, read_text

logger = logging.getLogger(__name__)

SPLIT_OF_LIST = {"train": "train", "val": "validation", "test": "test"}
LIST_FOLDERS = ("splits_mini/**/", "data_txt/**/", "")  # Dassl's, LibMTL's, or beside the images

Item = tuple[str, str]  # path below the data set's folder, raw class name


def local_source(benchmark: Benchmark, data_root: str | Path) -> Source:
    """The data set in its folder below `data_root`; keys are paths relative to `data_root`.

    Raises a FileNotFoundError that says what belongs where if something is missing, and a ValueError if a split file
    is damaged or names files outside of the folder.
    """
    root, folder = Path(data_root), Path(data_root, benchmark.folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`data_root` {str(data_root)!r} has no folder {benchmark.folder!r}: {_belongs(benchmark)}. Without "
            "`data_root` it is read from the Hub."
        )
    if benchmark.domains:
        tasks = {task: _domain(benchmark, folder, domain) for task, domain in benchmark.domains.items()}
    elif benchmark.split_file:
        tasks = {benchmark.name: _split_json(benchmark, folder)}
    else:
        tasks = {benchmark.name: _aircraft(benchmark, folder)}
    _check_files(benchmark, root, tasks)
    return Source(tasks, FilesOnDisk(root), origin=str(folder))


def _belongs(benchmark: Benchmark) -> str:
    if benchmark.name == "mini_domainnet":
        layout = "<domain>/<class>/<image> with splits_mini/<domain>_train.txt and _test.txt (Dassl)"
    elif benchmark.domains:
        layout = f"<domain>/<class>/<image>, the domains being {', '.join(benchmark.domains.values())}"
    else:
        lists = benchmark.split_file or "variants.txt, images_variant_train.txt, _val.txt and _test.txt"
        layout = f"{benchmark.images or 'the images'}/ and {lists} (CoOp)"
    return f"{benchmark.name} belongs there as {layout}"


def _split_json(benchmark: Benchmark, folder: Path) -> FoundTask:
    path = folder / benchmark.split_file
    try:
        content = _read(benchmark, path, read_json)
        splits = {
            ours: [(str(Path(benchmark.images, image)), str(name)) for image, _, name in content[theirs]]
            for theirs, ours in SPLIT_OF_LIST.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no split file of CoOp ({type(error).__name__}: {one_line(error)}): it must hold `train`, "
            "`val` and `test`, each a list of [path, label, class name]."
        ) from error
    return {split: _by_class(benchmark, items) for split, items in splits.items()}


def _aircraft(benchmark: Benchmark, folder: Path) -> FoundTask:
    """FGVCAircraft's own lists, as CoOp reads them: `1025794 707-320` is images/1025794.jpg of the variant 707-320."""
    variants = set(_lines(benchmark, folder / "variants.txt"))
    found = {}
    for theirs, ours in SPLIT_OF_LIST.items():
        path = folder / f"images_variant_{theirs}.txt"
        lines = [line.partition(" ")[::2] for line in _lines(benchmark, path)]
        if wrong := [line for line in lines if line[1] not in variants]:
            raise ValueError(f"{path} has the line {' '.join(wrong[0])!r}: its variant is not in variants.txt.")
        found[ours] = _by_class(benchmark, ((f"{benchmark.images}/{image}.jpg", name) for image, name in lines))
    return found


def _domain(benchmark: Benchmark, folder: Path, domain: str) -> FoundTask:
    """One domain by its lists `<domain>_{train,val,test}.txt`, or by its folder, whose images are then a pool."""
    scan = Scan(folder)
    folders = {plain(path.name): path for path in scan.entries(folder)[0]}
    images = folders.get(plain(domain))
    if images is None:
        raise FileNotFoundError(f"{folder} has no folder {domain!r}: {_belongs(benchmark)}.")
    lists = _lists(folder, domain)
    if benchmark.name != "mini_domainnet" and not any(_lists(folder, each) for each in benchmark.domains.values()):
        classes = classes_of(subfolders(scan.folder(images), scan), scan)
        scan.report()
        items = [(key, name) for name, keys in classes.items() for key in keys]
        return {POOL: _by_class(benchmark, items)}
    if missing := [split for split in ("train", "test") if split not in lists]:
        raise FileNotFoundError(
            f"{folder} has no list {domain}_{missing[0]}.txt: {_belongs(benchmark)}; lists are for all domains or for "
            "none."
        )
    logger.warning("Task %r of %s is split by the lists in %s.", domain, benchmark.name, lists["train"].parent)
    return {split: _by_class(benchmark, _listed(benchmark, path, folders)) for split, path in lists.items()}


def _lists(folder: Path, domain: str) -> dict[str, Path]:
    for place in LIST_FOLDERS:
        named = {plain(path.stem): path for path in sorted(folder.glob(f"{place}*.txt"))}
        names = {ours: plain(f"{domain}_{theirs}") for theirs, ours in SPLIT_OF_LIST.items()}
        if lists := {split: named[name] for split, name in names.items() if name in named}:
            return lists
    return {}


def _listed(benchmark: Benchmark, path: Path, folders: Mapping[str, Path]) -> list[Item]:
    """Lines such as `Art/Calendar/00017.jpg 0`; the domain's folder may be spelt otherwise on disk."""
    items, class_of_label = [], {}
    for line in _lines(benchmark, path):
        image, _, label = line.rpartition(" ")
        domain, _, rest = image.partition("/")
        name = rest.partition("/")[0]
        if not (label.isdigit() and rest and plain(domain) in folders):
            raise ValueError(f"{path} has the line {line!r}: expected `<domain>/<class>/<image> <label>`.")
        if class_of_label.setdefault(label, name) != name:
            raise ValueError(f"{path} gives label {label} to {class_of_label[label]!r} and to {name!r}.")
        items.append((f"{folders[plain(domain)].name}/{rest}", name))
    return items


def _by_class(benchmark: Benchmark, items: Iterable[Item]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    for path, raw in items:
        name = benchmark.class_name(raw)
        if name is not None:
            classes.setdefault(name, []).append(Path(benchmark.folder, path).as_posix())
    return classes


def _check_files(benchmark: Benchmark, root: Path, tasks: Mapping[str, FoundTask]) -> None:
    """Every image is there, in the data set's folder, and in one split."""
    folder = root / benchmark.folder
    split_of: dict[tuple[str, str], str] = {}
    for task, splits in tasks.items():
        for split, classes in splits.items():
            for key in keys_of(classes):
                if (task, key) in split_of:
                    raise ValueError(
                        f"the split files in {folder} name {key!r} twice (task {task!r}: {split_of[task, key]} and "
                        f"{split}): every image belongs in one split, once."
                    )
                split_of[task, key] = split
    keys = [key for _, key in split_of]
    if out := leading_out(root, keys, benchmark.folder):
        raise ValueError(f"the split files in {folder} name {out[0]!r}, which leads out of that folder.")
    missing = [key for key in keys if not (root / key).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(keys)} images of {benchmark.name} are missing below {root}, the first is "
            f"{missing[0]!r}: is the download complete? {_belongs(benchmark)}."
        )


def _lines(benchmark: Benchmark, path: Path) -> list[str]:
    try:
        text = _read(benchmark, path, read_text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {one_line(error)}.") from error
    return [line for line in map(str.strip, text.splitlines()) if line]


def _read(benchmark: Benchmark, path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: {_belongs(benchmark)}.") from error
