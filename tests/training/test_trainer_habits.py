"""What users of `Trainer` habitually set or override either works or is refused; nothing is ignored."""

from __future__ import annotations

from inspect import signature
from multiprocessing import active_children

import numpy as np
import pytest
import small_run
import torch
from small_run import remade
from torch.nn.functional import cross_entropy
from transformers import Trainer

from jscpt_peft.training import JSCPTTrainer
from jscpt_peft.training.callbacks import SetEpoch

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}


def test_arguments_stand_where_trainer_has_them():
    parameters = signature(JSCPTTrainer).parameters.values()
    positional = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional == list(signature(Trainer).parameters)[: len(positional)]
    assert positional[2] == "data_collator"


def test_metrics_of_ones_own(tmp_path):
    """They get the logits, and need not have the accuracy by which checkpoints are compared unless that is wished."""
    seen = []

    def metrics(prediction):
        seen.append(prediction.predictions.shape)
        return {"answer": 42.0}

    run = remade(small_run.trainer(tmp_path, **EVALUATED), compute_metrics=metrics)
    run.train()
    assert run.evaluate()["eval_answer"] == 42.0
    assert seen == [(9, 4)] * 2
    assert run.state.best_metric is None


def test_the_accuracy_is_missed_where_it_decides(tmp_path):
    options = {**EVALUATED, "save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": True}
    run = remade(small_run.trainer(tmp_path, **options), compute_metrics=lambda _: {"answer": 42.0})
    with pytest.raises(KeyError, match="eval_mean_accuracy"):
        run.train()


def test_several_data_sets_to_evaluate(tmp_path):
    run = small_run.trainer(tmp_path, **EVALUATED)
    run = remade(run, eval_dataset={"one": run.eval_dataset, "other": small_run.pictures("test")})
    run.train()
    logs = {name for entry in run.state.log_history for name in entry}
    assert {"eval_one_mean_accuracy", "eval_other_mean_accuracy"} <= logs


def test_logits_that_are_processed_first(tmp_path):
    shapes = []

    def metrics(prediction):
        shapes.append(prediction.predictions.shape)
        return {}

    run = small_run.trainer(tmp_path)
    argmax = {"preprocess_logits_for_metrics": lambda logits, _: logits.argmax(-1), "compute_metrics": metrics}
    assert np.isfinite(remade(run, **argmax).evaluate()["eval_loss"])
    assert shapes == [(9,)]


def test_evaluation_gathers_no_logits_and_prediction_does(tmp_path):
    run = small_run.trainer(tmp_path)
    predicted = run.predict(run.eval_dataset)
    labels = predicted.label_ids[0]
    loss = cross_entropy(torch.as_tensor(predicted.predictions), torch.as_tensor(labels)).item()
    assert predicted.predictions.shape == (9, 4)
    assert predicted.metrics["test_loss"] == pytest.approx(loss, abs=1e-6)
    gathered = []
    whole = run.multi_task_accuracy

    class Watched(JSCPTTrainer):
        def multi_task_accuracy(self, prediction):
            gathered.append([answers.shape for answers in prediction.predictions])
            return whole(prediction)

    watched = Watched(run.model, run.args, eval_dataset=run.eval_dataset)
    metrics = watched.evaluate()
    assert gathered == [[(9,), (9,)]]
    assert metrics["eval_loss"] == pytest.approx(loss, abs=1e-6)
    for name, value in predicted.metrics.items():
        if "accuracy" in name:
            assert metrics[name.replace("test_", "eval_")] == value
    assert watched.predict(run.eval_dataset).predictions.shape == (9, 4)


def test_the_seed_of_the_data_is_its_own(tmp_path):
    """`data_seed` decides which images a step takes, `seed` alone where there is none."""
    chosen = []
    for number, seeds in enumerate([{}, {"data_seed": 3}, {"data_seed": 4}]):
        run = small_run.trainer(tmp_path / str(number), seed=3, **seeds)
        chosen.append([run.get_train_dataloader().batch_sampler.batch(step, 0) for step in range(3)])
        assert any(isinstance(callback, SetEpoch) for callback in run.callback_handler.callbacks)
        assert run.upper_level.args.sampler_seed == seeds.get("data_seed", 3)
    assert chosen[0] == chosen[1] != chosen[2]


def test_how_data_workers_start(tmp_path):
    run = small_run.trainer(tmp_path, dataloader_num_workers=1, dataloader_multiprocessing_context="spawn")
    loader = run.get_train_dataloader()
    assert loader.multiprocessing_context.get_start_method() == "spawn"


def test_no_data_worker_outlives_the_training(tmp_path):
    """Not even that of the dev images, which would keep a program waiting for five seconds."""
    before = set(active_children())
    run = small_run.trainer(tmp_path, dataloader_num_workers=1, max_steps=2)
    run.train()
    assert run.upper_level.updates == 1 and set(active_children()) <= before


def test_a_schedule_free_optimizer_is_switched_back_after_an_evaluation(tmp_path):
    """Its parameters are others in training than in evaluation (the package `schedulefree`)."""
    said = []

    class Optimizer(torch.optim.SGD):
        def train(self):
            said.append("train")

        def eval(self):
            said.append("eval")

    run = small_run.trainer(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=2)
    optimizer = Optimizer(run.trainable_parameters(), lr=0.01)
    run = remade(run, optimizers=(optimizer, None))
    run.train()
    assert said == ["train", "eval"] * 2


def test_the_devices_cache_is_emptied_as_often_as_is_asked(tmp_path, monkeypatch):
    emptied = []
    monkeypatch.setattr("jscpt_peft.training.trainer.clear_device_cache", lambda: emptied.append(1))
    small_run.trainer(tmp_path, torch_empty_cache_steps=2, max_steps=4).train()
    assert len(emptied) == 2
