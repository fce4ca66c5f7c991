"""What a run has achieved: accuracies, the results table, the scheduler's history and its pictures."""

from typing import TYPE_CHECKING, Any

from .accuracy import multi_task_accuracy, worst_task
from .calibration import Reliability, reliability
from .confusion import confusion_matrix, macro_f1
from .evaluation_pictures import draw_evaluation
from .evaluation_report import evaluation_json, evaluation_markdown, print_evaluation, write_evaluation
from .evaluation_results import Answers, Evaluation, Robustness, evaluate_answers
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

if TYPE_CHECKING:
    from .metric import MultiTaskAccuracy

__all__ = [
    "LITERAL_NEUTRAL_EFFECT",
    "Answers",
    "Evaluation",
    "MultiTaskAccuracy",
    "Reliability",
    "ResultsRow",
    "ResultsTable",
    "Robustness",
    "SchedulerHistory",
    "confusion_matrix",
    "draw_evaluation",
    "draw_pictures",
    "evaluate_answers",
    "evaluation_json",
    "evaluation_markdown",
    "history_arrays",
    "history_features",
    "macro_f1",
    "multi_task_accuracy",
    "print_evaluation",
    "print_results",
    "read_history",
    "reliability",
    "results_json",
    "results_markdown",
    "results_table",
    "worst_task",
    "write_evaluation",
    "write_results",
]


def __getattr__(name: str) -> Any:
    """`MultiTaskAccuracy`, imported when it is asked for: see `metric.py`."""
    if name == "MultiTaskAccuracy":
        from .metric import MultiTaskAccuracy

        return MultiTaskAccuracy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
