"""`icons`, real images that travel with the recipes: open-licensed icons of 31 things in four visual styles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jscpt_peft.data.found import FoundTask, Images, build_task
from jscpt_peft.data.manifest import images_of_manifest, new_manifest
from jscpt_peft.data.splits import check_amount, sample_task
from jscpt_peft.data.task import TaskSet

FILE = "icons.parquet"
STYLES = ("outline", "solid", "duotone", "colour")
TEMPLATE = "a {} icon"


@dataclass(frozen=True)
class ImagesInMemory(Images):
    """Keys of a mapping to the bytes of image files: 2 MB in all."""

    files: Mapping[str, bytes]

    def place(self, key: str) -> dict:
        return {"path": None, "bytes": self.files[key]}


def icons_task_set(
    data_root: str | Path,
    train_fraction: float | None = None,
    shots: int | None = None,
    seed: int = 1,
    manifest: dict | None = None,
) -> TaskSet:
    """Outline, solid, duotone and coloured icons: four tasks with the same 31 classes, 4,269 images of 64x64.

    A drawing variant (`folder-plus`) lies in one split in all styles. D_dev is half of validation.

    Args:
        data_root: the folder with `icons.parquet`, such as `recipes/assets/icons` of the repository: rows of `key`
            (`<task>/<split>/<class>/<set>__<icon>.png`), `task`, `split`, `class` and `image` (the file's bytes).
        train_fraction, shots, seed, manifest: as for `folder_task_set`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else, an option is out of its range, or the manifest does not fit.
    """
    check_amount(train_fraction, shots, manifest)
    found, images = _read(Path(data_root, FILE))
    if manifest is not None:
        chosen = images_of_manifest(manifest, "icons", found, "`data_root`")
    else:
        chosen = {task: sample_task(splits, train_fraction, shots, seed, task) for task, splits in found.items()}
        manifest = new_manifest("icons", seed, {"train_fraction": train_fraction, "shots": shots}, chosen)
    tasks = [
        build_task(number, task, splits, images, template=TEMPLATE)
        for number, (task, splits) in enumerate(chosen.items())
    ]
    return TaskSet(name="icons", tasks=tuple(tasks), manifest=manifest)


def _read(path: Path) -> tuple[dict[str, FoundTask], ImagesInMemory]:
    try:
        rows = pq.read_table(path).to_pylist()
        found: dict[str, FoundTask] = {style: {} for style in STYLES}
        for row in rows:
            found[row["task"]].setdefault(row["split"], {}).setdefault(row["class"], []).append(row["key"])
        files = {row["key"]: row["image"] for row in rows}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`data_root` {path.parent} has no {FILE}: take recipes/assets/icons.") from error
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{path} does not hold the icons ({error!r}): restore it from the repository.") from error
    return found, ImagesInMemory(files)
