"""What users would pick instead of prompts, for comparison alone: LoRA of plain PEFT, and a linear probe.

Both learn on the same images, in the same batches, with the same optimizers and schedules as the methods of the
library, by the mean losses of all tasks. Neither is an adapter of the library: `weights.safetensors` holds what was
learned.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from class_templates import templates_of
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, CLIPModel

from jscpt_peft.data import ImageTaskDataset, TaskSet, collate
from jscpt_peft.model.losses import JSCPTOutput, mean_losses, task_loss_sums
from jscpt_peft.model.task_rows import TaskRows
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.evaluating import EvaluatingTrainer

if TYPE_CHECKING:
    from run_material import Material


class OutsideModel(nn.Module):
    """CLIP as a classifier of several tasks; each class name has one text, or one weight, for all tasks that have it.

    What of `clip` requires a gradient learns; `source` is where it came from, for its tokenizer.
    """

    def __init__(self, clip: CLIPModel, source: str, task_set: TaskSet) -> None:
        super().__init__()
        self.clip, self.tasks = clip, task_set.class_names
        templates = templates_of(task_set, "own")
        texts = {task: [templates[task].format(name) for name in names] for task, names in self.tasks.items()}
        distinct = list(dict.fromkeys(text for each in texts.values() for text in each))
        tokens = AutoTokenizer.from_pretrained(source)(distinct, padding=True, return_tensors="pt")
        self.register_buffer("input_ids", tokens.input_ids, persistent=False)
        self.register_buffer("attention_mask", tokens.attention_mask, persistent=False)
        places = [torch.tensor([distinct.index(text) for text in each]) for each in texts.values()]
        allowed = [torch.ones_like(each, dtype=torch.bool) for each in places]
        self.register_buffer("places", pad_sequence(places, batch_first=True), persistent=False)  # [N, C] class's text
        self.register_buffer("allowed", pad_sequence(allowed, batch_first=True), persistent=False)

    def text_embeds(self) -> Tensor:
        """Normalised features `[S, D]` of the distinct texts."""
        features = self.clip.get_text_features(input_ids=self.input_ids, attention_mask=self.attention_mask)
        return normalize(features.pooler_output, dim=-1)

    def image_embeds(self, pixel_values: Tensor) -> Tensor:
        """Normalised features `[B, D]`."""
        return normalize(self.clip.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)

    def all_logits(self, pixel_values: Tensor) -> Tensor:
        """`[B, S]`, of all texts."""
        raise NotImplementedError

    def classify(self, pixel_values: Tensor, task_ids: Tensor, _labels: Tensor | None = None) -> JSCPTOutput:
        """Logits `[B, C]` among each image's task's classes."""
        logits = self.all_logits(pixel_values).float().gather(1, self.places[task_ids])
        return JSCPTOutput(logits=logits.masked_fill(~self.allowed[task_ids], -torch.inf))

    def forward(self, pixel_values: Tensor, task_ids: Tensor, labels: Tensor, **_: Any) -> dict[str, Tensor]:
        logits = self.classify(pixel_values, task_ids).logits
        losses = mean_losses(*task_loss_sums(logits, labels, TaskRows.of(task_ids), len(self.tasks)))
        return {"loss": losses.nansum(), "logits": logits}

    def learned(self) -> dict[str, Tensor]:
        """What has learned, by name."""
        return {name: each.detach() for name, each in self.named_parameters() if each.requires_grad}

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of parameters: those that learn, and all."""
        return sum(each.numel() for each in self.learned().values()), sum(each.numel() for each in self.parameters())


class Lora(OutsideModel):
    """CLIP-LoRA (arXiv 2405.18541): low-rank updates of q, k and v in every block of both towers.

    They are scaled by α/√r, as in its authors' code.
    """

    def __init__(self, clip: CLIPModel, source: str, task_set: TaskSet, rank: int = 2) -> None:
        targets = ["q_proj", "k_proj", "v_proj"]
        config = LoraConfig(r=rank, lora_alpha=1, lora_dropout=0.25, target_modules=targets, use_rslora=True)
        super().__init__(get_peft_model(clip, config).get_base_model(), source, task_set)
        self._kept: Tensor | None = None

    def train(self, mode: bool = True) -> Lora:
        self._kept = None
        return super().train(mode)

    def all_logits(self, pixel_values: Tensor) -> Tensor:
        if self.training or self._kept is None:  # an evaluation needs the texts once
            texts = self.text_embeds()
            self._kept = None if self.training else texts.detach()
        else:
            texts = self._kept
        return self.image_embeds(pixel_values) @ texts.T * self.clip.logit_scale.exp()


class LinearProbe(OutsideModel):
    """A weight and a bias per class on the normalised image features, which start as zero-shot CLIP."""

    def __init__(self, clip: CLIPModel, source: str, task_set: TaskSet) -> None:
        super().__init__(clip.requires_grad_(False), source, task_set)
        with torch.no_grad():
            weight = self.text_embeds()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(weight.new_zeros(len(weight)))

    def all_logits(self, pixel_values: Tensor) -> Tensor:
        with torch.no_grad():
            images = self.image_embeds(pixel_values)
        return (images @ self.weight.T + self.bias) * self.clip.logit_scale.exp()


class OutsideTrainer(EvaluatingTrainer):
    """`Trainer` itself, on the batches and with the evaluation of `JSCPTTrainer`."""

    get_train_dataloader = JSCPTTrainer.get_train_dataloader
    get_optimizer_cls_and_kwargs = staticmethod(JSCPTTrainer.get_optimizer_cls_and_kwargs)

    def __init__(
        self, model: OutsideModel, args: JSCPTTrainingArguments, datasets: dict[str, ImageTaskDataset]
    ) -> None:
        self.task_names = list(model.tasks)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            compute_metrics=self.multi_task_accuracy,
        )
        self.model_accepts_loss_kwargs = False

    def tested_tasks(self) -> dict[str, list[str]]:
        return self.model.tasks

    def cause_of_nan(self) -> str:
        return "the weights that have learned, or the images, are not finite"

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            weights = {name: each.cpu().contiguous() for name, each in self.model.learned().items()}
            save_file(weights, folder / "weights.safetensors")


def outside_trainer(arguments: Any, material: Material, training: JSCPTTrainingArguments) -> OutsideTrainer:
    """The trainer of the one of `OUTSIDE` that `ModelArguments` name."""
    base = material.clip, material.source, material.task_set
    model = Lora(*base, arguments.lora_rank) if arguments.method == "clip_lora" else LinearProbe(*base)
    return OutsideTrainer(model, training, material.datasets)
