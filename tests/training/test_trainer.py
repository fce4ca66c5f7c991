"""`JSCPTTrainer` does what Algorithm 1 says, and what users of `Trainer` expect."""

from __future__ import annotations

import prompted
import pytest
import small_run
import torch
from small_run import trainable
from transformers import TrainerCallback

from jscpt_peft.data import TaskBalancedBatchSampler, collate
from jscpt_peft.evaluation import read_history
from jscpt_peft.scheduling import TaskPromptScheduler, causal_effect, inter_task_affinity
from jscpt_peft.training import JSCPTTrainer


def manual_schedule(model, batch):
    """Ω at its start, Δ and A (Eqs. 4-5), from N separate backwards."""
    losses, references, gradients = prompted.task_by_task(model, batch)
    effect = causal_effect(references, losses)
    return TaskPromptScheduler(len(losses)).double(), effect, inter_task_affinity(gradients)


@pytest.mark.parametrize("scheduling", [False, True])
def test_lower_steps_are_momentum_sgd_on_the_scheduled_loss(tmp_path, scheduling):
    """Algorithm 1, lines 4-9, written out by hand in float64: one backward a task, plain PyTorch SGD."""
    run = small_run.trainer(
        tmp_path,
        prompted.prompted_clip(torch.float64),
        prompt_scheduling=scheduling,
        task_scheduling=scheduling,
        learn_scheduler=False,
        lr_scheduler_type="constant",
    )
    model = prompted.prompted_clip(torch.float64)
    optimizer = torch.optim.SGD(trainable(model), lr=0.05, momentum=0.9)
    for batch in small_run.batches_of(run, 4):
        losses = model.classify(batch["pixel_values"].double(), batch["task_ids"], batch["labels"]).task_losses
        weights = torch.ones(3)
        if scheduling:
            scheduler, effect, affinity = manual_schedule(model, batch)
            weights = scheduler(effect, affinity).detach()
        optimizer.zero_grad()
        (weights * losses).sum().backward()
        optimizer.step()
    start = small_run.trained_parameters(run)
    run.train()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained = small_run.trained_parameters(run)[name]
            assert not torch.equal(trained, start[name])
            # The weights φ are float32 (Ω is), the gradients float64.
            torch.testing.assert_close(trained, parameter.detach(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("micro_batch", "options"), [(2, {}), (1, {"hypergradient_batch_size": 3, "hvp": "finite_difference"})], ids=str
)
def test_accumulation_equals_the_large_batch(tmp_path, micro_batch, options):
    """Also of the weights and of Ω, over two epochs of 6 images, which steps of 4 do not divide."""
    runs = [
        small_run.trainer(
            tmp_path / str(size),
            prompted.prompted_clip(torch.float64),
            sizes={"train": [6, 5, 6]},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_steps=4,
            dev_batch_size=2,
            **options,
        )
        for size in (micro_batch, 4)
    ]
    for run in runs:
        run.train()
        assert run.upper_level.updates == 2
    one, other = (small_run.trained_parameters(run) for run in runs)
    for name, parameter in one.items():
        torch.testing.assert_close(parameter, other[name], atol=1e-9, rtol=1e-9)
    for name in ("alpha", "beta"):
        vectors = [getattr(run.weighting.scheduler, name) for run in runs]
        torch.testing.assert_close(*vectors, atol=1e-8, rtol=1e-8)


def test_a_second_training_leaves_one_history(tmp_path):
    """As in a notebook: the same trainer again, from a checkpoint."""
    run = small_run.trainer(tmp_path, save_strategy="steps", save_steps=2)
    run.train()
    first, history = small_run.trained_parameters(run), read_history(tmp_path / "scheduler_history.jsonl")
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert read_history(tmp_path / "scheduler_history.jsonl") == history
    for name, parameter in small_run.trained_parameters(run).items():
        assert torch.equal(parameter, first[name]), name


@pytest.mark.parametrize(("terms", "bf16"), [(0, False), (3, True)])
def test_omega_moves_and_everything_is_logged(tmp_path, terms, bf16):
    run = small_run.trainer(tmp_path, neumann_terms=terms, bf16=bf16)
    run.train()
    assert run.upper_level.updates == 2
    for vector in (run.weighting.scheduler.alpha, run.weighting.scheduler.beta):
        assert vector.isfinite().all()
        assert (vector - 1).abs().min() > 1e-6, "every task's α and β must have moved"

    logs = [entry for entry in run.state.log_history if "loss" in entry]
    for series in ("loss", "weight", "causal_effect", "affinity", "alpha", "beta"):
        assert {f"{series}/{task}" for task in prompted.TASKS} <= logs[0].keys()
    assert "grad_norm" in logs[0]
    updates = [entry for entry in logs if "scheduler/step_size" in entry]
    assert [entry["step"] for entry in updates] == [2, 4]
    assert all(entry["scheduler/hypergradient_norm"] > 0 for entry in updates)
    assert all(abs(sum(entry[f"weight/{task}"] for task in prompted.TASKS) - 3) < 1e-5 for entry in logs)

    rows = read_history(tmp_path / "scheduler_history.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["scheduler"] is not None for row in rows] == [False, True, False, True]
    for entry, row in zip(logs, rows, strict=True):
        assert row["weight"] == pytest.approx([entry[f"weight/{task}"] for task in prompted.TASKS])
        assert row["gradient_norm"] == pytest.approx(entry["grad_norm"], rel=1e-4)


def test_bfloat16_in_lower_steps_and_float32_where_second_derivatives_are_taken(tmp_path):
    run = small_run.trainer(tmp_path, bf16=True, max_steps=2)
    seen = []
    run.model.backbone.vision.blocks[0].self_attn.k_proj.register_forward_hook(
        lambda _module, _inputs, output: seen.append((run.state.global_step, output.dtype))
    )
    run.train()
    assert {dtype for step, dtype in seen if step == 0} == {torch.bfloat16}
    assert {dtype for step, dtype in seen if step == 1} == {torch.float32}
    seen.clear()
    run.evaluate()
    assert {dtype for _, dtype in seen} == {torch.bfloat16}


@pytest.mark.parametrize(("which", "terms"), [("all", 2), ("shared", 2), ("all", 0)])
def test_update_of_omega_is_that_of_the_written_out_series(tmp_path, which, terms):
    """One step of SGD on Ω against Eq. 11, every term by `torch.autograd.functional.hvp` on the whole model."""
    options = {"max_steps": 1, "lower_steps": 1, "neumann_terms": terms, "neumann_step_size": 1e-3}
    damping = 100.0  # so much that no term grows, which would end the series
    run = small_run.trainer(
        tmp_path,
        prompted.prompted_clip(torch.float64),
        scheduler_optimizer="sgd",
        scheduler_learning_rate=5.0,
        hessian_parameters=which,
        weight_decay=damping,
        power_iterations=0,
        **options,
    )
    run.weighting.scheduler.double()
    batch = small_run.batches_of(run, 1)[0]
    dev_sampler = TaskBalancedBatchSampler([4, 4, 4], 2, seed=run.args.seed + 1)
    dev_batch = collate([run.upper_level.dev_dataset[key] for key in dev_sampler.batch(0)])

    model = prompted.prompted_clip(torch.float64, implementation="eager")
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (which == "all" or name.endswith("_shared"))
    }

    def losses(values, chosen):
        named = {f"model.{name}": value for name, value in zip(parameters, values, strict=True)}
        inputs = (chosen["pixel_values"].double(), chosen["task_ids"], chosen["labels"])
        return torch.func.functional_call(prompted.TaskLosses(model), named, inputs)

    theta = tuple(parameter.detach() for parameter in parameters.values())
    scheduler, effect, affinity = manual_schedule(model, batch)
    weights = scheduler(effect, affinity)
    dev = torch.autograd.functional.jacobian(lambda *t: losses(t, dev_batch).sum(), theta)
    term, total = dev, dev
    for _ in range(terms):
        product = torch.autograd.functional.hvp(lambda *t: (weights.detach() * losses(t, batch)).sum(), theta, term)[1]
        term = tuple(t - 1e-3 * (p + damping * t) for t, p in zip(term, product, strict=True))
        total = tuple(a + b for a, b in zip(total, term, strict=True))
    slopes = torch.autograd.functional.jacobian(lambda *t: losses(t, batch), theta)
    products = sum((slope * 1e-3 * vector).flatten(1).sum(1) for slope, vector in zip(slopes, total, strict=True))
    gradients = torch.autograd.grad(weights, [scheduler.alpha, scheduler.beta], -products)

    run.train()
    assert read_history(tmp_path / "scheduler_history.jsonl")[0]["scheduler"]["neumann_terms"] == terms
    for name, gradient in zip(("alpha", "beta"), gradients, strict=True):
        moved = getattr(run.weighting.scheduler, name).detach() - 1
        assert gradient.norm() > 1e-6
        torch.testing.assert_close(moved, -5.0 * gradient, rtol=1e-4, atol=1e-7)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    results = []
    for name, checkpointing in (("plain", False), ("checkpointed", True)):
        run = small_run.trainer(tmp_path / name, gradient_checkpointing=checkpointing, max_steps=2)
        run.train()
        results.append(small_run.trained_parameters(run))
    for name, parameter in results[0].items():
        torch.testing.assert_close(parameter, results[1][name])


def test_evaluation_counts_each_tasks_own_classes(tmp_path):
    run = small_run.trainer(tmp_path)
    test = small_run.pictures("test", groups=True)
    metrics = run.evaluate(test, metric_key_prefix="test")
    batch = collate([test[index] for index in range(len(test))])
    run.model.eval()
    with torch.no_grad():
        right = run.model.classify(batch["pixel_values"], batch["task_ids"]).logits.argmax(-1) == batch["labels"]
    by_task = {
        task: right[batch["task_ids"] == index].float().mean().item() for index, task in enumerate(prompted.TASKS)
    }
    for task, accuracy in by_task.items():
        assert metrics[f"test_accuracy/{task}"] == pytest.approx(accuracy)
    assert metrics["test_mean_accuracy"] == pytest.approx(sum(by_task.values()) / 3)
    assert metrics["test_worst_task_accuracy"] == pytest.approx(min(by_task.values()))
    groups = [
        right[(batch["task_ids"] == task) & (batch["groups"] == group)].float().mean().item()
        for task in range(3)
        for group in range(2)
    ]
    assert metrics["test_worst_group_accuracy"] == pytest.approx(min(groups))


def test_negative_omega_is_announced(tmp_path, caplog):
    options = {"scheduler_learning_rate": 5.0, "max_steps": 2, "neumann_terms": 0}
    run = small_run.trainer(tmp_path, **options)
    run.train()
    values = torch.cat([run.weighting.scheduler.alpha, run.weighting.scheduler.beta])
    assert (values <= 0).any()
    assert "is no longer positive" in caplog.text
    softplus = small_run.trainer(tmp_path / "softplus", scheduler_parameterization="softplus", **options)
    softplus.train()
    assert (softplus.weighting.scheduler.alpha > 0).all() and (softplus.weighting.scheduler.beta > 0).all()


def test_history_is_on_disk_with_every_checkpoint(tmp_path):
    rows = []

    class Look(TrainerCallback):
        def on_save(self, *_, **__):
            rows.append(len(read_history(tmp_path / "scheduler_history.jsonl")))

    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3, "logging_steps": 100}
    small_run.trainer(tmp_path, callbacks=[Look()], **options).train()
    assert rows[0] == 3


