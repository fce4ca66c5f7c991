"""`CLIPModel` as a backbone."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel, CLIPVisionModel

from ..class_texts import ClassTexts
from ..layer import JSCPTLayer
from ..start import Sizes
from ..task_rows import TaskRows
from .base import Backbone, SelectingProjection
from .clip_text import PromptedCLIPText
from .clip_vision import PromptedCLIPVision


class CLIPBackbone(Backbone):
    """Both towers wrapped, and the projection of image features, which takes the head."""

    model_class = CLIPModel
    target_modules = r"(.*\.)?(text_model|vision_model|visual_projection)"

    @property
    def sizes(self) -> Sizes:
        config = self.model.config
        towers = {"vision": config.vision_config, "text": config.text_config}
        return Sizes(
            widths={tower: each.hidden_size for tower, each in towers.items()},
            blocks={tower: each.num_hidden_layers for tower, each in towers.items()},
            projection=config.projection_dim,
            vocabulary=config.text_config.vocab_size,
            positions=config.text_config.max_position_embeddings,
            patch=config.vision_config.patch_size,
        )

    @property
    def vision(self) -> PromptedCLIPVision:
        return self.model.vision_model

    @property
    def vision_norm(self) -> nn.Module:
        return self.vision.pre_layrnorm

    @property
    def text(self) -> PromptedCLIPText:
        return self.model.text_model

    @property
    def projection(self) -> SelectingProjection:
        return self.model.visual_projection

    def wrap(self, layer: nn.Module) -> JSCPTLayer:
        wrappers = {
            CLIPVisionModel: PromptedCLIPVision,
            CLIPTextModel: PromptedCLIPText,
            nn.Linear: SelectingProjection,
        }
        for kind, wrapper in wrappers.items():
            if isinstance(layer, kind):
                return wrapper(layer, self.context)
        raise TypeError(
            f"the base model has a {type(layer).__name__} where a `CLIPModel` has one of "
            f"{[kind.__name__ for kind in wrappers]}: put the adapter on the model first, and compile or wrap parts "
            "of it afterwards."
        )

    def word_embeddings(self, token_ids: list[int]) -> Tensor:
        return self.text.embeddings.token_embedding.weight[token_ids]

    def image_features(self, pixel_values: Tensor, rows: TaskRows, prompts: Tensor) -> Tensor:
        return self.projection.base_layer(self.vision.pooled(pixel_values, rows, prompts))

    def text_features(self, texts: ClassTexts, prompts: Tensor) -> Tensor:
        return self.model.text_projection(self.text.pooled(texts, prompts))

    def text_modules(self) -> list[nn.Module]:
        return [self.text.base_layer, self.model.text_projection]

    def logits(self, cosines: Tensor) -> Tensor:
        return cosines * self.model.logit_scale.exp().to(cosines)
