"""What users of `Trainer` bring along: arguments, data sets, losses, searches, adapters; and a plain `Trainer`."""

from __future__ import annotations

import re

import numpy as np
import prompted
import pytest
import small_run
import torch
import training_setup
from datasets import Dataset as HubDataset
from full_disk import no_file_larger_than
from peft import PeftModel
from small_run import remade
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from transformers import PrinterCallback, Trainer, TrainingArguments

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import ImageTaskDataset, collate
from jscpt_peft.evaluation import read_history
from jscpt_peft.training import JSCPTTrainer, JSCPTTrainingArguments
from jscpt_peft.training.callbacks import TaskLines, TaskProgress
from jscpt_peft.training.output_lock import output_lock

SAVING = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}


def rows(images) -> list[dict]:
    return [images[index] for index in range(len(images))]


# ---- arguments ------------------------------------------------------------------------------------------------------


def test_plain_arguments_and_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    run = small_run.trainer(tmp_path)
    chosen = {"max_steps": 2, "weight_decay": 0.1, "seed": 42}
    given = {"output_dir": "out", "use_cpu": True, "report_to": "none", **chosen}
    made = remade(run, args=TrainingArguments(**given)).args
    assert isinstance(made, JSCPTTrainingArguments)
    assert {name: getattr(made, name) for name in chosen} == chosen
    assert (made.learning_rate, made.optim, made.remove_unused_columns) == (1.5e-3, "sgd", False)  # the paper's
    assert remade(run, args=None).args.num_train_epochs == 50
    remade(run, args=TrainingArguments(**given, per_device_train_batch_size=2)).train()


@pytest.mark.parametrize("kind", [TaskLines, TaskProgress])
def test_a_line_per_log_with_and_without_progress_bars(tmp_path, capsys, kind):
    run = small_run.trainer(tmp_path, callbacks=[kind(list(prompted.TASKS))], **SAVING, max_steps=2)
    run.remove_callback(PrinterCallback)
    run.train()
    printed, errors = capsys.readouterr()
    assert len(re.findall(r"step +[12]  loss .* loss of photo .*  φ ", printed)) == 2
    assert len(re.findall(r"step +[12]  validation: mean accuracy .*% ", printed)) == 2
    assert ("it/s" in errors) == (kind is TaskProgress)


# ---- data sets ------------------------------------------------------------------------------------------------------


def task_by_task(pictures: ImageTaskDataset) -> ConcatDataset:
    parts = [
        ImageTaskDataset([data], pictures.transform, seed=pictures.seed, task_ids=[task])
        for task, data in enumerate(pictures.datasets)
    ]
    return ConcatDataset(parts[::-1])


def of_the_hub(pictures: ImageTaskDataset) -> HubDataset:
    columns = {"pixel_values": [], "labels": [], "task_ids": []}
    for row in rows(pictures):
        columns["pixel_values"].append(row["pixel_values"].numpy())
        columns["labels"].append(row["labels"])
        columns["task_ids"].append(row["task_ids"])
    return HubDataset.from_dict(columns).with_format("torch")


KINDS = {
    "pictures": lambda pictures: pictures,
    "list": rows,
    "Hugging Face": of_the_hub,
    "ConcatDataset": task_by_task,
    "of Subsets": lambda images: ConcatDataset([Subset(images, range(7)), Subset(images, range(7, len(images)))]),
}


def test_any_map_style_data_set_trains_as_the_same_images_do(tmp_path):
    results = {}
    for name, kind in KINDS.items():
        run = small_run.trainer(tmp_path / name, max_steps=1, lower_steps=1, neumann_terms=0)
        data = {split: kind(small_run.pictures(split)) for split in ("train", "dev", "validation")}
        run = JSCPTTrainer(run.model, run.args, None, data["train"], data["validation"], dev_dataset=data["dev"])
        run.train()
        results[name] = small_run.trained_parameters(run), run.evaluate()["eval_loss"]
    parameters, loss = results.pop("pictures")
    for kind, (found, its_loss) in results.items():
        assert all(torch.equal(parameter, found[name]) for name, parameter in parameters.items()), kind
        assert its_loss == pytest.approx(loss, abs=1e-6), kind


