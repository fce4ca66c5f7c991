"""Writes one task's classifier for serving: a file that PyTorch alone loads and runs, without this package.

python recipes/export.py --adapter outputs/mine --task art --output served/art
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import median

import torch
from adapter import add_adapter_arguments, load_for_task
from arguments import RecipeParser
from cli_errors import cli_errors, console
from measuring import measure
from peft import PeftModel


def main(command_line: list[str] | None = None) -> None:
    parser = RecipeParser(description=__doc__)
    add_adapter_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder to make; an earlier export is replaced")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of its weights")
    parser.add_argument("--measure", action="store_true", help="time it against the adapter, one image at a time")
    arguments = parser.parse_args(command_line)
    with cli_errors():
        export(arguments)


def export(arguments: argparse.Namespace) -> None:
    model, task, processor = load_for_task(arguments)
    directory = model.export_task(
        task,
        arguments.output,
        dtype={"float32": torch.float32, "bfloat16": torch.bfloat16}[arguments.dtype],
        image_mean=processor.image_mean,
        image_std=processor.image_std,
    )
    size = (directory / "classifier.pt2").stat().st_size / 1e6
    console.print(f"The classifier of {task} ({size:.1f} MB) is in {directory}: see its README.md.", soft_wrap=True)
    if arguments.measure:
        compare(model, task, directory)


@torch.no_grad()
def compare(model: PeftModel, task: str, directory: Path, repeats: int = 20) -> None:
    """Prints how long one image takes: medians of interleaved runs, the class features being kept by both."""
    model.eval()
    side, task_id = model.get_base_model().config.vision_config.image_size, model.task_names.index(task)
    image = torch.randn(1, 3, side, side)
    classifier = torch.export.load(directory / "classifier.pt2").module()
    runs = {"adapter": partial(model.classify, image, task_id), "artefact": partial(classifier, image)}
    seconds, _ = measure(runs, repeats, "cpu")
    adapter, artefact = map(median, seconds.values())
    console.print(
        f"One image, medians of {repeats}: adapter {1000 * adapter:.1f} ms, artefact {1000 * artefact:.1f} ms, "
        f"artefact / adapter {artefact / adapter:.2f}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
