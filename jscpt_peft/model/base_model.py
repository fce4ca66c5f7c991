"""Does an adapter fit the base model?"""

from __future__ import annotations

from transformers import CLIPConfig

from .config import JSCPTConfig


def check_base_model(config: JSCPTConfig, clip_config: CLIPConfig) -> None:
    """Records the sizes of the base model, or compares them with those the adapter was made for.

    Raises:
        ValueError: they differ, or the base model has fewer blocks than `prompt_depth`.
    """
    dimensions = {
        "vision_width": clip_config.vision_config.hidden_size,
        "vision_blocks": clip_config.vision_config.num_hidden_layers,
        "text_width": clip_config.text_config.hidden_size,
        "text_blocks": clip_config.text_config.num_hidden_layers,
        "projection": clip_config.projection_dim,
        "vocabulary": clip_config.text_config.vocab_size,
    }
    if config.base_dimensions is None:
        config.base_dimensions = dimensions
    differing = {k: (v, dimensions[k]) for k, v in config.base_dimensions.items() if v != dimensions[k]}
    if differing:
        detail = ", ".join(f"{name} {made} (this base: {here})" for name, (made, here) in differing.items())
        raise ValueError(
            f"The adapter was made for another base model: {detail}. Load it on "
            f"`{config.base_model_name_or_path}`, the base model it was trained on."
        )
    blocks = min(dimensions[f"{tower}_blocks"] for tower in config.prompted_towers or ("vision", "text"))
    if config.prompt_depth is not None and config.prompt_depth > blocks:
        raise ValueError(
            f"`prompt_depth` is {config.prompt_depth}, but the base model's prompted towers have {blocks} blocks: use "
            f"at most {blocks}, or None for every block."
        )
