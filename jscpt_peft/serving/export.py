"""One task's classifier for serving, in a file that PyTorch alone loads and runs.

Under one task everything but the image is constant: the class features and the logit scale fold into one matrix, and
the vision prompts into keys and values of every block. What is left is a pass through the frozen vision tower, Eq. 2
and a matrix product. Nothing of the text tower goes along, and neither do JSCPT, PEFT and transformers.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from jscpt_peft.model.backbones.attention import KeysValues, block, keys_values
from jscpt_peft.model.causes import check_finite
from jscpt_peft.model.losses import averaged_over_views
from jscpt_peft.model.task_context import deterministic, task_index
from jscpt_peft.model.task_rows import TaskRows
from jscpt_peft.reading import one_line, read_json_object
from jscpt_peft.settings import path_given

from .base_names import public_name
from .versions import package_versions

if TYPE_CHECKING:
    from jscpt_peft.model.tuner import JSCPTModel

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
PROGRAM, DESCRIPTION, MANUAL = "classifier.pt2", "classifier.json", "README.md"


# What a server needs to know beside the file itself; the test of this module runs it.
MANUAL_TEXT = """# Classifier of the task `{task}`

`classifier.pt2` needs nothing but PyTorch. It takes normalised images `[batch, 3, {size}, {size}]` ({input_dtype}, any
batch size) and gives logits `[batch, {classes}]`; `classifier.json` holds the class names and the normalisation.

`torch.export.load` can run code that is hidden in a file: load this one only if you trust whoever made it.
`jscpt_peft.serving.export.load_task` first compares its digest with that in `classifier.json`, which finds damage, not
malice. These lines read images with up to 16 bits a channel:

```python
import json, torch
from PIL import Image, ImageOps

about = json.load(open("classifier.json"))
classifier = torch.export.load("classifier.pt2").module()


def pixels(image):
    image = ImageOps.exif_transpose(image)  # upright, and transparency over white, as in training
    if image.mode in ("I", "F"):
        raise ValueError("greyscale of 32 bits does not say which level is white: save the picture with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # greyscale of 16 bits, of which convert("RGB") would make white
        image = image.convert("I").point(lambda level: level / 257 + 0.5).convert("L")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    side, shortest = about["image_size"], min(image.size)
    width, height = (side * length // shortest for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + side, top + side))
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    return ((values / 255 - mean) / std).to({input_dtype})


probabilities = classifier(pixels(Image.open("picture.jpg"))[None])[0].softmax(-1)
print(dict(zip(about["class_names"], probabilities.tolist())))
```

