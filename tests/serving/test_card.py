"""The card of an adapter: what it says, that it is in step with MODEL_CARD.md, and whose cards are left alone."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import oracles
import prompted
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors import safe_open

from jscpt_peft import JSCPTConfig
from jscpt_peft.serving import card as cards

METHOD_CARD = Path(__file__).parents[2] / "MODEL_CARD.md"
RUN = cards.TrainingRecord(
    configuration={"seed": 3, "optim": "sgd"},
    steps=4,
    accuracies={"photo": 0.5, "clip|art": 0.25, "sketch": float("nan")},
    mean_accuracy=0.375,
    figures={"losses.png": "Training loss"},
    files={"manifest.json": "which image is in which split"},
    environment={"device": "CPU"},
)


@pytest.fixture
def model():
    model = prompted.prompted_clip(torch.float32)
    model.peft_config["default"].base_model_name_or_path = "user/clip"
    return model


def saved_card(model, folder: Path) -> ModelCard:
    model.save_pretrained(folder)
    return ModelCard.load(folder / "README.md")


def sections(card: ModelCard) -> dict[str, str]:
    """Heading -> what stands below it, up to the next one; code blocks hold no headings."""
    parts = re.split(r"^## (.+)$", card.text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def test_save_pretrained_describes_the_adapter(model, tmp_path):
    card = saved_card(model, tmp_path)
    assert card.data.base_model == "user/clip"
    assert card.data.library_name == "peft"
    assert "license" not in card.data.to_dict()  # nobody has granted one
    assert "**Licence:** not stated." in card.text
    assert {"peft", "jscpt", "clip", "multi-task-learning"} <= set(card.data.tags)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as stored:
        parameters = sum(stored.get_tensor(name).numel() for name in stored.offset_keys())
    assert f"these {parameters:,} parameters alone" in card.text
    for task, names in prompted.TASKS.items():
        assert f"| {task} | {len(names)} | {', '.join(names)} |" in card.text
    assert "[More Information Needed]" not in card.text


def test_the_lines_that_load_it_work(model, tmp_path, monkeypatch):
    """The card's own code, with folders in the place of Hub ids."""
    model.peft_config["default"].base_model_name_or_path = "clip"
    lines = re.search(r"```python\n(.*?)```", saved_card(model, tmp_path / "path/or/hub-id").text, re.DOTALL)[1]
    assert len([line for line in lines.splitlines() if line and not line.startswith("#")]) == 5
    oracles.tiny_clip(dtype=torch.float32).save_pretrained(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    image, printed = Image.new("RGB", (40, 30), "orange"), []
    exec(lines, {"image": image, "print": printed.append})
    assert printed[0][0] == pytest.approx(model.predict(image, task="photo")[0], abs=1e-6)  # float32, other batches


def test_a_base_model_that_is_on_this_machine_alone_is_not_named_by_its_path(model, tmp_path):
    """The Hub refuses a `base_model` that is no id, and nobody needs to know this machine's folders."""
    (tmp_path / "my-clip").mkdir()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "my-clip")
    card = saved_card(model, tmp_path / "adapter")
    assert card.data.base_model is None
    assert "'my-clip', a folder that is not on the Hub" in card.text
    assert str(tmp_path) not in card.text


def test_what_a_run_adds(model):
    card = cards.adapter_card(model, name="user/name", run=RUN, license="mit", tags=["birds"], language="en")
    assert (card.data.license, card.data.language) == ("mit", "en")
    assert card.data.tags == [*cards.TAGS, "birds"]
    assert {result.dataset_name: result.metric_value for result in card.data.eval_results} == {
        "photo": 0.5,
        "clip|art": 0.25,
    }
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    text = card.text
    assert "# user/name" in text and '"user/name")' in text and "**Licence:** mit." in text
    for line in (
        "| `seed` | 3 |",
        "| photo | 50.0 |",
        r"| clip\|art | 25.0 |",
        "| mean of the tasks | 37.5 |",
        "![Training loss](losses.png)",
    ):
        assert line in text.splitlines()
    assert "- [`manifest.json`](manifest.json): which image is in which split" in text
    assert "- device: CPU" in text


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "per task a mask over the image features, and two small residual MLPs a task."),
        ({"intervention_shared": True}, "over the image features, and two small residual MLPs that all tasks share."),
        ({"learn_masks": False}, "a mask over the image features that is fixed at 0.5, and two small residual MLPs"),
        ({"intervention": "none"}, "- no feature selection."),
        ({"intervention": "adapter"}, "- **feature head**: `adapter`."),
        ({"prompts": "coupled", "num_task_tokens": 0}, "- **prompts**: `coupled`, 3 tokens per prompted block;"),
        ({"towers": "text"}, "in every block of the text tower;"),
        ({"prompt_depth": 1, "towers": "vision"}, "in the first block of the vision tower;"),
        ({"num_shared_tokens": 0, "num_task_tokens": 0}, "- no prompts; "),
    ],
    ids=str,
)
def test_the_adapter_that_there_is_is_described(options, said):
    text = sections(cards.adapter_card(prompted.prompted_clip(torch.float32, **options)))["What an adapter is"]
    assert said in " ".join(text.split())
    assert len(re.findall("^- ", text.split("Stored are")[0], flags=re.MULTILINE)) == 2


