"""Prints the best classes of images under a trained adapter.

python recipes/predict.py --adapter outputs/mine --task art photo.jpg other.png
python recipes/predict.py --adapter user/name --revision v2 --task art photo.jpg
python recipes/predict.py --adapter outputs/mine --task art --classes cat,dog,owl photo.jpg
"""

from __future__ import annotations

import argparse
import os.path
from pathlib import Path

from adapter import add_adapter_arguments, load_for_task
from arguments import RecipeParser
from cli_errors import cli_errors, console
from other_classes import class_list
from rich.table import Table
from rich.text import Text

from jscpt_peft.choices import printable


def main(command_line: list[str] | None = None) -> None:
    parser = RecipeParser(description=__doc__)
    parser.add_argument("images", nargs="+", type=Path, metavar="image", help="image file, in any format Pillow reads")
    add_adapter_arguments(parser)
    parser.add_argument("--top", type=int, default=3, help="classes to print")
    parser.add_argument("--classes", help="choose among these, with commas between, or a file with one per line")
    arguments = parser.parse_args(command_line)
    with cli_errors():
        predictions = predict(arguments)
    shown = min(arguments.top, len(predictions[0]))  # a task may have fewer classes
    table = Table("image", *(f"{place}." for place in range(1, shown + 1)))
    for path, prediction in zip(arguments.images, predictions, strict=True):
        best = list(prediction.items())[:shown]
        cells = (str(path), *(f"{name} {probability:.1%}" for name, probability in best))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)


def predict(arguments: argparse.Namespace) -> list[dict[str, float]]:
    if arguments.top < 1:
        raise ValueError(f"`--top` is {arguments.top}: give the number of classes to print, at least 1.")
    for path in arguments.images:
        if not os.path.isfile(path):  # `Path.is_file` would raise where the name is too long
            raise ValueError(f"image {path} does not exist, or is no file.")
    model, task, processor = load_for_task(arguments)
    statistics = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    classes = None if arguments.classes is None else class_list(arguments.classes)
    return model.predict(
        arguments.images, task=task, classes=classes, **statistics
    )  # reads them one batch after the other


if __name__ == "__main__":
    main()