On a GPU, after `from torch.export.passes import move_to_device_pass`:
`move_to_device_pass(torch.export.load("classifier.pt2"), "cuda").module()`.
"""


class TaskClassifier(nn.Module):
    """Logits of one task's classes for images (Eq. 1 with x̄ of Eq. 2), as a plain module without routing.

    Args:
        model: whose active adapter is taken; what is needed of its parameters is copied.
        task_id: the task.
        dtype: of the vision tower; Eq. 2 and the cosines are computed in float32 or better.

    Attributes:
        keys, values: `[blocks, 1, heads, n, d / heads]` of the prompts that are a prefix in the first blocks.
        carried: `[1, n, d]` the prompts that join the sequence after these blocks, where others follow.
        classes: `[D, C]` normalised class features times the logit scale.
    """

    @torch.no_grad()
    def __init__(self, model: JSCPTModel, task_id: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.vision = copy.deepcopy(model.backbone.vision.base_layer).to("cpu", dtype)
        self.projection = copy.deepcopy(model.backbone.projection.base_layer).to("cpu", dtype)
        blocks = self.vision.encoder.layers
        prompts = model.prompt_tokens("vision")[task_id].to("cpu", dtype)  # [depth, n, d]
        depth, num_prompts, _ = prompts.shape
        self.carrying = num_prompts > 0 and depth < len(blocks)
        self.num_prefixed = 0 if num_prompts == 0 else depth - self.carrying
        if self.num_prefixed:
            prefixed = zip(blocks, prompts[: self.num_prefixed, None], strict=False)
            prefixes = [keys_values(layer, each) for layer, each in prefixed]
            self.register_buffer("keys", torch.stack([each.keys for each in prefixes]))
            self.register_buffer("values", torch.stack([each.values for each in prefixes]))
        if self.carrying:
            self.register_buffer("carried", prompts[-1, None].clone())
        precise = torch.promote_types(dtype, torch.float32)
        adapter = model.backbone.vision.active_task_adapter
        head = None if adapter is None else adapter.head
        parameters = {} if head is None else head.task_parameters()
        own = {name: each[task_id, None].to("cpu", precise, copy=True) for name, each in parameters.items()}
        self.head_parameters = nn.ParameterDict(own)
        self.select = None if head is None else head.select
        num_classes = len(model.active_jscpt_config.tasks[model.task_names[task_id]])
        class_embeds = F.normalize(model.class_embeds()[task_id, :num_classes].to("cpu", precise), dim=-1)
        self.register_buffer("classes", model.backbone.logits(class_embeds).T.contiguous())
        self.requires_grad_(False).eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]` of images `[B, 3, H, W]`, normalised as CLIP's processor does."""
        hidden = self.vision.pre_layrnorm(self.vision.embeddings(pixel_values))
        rows = TaskRows.one_task(hidden)
        last = len(self.vision.encoder.layers) - 1
        for index, layer in enumerate(self.vision.encoder.layers):
            prefix = KeysValues(self.keys[index], self.values[index]) if index < self.num_prefixed else None
            if self.carrying and index == self.num_prefixed:
                hidden = torch.cat([hidden[:, :1], rows.spread(self.carried), hidden[:, 1:]], dim=1)
            hidden = block(layer, hidden, prefix, rows, read_out=0 if index == last else None)
        selected = self.projection(self.vision.post_layernorm(hidden[:, 0]))
        if self.select is not None:
            selected = self.select(selected, rows.ids, self.head_parameters)
        logits = F.normalize(selected.to(self.classes.dtype), dim=-1) @ self.classes
        return logits if logits.dim() == 2 else averaged_over_views(logits)


