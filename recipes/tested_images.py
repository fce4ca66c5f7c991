"""Which test images are used, and that an adapter has not been trained with any of them.

Where a task set has no test images of its own, they are what a run's seed and fraction leave over: another draw tests
an adapter on its training images. So its own manifest.json decides, and any other split is compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter import adapter_config
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from peft.utils import CONFIG_NAME
from rich.console import Console
from task_data import DataArguments, load_data
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from jscpt_peft.choices import printable
from jscpt_peft.data import TaskSet, read_manifest
from jscpt_peft.data.benchmark_tasks import mixture_name
from jscpt_peft.data.manifest import MANIFEST_FILE, UnfittingManifest, drawn_by, on_hub, seen_in_training


@dataclass(frozen=True)
class OwnSplit:
    """The split that an adapter was trained with."""

    adapter: str  # folder or Hub id
    path: Path | None = None  # of its manifest.json, if there is one
    place: str | None = None  # the same, for people
    manifest: dict | None = None


@dataclass(frozen=True)
class Tested:
    """A task set whose test images are used."""

    task_set: TaskSet
    split: str  # what decided about it: "the adapter's own", "given" or "drawn"
    manifest: str | None = None  # the manifest.json that did
    unchecked: tuple[str, ...] = ()  # tasks whose test images could not be compared with those of training

    def protocol(self) -> dict[str, Any]:
        """How the images were chosen, for evaluation.json; `train_fraction` and `shots` of a run are of its training.

        Both are None where all images are trained on, or where the benchmarks of a mixture have different ones.
        """
        manifest = self.task_set.manifest
        train_fraction, shots = drawn_by(manifest)
        sources = manifest["options"].get("sources", {})
        return {
            "split": self.split,
            "manifest": self.manifest,
            "seed": manifest["seed"],
            "train_fraction": train_fraction,
            "shots": shots,
            "sources": ", ".join(f"{name} from {origin}" for name, origin in sources.items()) or None,
            "tasks_not_compared_with_training": ", ".join(self.unchecked) or None,
        }

    def __str__(self) -> str:
        known = self.protocol()
        how = ", ".join(
            f"{name} {known[name]}" for name in ("seed", "train_fraction", "shots") if known[name] is not None
        )
        return f"{self.split} split ({self.manifest + ': ' if self.manifest else ''}{how})"


def own_split(adapter: str, revision: str | None) -> OwnSplit:
    """The split that an adapter was trained with, from its folder, the run of its checkpoint, or the Hub.

    Raises:
        ValueError: there is no adapter, or its manifest.json is none.
        OSError: the Hub cannot be read.
    """
    adapter_config(adapter, revision)
    local = Path(adapter, CONFIG_NAME).is_file()
    if local:
        folder = Path(adapter).resolve()
        of_a_run = [folder.parent] if f"{PREFIX_CHECKPOINT_DIR}-" in folder.name else []
        places = (each / MANIFEST_FILE for each in (folder, *of_a_run))
        path = next((path for path in places if path.is_file()), None)
    else:
        try:
            path = Path(hf_hub_download(adapter, MANIFEST_FILE, revision=revision))
        except EntryNotFoundError:  # nor is it kept here, where there is no network
            path = None
    if path is None:
        return OwnSplit(adapter)
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        raise ValueError(
            f"`adapter` {adapter}: what it was trained with is unknown: {error} Or remove the file, if it is none."
        ) from error
    return OwnSplit(adapter, path, str(path) if local else f"{adapter}/{MANIFEST_FILE}", manifest)


def load_tested(data: DataArguments, own: OwnSplit | None, seed: int, console: Console) -> Tested:
    """The task set, split as the adapter's `own` says where that is of it and the arguments ask for no other split.

    The console is told what could not be used or compared.

    Raises:
        ValueError: test images are among those that the adapter was trained, validated or scheduled with.
    """
    tested = None
    if own is not None and own.manifest is not None and _decides(own.manifest, data):
        try:
            tested = Tested(_load_own(own, data, seed), "the adapter's own", own.place)
        except UnfittingManifest as error:
            _say(console, f"{own.place} does not fit the data, so that a new split is drawn: {error}")
    if tested is None:
        tested = Tested(load_data(data, seed), "given" if data.manifest else "drawn", data.manifest)
    if own is None:
        return tested
    unchecked = tuple(tested.task_set.class_names)
    if own.manifest is None:
        _say(
            console,
            f"Warning: `adapter` {own.adapter} has no {MANIFEST_FILE}, so that nobody knows whether it was trained "
            "with some of the test images.",
        )
    else:
        unchecked = _check_unseen(own, data, tested.task_set, console)
    return replace(tested, unchecked=unchecked)


def check_output(output_dir: str, manifest: dict) -> None:
    """Raises a ValueError where `manifest`, in `output_dir`, would pass for what an adapter there was trained with."""
    output, kept = Path(output_dir), Path(output_dir, MANIFEST_FILE)
    if not (output / CONFIG_NAME).is_file() and not any(output.glob(f"*{PREFIX_CHECKPOINT_DIR}-*")):
        return
    if not kept.is_file() or read_manifest(kept) != manifest:
        raise ValueError(
            f"`output_dir` {output_dir} holds an adapter, and the {MANIFEST_FILE} of this evaluation is not that of "
            "its training: choose another."
        )


def _decides(manifest: dict, data: DataArguments) -> bool:
    """Whether an adapter's manifest is of this task set, and nothing asks for another split than its own."""
    named = mixture_name(data.task_set)
    if manifest["task_set"] != named or named == "shapes":  # whose images are drawn, by the seed
        return False
    asked = data.train_fraction, data.shots
    return data.manifest is None and data.data_revision is None and asked in ((None, None), drawn_by(manifest))


