"""What a run has achieved: accuracies, the results table, the scheduler's history and its pictures."""

from .accuracy import MultiTaskAccuracy, multi_task_accuracy, worst_task
from .history import SchedulerHistory
from .history_table import history_arrays, history_features, read_history
from .pictures import draw_pictures
from .prompt_pictures import LITERAL_NEUTRAL_EFFECT
from .report import (
    ResultsRow,
    ResultsTable,
    print_results,
    results_json,
    results_markdown,
    results_table,
    write_results,
)

__all__ = [
    "LITERAL_NEUTRAL_EFFECT",
    "MultiTaskAccuracy",
    "ResultsRow",
    "ResultsTable",
    "SchedulerHistory",
    "draw_pictures",
    "history_arrays",
    "history_features",
    "multi_task_accuracy",
    "print_results",
    "read_history",
    "results_json",
    "results_markdown",
    "results_table",
    "worst_task",
    "write_results",
]
