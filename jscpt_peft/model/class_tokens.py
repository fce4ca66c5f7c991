"""Token ids of the class texts: tokenised once, when an adapter is made, and stored in its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jscpt_peft.reading import one_line

from .class_texts import SECOND_HALF, texts_of_class, without_second_half
from .config import JSCPTConfig

if TYPE_CHECKING:
    from transformers import CLIPConfig, PreTrainedTokenizerBase


def fill_token_ids(config: JSCPTConfig, base: CLIPConfig) -> None:
    """Fills `class_token_ids` and `prompt_init_token_ids` where they are missing.

    Raises:
        ValueError: no tokenizer is known, or given ids are no text of the base model.
    """
    needs_prompt_init = config.prompt_init is not None and config.prompt_init_token_ids is None
    if config.class_token_ids is None or needs_prompt_init:
        tokenizer = _load_tokenizer(config, base)
        if config.class_token_ids is None:
            config.class_token_ids = {
                task: _token_ids(tokenizer, config, task, names) for task, names in config.tasks.items()
            }
        if needs_prompt_init:
            config.prompt_init_token_ids = tokenizer(config.prompt_init, add_special_tokens=False).input_ids
    check_token_ids(config, base)


def class_token_ids(config: JSCPTConfig, base: CLIPConfig, task: str, class_names: list[str]) -> list:
    """Token ids of the classes of a further task, made as those that `fill_token_ids` fills in.

    Raises:
        ValueError: no tokenizer is known.
    """
    return _token_ids(_load_tokenizer(config, base), config, task, class_names)


def _token_ids(tokenizer: PreTrainedTokenizerBase, config: JSCPTConfig, task: str, class_names: list[str]) -> list:
    by_template = []
    for template in config.templates(task):
        texts = tokenizer([template.format(name) for name in class_names]).input_ids
        if config.class_position == "middle":
            end = "\ud800"  # no name has it
            before = [template.format(name + end).partition(end)[0] for name in class_names]
            texts = [_marked(*each) for each in zip(texts, tokenizer(before).input_ids, strict=True)]
        by_template.append(texts)
    return by_template[0] if len(by_template) == 1 else [list(texts) for texts in zip(*by_template, strict=True)]


def _marked(text: list[int], before: list[int]) -> list[int]:
    """A text with `SECOND_HALF` after as many tokens as its beginning, up to the class name, has on its own."""
    place = min(len(text), len(before)) - 1  # both end with [EOS]
    return [*text[:place], SECOND_HALF, *text[place:]]


def _load_tokenizer(config: JSCPTConfig, base: CLIPConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    source = config.tokenizer_name_or_path or base.name_or_path
    if not source:
        raise ValueError(
            "`tokenizer_name_or_path` is not set and the base model has no name or path: give the tokenizer's name, "
            "or `class_token_ids`."
        )
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # of transformers, tokenizers and the Hub, of as many kinds
        code = "trust_remote_code" in str(error)
        why = "brings code of its own, which is never run" if code else f"cannot be loaded ({one_line(error)})"
        raise ValueError(
            f"the tokenizer {source!r} {why}: give CLIP's own in `tokenizer_name_or_path`, or `class_token_ids`."
        ) from error


def check_token_ids(config: JSCPTConfig, base: CLIPConfig) -> None:
    """Raises a `ValueError` that names the class whose ids are no text, or the same text as another class of its task.

    Texts become equal where names differ in what the tokenizer overlooks: case, spaces, the form of accents.
    """
    vocabulary, end = base.text_config.vocab_size, base.text_config.eos_token_id
    start = texts_of_class(config.class_token_ids[config.task_order[0]][0])[0][:1]
    middle = config.class_position == "middle"
    mark = f", {SECOND_HALF} once among them, behind the class name" if middle else ""
    for task, name, ids in _texts(config):
        words = [*ids[:1], *without_second_half(ids[1:])]
        in_range = len(words) >= 2 and min(words) >= 0 and max(words) < vocabulary and len(ids) - len(words) == middle
        # Configurations with `eos_token_id` 2 read the highest id, see `read_out_positions`.
        if not in_range or ids[:1] != start or ids[-1] != (max(ids) if end == 2 else end) or ids[-1] in ids[:-1]:
            raise ValueError(
                f"`class_token_ids` of class {name!r} in task {task!r} must be [SOS] ... [EOS]{mark}, with one [EOS], "
                f"the same [SOS] for all and ids below the vocabulary size {vocabulary}, got {ids}."
            )
    for task, names in config.tasks.items():
        name_of: dict[str, str] = {}
        for name, entry in zip(names, config.class_token_ids[task], strict=True):
            other = name_of.setdefault(str(entry), name)
            if other is not name:
                raise ValueError(
                    f"Classes {other!r} and {name!r} of task {task!r} have the same text for the model, which could "
                    "never tell one from the other: give them names that differ in more than case or spaces."
                )
    if any(not 0 <= each < vocabulary for each in config.prompt_init_token_ids or ()):
        raise ValueError(
            f"`prompt_init_token_ids` must be below the vocabulary size {vocabulary}, got "
            f"{config.prompt_init_token_ids}."
        )


def check_lengths(config: JSCPTConfig, base: CLIPConfig, num_prompts: int) -> None:
    """Raises a `ValueError` that names the class whose text does not fit behind so many prompt tokens."""
    positions = base.text_config.max_position_embeddings
    for task, name, ids in _texts(config):
        count = len(without_second_half(ids))
        if num_prompts + count > positions:
            raise ValueError(
                f"Class name {name!r} of task {task!r} is too long: {count} tokens and {num_prompts} prompt tokens "
                f"exceed the base model's {positions} positions. Shorten the name or `class_template`, or use fewer "
                "prompt tokens."
            )


def _texts(config: JSCPTConfig):
    """(task, class name, token ids) of every text."""
    for task, names in config.tasks.items():
        for name, entry in zip(names, config.class_token_ids[task], strict=True):
            for ids in texts_of_class(entry):
                yield task, name, ids
