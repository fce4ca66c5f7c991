"""Groups tasks by their gradients: for MmAP-style prompts disjoint groups, for HiPro-style ones a tree.

    python recipes/group_tasks.py --method hipro --task_set shapes --output_dir outputs/groups
    accelerate launch recipes/train.py --method hipro --groups outputs/groups/groups.yaml --output_dir outputs/hipro

A pass over a few training batches gives the cosines of the tasks' gradients with respect to prompts that all share;
nothing is trained. Writes groups.yaml, which may be edited, and dendrogram.png. `recipes/train.py --groups auto` does
the same before it trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from arguments import YAMLLoader, parse
from class_templates import with_templates
from cli_errors import cli_errors, console
from idle import OF_GROUPING, tell_idle
from model_arguments import ModelArguments, check_made_groups
from output_folder import output_folder
from peft import get_peft_model
from run_material import Material, load_material
from task_data import DataArguments

from jscpt_peft import JSCPTConfig
from jscpt_peft.choices import nearest
from jscpt_peft.evaluation import draw_dendrogram
from jscpt_peft.evaluation.tables import print_table
from jscpt_peft.model.groups import check_grouping
from jscpt_peft.model.prompts import PROMPT_SOURCES
from jscpt_peft.reading import read_text
from jscpt_peft.scheduling import agglomerate, task_groups, task_tree
from jscpt_peft.settings import check_setting
from jscpt_peft.training import JSCPTTrainingArguments, warm_up_cosines
from jscpt_peft.training.distributed import by_first_process, leave

AUTO = "auto"
GROUPS_FILE = "groups.yaml"


def main(command_line: list[str] | None = None) -> None:
    kinds = (DataArguments, ModelArguments, JSCPTTrainingArguments)
    data, model_arguments, training = parse(kinds, __doc__, command_line)
    with cli_errors(), output_folder(training.output_dir, data):
        tell_idle(kinds, command_line, OF_GROUPING)
        run(data, model_arguments, training)


def run(data: DataArguments, model_arguments: ModelArguments, training: JSCPTTrainingArguments) -> None:
    check_grouping(AUTO, model_arguments.prompts, model_arguments.single_task)
    check_made_groups(model_arguments, made=True)
    material = load_material(data, model_arguments.model_name_or_path, training.seed)
    group_tasks(material, with_templates(model_arguments, material.task_set), training)
    leave()


def chosen_groups(
    material: Material, arguments: ModelArguments, training: JSCPTTrainingArguments, resume: bool
) -> dict[str, Any] | None:
    """The groups that `--groups` names: a file's, or those of the gradients, which a resumed run has stored."""
    stored = Path(training.output_dir, GROUPS_FILE)
    if arguments.groups == AUTO and not (resume and stored.exists()):
        return group_tasks(material, arguments, training)
    if not isinstance(arguments.groups, str):
        return arguments.groups
    return read_groups(str(stored) if arguments.groups == AUTO else arguments.groups)


def group_tasks(material: Material, arguments: ModelArguments, training: JSCPTTrainingArguments) -> dict[str, Any]:
    """The tasks' groups, or their tree, by the gradients of shared prompts at their start; written and drawn too."""
    tasks, images = material.task_set.class_names, material.datasets["train"]
    same = {name: getattr(arguments, name) for name in ("class_template", "prompt_depth", "prompt_init_std")}
    config = JSCPTConfig(
        tasks=tasks,
        num_shared_tokens=max(1, arguments.num_shared_tokens),
        num_task_tokens=0,
        intervention="none",
        tokenizer_name_or_path=material.source,
        init_seed=training.seed,
        **same,
    )
    model = get_peft_model(material.clip, config).to(training.device)
    per_batch = training.per_device_train_batch_size
    cosines = warm_up_cosines(
        model, images, arguments.warm_up_batches, per_batch, training.seed, training.dataloader_num_workers
    )
    model.unload()
    merges = agglomerate(cosines)
    if PROMPT_SOURCES[arguments.prompts].grouping == "tree":
        groups = task_tree(merges, list(tasks), arguments.tree_levels)
    else:
        groups = task_groups(merges, list(tasks), arguments.num_groups)

    def write() -> None:
        output = Path(training.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(groups, sort_keys=False, allow_unicode=True, default_flow_style=None)
        (output / GROUPS_FILE).write_text(text, encoding="utf-8")
        draw_dendrogram(output / "dendrogram.png", merges, groups)
        joined = [group if isinstance(group, str) else " > ".join(group) for group in groups.values()]
        rows = [
            [task, *(f"{each:.2f}" for each in row), group]
            for task, row, group in zip(tasks, cosines.tolist(), joined, strict=True)
        ]
        print_table("Cosines of the tasks' gradients", ["task", *tasks, "group"], rows, (), console)
        console.print(f"Groups: {output} ({GROUPS_FILE}, dendrogram.png)", markup=False, soft_wrap=True)

    by_first_process(write)
    return groups


def read_groups(path: str) -> dict[str, Any]:
    """Groups of tasks from a YAML or JSON file.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        groups = yaml.load(read_text(path), Loader=YAMLLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(
            f"`groups` is {path!r}, which cannot be read ({error}): give {AUTO!r}, or a YAML or JSON file."
            f"{nearest(path, [AUTO])}"
        ) from error
    check_setting(f"groups in {path}", groups, dict[str, str | list[str]])
    return groups


if __name__ == "__main__":
    main()
