"""Token ids of the class texts: tokenised once, when an adapter is made, and stored in its configuration."""

from __future__ import annotations

from transformers import AutoTokenizer, CLIPConfig, PreTrainedTokenizerBase

from .config import JSCPTConfig


def fill_token_ids(config: JSCPTConfig, clip_config: CLIPConfig) -> None:
    """Fills `class_token_ids` and `prompt_init_token_ids` where they are missing, and checks that the texts fit.

    Raises:
        ValueError: no tokenizer is known, or a class name with its prompts exceeds the base model's positions.
    """
    needs_prompt_init = config.prompt_init is not None and config.prompt_init_token_ids is None
    if config.class_token_ids is None or needs_prompt_init:
        tokenizer = _load_tokenizer(config, clip_config)
        if config.class_token_ids is None:
            config.class_token_ids = {
                task: _token_ids(tokenizer, config, names) for task, names in config.tasks.items()
            }
        if needs_prompt_init:
            config.prompt_init_token_ids = tokenizer(config.prompt_init, add_special_tokens=False).input_ids
    check_token_ids(config, clip_config)


def class_token_ids(config: JSCPTConfig, clip_config: CLIPConfig, class_names: list[str]) -> list[list[int]]:
    """Token ids of further classes, made as those that `fill_token_ids` fills in.

    Raises:
        ValueError: no tokenizer is known.
    """
    return _token_ids(_load_tokenizer(config, clip_config), config, class_names)


def _token_ids(tokenizer: PreTrainedTokenizerBase, config: JSCPTConfig, class_names: list[str]) -> list[list[int]]:
    return tokenizer([config.class_template.format(name) for name in class_names]).input_ids


def _load_tokenizer(config: JSCPTConfig, clip_config: CLIPConfig) -> PreTrainedTokenizerBase:
    source = config.tokenizer_name_or_path or clip_config.name_or_path
    if not source:
        raise ValueError(
            "`tokenizer_name_or_path` is not set and the base model has no name or path: give the tokenizer's name, "
            "or `class_token_ids`."
        )
    return AutoTokenizer.from_pretrained(source)


def check_token_ids(config: JSCPTConfig, clip_config: CLIPConfig) -> None:
    """Raises a `ValueError` that names the class whose ids are no text, or whose text does not fit."""
    text_config = clip_config.text_config
    start, end = config.class_token_ids[config.task_order[0]][0][:1], text_config.eos_token_id
    prompts = config.num_tokens if "text" in config.prompted_towers else 0
    for task, names in config.tasks.items():
        for name, ids in zip(names, config.class_token_ids[task], strict=True):
            in_range = len(ids) >= 2 and min(ids) >= 0 and max(ids) < text_config.vocab_size
            # Configurations with `eos_token_id` 2 read the highest id, see `read_out_positions`.
            if not in_range or ids[:1] != start or ids[-1] != (max(ids) if end == 2 else end):
                raise ValueError(
                    f"`class_token_ids` of class {name!r} in task {task!r} must be [SOS] ... [EOS], with the same "
                    f"[SOS] for all and ids below the vocabulary size {text_config.vocab_size}, got {ids}."
                )
            if prompts + len(ids) > text_config.max_position_embeddings:
                raise ValueError(
                    f"Class name {name!r} of task {task!r} is too long: {len(ids)} tokens and {prompts} prompt tokens "
                    f"exceed the base model's {text_config.max_position_embeddings} positions. Shorten the name or "
                    "`class_template`, or use fewer prompt tokens."
                )
