"""What a training has found: tables and figures, on the terminal and in the output directory."""

from __future__ import annotations

from pathlib import Path

from cli_errors import console
from other_classes import BaseAndNew
from outside import OutsideTrainer

from jscpt_peft.evaluation import draw_figures, module_graph, print_results, results_table, write_results
from jscpt_peft.evaluation.accuracy_tables import base_to_new_table, print_accuracies, write_accuracies
from jscpt_peft.model.heads import FeatureModules
from jscpt_peft.scheduling import NEUTRAL_EFFECT
from jscpt_peft.training import JSCPTTrainer
from jscpt_peft.training.step_log import HISTORY_FILE


def write_reports(
    zero_shot: dict[str, float],
    trained: dict[str, float],
    on_new: dict[str, BaseAndNew],
    task_set: str,
    trainer: JSCPTTrainer,
) -> None:
    """Tables, figures and the card of a training on a task set of this name."""
    try:
        written = report_accuracies(zero_shot, trained, task_set, trainer) + draw(trainer)
        names = ", ".join(path.name for path in written)
        console.print(f"Adapter and results: {trainer.args.output_dir} ({names})", markup=False)
        if on_new:
            report_base_to_new(on_new, task_set, trainer)
        trainer.create_model_card()
    except OSError as error:
        raise OSError(
            f"the results could not all be written to {trainer.args.output_dir} ({error}): adapter and history are "
            "there. Make room on the disk, and recipes/evaluate.py measures it again."
        ) from error


def report_accuracies(
    zero_shot: dict[str, float], trained: dict[str, float], name: str, trainer: JSCPTTrainer | OutsideTrainer
) -> list[Path]:
    """The results table on the terminal, as JSON and Markdown."""
    table = results_table(zero_shot, trained, trainer.task_names, prefix="test_")
    title = f"{name}: test accuracy in %"
    print_results(table, title, console)
    return write_results(table, trainer.args.output_dir, title)


def draw(trainer: JSCPTTrainer) -> list[Path]:
    """The figures of the history and of the head."""
    output, head = Path(trainer.args.output_dir), trainer.model.task_adapter.head
    drawn = draw_figures(output / HISTORY_FILE, output, NEUTRAL_EFFECT[trainer.args.causal_effect])
    (output / module_graph.FILE).unlink(missing_ok=True)  # of an earlier run
    if isinstance(head, FeatureModules):
        drawn += module_graph.draw_module_graph(head.graph().cpu().numpy(), trainer.task_names, output)
    return drawn


def report_base_to_new(found: dict[str, BaseAndNew], task_set: str, trainer: JSCPTTrainer) -> None:
    """The table of base and new classes on the terminal, as JSON and Markdown."""
    table = base_to_new_table(found, trainer.task_names)
    title = f"{task_set}, base and new classes: test accuracy in %"
    print_accuracies(table, title, console)
    write_accuracies(table, title, trainer.args.output_dir, "base_to_new")
