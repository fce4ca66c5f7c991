"""Every switch for research is reached from the command line and from a file."""

from __future__ import annotations

import sys

import pytest
import train
import yaml
from arguments import ModelArguments, parse
from task_data import DataArguments

from jscpt_peft.scheduling import AGGREGATORS
from jscpt_peft.training import JSCPTTrainingArguments

SWITCHES = {
    "prompt_scheduling": [False, True],
    "task_scheduling": [False, True],
    "weight_normalization": ["none", "sum"],
    "causal_effect": ["sigmoid", "literal"],
    "reference": ["complement", "original"],
    "affinity": ["cosine", "unclipped", "clipped"],
    "affinity_direction": ["outgoing", "incoming"],
    "learn_masks": [False, True],
    "learn_scheduler": [False, True],
    "gradient_aggregator": [*AGGREGATORS],
    "cagrad_c": [0.3],
    "fairgrad_alpha": [2.0],
    "krum_byzantine": [1],
    "krum_selected": [2],
}
EVERY = [(name, value) for name, values in SWITCHES.items() for value in values]


def parsed(*arguments):
    _, model, training = parse((DataArguments, ModelArguments, JSCPTTrainingArguments), "", list(arguments))
    return {**vars(training), **vars(model)}


def fails(capsys, *arguments):
    """The message with which the command ends."""
    with pytest.raises(SystemExit) as stop:
        train.main([*arguments])
    assert stop.value.code not in (0, None)
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


@pytest.mark.parametrize(("name", "value"), EVERY)
def test_from_the_command_line_and_from_a_file(tmp_path, name, value):
    assert parsed("--output_dir", "x", f"--{name}", str(value))[name] == value
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({name: value, "output_dir": "x"}))
    assert parsed(str(config))[name] == value


@pytest.mark.parametrize("name", [name for name, values in SWITCHES.items() if values == [False, True]])
def test_no_switches_off(name):
    assert parsed("--output_dir", "x")[name] is True
    assert parsed("--output_dir", "x", f"--no_{name}")[name] is False


def test_together():
    values = parsed("--output_dir", "x", "--gradient_aggregator", "cagrad", "--cagrad_c", "0.3")
    assert (values["gradient_aggregator"], values["cagrad_c"]) == ("cagrad", 0.3)
    values = parsed("--output_dir", "x")
    assert (values["gradient_aggregator"], values["cagrad_c"]) == (None, 0.5)


def test_help_shows_them(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert [name for name in SWITCHES if f"--{name} " not in text] == []
    assert ", ".join(AGGREGATORS) in text and "jscpt-peft[aggregators]" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gradient_aggregator", "cagradd"], "got 'cagradd'. Did you mean 'cagrad'?"),
        (["--gradient_agregator", "cagrad"], "argument '--gradient_agregator'. Did you mean 'gradient_aggregator'?"),
        (["--affinity", "cosin"], "got 'cosin'. Did you mean 'cosine'?"),
        (["--gradient_aggregator", "mgda", "--no_task_scheduling"], "`task_scheduling=False` switches off"),
    ],
)
def test_a_typo_or_contradiction_is_answered(capsys, tmp_path, arguments, message):
    assert message in fails(capsys, "--output_dir", str(tmp_path / "x"), *arguments)


def test_a_missing_package_is_named_with_the_remedy(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    quick = ["--task_set", "shapes", "--shots", "1", "--use_cpu", "--num_shared_tokens", "1", "--num_task_tokens", "1"]
    message = fails(capsys, *quick, "--output_dir", str(tmp_path / "x"), "--gradient_aggregator", "cagrad")
    assert "`gradient_aggregator='cagrad'` needs" in message and "`pip install 'jscpt-peft[aggregators]'`" in message