def test_the_card_is_of_an_adapter_that_is_saved(model, tmp_path):
    tasks = {"birds": ["owl", "tit"]}
    model.add_adapter("birds", JSCPTConfig(tasks=tasks, class_token_ids=prompted.class_token_ids(tasks)))
    model.save_pretrained(tmp_path, selected_adapters=["birds"])
    text = (tmp_path / "README.md").read_text()
    assert "| birds | 2 | owl, tit |" in text and "| photo |" not in text
    assert (tmp_path / re.search(r"`(\S+/adapter_model.safetensors)`", text)[1]).is_file()
    assert '"path/or/hub-id", subfolder="birds")' in text
    assert "| photo |" in saved_card(model, tmp_path / "both").text


def test_weights_are_saved_where_the_card_fails(model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cards.ModelCard, "from_template", None)
    with caplog.at_level("WARNING"):
        monkeypatch.setattr(logging.getLogger("jscpt_peft"), "propagate", True)
        model.save_pretrained(tmp_path)
    assert "was not written (TypeError: 'NoneType' object is not callable)" in caplog.text
    saved = {"adapter_config.json", "adapter_model.safetensors", "adapter_model.sha256"}
    assert {path.name for path in tmp_path.iterdir()} == saved


def test_in_step_with_the_card_of_the_method(model):
    """MODEL_CARD.md has the sections and front matter of a generated card; what is general has the same words."""
    method, generated = ModelCard.load(METHOD_CARD), cards.adapter_card(model, run=RUN)
    assert list(sections(method)) == list(sections(generated))
    expected = generated.data.to_dict()
    del expected["model-index"], expected["base_model"]
    found = method.data.to_dict()
    assert found.pop("base_model") == "openai/clip-vit-base-patch16"
    assert found == {name: value for name, value in expected.items() if name in found} | {"tags": list(cards.TAGS)}
    for heading in ("Intended use", "Limits, and what is not claimed"):
        assert sections(method)[heading] == sections(generated)[heading]
    citation = [
        re.search(r"```bibtex.*?```", sections(card)["Citation"], re.DOTALL)[0] for card in (method, generated)
    ]
    assert citation[0] == citation[1]


def test_a_card_of_ours_is_written_anew(model, tmp_path):
    model.save_pretrained(tmp_path)
    cards.write_card(cards.adapter_card(model, run=RUN, tags=["birds"]), tmp_path)
    assert "| photo | 50.0 |" in (tmp_path / "README.md").read_text()
    card = saved_card(model, tmp_path)
    assert "| photo | 50.0 |" not in card.text  # nobody evaluated what is saved now
    assert "birds" in card.data.tags


def test_pefts_and_transformers_empty_cards_are_replaced(model, tmp_path):
    lora = get_peft_model(oracles.tiny_clip(dtype=torch.float32), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "peft")
    assert "[More Information Needed]" in (tmp_path / "peft" / "README.md").read_text()
    empty = ModelCard.from_template(
        ModelCardData(tags=["mine"], library_name="transformers"), model_description=cards.TRANSFORMERS_DESCRIPTION
    )
    empty.save(tmp_path / "transformers" / "README.md")
    for name in ("peft", "transformers"):
        card = saved_card(model, tmp_path / name)
        assert "[More Information Needed]" not in card.text
        assert card.data.library_name == "peft"
    assert "mine" in card.data.tags
    assert not any(tag.startswith("base_model:") for tag in card.data.tags)


@pytest.mark.parametrize(
    ("old", "new"), [("Intended use", "Use"), ("library_name:", "a: b\nlibrary_name:"), ("tags:", "[")]
)
def test_a_card_that_somebody_has_edited_is_left_alone(model, tmp_path, old, new):
    model.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    edited = path.read_text().replace(old, new)
    path.write_text(edited)
    model.save_pretrained(tmp_path)
    assert not cards.write_card(cards.adapter_card(model, run=RUN), tmp_path)
    assert path.read_text() == edited


def test_other_methods_keep_their_own_class_and_card(tmp_path):
    lora = get_peft_model(oracles.tiny_clip(dtype=torch.float32), LoraConfig(target_modules=["q_proj"]))
    assert type(lora) is PeftModel
    lora.save_pretrained(tmp_path)
    assert "jscpt" not in (tmp_path / "README.md").read_text()
