"""A task that was added to a trained adapter is trained alone: with its own images, and nothing else moves."""

from __future__ import annotations

import oracles
import prompted
import pytest
import small_run
import torch
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import ImageTaskDataset
from jscpt_peft.evaluation import read_history
from jscpt_peft.training import JSCPTTrainer
from jscpt_peft.training.step_log import HISTORY_FILE

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

ADAPTER = "adapter_model.safetensors"
SAVING = {"save_strategy": "steps", "save_steps": 1}
# All that could move a parameter without a gradient.
MOVING = {"weight_decay": 0.1, "momentum": 0.9, "max_grad_norm": 0.5}


def assert_only_row_moved(before, after, row):
    """Files are compared tensor by tensor, stacks row by row."""
    assert before.keys() == after.keys()
    moved = set()
    for name in before:
        if name.endswith("_shared"):
            assert torch.equal(before[name], after[name])
            continue
        others = [index for index in range(len(before[name])) if index != row]
        assert torch.equal(before[name][others], after[name][others])
        moved |= set() if torch.equal(before[name][row], after[name][row]) else {name.rpartition(".")[2]}
    assert {"vision_task", "text_task", "mask", "inner_up", "outer_up"} <= moved


def grown_model(model=None, **options):
    """An adapter with a fourth task, which alone is trained."""
    model = model or prompted.prompted_clip(torch.float32, **options)
    classes = ["owl", "hen", "emu", "kiwi"]
    model.add_task("birds", classes, prompted.class_token_ids({"birds": classes})["birds"])
    model.train_only("birds")
    return model


def own_pictures(split, task_ids=(3,)):
    """The pictures of `sketch`, whose rows have `task_id` 2, as those of other tasks."""
    pictures = small_run.pictures(split, train=split == "train")
    return ImageTaskDataset(pictures.datasets[2:], pictures.transform, seed=7, task_ids=task_ids)


def new_run(folder, model=None, task_ids=(3,), **options):
    defaults = {"max_steps": 6, "lower_steps": 2, "weight_normalization": "none", **MOVING}
    run = small_run.trainer(folder, **{**defaults, **options})  # for its arguments
    sets = {split: own_pictures(split, task_ids) for split in ("train", "dev", "validation")}
    data = {"train_dataset": sets["train"], "dev_dataset": sets["dev"], "eval_dataset": sets["validation"]}
    return JSCPTTrainer(model or grown_model(), run.args, **data)


def test_from_a_saved_adapter_to_one_with_a_trained_task_more(tmp_path):
    """As the README says; its run is resumed to the last bit, and checkpoints hold whole stacks."""
    prompted.prompted_clip(torch.float32).save_pretrained(tmp_path / "saved")

    def loaded(folder):
        return PeftModel.from_pretrained(oracles.tiny_clip(dtype=torch.float32), folder)

    whole = new_run(tmp_path / "run", grown_model(loaded(tmp_path / "saved")), **SAVING)
    start = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(whole.model).items()}
    whole.train()
    first, last = (load_file(tmp_path / "run" / f"checkpoint-{step}" / ADAPTER) for step in (1, 6))
    assert all(len(tensor) == 4 for name, tensor in last.items() if not name.endswith("_shared"))
    assert_only_row_moved(start, first, row=3)
    assert_only_row_moved(first, last, row=3)
    assert bool(whole.weighting.scheduler.alpha[3] != 1)  # Ω learns from this task

    logs = next(entry for entry in whole.state.log_history if "loss" in entry)
    told = {"loss/birds", "weight/birds", "alpha/birds"}
    assert {name for name in logs if name.startswith(("loss/", "weight/", "alpha/"))} == told
    rows = read_history(tmp_path / "run" / HISTORY_FILE)
    assert [row["weight"][:3] for row in rows] == [[0, 0, 0]] * 6
    assert rows[0]["loss"][:3] == [None] * 3 and rows[0]["loss"][3] > 0

    resumed = new_run(tmp_path / "run", **SAVING)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert all(torch.equal(tensor, get_peft_model_state_dict(resumed.model)[name]) for name, tensor in last.items())
    assert torch.equal(whole.weighting.scheduler.alpha, resumed.weighting.scheduler.alpha)

    metrics = whole.evaluate()
    assert metrics["eval_mean_accuracy"] == metrics["eval_accuracy/birds"]
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "white")]
    saved = loaded(tmp_path / "run" / "checkpoint-6")
    assert saved.predict(images, task="birds") == whole.model.predict(images, task="birds")


