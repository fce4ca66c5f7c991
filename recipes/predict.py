"""Prints the best classes of pictures under a trained adapter.

python recipes/predict.py --adapter outputs/mine --task art picture.jpg other.png
python recipes/predict.py --adapter user/name --revision v2 --task art picture.jpg
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from adapter import adapter_config, load_adapter, task_of
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from told_errors import one_voice
from transformers import CLIPImageProcessorPil

console = Console()
# PEFT asks transformers for a property by its old name; nothing that a user of these recipes could change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path, metavar="image", help="pictures, in any format Pillow reads")
    parser.add_argument("--adapter", required=True, help="folder or Hub id of a trained adapter")
    parser.add_argument("--revision", help="branch, tag or commit of the adapter on the Hub; default: main")
    parser.add_argument("--task", help="the adapter's task; may be left out where there is one only")
    parser.add_argument("--model_name_or_path", help="base model; default: the one the adapter was trained on")
    parser.add_argument("--top", type=int, default=3, help="classes to print (default: 3)")
    arguments = parser.parse_args(command_line)
    with one_voice(console):
        predictions = predict(arguments)
    shown = min(arguments.top, len(predictions[0]))  # a task may have fewer classes
    table = Table("picture", *(f"{place}." for place in range(1, shown + 1)))
    for path, prediction in zip(arguments.images, predictions, strict=True):
        best = list(prediction.items())[:shown]
        table.add_row(*map(escape, (str(path), *(f"{name} {probability:.1%}" for name, probability in best))))
    console.print(table)


def predict(arguments: argparse.Namespace) -> list[dict[str, float]]:
    if arguments.top < 1:
        raise ValueError(f"`--top` is {arguments.top}: give the number of classes to print, at least 1.")
    for path in arguments.images:
        if not path.is_file():
            raise ValueError(f"image {path} does not exist.")
    config = adapter_config(arguments.adapter, arguments.revision)
    task = task_of(config, arguments.task)
    model, source = load_adapter(config, arguments.adapter, arguments.revision, arguments.model_name_or_path)
    processor = CLIPImageProcessorPil.from_pretrained(source)
    statistics = {"image_mean": processor.image_mean, "image_std": processor.image_std}
    return model.predict(arguments.images, task=task, **statistics)  # reads them one batch after the other


if __name__ == "__main__":
    main()
