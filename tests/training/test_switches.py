"""Every switch for research does what it says, through the whole trainer (row 22 of the design and its like)."""

from __future__ import annotations

from inspect import signature

import prompted
import pytest
import small_run
import torch
from cagrad import cagrad_weights

from jscpt_peft.evaluation import read_history
from jscpt_peft.scheduling import JointScheduling, TaskPromptScheduler, causal_effect, inter_task_affinity
from jscpt_peft.training import JSCPTTrainer

ALPHA, BETA = [1.5, 0.3, -0.8], [0.7, 4.0, -1.1]
OMEGA = {"alpha": torch.tensor(ALPHA), "beta": torch.tensor(BETA)}
NONE = {"weight_normalization": "none"}
SWITCHES = {
    "as the paper has it": {},
    # Normalised, a factor that is off could be any constant.
    "plain joint training, as printed": {"prompt_scheduling": False, "task_scheduling": False, **NONE},
    "no prompt scheduling, as printed": {"prompt_scheduling": False, **NONE},
    "no task scheduling, as printed": {"task_scheduling": False, **NONE},
    "another effect": {"reference": "complement", "causal_effect": "sigmoid"},
    "another affinity": {"affinity_direction": "outgoing", "affinity": "unclipped"},
    "cosine": {"affinity": "cosine"},
}


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """Losses and gradients of the first step, in float64: one backward a task."""
    run = small_run.trainer(tmp_path_factory.mktemp("known"), prompted.prompted_clip(torch.float64))
    batch, model = next(iter(run.get_train_dataloader())), run.model
    losses, references, gradients = prompted.task_by_task(model, batch)
    tasks, labels = batch["task_ids"], batch["labels"]
    with torch.no_grad():
        output = model.classify(batch["pixel_values"].double(), tasks)
        views = (1 - torch.sigmoid(model.task_parameters()["mask"])[tasks]) * output.image_embeds
        complement = prompted.losses_by_hand(model, views, output, tasks, labels)
    return {"selected": losses, "original": references, "complement": complement, "gradients": gradients}


def expected_weights(known, options, factor=None, present=None):
    """Eq. 6 from Eqs. 4 and 5, which `tests/scheduling` computes by hand: here they are given the switches."""
    reference, kind = options.get("reference", "original"), options.get("causal_effect", "literal")
    effect = causal_effect(known[reference], known["selected"], kind)
    affinity = inter_task_affinity(known["gradients"], options.get("affinity", "clipped"))
    names = signature(TaskPromptScheduler).parameters
    scheduler = TaskPromptScheduler(3, **{name: each for name, each in options.items() if name in names}).double()
    scheduler.load_state_dict(OMEGA)
    return scheduler(effect, affinity, present, factor).tolist()


def first_row(run):
    """The history of the first step, from given Ω."""
    if isinstance(run.weighting, JointScheduling):
        run.weighting.scheduler.load_state_dict(OMEGA)
    run.train()
    return read_history(f"{run.args.output_dir}/scheduler_history.jsonl")[0]


def one_step(tmp_path, **options):
    model = prompted.prompted_clip(torch.float64)
    return small_run.trainer(tmp_path, model, max_steps=1, learn_scheduler=False, **options)


# ---- Eqs. 4-6 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", SWITCHES)
def test_weights_of_a_step_are_those_of_the_formula(tmp_path, known, switch):
    options = SWITCHES[switch]
    row = first_row(one_step(tmp_path, **options))
    expected = expected_weights(known, options)
    assert row["weight"] == pytest.approx(expected, rel=1e-5)
    for name in options.keys() - NONE.keys():
        others = {other: value for other, value in options.items() if other != name}
        assert expected != pytest.approx(expected_weights(known, others), rel=1e-3), f"{name} changes nothing here"


@pytest.mark.parametrize(("off", "still"), [("prompt_scheduling", "alpha"), ("task_scheduling", "beta")])
def test_omega_of_a_factor_that_is_off_does_not_move(tmp_path, off, still):
    run = small_run.trainer(tmp_path, max_steps=2, lower_steps=1, neumann_terms=0, **{off: False})
    run.train()
    assert run.upper_level.updates == 2
    moves = {name: (getattr(run.weighting.scheduler, name) - 1).abs() for name in ("alpha", "beta")}
    assert moves.pop(still).max() == 0
    assert moves.popitem()[1].min() > 1e-6


# ---- what is held fixed ---------------------------------------------------------------------------------------------


