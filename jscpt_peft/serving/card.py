"""The card of an adapter: what is in its README.md, and when that may be written anew."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel
from peft.utils import CONFIG_NAME, get_peft_model_state_dict

from jscpt_peft.choices import markdown

from .base_names import is_hub_id, public_name
from .versions import package_versions

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
TAGS = ("peft", "jscpt", "clip", "adapter", "prompt-learning", "multi-task-learning")
PACKAGES = ("jscpt-peft", "peft", "transformers", "torch", "huggingface_hub")
MOST_NAMES = 12  # class names of a task that the card spells out
# The last line of a card; until somebody edits the rest, it holds that one's digest.
SIGNATURE = "<!-- Written by jscpt_peft, and anew at every save until somebody edits it: {} -->"
SIGNED = re.compile(r"\s*" + SIGNATURE.format(r"(\w+)") + r"\s*$")
# What PEFT adds to an empty card, and what transformers describes the model with in its own.
PEFT_VERSION = re.compile(r"\s*### Framework versions\s+(- PEFT \S+\s*)+$")
TRANSFORMERS_DESCRIPTION = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)


@dataclass(frozen=True)
class TrainingRecord:
    """What a run adds to the card of its adapter; what is empty is left out.

    Attributes:
        configuration: setting -> value, of all that decides what a step does.
        task_set: its name, and how it was drawn.
        data: source of images -> what it is, and which part of it is trained with.
        steps: optimizer steps after which the weights are as they are saved.
        split: where the accuracies were counted, such as `test`.
        accuracies: task -> accuracy in [0, 1] of these weights; also the front matter's `model-index`.
        mean_accuracy: over the tasks, for the table alone.
        results: the results table as Markdown.
        figures: file beside the card -> caption.
        files: file beside the card -> what it is.
        environment: name -> value, such as the device.
    """

    configuration: Mapping[str, Any] = field(default_factory=dict)
    task_set: str = ""
    data: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    steps: int = 0
    split: str = "test"
    accuracies: Mapping[str, float] = field(default_factory=dict)
    mean_accuracy: float | None = None
    results: str | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)


def adapter_card(
    model: PeftModel,
    name: str | None = None,
    title: str | None = None,
    run: TrainingRecord | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
    adapter: str | None = None,
    **metadata: Any,
) -> ModelCard:
    """The card of a model's adapter.

    Args:
        model: a `PeftModel` of a JSCPT adapter.
        name: Hub id of the adapter, as far as it is known.
        title: of the card; default: the Hub id.
        run: what its training adds.
        license: of the adapter, as the Hub abbreviates it; only whoever publishes it can grant one.
        tags: further ones.
        adapter: name; default: `default_adapter(model)`.
        metadata: further entries of the front matter, such as `language`.
    """
    title = title or name or "JSCPT adapter"
    adapter = adapter or default_adapter(model)
    config = model.peft_config[adapter]
    tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False).values()
    base = config.base_model_name_or_path or model.get_base_model().name_or_path
    on_hub = is_hub_id(base)
    data = ModelCardData(
        base_model=base if on_hub else None,
        library_name="peft",
        license=license,
        pipeline_tag="image-classification",
        tags=list(dict.fromkeys((*TAGS, *tags))),
        **_model_index(title, run),
        **metadata,
    )
    if on_hub:
        base_model_text, base_model_code = f"[`{base}`](https://huggingface.co/{base})", _code(base)
    else:
        base_model_text = f"{public_name(base)!r}, a folder that is not on the Hub" if base else "unknown"
        base_model_code = _code("path/of/the/base-model")
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        config=config,
        tasks=[_task(task, names) for task, names in config.tasks.items()],
        parameters=sum(tensor.numel() for tensor in tensors),
        stored_bytes=sum(tensor.nbytes for tensor in tensors),
        base_model_text=base_model_text,
        base_model_code=base_model_code,
        adapter_code=_code(name or "path/or/hub-id"),
        folder="" if adapter == "default" else f"{adapter}/",
        subfolder_code="" if adapter == "default" else f", subfolder={_code(adapter)}",
        first_task_code=_code(next(iter(config.tasks))),
        run=run,
        versions={"Python": platform.python_version(), **package_versions(PACKAGES)},
    )


def default_adapter(model: PeftModel) -> str:
    """Name of the adapter that a card is of: `default`, which PEFT stores beside it, or else the active one."""
    return "default" if "default" in model.peft_config else model.active_adapter


def write_card(card: ModelCard, folder: str | Path) -> bool:
    """Writes a card into a folder, signed, unless there is one that somebody has written or edited.

    Tags of the card that is replaced are kept, but for the base model's, which PEFT gives by its path.

    Returns:
        Whether it was written.
    """
    path = Path(folder, CARD_FILE)
    if path.exists():
        if is_written_by_hand(path):
            return False
        kept = [tag for tag in ModelCard.load(path).data.tags or () if not tag.startswith("base_model:")]
        card.data.tags = list(dict.fromkeys((*card.data.tags, *kept)))
    card.text = f"{card.text.rstrip()}\n\n{SIGNATURE.format(_digest(card))}\n"
    card.save(path)
    return True


def is_written_by_hand(path: Path) -> bool:
    """Whether a card is anything but one of ours, as written, or the empty one of PEFT or transformers."""
    try:
        card = ModelCard.load(path)
    except Exception:  # whatever is wrong with its front matter: it is nothing that a program has written
        return True
    signature = SIGNED.search(card.text)
    if signature:
        return signature[1] != _digest(card)
    text = PEFT_VERSION.sub("", card.text).strip()
    return text not in {_empty_card(description) for description in ("", TRANSFORMERS_DESCRIPTION)}


def _digest(card: ModelCard) -> str:
    """Of text and front matter without the tags, which `push_to_hub(tags=...)` may add to."""
    metadata = {name: value for name, value in card.data.to_dict().items() if name != "tags"}
    text = SIGNED.sub("", card.text).strip()
    return hashlib.sha256(json.dumps([metadata, text], sort_keys=True, default=str).encode()).hexdigest()


def _empty_card(description: str) -> str:
    return ModelCard.from_template(ModelCardData(), model_description=description).text.strip()


def _task(task: str, names: Sequence[str]) -> dict[str, Any]:
    shown = ", ".join(names[:MOST_NAMES])
    rest = f", ... ({CONFIG_NAME} has all)" if len(names) > MOST_NAMES else ""
    return {"name": _cell(task), "classes": len(names), "names": _cell(shown + rest)}


def _cell(text: str) -> str:
    """As it can stand in a Markdown table."""
    return markdown(" ".join(text.split()))


def _code(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _model_index(name: str, run: TrainingRecord | None) -> dict[str, Any]:
    """The front matter's results, which the Hub shows beside the card."""
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"\W+", "-", task).strip("-").lower() or "task",
            dataset_name=task,
            dataset_split=run.split,
            metric_type="accuracy",
            metric_value=accuracy,
        )
        for task, accuracy in (run.accuracies if run is not None else {}).items()
        if not math.isnan(accuracy)
    ]
    return {"model_name": name, "eval_results": results} if results else {}
