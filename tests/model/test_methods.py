"""Every method against its oracle, and what every method must do: tell its prompts, grow, be saved and served."""

from __future__ import annotations

import copy
import pickle

import oracles
import processes
import prompted
import pytest
import small_run
import torch
from adapted import classifier, pictures, scores
from adapted import clip as small_clip
from oracles.methods import MTCRL, MVLPT, CLIPAdapter, Concatenated, HiPro, MaPLe, MmAP, Projected
from paths import ROOT, TINY_CLIP
from peft import PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from jscpt_peft import JSCPTConfig
from jscpt_peft.methods import METHODS, training_options
from jscpt_peft.serving.export import TaskClassifier

GROUPS = {"photo": "real", "clipart": "drawn", "sketch": "drawn"}
TREE = {"photo": ["all"], "clipart": ["all", "drawn"], "sketch": ["all", "drawn"]}
# What computes each method, and settings that fit a CLIP of three blocks.
ORACLES = {
    "zero_shot": (Concatenated, {}),
    "coop": (Concatenated, {"num_shared_tokens": 3}),
    "vpt": (Concatenated, {"num_shared_tokens": 3}),
    "maple": (MaPLe, {"num_shared_tokens": 3, "prompt_depth": 2}),
    "clip_adapter": (CLIPAdapter, {}),
    "mvlpt": (MVLPT, {"num_shared_tokens": 3}),
    "mmap": (MmAP, {"num_shared_tokens": 3, "num_task_tokens": 2, "groups": GROUPS}),
    "hipro": (HiPro, {"num_shared_tokens": 3, "num_task_tokens": 2, "groups": TREE}),
    "jscpt": (Concatenated, {"num_shared_tokens": 3, "num_task_tokens": 2, "intervention_hidden": 4}),
    "jscpt_projected": (
        Projected,
        {"num_shared_tokens": 3, "intervention_hidden": 4, "num_confounders": 3, "decorrelation_weight": 0.05},
    ),
    "mt_crl": (
        MTCRL,
        {"num_shared_tokens": 3, "num_task_tokens": 2, "num_modules": 3, "decorrelation_weight": 0.02},
    ),
}
ORACLES["jscpt_no_feature_selection"] = ORACLES["jscpt"]
# Methods that differ from JSCPT in training alone.
VARIANTS = ["jscpt_no_prompt_scheduling", "jscpt_no_task_scheduling", "jscpt_cagrad"]
SINGLE = [name for name, method in METHODS.items() if method.single_task]
# Single-task forms, of prompt sources and of a head; class names in the middle of the prompts.
FORMS = ["maple single", "clip_adapter single", "mmap single", "hipro single", "coop middle", "mvlpt middle"]
LEARNING = [name for name in ORACLES if name != "zero_shot"]
methods = pytest.mark.parametrize("name", ORACLES)
methods_and_forms = pytest.mark.parametrize("name", [*ORACLES, *FORMS])
learning = pytest.mark.parametrize("name", LEARNING)
NEW = {
    "class_names": ["owl", "ant"],
    "class_token_ids": [[oracles.TINY_SOS, word, oracles.TINY_EOS] for word in (5, 6)],
}
NEW_GROUP = {"mmap": {"group": "drawn"}, "hipro": {"group": ["all"]}}  # of the same task, where there are groups


def test_every_method_has_an_oracle():
    assert {*ORACLES, *VARIANTS} == METHODS.keys()
    assert all(METHODS[name].structure == METHODS["jscpt"].structure for name in VARIANTS)


def case_of(name: str) -> str:
    """The method whose model a method, or a form of it, has."""
    method = name.split()[0]
    return "jscpt" if method in VARIANTS else method


def configuration(name: str, tasks: dict[str, list[str]] = prompted.TASKS, **options) -> JSCPTConfig:
    method, _, form = name.partition(" ")
    ids = {task: prompted.class_token_ids()[task] for task in tasks}
    middle = {"class_position": "middle", "class_token_ids": prompted.in_the_middle(ids)} if form == "middle" else {}
    defaults = {
        "class_token_ids": ids,
        "prompt_init_std": 0.5,
        "single_task": form == "single",
        **middle,
        **ORACLES[case_of(name)][1],
    }
    options = {**defaults, **options}
    if options["single_task"]:
        options["groups"] = None
    return JSCPTConfig.for_method(method, tasks=tasks, **options)


