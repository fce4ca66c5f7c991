"""Groups by gradients: tasks of one drawing style come together, and a training takes what was found or is given."""

from __future__ import annotations

import group_tasks
import pytest
import train
import yaml
from paths import TINY_CLIP
from peft import PeftConfig, get_peft_model
from recipe_runs import QUICK, TASKS, fails, on_folder
from transformers import CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.data import ImageTaskDataset, image_transform
from jscpt_peft.data.shapes import shapes_task_set
from jscpt_peft.scheduling import agglomerate, task_groups
from jscpt_peft.training import warm_up_cosines

SHARED = {"num_shared_tokens": 2, "num_task_tokens": 0, "intervention": "none", "prompt_init_std": 0.3}


def command(images, output, *more):
    return on_folder(images, output, "--class_template", "a {}.", "--warm_up_batches", "2", *QUICK, *more)


def of_two_styles() -> tuple[dict[str, list[str]], ImageTaskDataset]:
    """Four tasks: two drawing styles, each with two sets of images."""
    styles = {"tasks": ("flat", "mosaic"), "spurious_strength": 0.0}
    sets = [shapes_task_set(seed=seed, shots=4, **styles) for seed in (1, 2)]
    tables = [table for each in sets for table in each.split("train")]
    classes = sets[0].class_names["flat"]
    tasks = {name: classes for name in ("flat 1", "mosaic 1", "flat 2", "mosaic 2")}
    transform = image_transform(64, (0.5,) * 3, (0.25,) * 3, train=False)
    return tasks, ImageTaskDataset(tables, transform, task_ids=range(4), class_names=tasks)


def test_tasks_of_one_style_are_a_group():
    tasks, dataset = of_two_styles()
    config = JSCPTConfig(tasks=tasks, class_template="a photo of a {}.", **SHARED)
    model = get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    cosines = warm_up_cosines(model, dataset, batches=4, batch_size=16)
    styles = {"flat 1+flat 2", "mosaic 1+mosaic 2"}
    assert set(task_groups(agglomerate(cosines), list(tasks), 2).values()) == styles
    assert all(each.equal(before[name]) for name, each in model.state_dict().items())


def test_prompts_of_the_tasks_own_have_no_cosines():
    tasks, dataset = of_two_styles()
    config = JSCPTConfig(tasks=tasks, **{**SHARED, "num_shared_tokens": 0, "num_task_tokens": 1})
    model = get_peft_model(CLIPModel.from_pretrained(TINY_CLIP), config)
    with pytest.raises(ValueError, match="the model's tasks share no prompts"):
        warm_up_cosines(model, dataset, batches=1, batch_size=1)


@pytest.mark.parametrize(("method", "group"), [("mmap", "all"), ("hipro", ["all"])])
def test_auto_trains_with_what_the_recipe_finds_and_goes_on_with_it(images, tmp_path, capsys, method, group):
    group_tasks.main(command(images, tmp_path / "groups", "--method", method))
    assert (tmp_path / "groups" / "dendrogram.png").stat().st_size > 10_000
    found = yaml.safe_load((tmp_path / "groups" / "groups.yaml").read_text())
    assert found == {task: group for task in TASKS}  # two tasks are one group
    assert "Cosines of the tasks' gradients" in capsys.readouterr().out
    output = tmp_path / "run"
    options = ["--method", method, "--groups", "auto", "--save_strategy", "steps", "--save_steps", "2"]
    train.main(command(images, output, *options))
    assert PeftConfig.from_pretrained(output).groups == found
    other = "other" if method == "mmap" else ["all", "other"]
    (output / "groups.yaml").write_text(yaml.safe_dump(found | {TASKS[0]: other}))  # which a resumed run reads
    message = fails(capsys, train.main, *command(images, output, *options, "--resume_from_checkpoint", "last"))
    assert "it was made with `groups` =" in message and "other" in message


def test_groups_by_hand(images, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"my photos": ["all", "mine"], "scans": ["all"]}')
    train.main(command(images, tmp_path / "run", "--method", "hipro", "--groups", file, "--max_steps", "1"))
    assert PeftConfig.from_pretrained(tmp_path / "run").groups == {"my photos": ["all", "mine"], "scans": ["all"]}
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"method": "mmap", "groups": {"my photos": "a", "scans": "b"}}))
    train.main([str(config), *command(images, tmp_path / "other", "--max_steps", "1")])
    assert PeftConfig.from_pretrained(tmp_path / "other").groups == {"my photos": "a", "scans": "b"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "none.yaml"], "`groups` is 'none.yaml', which cannot be read"),
        (["--groups", "auto", "--method", "coop"], "has none here: leave it out, or choose method 'mmap' or 'hipro'"),
        (["--groups", "auto", "--single_task"], "or `single_task`"),
        (["--groups", "list.yaml"], "`groups in list.yaml` must be a mapping"),
        (["--groups", "other.yaml"], "`groups` says nothing of ['scans']"),
        (["--groups", "typo.yaml"], "none of `tasks` ['my photos', 'scans']. Did you mean 'scans'?"),
        (["--groups", "twice.yaml"], "has the key 'scans' twice"),
        (["--num_groups", "2"], "`num_groups` is 2, which is for `groups` 'auto' of method mmap"),
        (["--groups", "auto", "--num_groups", "3"], "`num_groups` is 3: give 1 to 2"),
        (["--groups", "auot"], "Did you mean 'auto'?"),
        (["--groups", "auto", "--tree_levels", "1"], "`tree_levels` is 1, which is for `groups` 'auto' of method h"),
    ],
)
def test_groups_that_do_not_fit_end_the_program(images, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "list": "[a]",
        "twice": "{scans: a, scans: b}",
        "other": "my photos: a",
        "typo": "{my photos: a, scams: b}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    method = [] if "--method" in arguments else ["--method", "mmap"]
    assert message in fails(capsys, train.main, *command(images, "out", *method, *arguments))
