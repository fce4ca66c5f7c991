"""What JSCPT needs of a base model with an image and a text tower: the joint between methods and architectures."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..cache import Cache, CacheKey
from ..class_texts import ClassTexts
from ..heads.base import one_vector
from ..layer import JSCPTLayer
from ..start import Sizes
from ..task_context import TaskContext
from ..task_features import plain, task_ids_of
from ..task_rows import TaskRows
from .cast_weights import CastWeights, cast_weights
from .double_backward import precision_mode


class PromptedTower(JSCPTLayer):
    """A tower whose blocks see the active adapter's prompts.

    Attributes:
        name: `"vision"` or `"text"`.
    """

    name: str

    def __init__(self, base_layer: nn.Module, context: TaskContext) -> None:
        super().__init__(base_layer, context)
        self._kept = Cache()

    @property
    def blocks(self) -> nn.ModuleList:
        """The frozen transformer blocks."""
        return self.base_layer.encoder.layers

    @property
    def is_checkpointed(self) -> bool:
        """Whether the blocks' activations are computed anew in the backward pass."""
        return any(layer.gradient_checkpointing and layer.training for layer in self.blocks)

    def prompts(self) -> Tensor:
        """The active adapter's prompts as each task sees them, `[N, depth, n, d]`; n = 0 where there are none."""
        adapter = self.active_task_adapter
        prompts = {} if adapter is None else adapter.prompts()
        return prompts[self.name] if self.name in prompts else self.no_prompts()

    def no_prompts(self) -> Tensor:
        """`[N, depth, 0, d]`."""
        shape = len(self.active_config.tasks), len(self.blocks), 0, self.base_layer.config.hidden_size
        return next(self.base_layer.parameters()).new_zeros(shape)

    def cast_blocks(self) -> list[CastWeights | None]:
        """Copies of the blocks' weights in autocast's precision; `None`s without autocast."""
        dtype, *_ = precision_mode(self.base_layer.device.type)
        if dtype is None:
            return [None] * len(self.blocks)
        return self._kept.get(
            dtype,
            lambda: CacheKey([self.blocks]),
            lambda: [cast_weights(layer, dtype) for layer in self.blocks],
            hold=True,
        )

    def refuse_recording(self, keywords: dict) -> None:
        """Raises a `ValueError` where hidden states or attention weights are asked for."""
        for name in ("output_hidden_states", "output_attentions"):
            if keywords.get(name):
                raise ValueError(
                    f"`{name}=True` is not available with prompts, which never join the sequence: use "
                    "`disable_adapter()` to inspect the base model."
                )


class SelectingProjection(JSCPTLayer):
    """The projection of the pooled image features, followed by the method's head."""

    def forward(self, pooled: Tensor) -> Tensor:
        """x̄ `[B, D]` under each image's task, or the task of `set_task` where the features do not know it."""
        x = self.base_layer(plain(pooled))
        head = self.active_head
        if head is None:
            return x
        task_ids = task_ids_of(pooled)
        if task_ids is None:
            task_ids = self.resolve(None, x).ids
        selected = head.select(x, task_ids.to(x.device), head.task_parameters())
        return one_vector(selected).to(x.dtype)  # the base model multiplies it with its text features


class Backbone(ABC):
    """A base model with its wrapped layers, and how they are to be called.

    Attributes:
        model_class: the base models that this is for.
        target_modules: regular expression of the names of the layers that are wrapped.
    """

    model_class: type[PreTrainedModel]
    target_modules: str

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.context = TaskContext()

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """Widths, blocks and the like."""

    @property
    @abstractmethod
    def vision(self) -> PromptedTower:
        """The wrapped image tower, with `pooled(pixel_values, rows, prompts) -> [B, d]`."""

    @property
    @abstractmethod
    def vision_norm(self) -> nn.Module | None:
        """The image tower's layer norm of all tokens before its first block; `None` where it has none."""

    @property
    @abstractmethod
    def text(self) -> PromptedTower:
        """The wrapped text tower, with `pooled(texts, prompts) -> [S, d]`."""

    @property
    @abstractmethod
    def projection(self) -> SelectingProjection:
        """The wrapped projection of image features."""

    @abstractmethod
    def wrap(self, layer: nn.Module) -> JSCPTLayer:
        """A layer that `target_modules` names, wrapped; one of them is an `AdapterHolder`.

        Raises:
            TypeError: it is not a layer that the architecture has there.
        """

    @abstractmethod
    def word_embeddings(self, token_ids: list[int]) -> Tensor:
        """`[k, d]` embeddings of tokens, without positions."""

    @abstractmethod
    def image_features(self, pixel_values: Tensor, rows: TaskRows, prompts: Tensor) -> Tensor:
        """x `[B, D]` of images `[B, 3, H, W]`, each under its task's prompts, `[N, depth, n, d]`."""

    @abstractmethod
    def text_features(self, texts: ClassTexts, prompts: Tensor) -> Tensor:
        """`[S, D]` of texts, each under its task's prompts, `[N, depth, n, d]`.

        Where `texts.name_ends` says so, the second half of the prompts follows so many words; depth is 1 then.
        """

    @abstractmethod
    def text_modules(self) -> list[nn.Module]:
        """The modules whose parameters `text_features` depends on, beside the prompts."""

    @abstractmethod
    def logits(self, cosines: Tensor) -> Tensor:
        """Logits of cosines: `scale * cosines`, plus a bias where the base model has one."""