def test_a_checkpoint_of_one_task_does_not_continue_another_training(tmp_path):
    new_run(tmp_path, max_steps=1, **SAVING).train()
    model = grown_model()
    model.train_only(None)
    with pytest.raises(ValueError, match='`trained_task` = "birds", this run has null'):
        new_run(tmp_path, model, **SAVING).train(resume_from_checkpoint=True)


def test_training_one_task_of_many_is_training_an_adapter_of_one_task(tmp_path):
    """Without shared prompts the same trajectory, schedule included."""
    options = {"num_shared_tokens": 0, "prompt_init_std": 0.5}
    many = grown_model(num_shared_tokens=0)
    classes = many.active_jscpt_config.tasks["birds"]
    ids = {"birds": many.active_jscpt_config.class_token_ids["birds"]}
    one = prompted.prompted_clip(torch.float32, num_shared_tokens=0, tasks={"birds": classes})
    config = JSCPTConfig(
        tasks={"birds": classes}, class_token_ids=ids, num_task_tokens=2, intervention_hidden=4, **options
    )
    one.add_adapter("alone", config)
    one.set_adapter("alone")
    last = {name: parameter[3:] for name, parameter in many.task_parameters().items()}
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if ".alone." in name and parameter.numel() > 0:  # there are no shared prompts
                parameter.copy_(last[name.rpartition(".")[2].removesuffix("_task")])
    runs = [new_run(tmp_path / "many", many), new_run(tmp_path / "one", one, task_ids=(0,))]
    for run in runs:
        run.train()
    for name, parameter in one.task_parameters().items():
        torch.testing.assert_close(many.task_parameters()[name][3:], parameter, atol=2e-5, rtol=1e-4)
    alphas = [float(run.weighting.scheduler.alpha[-1]) for run in runs]
    assert alphas[0] == pytest.approx(alphas[1], rel=1e-5) and alphas[0] != 1


def test_all_tasks_images_train_that_task_too(tmp_path):
    model = prompted.prompted_clip(torch.float32)
    model.train_only("clipart")
    model.save_pretrained(tmp_path / "before")
    run = small_run.trainer(tmp_path / "run", model, max_steps=2, **MOVING)
    run.train()
    model.save_pretrained(tmp_path / "after")
    assert_only_row_moved(*(load_file(tmp_path / folder / ADAPTER) for folder in ("before", "after")), row=1)


def test_images_that_do_not_fit_the_tasks(tmp_path):
    with pytest.raises(ValueError, match=r"`train_dataset` has 1 tasks, the model has 4.*task_ids=\[\.\.\.\]"):
        new_run(tmp_path, task_ids=None)
    with pytest.raises(ValueError, match=r"`train_dataset` has the task id 4, the model has ids 0\.\.3"):
        new_run(tmp_path, task_ids=(4,))
    with pytest.raises(ValueError, match="has label 3 in task 'photo', for which the model has 3 classes"):
        new_run(tmp_path, task_ids=(0,))
    with pytest.raises(ValueError, match=r"holds images of \['sketch'\], but `train_only\('birds'\)`"):
        new_run(tmp_path, task_ids=(2,))
    with pytest.raises(ValueError, match=r"`hessian_parameters` is 'shared'.*trains no shared prompts"):
        new_run(tmp_path, hessian_parameters="shared")
    pictures = small_run.pictures("train")
    for task_ids in ([1], [0, 1, 1], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match="for 3 data sets: give each an id of its own"):
            ImageTaskDataset(pictures.datasets, pictures.transform, task_ids=task_ids)


def test_data_sets_know_their_sizes_and_tasks():
    pictures = small_run.pictures("train")
    assert pictures.sizes == [8, 5, 6]
    assert [pictures[index]["task_ids"] for index in (0, 8, 13)] == [0, 1, 2]
    renamed = ImageTaskDataset(pictures.datasets, pictures.transform, task_ids=[4, 0, 7])
    assert [renamed[index]["task_ids"] for index in (0, 7, 8, 13)] == [4, 4, 0, 7]


def test_a_single_tasks_weight_teaches_the_scheduler_nothing(tmp_path):
    """Normalised to the number of tasks present it is 1, whatever Ω is: no update, no dev images, no Hessian."""
    run = new_run(tmp_path / "sum", weight_normalization="sum", max_steps=2)
    run.train()
    assert run.upper_level.updates == 0
    assert torch.equal(run.weighting.scheduler.alpha, torch.ones(4))
    assert new_run(tmp_path / "none", max_steps=1).upper_level.learns  # Eq. 6 as printed: φ does depend on Ω