def _load_own(own: OwnSplit, data: DataArguments, seed: int) -> TaskSet:
    if data.data_root is None and not on_hub(own.manifest):
        raise UnfittingManifest("its images were not read from the Hub, but from a `data_root`.")
    return load_data(replace(data, manifest=str(own.path), train_fraction=None, shots=None), seed)


def _check_unseen(own: OwnSplit, data: DataArguments, task_set: TaskSet, console: Console) -> tuple[str, ...]:
    """The tasks whose images cannot be compared, after a warning."""
    seen = seen_in_training(own.manifest, task_set.manifest)
    tests = {task: len(splits["test"]) for task, splits in task_set.manifest["tasks"].items()}
    known = [f"{count} of the {tests[task]} test images of task {task!r}" for task, count in seen.items() if count]
    if known:
        raise ValueError(
            f"`adapter` {own.adapter} was trained, validated or scheduled with {', '.join(known)}: accuracies on them "
            f"say nothing. {_remedy(own.manifest, data)}"
        )
    unchecked = tuple(task for task, count in seen.items() if count is None)
    if unchecked:
        _say(
            console,
            f"Warning: nobody knows whether `adapter` {own.adapter} was trained with some of the test images of "
            f"{', '.join(unchecked)}: {own.place} (task set {own.manifest['task_set']!r}) names other images, or the "
            "same ones otherwise.",
        )
    return unchecked


def _remedy(trained: dict, data: DataArguments) -> str:
    train_fraction, shots = drawn_by(trained)
    asked = {
        "manifest": data.manifest,
        "train_fraction": data.train_fraction,
        "shots": data.shots,
        "data_revision": data.data_revision,
    }
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if trained["task_set"] != mixture_name(data.task_set):
        own = {"seed": trained["seed"], "train_fraction": train_fraction, "shots": shots}
        options = " ".join(f"--{name} {value}" for name, value in own.items() if value is not None)
        remedy = f"Give --task_set {trained['task_set']}, as in its training, or the same {options}."
    elif given:
        remedy = f"Leave out {' and '.join(given)}: then its own {MANIFEST_FILE} decides about the split."
    else:
        remedy = f"Give the data that its own {MANIFEST_FILE} was written for."
    return remedy + ("" if "sources" in trained["options"] else " Other images of the same names need other names.")


def _say(console: Console, text: str) -> None:
    console.print(printable(text), style="yellow", markup=False, highlight=False, soft_wrap=True)