def export_task(
    model: JSCPTModel,
    task: str,
    directory: str | Path,
    dtype: torch.dtype,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> Path:
    """Writes the classifier of one task for serving, whole or not at all.

    `classifier.pt2` is what PyTorch alone loads and runs, `classifier.json` says what belongs to it (class names,
    normalisation, versions, digest), and a README has the lines that load it. The logits are those of `classify` (in
    float32 the cosines agree within 1e-6), for any batch size.

    Args:
        model: the active adapter's task is exported.
        task: name of the task.
        directory: folder to make; an earlier export in it is replaced.
        dtype: `torch.float32`, `torch.bfloat16` (half the file) or `torch.float64`.
        image_mean: mean of the base model's image processor, per channel.
        image_std: standard deviation of the base model's image processor, per channel.

    Returns:
        The folder.

    Raises:
        ValueError: there is no such task, another `dtype`, no mean or standard deviation of three channels, or a
            tensor that is not finite.
        OSError: it could not be written; what was there is as it was.
        NotADirectoryError, FileExistsError: `directory` is a file, or holds something else than an earlier export.
    """
    from jscpt_peft.data.transforms import check_statistics  # here, since `datasets` takes seconds to import

    task_id = task_index(task, model.task_names)
    image_mean, image_std = check_statistics(image_mean, image_std)
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` is {dtype}: give one of {', '.join(map(str, DTYPES))}.")
    directory = path_given("directory", directory).resolve()
    _check_directory(directory)
    with deterministic():  # a dropout of the base model would disturb the class features
        classifier = TaskClassifier(model, task_id, dtype)
    check_finite(model, classifier.state_dict())
    size = model.model.config.vision_config.image_size
    input_dtype = torch.promote_types(dtype, torch.float32)
    class_names = model.active_jscpt_config.tasks[task]
    program = _program(classifier, torch.zeros(2, 3, size, size, dtype=input_dtype))
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"`directory` {str(directory)!r} cannot be made ({one_line(error)}): name another.") from error
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".export-") as aside:
        whole = Path(aside, "whole")
        whole.mkdir()
        buffer = io.BytesIO()  # straight into a file, a full disk would abort the process
        torch.export.save(program, buffer)
        description = {
            "task": task,
            "class_names": class_names,
            "image_size": size,
            "image_mean": list(image_mean),
            "image_std": list(image_std),
            "dtype": str(dtype).removeprefix("torch."),
            "input_dtype": str(input_dtype).removeprefix("torch."),
            "class_template": model.active_jscpt_config.class_template,
            "base_model": public_name(model.active_jscpt_config.base_model_name_or_path),
            "versions": package_versions(("jscpt-peft", "torch", "transformers", "peft")),
            "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        }
        manual = MANUAL_TEXT.format(task=task, size=size, classes=len(class_names), input_dtype=input_dtype)
        try:
            (whole / PROGRAM).write_bytes(buffer.getbuffer())
            (whole / DESCRIPTION).write_text(
                json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            (whole / MANUAL).write_text(manual, encoding="utf-8")
            _put_in_place(whole, directory, Path(aside, "earlier"))
        except OSError as error:
            raise OSError(
                f"the export to {directory} could not be written ({error}): nothing of it is left, and an earlier "
                "export there is as it was. Make room on the disk."
            ) from error
    return directory


def load_task(directory: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads what `export_task` wrote; only of somebody whom you trust, since loading can run code.

    Returns:
        The classifier, images `[B, 3, size, size]` -> logits `[B, C]`, and its description (`classifier.json`).

    Raises:
        ValueError: the classifier is not the one that the description is of (cut off, altered, or of another export),
            or it holds pickles, which run code and are in no export of ours.
    """
    path, described = Path(directory, PROGRAM), Path(directory, DESCRIPTION)
    try:
        description = read_json_object(described)
    except ValueError as error:
        raise ValueError(f"{described} cannot be read ({one_line(error)}): copy the export again.") from error
    if hashlib.sha256(path.read_bytes()).hexdigest() != description.get("sha256"):
        raise ValueError(
            f"{path} is not what {DESCRIPTION} beside it describes (its digest differs): copy both again."
        )
    if _holds_pickles(path):
        raise ValueError(f"{path} holds pickles (`use_pickle`), which can run any code: export the task again.")
    return torch.export.load(path).module(), description


def _holds_pickles(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            tables = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith("_config.json")]
        return any(entry["use_pickle"] for table in tables for entry in table["config"].values())
    except (zipfile.BadZipFile, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no export of a task ({one_line(error)}): export the task again.") from error


def _program(classifier: TaskClassifier, example: torch.Tensor) -> torch.export.ExportedProgram:
    """The classifier's graph for any batch size, without the example and without this machine's paths."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(classifier, (example,), dynamic_shapes={"pixel_values": {0: batch}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def _check_directory(directory: Path) -> None:
    if os.path.exists(directory) and not directory.is_dir():
        raise NotADirectoryError(f"`directory` {str(directory)!r} is a file: name a folder.")
    held = {path.name for path in directory.iterdir()} if os.path.isdir(directory) else set()
    if held and not {PROGRAM, DESCRIPTION} <= held <= {PROGRAM, DESCRIPTION, MANUAL}:
        raise FileExistsError(
            f"`directory` {str(directory)!r} holds something else than an earlier export: name an empty or a new one."
        )


def _put_in_place(whole: Path, directory: Path, earlier: Path) -> None:
    try:
        if directory.exists():
            os.replace(directory, earlier)
        os.replace(whole, directory)
    except BaseException:
        if earlier.exists() and not directory.exists():
            os.replace(earlier, directory)
        raise
