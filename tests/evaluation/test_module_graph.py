"""The figure of the graph from tasks to modules says what the graph says."""

from __future__ import annotations

import numpy as np
import pytest

from jscpt_peft.evaluation.module_graph import FILE, draw_module_graph, module_graph_figure

GRAPH = np.array([[0.9, 0.5, 0.0, 0.7], [0.1, 0.6, 1.0, 0.2]])
TASKS = ["art", "a task whose name is rather long"]


def test_links_and_cells():
    links, cells = module_graph_figure(GRAPH, TASKS).axes
    strengths = sorted(line.get_linewidth() for line in links.lines)
    assert strengths == pytest.approx(sorted(6 * GRAPH.ravel() ** 2))
    strongest = max(links.lines, key=lambda line: line.get_linewidth())
    heights = {text.get_text(): text.get_position()[1] for text in links.texts}
    assert list(strongest.get_ydata()) == pytest.approx([heights["a task…r long"], heights["3"]])
    assert [text.get_text() for text in cells.texts] == [f"{value:.2f}" for value in GRAPH.ravel()]
    assert [label.get_text() for label in cells.get_yticklabels()] == ["art", "a task…r long"]


def test_is_written(tmp_path):
    assert draw_module_graph(GRAPH, TASKS, tmp_path / "new") == [tmp_path / "new" / FILE]
    assert (tmp_path / "new" / FILE).stat().st_size > 10_000


@pytest.mark.parametrize("graph", [GRAPH[:1], GRAPH + 0.5, GRAPH * np.nan, GRAPH[0]])
def test_what_is_no_graph_of_the_tasks_is_refused(graph, tmp_path):
    with pytest.raises(ValueError, match=r"`graph` of the shape .* must be \[2, modules\]"):
        draw_module_graph(graph, TASKS, tmp_path)