def test_evaluation_does_not_take_from_the_training_averages(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 4, "learn_scheduler": False}
    run = small_run.trainer(tmp_path, **options)
    run.train()
    entries = run.state.log_history
    assert not any("weight/photo" in entry for entry in entries if "eval_loss" in entry)
    rows = read_history(tmp_path / "scheduler_history.jsonl")
    logged = next(entry for entry in entries if "weight/photo" in entry)
    assert logged["weight/photo"] == pytest.approx(sum(row["weight"][0] for row in rows) / 4)


def test_evaluation_loss_does_not_depend_on_the_batches(tmp_path):
    losses = [
        small_run.trainer(tmp_path / str(size), per_device_eval_batch_size=size).evaluate()["eval_loss"]
        for size in (1, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_selection_without_prompts_trains(tmp_path):
    model = prompted.prompted_clip(torch.float32, num_shared_tokens=0, num_task_tokens=0)
    run = small_run.trainer(tmp_path, model, max_steps=2)
    run.train()
    assert run.upper_level.updates == 1


def test_resume_without_a_saved_scheduler_says_so(tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 2, "save_only_model": True, "neumann_terms": 0}
    small_run.trainer(tmp_path, max_steps=2, **options).train()
    run = small_run.trainer(tmp_path, **options)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "the scheduler starts anew" in caplog.text


class TestBadInput:
    def test_nothing_is_trainable(self, tmp_path):
        """As after `PeftModel.from_pretrained` without `is_trainable`."""
        run = small_run.trainer(tmp_path)
        run.model.requires_grad_(False)
        with pytest.raises(ValueError, match=r"no parameter of `model` is trainable: .*is_trainable=True"):
            run.train()

    def test_not_a_jscpt_model(self, tmp_path):
        import oracles

        with pytest.raises(TypeError, match="must be a PeftModel made by"):
            small_run.trainer(tmp_path, oracles.tiny_clip())

    def test_no_dev_images(self, tmp_path):
        run = small_run.trainer(tmp_path)
        with pytest.raises(ValueError, match="`dev_dataset` is empty: the scheduler learns from it"):
            JSCPTTrainer(run.model, run.args, train_dataset=run.train_dataset)

    def test_half_precision_base_has_no_second_derivative(self, tmp_path):
        model = prompted.prompted_clip(torch.float32)
        model.get_base_model().to(torch.bfloat16)
        with pytest.raises(ValueError, match=r"base model is in torch.bfloat16.*`neumann_terms=0`"):
            small_run.trainer(tmp_path, model)

    def test_configuration_of_the_launcher(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(ValueError, match=r"`fsdp` is not supported.* the configuration of `accelerate launch"):
            small_run.trainer(tmp_path)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
        with pytest.raises(ValueError, match="`fp16=True` is not supported"):
            small_run.trainer(tmp_path)
