"""Writes one task's classifier for serving: a file that PyTorch alone loads and runs, without this package.

python recipes/export.py --adapter outputs/mine --task art --output served/art
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from adapter import adapter_config, load_adapter, task_of
from peft import PeftModel
from rich.console import Console
from told_errors import one_voice
from transformers import CLIPImageProcessorPil

console = Console()
# PEFT asks transformers for a property by its old name; nothing that a user of these recipes could change.
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="folder or Hub id of a trained adapter")
    parser.add_argument("--revision", help="branch, tag or commit of the adapter on the Hub; default: main")
    parser.add_argument("--task", help="the adapter's task; may be left out where there is one only")
    parser.add_argument("--output", required=True, type=Path, help="folder to make; an earlier export is replaced")
    parser.add_argument("--model_name_or_path", help="base model; default: the one the adapter was trained on")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: float32")
    parser.add_argument("--measure", action="store_true", help="time it against the adapter, one image at a time")
    arguments = parser.parse_args(command_line)
    with one_voice(console):
        export(arguments)


def export(arguments: argparse.Namespace) -> None:
    config = adapter_config(arguments.adapter, arguments.revision)
    task = task_of(config, arguments.task)
    model, source = load_adapter(config, arguments.adapter, arguments.revision, arguments.model_name_or_path)
    processor = CLIPImageProcessorPil.from_pretrained(source)
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
        measure(model, task, directory)


@torch.no_grad()
def measure(model: PeftModel, task: str, directory: Path, repeats: int = 20) -> None:
    """Prints how long one image takes: medians of interleaved runs, the class features being kept by both."""
    model.eval()
    side, task_id = model.get_base_model().config.vision_config.image_size, model.task_names.index(task)
    image = torch.randn(1, 3, side, side)
    classifier = torch.export.load(directory / "classifier.pt2").module()
    runs: dict[str, Callable[[], object]] = {
        "adapter": lambda: model.classify(image, task_id),
        "artefact": lambda: classifier(image),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number >= 2:  # the first ones warm up
                seconds[name].append(time.perf_counter() - start)
    adapter, artefact = (statistics.median(each) for each in seconds.values())
    console.print(
        f"One image, medians of {repeats}: adapter {1000 * adapter:.1f} ms, artefact {1000 * artefact:.1f} ms, "
        f"artefact / adapter {artefact / adapter:.2f}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
