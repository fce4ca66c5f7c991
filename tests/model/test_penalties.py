"""What penalties of heads depend on, what they are for, and the bank of confounders.

That they are their formulas is a part of `test_methods.py`.
"""

from __future__ import annotations

import math

import oracles
import prompted
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn.functional import cosine_similarity, cross_entropy

from jscpt_peft import JSCPTConfig
from jscpt_peft.model.heads import FeatureModules
from jscpt_peft.model.start import Sizes, Start

both = pytest.mark.parametrize("name", ["jscpt_projected", "mt_crl"])


def model_of(name: str, **options) -> PeftModel:
    """With few tokens, moved from its start."""
    small = {"jscpt_projected": {"num_confounders": 3}, "mt_crl": {"num_modules": 3, "num_task_tokens": 1}}[name]
    fields = {"num_shared_tokens": 2, "class_token_ids": prompted.class_token_ids(), **small, **options}
    model = get_peft_model(oracles.tiny_clip(), JSCPTConfig.for_method(name, tasks=prompted.TASKS, **fields))
    prompted.move([*model.task_adapter.parameters(), *model.task_adapter.buffers()])
    return model


@both
def test_a_penalty_depends_on_its_own_task_alone(name):
    """Also where another task's images are infinite, and a task without an image has none."""
    model = model_of(name)
    pixels, task_ids, labels = prompted.batch(model, per_task=4)
    parameters = model.task_parameters()
    output = model.classify(pixels, task_ids, labels, task_parameters=parameters)
    given = output.penalties
    torch.testing.assert_close(output.loss, (output.task_losses + given).mean())
    with torch.no_grad():  # an evaluation's loss has none
        evaluated = model.classify(pixels, task_ids, labels)
    assert evaluated.penalties is None and torch.equal(evaluated.loss, evaluated.task_losses.mean())
    names = [each for each in parameters if parameters[each].requires_grad]
    leaves = [parameters[each] for each in names]
    for gradient in torch.autograd.grad(given[1], leaves, allow_unused=True, materialize_grads=True):
        assert not gradient[0].any() and not gradient[2].any()
    broken = pixels.masked_fill((task_ids == 1)[:, None, None, None], torch.inf)
    spoiled = model.classify(broken, task_ids, labels, task_parameters=parameters).penalties
    torch.testing.assert_close(spoiled[[0, 2]], given[[0, 2]], atol=1e-12, rtol=1e-12)
    gradients = torch.autograd.grad(spoiled.nansum(), leaves, allow_unused=True, materialize_grads=True)
    assert all(bool(gradient[[0, 2]].isfinite().all()) for gradient in gradients)
    one = task_ids == 0
    alone = model.classify(pixels[one], task_ids[one], labels[one], task_parameters=parameters)
    torch.testing.assert_close(alone.penalties[0], given[0], atol=1e-12, rtol=1e-12)
    assert alone.loss.isfinite()


def test_a_single_image_has_no_environments():
    model = model_of("mt_crl", sparsity_weight=0.0, entropy_weight=0.0, decorrelation_weight=0.0)
    pixels, task_ids, labels = prompted.batch(model, per_task=1)
    output = model.classify(pixels, task_ids, labels)
    assert not output.penalties.any()
    output.loss.backward()
    assert all(bool(each.grad.isfinite().all()) for each in model.parameters() if each.grad is not None)


@both
def test_training_begins_with_clips_own_predictions(name):
    options = {"prompt_init_std": 0.0, "class_token_ids": prompted.class_token_ids()}
    model = get_peft_model(oracles.tiny_clip(), JSCPTConfig.for_method(name, prompted.TASKS, **options))
    output = model.classify(*prompted.batch(model)[:2])
    plain = model.logits(output.image_embeds, output.class_embeds, torch.arange(3).repeat(2))
    torch.testing.assert_close(output.logits.softmax(-1), plain.softmax(-1), atol=1e-12, rtol=0)
    for tower in ("vision", "text"):
        tokens = model.prompt_tokens(tower)
        assert torch.equal(tokens[0], tokens[1])  # of W_k = I, or of the shared part


# ---- confounders ----------------------------------------------------------------------------------------------------


def test_one_confounder_is_plain_prediction_from_both():
    model = model_of("jscpt_projected", num_confounders=1)
    pixels, task_ids, _ = prompted.batch(model)
    output, head = model.classify(pixels, task_ids), model.task_adapter.head
    causal, _ = head.split(output.image_embeds, task_ids, model.task_parameters())
    plain = model.logits(causal + head.back @ head.bank[0], output.class_embeds, task_ids)
    torch.testing.assert_close(output.logits.softmax(-1), plain.softmax(-1), atol=1e-12, rtol=0)
    # The base model's own interface sees one vector an image: exactly this one.
    features = model.get_image_features(pixels, task_ids=task_ids).pooler_output
    torch.testing.assert_close(cosine_similarity(features, causal + head.back @ head.bank[0]), torch.ones(6).double())


def test_the_bank_takes_the_first_image_of_each_task_and_forgets_the_oldest():
    model = model_of("jscpt_projected")
    head, before = model.task_adapter.head, model.task_adapter.head.bank.clone()
    pixels, task_ids, labels = prompted.batch(model)  # tasks 0, 1, 2, 0, 1, 2
    output = model.classify(pixels[[2, 0, 3]], task_ids[[2, 0, 3]], labels[[2, 0, 3]])
    model.observe(output, task_ids[[2, 0, 3]])
    _, spurious = head.split(output.image_embeds, task_ids[[2, 0, 3]], model.task_parameters())
    torch.testing.assert_close(head.bank, torch.stack([before[2], spurious[1], spurious[0]]), rtol=0, atol=1e-12)
    output.loss.backward()  # with the bank that it saw
    model.add_task("birds", ["owl"], [[oracles.TINY_SOS, 5, oracles.TINY_EOS]])
    model.train_only("birds")
    kept = head.bank
    model.observe(output, task_ids[[2, 0, 3]])
    assert head.bank is kept  # it is the other tasks' too


