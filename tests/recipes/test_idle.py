"""Arguments that would do nothing are named, in every program that takes the arguments of training."""

from __future__ import annotations

import group_tasks
import pytest
import reproduce
import train
from paths import load_recipe
from recipe_runs import fails

evaluate = load_recipe("evaluate")  # not the library

TRAINED = "--method jscpt --use_cpu"
CASES = [
    (train, f"{TRAINED} --max_steps 2 --learning_rate 0.1", set()),
    (train, f"{TRAINED} --max_steps 2 --num_train_epochs=3", {"num_train_epochs"}),
    (train, "--use_cpu --warm-up-batches 3", {"warm_up_batches"}),
    (train, "--use_cpu --weighting uniform --neumann_te 2 --lower_steps 3", {"neumann_terms", "lower_steps"}),
    (train, "--use_cpu --no_learn_scheduler --hvp finite_difference", {"hvp"}),
    (train, "--use_cpu --eval_strategy no --eval_steps 5", {"eval_steps"}),
    (train, "--use_cpu --jpeg_side 448 --hub_strategy end", {"jpeg_side", "hub_strategy"}),
    (train, "--use_cpu --method linear_probe --lower_steps 3 --save_steps 5", {"lower_steps", "save_steps"}),
    (evaluate, "--use_cpu --adapter x --corruptions none --per_device_eval_batch_size 3", set()),
    (evaluate, "--use_cpu --adapter x --push_to_hub --report_to all", {"push_to_hub", "report_to"}),
    (evaluate, "--use_cpu --adapter x --corruptions none --corruption_images 5", {"corruption_images"}),
    (group_tasks, "--use_cpu --method hipro --tree_levels 2 --per_device_train_batch_size 3", set()),
    (group_tasks, "--use_cpu --method hipro --groups x.yaml --max_steps 3", {"groups", "max_steps"}),
    (reproduce, "--use_cpu --table icons --max_steps 3 --jpeg_side 300", set()),
    (reproduce, "--use_cpu --table icons --kept_views 2 --jpeg_side 300", {"jpeg_side"}),
    (reproduce, "--use_cpu --table icons --report_to all --save_steps 2", {"report_to", "save_steps"}),
]


@pytest.mark.parametrize(("program", "words", "idle"), CASES)
def test_what_does_nothing_is_said(tmp_path, capsys, monkeypatch, program, words, idle):
    def stop(*_):
        raise ValueError("as far as the arguments are checked")

    monkeypatch.setattr(program, "run_all" if program is reproduce else "run", stop)
    said = fails(capsys, program.main, *words.split(), "--output_dir", tmp_path / "out")
    assert said.endswith("as far as the arguments are checked")
    names = ", ".join(f"`{name}`" for name in sorted(idle))
    assert said.startswith(f"Without effect here: {names}. Error:" if idle else "Error:")


def test_a_configuration_file_may_be_for_another_program(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.yaml").write_text("max_steps: 3\nnum_train_epochs: 2\nlearning_rate: 0.1\n")
    for program in (train, evaluate):
        monkeypatch.setattr(program, "run", lambda *_: print("done"))
        words = ["--adapter", "x"] if program is evaluate else []
        program.main([str(tmp_path / "mine.yaml"), *words, "--use_cpu", "--output_dir", str(tmp_path / "out")])
        assert capsys.readouterr().out == "done\n"