def test_augmentation_stays_a_function_of_the_draw(tmp_path):
    pictures = small_run.pictures("train", train=True)
    run = small_run.trainer(tmp_path, learn_scheduler=False)
    subset = remade(run, train_dataset=Subset(pictures, range(len(pictures)))).train_dataset
    assert subset.sizes == pictures.sizes
    assert torch.equal(subset[9, 5]["pixel_values"], pictures[9, 5]["pixel_values"])
    assert not torch.equal(subset[9, 5]["pixel_values"], subset[9, 6]["pixel_values"])


def test_items_that_an_evaluation_cannot_read_are_refused(tmp_path):
    run, item = small_run.trainer(tmp_path), {"pixel_values": torch.zeros(3, 32, 32), "labels": 0, "task_ids": 0}
    for changed, message in [
        ({**item, "labels": 0.5}, "`labels` of an item .* is 0.5: give a whole number"),
        ({**item, "task_ids": None}, "`task_ids` of an item .* is None: give a whole number"),
        ({"pixel_values": item["pixel_values"], "labels": 0}, "the images to evaluate have no `task_ids`"),
        ({"labels": 0, "task_ids": 0}, "an item of the data set has no `pixel_values`"),
    ]:
        with pytest.raises(ValueError, match=message):
            run.evaluate([changed, changed])


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


def test_data_sets_that_cannot_be_are_named(tmp_path):
    run, images = small_run.trainer(tmp_path), rows(small_run.pictures("train"))
    for argument in ("train_dataset", "dev_dataset", "eval_dataset"):
        with pytest.raises(TypeError, match=f"`{argument}` is Stream, which can be read in its own order alone"):
            remade(run, **{argument: Stream()})
    for argument, read in {"eval_dataset": run.evaluate, "test_dataset": run.predict}.items():
        with pytest.raises(TypeError, match=f"`{argument}` is Stream, which can be read in its own order alone"):
            read(Stream())
    with pytest.raises(ValueError, match=r"items of \['pixel_values'\], and \['labels', 'task_ids'\] are missing"):
        remade(run, train_dataset=[{"pixel_values": each["pixel_values"]} for each in images])
    with pytest.raises(ValueError, match="`train_dataset` has the task id 3"):
        remade(run, train_dataset=[*images, {**images[0], "task_ids": 3}])


def test_prediction_needs_no_labels_and_evaluation_does(tmp_path):
    run = small_run.trainer(tmp_path)
    unlabelled = [{name: each[name] for name in ("pixel_values", "task_ids")} for each in rows(run.eval_dataset)]
    predicted = run.predict(unlabelled)
    assert predicted.label_ids is None and not any("accuracy" in name for name in predicted.metrics)
    assert (predicted.predictions == run.predict(run.eval_dataset).predictions).all()
    with pytest.raises(ValueError, match="have no `labels` to count accuracies by: use `predict`"):
        run.evaluate(unlabelled)


# ---- losses ---------------------------------------------------------------------------------------------------------


