"""Every command of README and docs: its program takes the arguments."""

from __future__ import annotations

from functools import cache

import pytest
from accelerate.commands.launch import launch_command_parser
from arguments import RecipeParser
from documents import PAGES, PROGRAM, commands
from paths import ROOT, load_recipe

COMMANDS = {" ".join(words): words for page in PAGES for words in commands(page)}
PLACEHOLDERS = {"SEED": "1"}
# What a program does first with its arguments.
FIRST = {
    "train": "run",
    "evaluate": "run",
    "predict": "predict",
    "export": "export",
    "benchmark": "main",
    "group_tasks": "run",
    "reproduce": "run_all",
}


load_once = cache(load_recipe)


class Accepted(BaseException):
    """The arguments were parsed; nothing is run."""


def accepted(*_):
    raise Accepted


def test_all_programs_are_shown():
    shown = {PROGRAM.fullmatch(word)[2] for words in COMMANDS.values() for word in words if PROGRAM.fullmatch(word)}
    assert shown >= {"train", "evaluate", "predict", "export", "benchmark", "prepare_emoji", "app"}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_arguments_are_accepted(command, monkeypatch):
    words = [PLACEHOLDERS.get(word, word) for word in COMMANDS[command]]
    if words[:2] == ["accelerate", "launch"]:
        launched = launch_command_parser().parse_args(words[2:])
        words = [launched.training_script, *launched.training_script_args]
    else:
        words = words[1:]
    folder, name = PROGRAM.fullmatch(words[0]).groups()
    assert (ROOT / words[0]).is_file()
    if folder != "recipes":
        return
    monkeypatch.chdir(ROOT)  # where configuration files are found
    program = load_once(name)
    monkeypatch.setattr(program, FIRST[name], accepted)
    if name in ("train", "evaluate"):
        words.append("--use_cpu")  # bfloat16 asks for a device that knows it
    with pytest.raises(Accepted):
        if name == "benchmark":
            program.main(RecipeParser(program.BenchmarkArguments).parse_dataclasses(words[1:]))
        else:
            program.main(words[1:])
    assert "--output_dir" in words or name != "train"
