"""What a run has achieved: accuracies, tables, the scheduler's history, and figures of them."""

from typing import TYPE_CHECKING, Any

from .accuracy import multi_task_accuracy
from .calibration import Reliability, reliability
from .confusion import confusion_matrix, macro_f1
from .dendrogram import draw_dendrogram
from .evaluation import Evaluation, Predictions, Robustness, evaluate_predictions
from .evaluation_figures import draw_evaluation
from .evaluation_tables import evaluation_json, evaluation_markdown, print_evaluation, write_evaluation
from .history import SchedulerHistory, history_arrays, read_history
from .history_figures import draw_figures
from .module_graph import draw_module_graph
from .results import print_results, results_json, results_markdown, results_table, write_results

if TYPE_CHECKING:
    from .metric import MultiTaskAccuracy

__all__ = [
    "Evaluation",
    "MultiTaskAccuracy",
    "Predictions",
    "Reliability",
    "Robustness",
    "SchedulerHistory",
    "confusion_matrix",
    "draw_dendrogram",
    "draw_evaluation",
    "draw_figures",
    "draw_module_graph",
    "evaluate_predictions",
    "evaluation_json",
    "evaluation_markdown",
    "history_arrays",
    "macro_f1",
    "multi_task_accuracy",
    "print_evaluation",
    "print_results",
    "read_history",
    "reliability",
    "results_json",
    "results_markdown",
    "results_table",
    "write_evaluation",
    "write_results",
]


def __getattr__(name: str) -> Any:
    """`MultiTaskAccuracy`, imported when it is asked for: see `metric.py`."""
    if name == "MultiTaskAccuracy":
        from .metric import MultiTaskAccuracy

        return MultiTaskAccuracy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