def weighted(outputs, labels, num_items_in_batch=None):
    """Class weights: the later a class, the more it counts."""
    weight = torch.arange(1, outputs.logits.shape[1] + 1).to(outputs.logits)
    return cross_entropy(outputs.logits, labels, weight=weight, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(("reduction", "hvp"), [("mean", "exact"), ("none", "finite_difference")])
def test_cross_entropy_of_ones_own_is_that_of_eq_3(tmp_path, reduction, hvp):
    """Whether it gives the images' mean loss or one each."""

    def loss(outputs, labels, **_):
        return cross_entropy(outputs.logits, labels, reduction=reduction)

    models = {name: prompted.prompted_clip() for name in ("given", "own")}
    runs = [small_run.trainer(tmp_path / name, model, hvp=hvp, max_steps=2) for name, model in models.items()]
    runs[1] = remade(runs[1], compute_loss_func=loss)
    for run in runs:
        run.train()
    one, other = (small_run.trained_parameters(run) for run in runs)
    for name, parameter in one.items():
        torch.testing.assert_close(other[name], parameter, atol=1e-9, rtol=1e-9)
    assert torch.allclose(runs[0].weighting.scheduler.alpha, runs[1].weighting.scheduler.alpha, atol=1e-8)
    assert runs[0].evaluate()["eval_loss"] == pytest.approx(runs[1].evaluate()["eval_loss"], abs=1e-5)


def test_class_weights(tmp_path):
    """The scheduler sees the losses that are trained, and so does the evaluation."""
    run = remade(small_run.trainer(tmp_path, max_steps=1), compute_loss_func=weighted)
    batch = next(iter(run.get_train_dataloader()))
    with torch.no_grad():
        logits = run.model.eval().classify(batch["pixel_values"], batch["task_ids"]).logits
    each = cross_entropy(logits, batch["labels"], reduction="none") * (batch["labels"] + 1)
    expected = [each[batch["task_ids"] == task].mean().item() for task in range(3)]
    run.train()
    assert read_history(tmp_path / "scheduler_history.jsonl")[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert run.evaluate()["eval_loss"] > remade(run).evaluate()["eval_loss"]


def test_compute_loss_of_a_subclass_is_not_ignored(tmp_path):
    class Own(JSCPTTrainer):
        def compute_loss(self, *_args, **_keywords):
            return torch.zeros(())

    run = small_run.trainer(tmp_path)
    with pytest.raises(TypeError, match=r"`compute_loss` is never called.*Pass `compute_loss_func`"):
        Own(run.model, run.args)


def test_logs_count_images_and_leave_out_a_task_that_is_not_finite(tmp_path):
    run = small_run.trainer(tmp_path, max_steps=4, learn_scheduler=False)
    run.train_dataset = small_run.Spoiled(run.train_dataset, lambda draw: draw < 6)  # all steps but the last
    metrics = run.train().metrics
    images = metrics["train_samples_per_second"] * metrics["train_runtime"]
    assert images == pytest.approx(4 * 2 * 3, rel=0.02)  # steps, images per task, tasks
    for entry in (entry for entry in run.state.log_history if "loss" in entry):
        assert entry["loss"] == pytest.approx(np.nanmean([entry[f"loss/{task}"] for task in prompted.TASKS]), abs=1e-4)


# ---- model_init and searches ----------------------------------------------------------------------------------------


def test_every_training_of_model_init_starts_anew(tmp_path):
    run = small_run.trainer(tmp_path, max_steps=2, lower_steps=1, neumann_terms=0)
    run = remade(run, model=None, model_init=lambda: prompted.prompted_clip(torch.float32))
    results = []
    for _ in range(2):
        run.train()
        results.append((small_run.trained_parameters(run), run.weighting.scheduler.alpha.detach().clone()))
    assert all(torch.equal(parameter, results[1][0][name]) for name, parameter in results[0][0].items())
    assert torch.equal(results[0][1], results[1][1]) and results[0][1].ne(1).all()
    assert run.upper_level.updates == 2


def test_a_search_with_optuna(tmp_path):
    pytest.importorskip("optuna")
    run = small_run.trainer(tmp_path, max_steps=1, lower_steps=1, neumann_terms=0)
    run = remade(run, model=None, model_init=lambda: prompted.prompted_clip(torch.float32))
    best = run.hyperparameter_search(
        hp_space=lambda trial: {"scheduler_learning_rate": trial.suggest_categorical("eta", [0.1, 0.2])},
        n_trials=2,
        direction="maximize",
        backend="optuna",
    )
    assert best.objective >= 0 and len(list(tmp_path.glob("run-*/scheduler_history.jsonl"))) == 2
    for path in tmp_path.glob("run-*/scheduler_history.jsonl"):
        moved = abs(read_history(path)[0]["alpha_after"][0] - 1)
        assert moved == pytest.approx(0.1, rel=1e-3) or moved == pytest.approx(0.2, rel=1e-3)


# ---- adapters -------------------------------------------------------------------------------------------------------


def two_adapters() -> PeftModel:
    """`default`, and `second`, which is active; something has let gradients into both."""
    model = prompted.prompted_clip(torch.float32)
    config = JSCPTConfig(tasks=prompted.TASKS, class_token_ids=prompted.class_token_ids(), prompt_init_std=0.5)
    model.add_adapter("second", config)
    model.set_adapter("second")
    for adapter in model.base_model.backbone.context.adapters.values():
        adapter.requires_grad_(True)
    return model


def of(run, adapter: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in small_run.trained_parameters(run).items() if f".{adapter}." in name}


def test_the_active_adapter_alone_is_trained_and_saved(tmp_path):
    run = small_run.trainer(tmp_path, two_adapters(), weight_decay=0.1, max_steps=2, **SAVING)
    before = {name: of(run, name) for name in ("default", "second")}
    run.train()
    after = {name: of(run, name) for name in ("default", "second")}
    assert all(torch.equal(value, after["default"][name]) for name, value in before["default"].items())
    assert all(not torch.equal(value, after["second"][name]) for name, value in before["second"].items())
    optimized = {id(each) for group in run.optimizer.param_groups for each in group["params"]}
    assert optimized == {id(each) for name, each in run.model.named_parameters() if ".second." in name}
    assert not list(tmp_path.glob("checkpoint-*/adapter_model.safetensors"))
    assert len(list(tmp_path.glob("checkpoint-*/second/adapter_model.safetensors"))) == 2
    run.model.set_adapter("default")
    with pytest.raises(ValueError, match="the active adapter is 'default', but this trainer was made for 'second'"):
        run.train()


def test_the_best_weights_of_another_adapter_are_loaded_and_resumed(tmp_path):
    options = {**SAVING, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "learning_rate": 30.0}
    options |= {"lr_scheduler_type": "constant", "learn_scheduler": False, "greater_is_better": True}
    seen = {}

    def metrics(_prediction):
        seen[run.state.global_step] = of(run, "second")
        return {}

    run = remade(small_run.trainer(tmp_path, two_adapters(), **options), compute_metrics=metrics)
    before = of(run, "default")
    run.train()
    best, weights = run.state.best_global_step, of(run, "second")
    assert all(torch.equal(value, seen[best][name]) for name, value in weights.items())
    assert all(torch.equal(value, of(run, "default")[name]) for name, value in before.items())
    resumed = remade(small_run.trainer(tmp_path, two_adapters(), **options), compute_metrics=lambda _: {})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.loaded_step == best
    assert all(torch.equal(value, weights[name]) for name, value in of(resumed, "second").items())


# ---- as any image classifier ----------------------------------------------------------------------------------------


def test_the_model_called_with_images_classifies():
    model = prompted.prompted_clip()
    pixels, task_ids, labels = prompted.batch(model)
    output = model(pixel_values=pixels, task_ids=task_ids, labels=labels)
    expected = model.classify(pixels, task_ids, labels)
    assert torch.equal(output.logits, expected.logits) and torch.equal(output.loss, expected.loss)
    model.set_task("photo")
    assert torch.equal(model(pixel_values=pixels).logits, model.classify(pixels, 0).logits)
    with model.disable_adapter():
        assert not torch.equal(model(pixel_values=pixels).logits, model.classify(pixels, 0).logits.new_zeros(1))


def test_a_plain_trainer_is_plain_joint_training(tmp_path):
    """Also the scale of the loss under accumulation, by which `Trainer` and model must agree."""
    model, by_hand = prompted.prompted_clip(), prompted.prompted_clip()
    images = [
        {**each, "pixel_values": each["pixel_values"].double()} for each in rows(small_run.pictures("validation"))
    ]
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=1,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=["labels"],
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=images[:4], eval_dataset=images)
    batch = collate(images[:4])
    output = by_hand.classify(batch["pixel_values"], batch["task_ids"], batch["labels"])
    (output.loss_sums.sum() / 4).backward()
    trainer.train()
    pairs = zip(model.named_parameters(), by_hand.named_parameters(), strict=True)
    for (name, trained), (_, start) in pairs:
        if start.requires_grad:
            torch.testing.assert_close(trained, start - 0.1 * start.grad, atol=1e-10, rtol=1e-8, msg=name)
    assert trainer.predict(images).predictions.shape == (9, 4)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")
@pytest.mark.parametrize("on_the_base", [False, True])
def test_reentrant_checkpointing_is_refused_wherever_it_is_switched_on(tmp_path, on_the_base):
    model = prompted.prompted_clip(torch.float32)
    target = model.get_base_model() if on_the_base else model
    target.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="`use_reentrant=True` would lose the gradients of the prompts"):
        small_run.trainer(tmp_path, model).train()


# ---- one run per directory ------------------------------------------------------------------------------------------


def test_two_runs_in_one_directory_are_noticed(tmp_path):
    run = small_run.trainer(tmp_path, max_steps=1, overwrite_output_dir=True)
    for start in (run.train, lambda: training_setup.prepare_output(run.args)):
        with output_lock(tmp_path), pytest.raises(OSError, match="is being written by another run: choose another"):
            start()
    assert training_setup.prepare_output(run.args) is None
    run.train()


@pytest.mark.parametrize(("limit", "name"), [(3_000, "the adapter"), (25_000, "training_args.bin")])
def test_a_full_disk_ends_saving_in_one_sentence(tmp_path, limit, name):
    run = small_run.trainer(tmp_path, run_name="long " * 10_000)
    with no_file_larger_than(limit), pytest.raises(OSError, match=f"{name} could not be (saved|written)") as error:
        run.save_model()
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