@pytest.mark.parametrize("training", [True, False])
def test_what_any_trainer_calls_counts_penalties_and_observes_in_training(training):
    model = model_of("jscpt_projected").train(training)
    pixels, task_ids, labels = prompted.batch(model)
    expected, bank = model.classify(pixels, task_ids, labels), model.task_adapter.head.bank
    summed = (expected.loss_sums + 2 * expected.penalties).sum() / 6
    with torch.set_grad_enabled(training):
        loss = model(pixel_values=pixels, task_ids=task_ids, labels=labels, num_items_in_batch=6).loss
    torch.testing.assert_close(loss, summed if training else expected.loss_sums.sum() / 6)
    assert (model.task_adapter.head.bank is bank) is not training


# ---- what invariance is for -----------------------------------------------------------------------------------------


def shifted_accuracy(seed: int, **weights: float) -> float:
    """Accuracy where the spurious features contradict the label, of modules trained on two kinds of half-batches.

    Eight features of each image: two that tell the label in noise, two that agree with it in 95 % of the first half of
    a batch and in 45 % of the second one, and four of noise.
    """
    generator = torch.Generator().manual_seed(seed)
    off = dict.fromkeys(("decorrelation_weight", "sparsity_weight", "entropy_weight", "invariance_weight"), 0.0)
    config = JSCPTConfig(
        tasks={"a": ["no", "yes"], "b": ["no", "yes"]}, intervention="modular", num_modules=4, **{**off, **weights}
    )
    sizes = Sizes({"vision": 8, "text": 8}, {"vision": 1, "text": 1}, 8, 99, 77, 8)
    head = FeatureModules(Start(config, sizes, 2, like=torch.zeros(())))
    classes = torch.tensor([[-1.0], [1.0]]) * torch.tensor([1.0] * 4 + [0.0] * 4)
    spread = torch.tensor([1.0, 1.0, 0.3, 0.3, 0.6, 0.6, 0.6, 0.6])

    def images(agreement: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(2, agreement.shape, generator=generator)
        sign = 2.0 * labels - 1
        agrees = 2.0 * (torch.rand(agreement.shape, generator=generator) < agreement) - 1
        x = spread * torch.randn(*agreement.shape, 8, generator=generator)
        x[:, :2] += 0.6 * sign[:, None]
        x[:, 2:4] += 0.6 * (sign * agrees)[:, None]
        return x, labels

    def logits(selected: torch.Tensor) -> torch.Tensor:
        return 10 * cosine_similarity(selected[:, None], classes, dim=-1)

    halves = torch.tensor([0.95, 0.45]).repeat_interleave(64).repeat(2)
    task_ids = torch.arange(2).repeat_interleave(128)
    optimizer = torch.optim.Adam(head.parameters(), 0.03)
    for _ in range(120):
        x, labels = images(halves)

        def loss_sums(selected, rows, labels=labels):
            losses = cross_entropy(logits(selected), labels[rows], reduction="none")
            return torch.zeros(2).index_add(0, task_ids[rows], losses), torch.bincount(task_ids[rows], minlength=2)

        parameters = head.task_parameters()
        losses = loss_sums(head.select(x, task_ids, parameters), slice(None))[0] / 128
        penalty = head.penalty(x, task_ids, parameters, loss_sums) if head.has_penalty else 0
        optimizer.zero_grad()
        (losses + penalty).sum().backward()
        optimizer.step()
    x, labels = images(torch.full((4000,), 0.1))
    with torch.no_grad():
        selected = head.select(x, torch.arange(2).repeat(2000), head.task_parameters())
        return float((logits(selected).argmax(1) == labels).float().mean())


def test_invariance_beats_joint_training_where_a_spurious_feature_turns():
    assert shifted_accuracy(seed=0, invariance_weight=100.0) > shifted_accuracy(seed=0) + 0.05


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "coop", "num_modules": 4}, r"`num_modules` is 4, which intervention='none' does not know.*mt_crl"),
        ({"method": "mt_crl", "num_confounders": 4}, r"`num_confounders` is 4.*intervention='decoupled'.*projected"),
        ({"method": "jscpt", "projection_rank": 2}, r"`projection_rank` is 2.*'concatenated' does not know"),
        ({"method": "mt_crl", "num_modules": 21}, r"`num_modules` is 21 .* at most 20 modules"),
        ({"method": "mt_crl", "invariance_weight": math.nan}, r"`invariance_weight` must be a finite number"),
        ({"method": "mt_crl", "entropy_weight": -1.0}, r"`entropy_weight` must be at least 0"),
        ({"intervention": "modular", "single_task": True}, r"`single_task` True.*leave `single_task` out"),
        ({"intervention": "decoupled", "single_task": True}, r"`single_task` is True.*one bank of confounders"),
        ({"prompts": "projected"}, r"`num_task_tokens` 16, but prompts='projected' maps shared tokens"),
        ({"method": "jscpt_projected", "num_shared_tokens": 0}, r"'jscpt_projected' requires at least 1"),
    ],
)
def test_bad_input(options, message):
    def make(method=None, **fields):
        given = {"tasks": prompted.TASKS, "class_token_ids": prompted.class_token_ids(), **fields}
        return JSCPTConfig(**given) if method is None else JSCPTConfig.for_method(method, **given)

    with pytest.raises(ValueError, match=message):
        get_peft_model(oracles.tiny_clip(), make(**options))