def adapted(name: str, dtype: torch.dtype = torch.float64, clip: CLIPModel | None = None, **options) -> PeftModel:
    clip = oracles.tiny_clip(dtype=dtype) if clip is None else clip
    model = get_peft_model(clip, configuration(name, **options))
    prompted.move([*model.task_adapter.parameters(), *model.task_adapter.buffers()])
    return model


def stored_tensors(model: PeftModel, task: int) -> dict[str, torch.Tensor]:
    """The adapter's tensors as they are stored; in a single-task form those of one task."""
    tensors = {**dict(model.task_adapter.named_parameters()), **dict(model.task_adapter.named_buffers())}
    if model.active_jscpt_config.groups is not None:
        tensors["groups"] = list(model.active_jscpt_config.groups.values())
    single = model.active_jscpt_config.single_task
    return {each: tensor[task] for each, tensor in tensors.items()} if single else tensors


def oracle(
    name: str, model: PeftModel, task: int, pixels: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits `[B, C]` of images of one task, and with labels the terms of its penalty with their weights."""
    config, clip = model.active_jscpt_config, prompted.PlainClip(model.get_base_model())
    method = ORACLES[name.split()[0]][0](clip, stored_tensors(model, task), task)
    x = method.image_features(pixels)
    classes = method.class_features(list(config.class_token_ids.values())[task])
    images = method.selected(x)
    logits = torch.nn.functional.cosine_similarity(images[..., None, :], classes, dim=-1) * clip.logit_scale.exp()
    if images.dim() == 3:
        logits = logits.softmax(-1).mean(0).log()  # of one confounder after the other
    terms = {} if labels is None else method.penalties(x, classes, labels)
    return logits, {term: getattr(config, f"{term}_weight") * value for term, value in terms.items()}


def logits(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model.classify(*prompted.batch(model)[:2]).logits


@methods_and_forms
def test_logits_and_every_gradient_are_those_of_the_oracle(name):
    model = adapted(name)
    tokens = max(model.prompt_tokens(tower).shape[2] for tower in ("vision", "text"))
    assert tokens == model.active_jscpt_config.num_tokens
    pixels, task_ids, labels = prompted.batch(model, per_task=3)
    output = model.classify(pixels, task_ids, labels)
    total = reference = 0
    for task, names in enumerate(prompted.TASKS.values()):
        mine = task_ids == task
        expected, penalties = oracle(name, model, task, pixels[mine], labels[mine])
        given = output.logits[mine][:, : len(names)]
        torch.testing.assert_close(given, expected, atol=1e-10, rtol=0)
        weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
        total, reference = total + (weights * given).sum(), reference + (weights * expected).sum()
        for term in penalties.values():
            reference = reference + (task + 1) * term
        total = total if output.penalties is None else total + (task + 1) * output.penalties[task]
    torch.testing.assert_close(total, reference, atol=1e-10, rtol=1e-10)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if parameters:
        gradients, expected = (torch.autograd.grad(value, parameters) for value in (total, reference))
        torch.testing.assert_close(gradients, expected, atol=1e-10, rtol=1e-10)
        assert all(gradient.any() for gradient in expected)


@methods_and_forms
def test_saved_and_loaded_beside_other_adapters(name, tmp_path):
    model = adapted(name)
    model.save_pretrained(tmp_path)
    other = adapted("jscpt")
    expected = logits(model), logits(other)
    other.load_adapter(tmp_path, "loaded")
    assert torch.equal(logits(other), expected[1])
    other.set_adapter("loaded")
    assert torch.equal(logits(other), expected[0]) and other.active_jscpt_config.method == name.split()[0]
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path)
    assert torch.equal(logits(loaded), expected[0])
    other.delete_adapter("loaded")
    other.set_adapter("default")
    assert torch.equal(logits(other), expected[1])


@methods_and_forms
def test_grows_by_a_task(name, tmp_path):
    model = adapted(name)
    pixels, task_ids, _ = prompted.batch(model)
    before = logits(model)
    new = {**NEW, **NEW_GROUP.get(name, {})}
    if model.active_jscpt_config.class_position == "middle":
        new |= {"class_token_ids": prompted.in_the_middle({"birds": NEW["class_token_ids"]})["birds"]}
    model.add_task("birds", **new)
    with torch.no_grad():
        assert torch.equal(model.classify(pixels, task_ids).logits, before)
    new = model.classify(pixels, 3).logits[:, :2]
    torch.testing.assert_close(new, oracle(name, model, 3, pixels)[0], atol=1e-10, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(oracles.tiny_clip(), tmp_path)
    assert loaded.task_names == [*prompted.TASKS, "birds"] and torch.equal(logits(loaded), logits(model))


@methods
def test_predicts(name):
    model = adapted(name, torch.float32)
    images = pictures(3)
    predicted = model.predict(images, task="sketch")
    model.set_task("sketch")
    assert predicted == model.predict(images) and [set(each) for each in predicted] == [{*"abcd"}] * 3
    assert predicted != model.predict(images, task="photo")


# One of each kind of prompts and of each further head; the paper's is traced in tests/serving/test_export.py. Others
# take the same steps, with other numbers.
TRACED = ("vpt", "maple", "clip_adapter", "jscpt_projected", "mt_crl")
LIKE = {"coop": "zero_shot", **dict.fromkeys(("mvlpt", "mmap", "hipro"), "vpt"), "jscpt_no_feature_selection": "jscpt"}


def steps(classifier: TaskClassifier) -> tuple:
    head = None if classifier.select is None else type(classifier.select.__self__)
    return classifier.num_prefixed, classifier.carrying, head, {*classifier.head_parameters}


@methods
def test_exports(name, tmp_path):
    model = adapted(name)
    pixels, served = prompted.batch(model)[0], TaskClassifier(model.base_model, 2, torch.float64)
    if name in TRACED:
        folder = model.export_task("sketch", tmp_path / "sketch", torch.float64)
        served = torch.export.load(folder / "classifier.pt2").module()
    elif name in LIKE:
        assert steps(served) == steps(TaskClassifier(adapted(LIKE[name]).base_model, 2, torch.float64))
    with torch.no_grad():
        torch.testing.assert_close(served(pixels), model.classify(pixels, 2).logits, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["jscpt", "maple", "mmap", "jscpt_projected"])  # what they hold differs in kind
def test_copies_have_a_base_model_of_their_own(name):
    model = adapted(name)
    before = logits(model)
    for another in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(another), before)
        another.set_task("sketch")
        assert model.backbone.context.task is None
        with torch.no_grad():
            for parameter in another.get_base_model().vision_model.base_layer.parameters():
                parameter.mul_(0.9)
        assert torch.equal(logits(model), before)
        pixels = prompted.batch(another)[0]
        given, expected = another.classify(pixels, 0).logits[:, :3], oracle(name, another, 0, pixels)[0]
        torch.testing.assert_close(given, expected, atol=1e-10, rtol=0)


@methods
def test_a_base_in_bfloat16_under_an_adapter_in_float32(name):
    model = adapted(name, torch.float32)
    half = get_peft_model(oracles.tiny_clip(dtype=torch.bfloat16), configuration(name))
    half.load_state_dict(model.state_dict())
    pixels, task_ids, labels = prompted.batch(half)
    output = half.classify(pixels, task_ids, labels)
    expected = model.classify(pixels.float(), task_ids).selected_embeds
    assert output.logits.dtype == torch.float32
    assert (output.selected_embeds.float() - expected).norm() < 0.05 * expected.norm()
    if name != "zero_shot":
        output.loss.backward()


@pytest.mark.parametrize("name", LEARNING + VARIANTS)
def test_a_resumed_run_ends_as_an_undisturbed_one(name, tmp_path):
    options = {**training_options(name), "save_strategy": "steps", "save_steps": 3}
    runs = [
        small_run.trainer(tmp_path / folder, adapted(name, torch.float32), **options) for folder in ("whole", "parts")
    ]
    start = small_run.trained_parameters(runs[0])
    runs[0].train()
    runs[1].train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    whole, resumed = (small_run.trained_parameters(run) for run in runs)
    assert all(torch.equal(whole[each], resumed[each]) for each in whole)
    assert not any(torch.equal(whole[each], start[each]) for each in whole)
    states = [dict(run.model.task_adapter.named_buffers()) for run in runs]  # what a head remembers
    assert all(torch.equal(states[0][each], states[1][each]) for each in states[0])


# ---- the single-task form -------------------------------------------------------------------------------------------


def two_steps(model: PeftModel, batch: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model.classify(*batch).task_losses.sum().backward()
        optimizer.step()
    return {name: each.detach() for name, each in model.task_adapter.named_parameters()}


@pytest.mark.parametrize("name", SINGLE)
def test_one_run_of_single_tasks_is_a_run_per_task(name):
    model = get_peft_model(oracles.tiny_clip(), configuration(name, single_task=True))
    start = {each: tensor.detach().clone() for each, tensor in model.task_adapter.named_parameters()}
    pixels, task_ids, labels = prompted.batch(model)
    together = two_steps(model, (pixels, task_ids, labels))
    for position, (task, names) in enumerate(prompted.TASKS.items()):
        # Without `single_task` a task of groups would have a group's tokens too.
        one = configuration(name, {task: names}, single_task="groups" in ORACLES[name][1])
        one = get_peft_model(oracles.tiny_clip(), one)
        mine = task_ids == position
        alone = two_steps(one, (pixels[mine], task_ids[mine] * 0, labels[mine]))
        for each, tensor in alone.items():
            tensor = tensor.view_as(start[each][position])
            assert not torch.equal(tensor, start[each][position])
            torch.testing.assert_close(together[each][position], tensor, atol=1e-10, rtol=0)


def test_a_single_task_is_trained_alone_and_copied():
    model = adapted("coop single")
    model.add_task("birds", **NEW, init_from="clipart")
    assert torch.equal(model.prompt_tokens("text")[3], model.prompt_tokens("text")[1])
    model.train_only("birds")
    before = model.prompt_tokens("text").detach()
    two_steps(model, (torch.randn(2, 3, 32, 32).double(), torch.tensor([3, 3]), torch.tensor([0, 1])))
    unmoved = [torch.equal(*each) for each in zip(before, model.prompt_tokens("text"), strict=True)]
    assert unmoved == [True, True, True, False]


@pytest.mark.parametrize("name", sorted(METHODS.keys() - SINGLE))
def test_methods_without_a_single_task_form_say_so(name):
    with pytest.raises(ValueError, match=f"method '{name}' has no single-task form.*one of 'coop', 'vpt', 'maple'"):
        JSCPTConfig.for_method(name, tasks=prompted.TASKS, single_task=True)


# ---- how methods start ----------------------------------------------------------------------------------------------


def test_maple_starts_from_words_in_the_first_block_and_from_like_maps_behind_it():
    options = {"hyperparameters": "original", "num_shared_tokens": 2, "prompt_depth": 3}
    clip = oracles.tiny_clip()
    prompts = get_peft_model(
        clip, configuration("maple", **options, prompt_init_token_ids=[4, 9])
    ).task_adapter.prompts
    assert torch.equal(prompts.text[0], clip.text_model.embeddings.token_embedding.weight[[4, 9]])
    assert not torch.equal(prompts.text[1], prompts.text[2])
    for each in (prompts.weight, prompts.bias):
        assert torch.equal(each[1], each[2]) and not torch.equal(each[0], each[1])
        assert 0.8 * 24**-0.5 < each.abs().max() <= 24**-0.5


@pytest.mark.parametrize("name", ["vpt", "mvlpt"])
def test_vision_prompts_of_vpt_start_uniform_where_its_own_hyperparameters_are_asked_for(name):
    prompts = {}
    for whose in ("paper", "original"):
        options = {"num_shared_tokens": 50, "prompt_init_std": 0.02, "class_position": "end"}
        config = configuration(name, hyperparameters=whose, **options)
        prompts[whose] = dict(get_peft_model(oracles.tiny_clip(), config).task_adapter.prompts.named_parameters())
    vision = "vision_shared" if name == "vpt" else "vision"
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5  # patches of 8 x 8 pixels, width 32
    values = prompts["original"][vision].detach().flatten()
    assert 0.99 * bound < values.abs().max() <= bound
    assert values.std() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert prompts["paper"][vision].detach().std() == pytest.approx(0.02, rel=0.05)
    if name == "mvlpt":
        assert torch.equal(prompts["original"]["text"], prompts["paper"]["text"])


def test_a_source_without_task_tokens_says_so():
    config = JSCPTConfig(prompts="coupled", tasks=prompted.TASKS, class_token_ids=prompted.class_token_ids())
    with pytest.raises(ValueError, match=r"`num_task_tokens` is 16, but prompts='coupled' takes 0.*'concatenated'"):
        get_peft_model(oracles.tiny_clip(), config)


# ---- sizes ----------------------------------------------------------------------------------------------------------


CLIP_IDS = {
    task: [[49406, 320 + label, 49407] for label in range(len(names))] for task, names in prompted.TASKS.items()
}


def original(name: str, **options) -> JSCPTConfig:
    ids = prompted.in_the_middle(CLIP_IDS) if name == "mvlpt" else CLIP_IDS
    return JSCPTConfig.for_method(name, prompted.TASKS, "original", class_token_ids=ids, **options)


@pytest.fixture(scope="module")
def vit_b16():
    """The shapes of CLIP's ViT-B/16, without memory."""
    with torch.device("meta"):
        return CLIPModel(CLIPConfig(vision_config={"patch_size": 16}))


@pytest.mark.parametrize(("groups", "percent"), [(1, 0.0825), (2, 0.0989)])
def test_mmap_trains_about_as_many_parameters_as_its_abstract_says(vit_b16, groups, percent, capsys):
    """About 0.09 %, of four tasks; in how many groups is not said."""
    tasks = {str(task): ["a", "b"] for task in range(4)}
    options = {"class_token_ids": dict.fromkeys(tasks, CLIP_IDS["clipart"])}
    options["groups"] = {task: str(int(task) % groups) for task in tasks}
    model = get_peft_model(copy.deepcopy(vit_b16), JSCPTConfig.for_method("mmap", tasks, "original", **options))
    model.print_trainable_parameters()
    assert f"trainable%: {percent:.4f}" in capsys.readouterr().out


# ---- what else users and neighbours rely on -------------------------------------------------------------------------


# All but predictions that are means over confounders, which image features alone cannot give.
@pytest.mark.parametrize("name", [name for name in ORACLES if name != "jscpt_projected"])
def test_the_pipeline_of_transformers_gives_the_scores_of_predict(name):
    texts = {"class_token_ids": None, "tokenizer_name_or_path": str(TINY_CLIP)}
    model = adapted(name, clip=small_clip(), prompt_init_std=0.05, **texts)
    model.set_task("photo")
    classify = classifier(model.get_base_model())
    (template,) = model.active_jscpt_config.templates("photo")
    images = pictures(2)
    answers = classify(images, candidate_labels=prompted.TASKS["photo"], hypothesis_template=template)
    for given, expected in zip(scores(answers), model.predict(images), strict=True):
        assert given == pytest.approx(expected, abs=1e-5)


def flops(compute) -> int:
    with FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


@learning
def test_a_step_is_one_forward_and_one_backward_of_the_towers(name, tmp_path):
    """Whatever the method: beside that there are its own parts alone, which know no image or text."""
    model = adapted(name, torch.float32)
    model.get_base_model().set_attn_implementation("eager")  # whose products are counted
    batch = prompted.batch(model)  # of as many images as a step takes
    parameters = {
        key: each.detach().requires_grad_(each.requires_grad) for key, each in model.task_parameters().items()
    }
    towers = flops(lambda: model.classify(*batch, task_parameters=parameters).loss.backward())
    forward = flops(lambda: model.classify(*batch, task_parameters=parameters))
    own = flops(lambda: sum(each.sum() for each in model.task_parameters().values()).backward())
    step = flops(small_run.trainer(tmp_path, model, learn_scheduler=False, max_steps=1).train)
    # The prompts are computed for the step, for the Gramian and for the update; the rest is N rows of gradients.
    assert step <= towers + 5 * own + 0.05 * towers
    assert towers <= 2 * forward  # frozen weights need no gradient


# ---- two processes --------------------------------------------------------------------------------------------------

# Penalties that are correlations or variances over a batch: processes average those of their own images.
OF_A_BATCH = {"jscpt_projected": ("decorrelation_weight",), "mt_crl": ("decorrelation_weight", "invariance_weight")}
# Case -> method and options; weightings that remember losses and norms, and that draw.
TOGETHER = {name: (name, {}) for name in LEARNING + VARIANTS}
TOGETHER |= {name: ("jscpt", {"weighting": name}) for name in ("gradnorm", "dwa", "famo", "pcgrad")}


def trained_with(count: int, folder) -> dict[str, dict[str, torch.Tensor]]:
    """Parameters and the weighting's state of each case after two steps of 4 images per task, by `count` processes."""
    trained = {}
    for case, (name, options) in TOGETHER.items():
        options = {**training_options(name), "max_steps": 2, **options}
        options |= {"per_device_train_batch_size": 4 // count, "dev_batch_size": 4 // count}
        model = adapted(name, **dict.fromkeys(OF_A_BATCH.get(name, ()), 0.0))
        run = small_run.trainer(folder / case, model, **options)
        run.train()
        state = run.weighting.state_dict()
        trained[case] = small_run.trained_parameters(run)
        trained[case] |= {key: each for key, each in state.items() if isinstance(each, torch.Tensor)}
    return trained


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """`trained_with` of one process, and of each of two, which all train at the same time."""
    folder = tmp_path_factory.mktemp("together")
    program = [str(ROOT / "tests" / "methods_program.py"), str(folder)]
    pair = processes.launch(2, folder / "logs", program)
    alone = trained_with(1, folder / "alone")
    assert processes.wait(pair) == [0, 0], processes.output(folder / "logs", 0)[-3000:]
    return alone, *(torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_are_one_with_both_their_batches(name, both):
    alone, first, second = (each[name] for each in both)
    torch.testing.assert_close(first, second, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(first, alone, atol=1e-10, rtol=1e-10, equal_nan=True)


# ---- the table of docs/methods.md -----------------------------------------------------------------------------------

CHECKS = {
    "equals its oracle": test_logits_and_every_gradient_are_those_of_the_oracle,
    "save, load": test_saved_and_loaded_beside_other_adapters,
    "train, resume": test_a_resumed_run_ends_as_an_undisturbed_one,
    "2 processes": test_two_processes_are_one_with_both_their_batches,
    "one pass per step": test_a_step_is_one_forward_and_one_backward_of_the_towers,
    "`add_task`": test_grows_by_a_task,
    "`predict`": test_predicts,
    "pipeline": test_the_pipeline_of_transformers_gives_the_scores_of_predict,
    "`export_task`": test_exports,
}
START, END = "<!-- what the tests found -->\n\n", "\n\n<!-- end -->"


def parameters_of(name: str, clip: CLIPModel) -> int:
    needed = {key: value for key, value in ORACLES[case_of(name)][1].items() if key == "groups"}
    config = original(name, prompt_init_token_ids=[320, 1125], **needed)
    return get_peft_model(copy.deepcopy(clip), config).get_nb_trainable_parameters()[0]


def test_the_table_of_the_documentation_is_what_was_found(outcomes, vit_b16):
    if any(check.__name__ not in outcomes for check in CHECKS.values()):
        pytest.skip("only a part of this file was run")
    rows = [["method", *CHECKS, "parameters", "published"], [":---", *[":---:"] * len(CHECKS), "---:", "---:"]]
    for name, method in METHODS.items():
        found = [outcomes[check.__name__] for check in CHECKS.values()]
        passed = [each.get(name, each.get(case_of(name))) for each in found]
        published = "" if method.published_parameters is None else f"{method.published_parameters:,d}"
        marks = ["yes" if each else "-" if each is None else "NO" for each in passed]
        rows.append([f"`{name}`", *marks, f"{parameters_of(name, vit_b16):,d}", published])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    page = ROOT / "docs" / "methods.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    written, _, after = rest.partition(END)
    assert "NO" not in table
    page.write_text(before + START + table + END + after, encoding="utf-8")
    assert written == table, "docs/methods.md told something else: its table is written anew, look at it and commit it"
