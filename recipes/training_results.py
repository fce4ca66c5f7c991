"""What a training has found: tables and figures, on the terminal and in the output directory."""

from __future__ import annotations

from pathlib import Path

from cli_errors import console
from other_classes import BaseAndNew
from peft import PeftModel

from jscpt_peft.data import TaskSet
from jscpt_peft.evaluation import draw_figures, module_graph, print_results, results_table, write_results
from jscpt_peft.evaluation.accuracy_tables import base_to_new_table, print_accuracies, write_accuracies
from jscpt_peft.model.heads import FeatureModules
from jscpt_peft.scheduling import NEUTRAL_EFFECT
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.step_log import HISTORY_FILE


def write_reports(
    zero_shot: dict[str, float],
    trained: dict[str, float],
    on_new: dict[str, BaseAndNew],
    task_set: TaskSet,
    trainer: JSCPTTrainer,
) -> None:
    """Tables, figures and the card."""
    training = trainer.args
    try:
        report(zero_shot, trained, task_set, training, trainer.model)
        if on_new:
            report_base_to_new(on_new, task_set, training)
        trainer.create_model_card()
    except OSError as error:
        raise OSError(
            f"the results could not all be written to {training.output_dir} ({error}): adapter and history are "
            "there. Make room on the disk, and recipes/evaluate.py measures it again."
        ) from error


def report_accuracies(
    zero_shot: dict[str, float],
    trained: dict[str, float],
    task_set: TaskSet,
    training: JSCPTTrainingArguments,
    name: str,
) -> list[Path]:
    """The results table on the terminal, as JSON and Markdown."""
    table = results_table(zero_shot, trained, list(task_set.class_names), prefix="test_")
    title = f"{name}: test accuracy in %"
    print_results(table, title, console)
    return write_results(table, training.output_dir, title)


def report(
    zero_shot: dict[str, float],
    trained: dict[str, float],
    task_set: TaskSet,
    training: JSCPTTrainingArguments,
    model: PeftModel,
) -> None:
    """The results table and the figures."""
    written = report_accuracies(zero_shot, trained, task_set, training, task_set.name)
    history = Path(training.output_dir, HISTORY_FILE)
    written += draw_figures(history, training.output_dir, NEUTRAL_EFFECT[training.causal_effect])
    Path(training.output_dir, module_graph.FILE).unlink(missing_ok=True)  # of an earlier run
    if isinstance(model.task_adapter.head, FeatureModules):
        graph = model.task_adapter.head.graph().cpu().numpy()
        written += module_graph.draw_module_graph(graph, list(task_set.class_names), training.output_dir)
    names = ", ".join(path.name for path in written)
    console.print(f"Adapter and results: {training.output_dir} ({names})", markup=False)


def report_base_to_new(found: dict[str, BaseAndNew], task_set: TaskSet, training: JSCPTTrainingArguments) -> None:
    """The table of base and new classes on the terminal, as JSON and Markdown."""
    table = base_to_new_table(found, list(task_set.class_names))
    title = f"{task_set.name}, base and new classes: test accuracy in %"
    print_accuracies(table, title, console)
    write_accuracies(table, title, training.output_dir, "base_to_new")