def test_fixed_masks_stay_at_one_half_while_the_mlps_learn(tmp_path):
    model = prompted.prompted_clip(torch.float32, learn_masks=False)
    run = small_run.trainer(tmp_path, model, max_steps=2)
    before = small_run.trained_parameters(run)
    assert not any(name.endswith("mask") for name in before)
    run.train()
    after = small_run.trained_parameters(run)
    mlps = [name for name in before if ".head." in name]
    assert len(mlps) == 8
    assert all(not torch.equal(before[name], after[name]) for name in before)
    masks = model.task_parameters()["mask"]
    assert torch.equal(torch.sigmoid(masks), torch.full_like(masks, 0.5))


def test_fixed_omega_stays_and_needs_no_dev_images(tmp_path, known):
    run = small_run.trainer(
        tmp_path, prompted.prompted_clip(torch.float64), max_steps=3, lower_steps=1, learn_scheduler=False
    )
    run = JSCPTTrainer(run.model, run.args, train_dataset=run.train_dataset)
    row = first_row(run)
    assert row["weight"] == pytest.approx(expected_weights(known, {}), rel=1e-5)
    rows = read_history(tmp_path / "scheduler_history.jsonl")
    assert len(rows) == 3 and run.upper_level.updates == 0
    for row in rows:
        assert row["alpha"] == pytest.approx(ALPHA) and row["beta"] == pytest.approx(BETA)
        assert row["scheduler"] is None
    assert rows[0]["weight"] != pytest.approx(rows[2]["weight"], rel=1e-6)  # it still schedules


# ---- gradient_aggregator --------------------------------------------------------------------------------------------


class TestGradientAggregator:
    @pytest.fixture(autouse=True)
    def _torchjd(self):
        pytest.importorskip("torchjd", reason="needs the extra `aggregators`")

    @pytest.mark.parametrize(("options", "c"), [({}, 0.5), (NONE, 0.9), ({"prompt_scheduling": False}, 0.9)], ids=str)
    def test_cagrad_replaces_the_affinity_factor(self, tmp_path, known, options, c):
        """Row 22: MT-CAGrad, its weights by search over the simplex instead of TorchJD."""
        chosen = {} if c == 0.5 else {"cagrad_c": c}  # the default is the design's
        row = first_row(one_step(tmp_path, gradient_aggregator="cagrad", **chosen, **options))
        factor = cagrad_weights(known["gradients"], c)
        expected = expected_weights(known, options, factor)
        assert row["weight"] == pytest.approx(expected, rel=1e-3)
        assert row["task_factor"] == pytest.approx(factor.tolist(), rel=1e-3)
        assert expected != pytest.approx(expected_weights(known, options), rel=1e-2)
        other = expected_weights(known, options, cagrad_weights(known["gradients"], 0.1))
        assert expected != pytest.approx(other, rel=1e-2)

    def test_a_task_that_is_not_finite_is_left_out(self, tmp_path, known):
        run = one_step(tmp_path, gradient_aggregator="cagrad")
        run.train_dataset = small_run.Spoiled(run.train_dataset, task=1)
        with pytest.raises(FloatingPointError, match="The run ends with step 1, but tasks were not finite"):
            first_row(run)
        (row,) = read_history(tmp_path / "scheduler_history.jsonl")
        present = torch.tensor([True, False, True])
        factor = torch.zeros(3, dtype=torch.float64)
        factor[present] = cagrad_weights(known["gradients"][present], 0.5)
        assert row["weight"] == pytest.approx(expected_weights(known, {}, factor, present), rel=1e-3)

    def test_alpha_learns_and_beta_stays(self, tmp_path):
        run = small_run.trainer(tmp_path, max_steps=2, lower_steps=1, gradient_aggregator="upgrad")
        run.train()
        assert run.upper_level.updates == 2
        assert torch.equal(run.weighting.scheduler.beta, torch.ones(3))
        assert (run.weighting.scheduler.alpha - 1).abs().min() > 1e-6

    def test_there_is_nothing_to_learn_without_prompt_scheduling(self, tmp_path):
        options = {"gradient_aggregator": "mgda", "prompt_scheduling": False, "max_steps": 2, "lower_steps": 1}
        run = small_run.trainer(tmp_path, **options)
        run = JSCPTTrainer(run.model, run.args, train_dataset=run.train_dataset)  # no dev images
        run.train()
        assert run.upper_level.updates == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"gradient_aggregator": "cagradd"}, r"`gradient_aggregator` must be one of .* Did you mean 'cagrad'\?"),
            (
                {"gradient_aggregator": "mgda", "task_scheduling": False},
                "`gradient_aggregator='mgda'` takes the place of .* `task_scheduling=False` switches off",
            ),
            ({"gradient_aggregator": "krum", "krum_byzantine": 1}, "`gradient_aggregator='krum'` needs .* 3 tasks"),
        ],
    )
    def test_bad_arguments(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            small_run.trainer(tmp_path, **options)
