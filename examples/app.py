"""Serves an adapter in the browser: choose a task, give an image, read its classes.

    pip install '.[examples]'
    python examples/app.py --adapter outputs/mine
    python examples/app.py --adapter user/name --port 7861

It listens on this machine only. Nothing is loaded from elsewhere but the adapter and its base model, and nothing is
reported.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio
from peft import PeftConfig, PeftModel

import jscpt_peft  # noqa: F401  (registers the PEFT type)

sys.path.append(str(Path(__file__).parent.parent / "recipes"))
from base_model import load_clip, load_processor  # which refuse a base that is not whole

LAUNCH = {"server_name": "127.0.0.1", "share": False}  # for this machine only


def main(command_line: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="folder or Hub id of a trained adapter")
    parser.add_argument("--model_name_or_path", help="base model; default: the one the adapter was trained on")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860")
    arguments = parser.parse_args(command_line)
    make_page(arguments.adapter, arguments.model_name_or_path).launch(server_port=arguments.port, **LAUNCH)


def make_page(adapter: str, base: str | None = None) -> gradio.Interface:
    """A page with an image, a menu of the adapter's tasks, and the best five classes."""
    config = PeftConfig.from_pretrained(adapter)
    base = base or config.base_model_name_or_path
    clip = load_clip(base)
    model = PeftModel.from_pretrained(clip, adapter)
    processor = load_processor(base, clip)

    def classify(image: str | None, task: str) -> dict[str, float]:
        if image is None:
            raise gradio.Error("Give an image first.")
        return model.predict(image, task, image_mean=processor.image_mean, image_std=processor.image_std)[0]

    return gradio.Interface(
        classify,
        # The file as it came: `predict` opens it, in Pillow's own formats and up to a size.
        [
            gradio.Image(type="filepath", image_mode=None, label="image"),
            gradio.Dropdown(list(config.tasks), label="task"),
        ],
        gradio.Label(num_top_classes=5, label="classes"),
        title="One adapter, several tasks",
        description=f"{len(config.tasks)} tasks. An image is compared with the classes of the chosen task.",
        flagging_mode="never",
        analytics_enabled=False,
    )


if __name__ == "__main__":
    main()
