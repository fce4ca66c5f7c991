"""A checkpoint is whole or not there, whatever happens while it is written, and whatever happened to it since."""

from __future__ import annotations

import errno
import io
import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

from jscpt_peft.training.checkpoint import (
    DIGESTS,
    check_checkpoint,
    checkpoints,
    configuration_of,
    delete_oldest,
    finish_checkpoint,
    last_valid_checkpoint,
    recover,
    remove_checkpoints,
    set_aside_after,
    start_checkpoint,
    unfinished,
)

CONFIGURATION = {"optim": "sgd", "tasks": {"photo": ["cat", "dog"]}, "towers": ("text", "vision")}
FILES = ("adapter.safetensors", "optimizer.pt", "second/adapter.safetensors")


def write(final: Path, text: str = "content", configuration=CONFIGURATION) -> Path:
    """A checkpoint of three files that begin with `text`."""
    start_checkpoint(final)
    (unfinished(final) / "second").mkdir()
    for name in FILES:
        (unfinished(final) / name).write_bytes(f"{text} of {name}".encode() * 20)
    finish_checkpoint(final, configuration)
    return final


def content(checkpoint: Path) -> str:
    """The text of its files, which must be the same."""
    (text,) = {(checkpoint / name).read_text().split()[0] for name in FILES}
    return text


def flip(path: Path, position: int) -> None:
    """Flips the lowest bit of one byte."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def refusal(checkpoint: Path, configuration=CONFIGURATION) -> str:
    with pytest.raises(ValueError) as refused:
        check_checkpoint(checkpoint, configuration)
    return str(refused.value)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return write(tmp_path / "checkpoint-2")


def test_a_whole_checkpoint_is_accepted_and_tells_its_configuration(tmp_path, checkpoint):
    check_checkpoint(checkpoint, CONFIGURATION)
    assert configuration_of(checkpoint) == json.loads(json.dumps(CONFIGURATION))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    (checkpoint / "notes.txt").write_text("a user's own file")
    check_checkpoint(checkpoint, CONFIGURATION)


class TestDamage:
    @pytest.mark.parametrize("name", FILES)
    def test_of_any_file(self, checkpoint, name):
        path = checkpoint / name
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, -1):
            path.write_bytes(whole)
            flip(path, position)
            assert refusal(checkpoint) == f"its file {name} is not what was written (its digest differs)"
        for other in (b"", whole[:-1], whole + b"x"):
            path.write_bytes(other)
            assert "is not what was written" in refusal(checkpoint)
        path.unlink()
        assert refusal(checkpoint) == f"its file {name} is missing"

    def test_of_any_bit_of_the_digests(self, checkpoint):
        """It is refused, or the bit says nothing: never another error, and never another content."""
        path = checkpoint / DIGESTS
        whole = path.read_bytes()
        for position in range(len(whole)):
            path.write_bytes(whole)
            flip(path, position)
            try:
                check_checkpoint(checkpoint, {})
            except ValueError as reason:
                assert str(reason) == f"its {DIGESTS} is damaged"
            else:
                assert json.loads(path.read_bytes()) == json.loads(whole)

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"files": {}, "sha256": ""}'])
    def test_digests_of_another_form(self, checkpoint, text):
        (checkpoint / DIGESTS).write_text(text)
        assert refusal(checkpoint) == f"its {DIGESTS} is damaged"

    def test_no_digests(self, checkpoint):
        (checkpoint / DIGESTS).unlink()
        assert refusal(checkpoint) == f"it has no {DIGESTS}, so it was not written to its end"
        assert refusal(checkpoint.with_name("checkpoint-3")) == "there is no such directory"

    def test_a_file_that_the_disk_does_not_give_back(self, tmp_path, checkpoint, monkeypatch):
        new, original = write(tmp_path / "checkpoint-4"), io.open

        def broken(path, *args, **kwargs):
            if Path(path) == new / "optimizer.pt":
                raise OSError(errno.EIO, "Input/output error")
            return original(path, *args, **kwargs)

        monkeypatch.setattr(io, "open", broken)
        found, refused = last_valid_checkpoint(tmp_path, CONFIGURATION)
        assert found == checkpoint
        assert "its file optimizer.pt cannot be read ([Errno 5] Input/output error)" in refused[new]


def test_another_configuration_is_named(tmp_path, checkpoint):
    message = refusal(checkpoint, {**CONFIGURATION, "optim": "adamw_torch"})
    assert message == 'it was made with `optim` = "sgd", this run has "adamw_torch"'
    message = refusal(checkpoint, {**CONFIGURATION, "tasks": {"photo": ["dog", "cat"]}})
    assert message.startswith("it was made with `tasks` = ")
    assert refusal(checkpoint, {**CONFIGURATION, "new": 1}) == "it was made with `new` = null, this run has 1"
    long = write(tmp_path / "checkpoint-4", configuration={"tasks": ["a class of many"] * 100})
    assert len(refusal(long, {"tasks": ["a class of many"] * 101})) < 300


def test_the_last_valid_one_and_why_newer_ones_are_not(tmp_path):
    assert last_valid_checkpoint(tmp_path / "nowhere", CONFIGURATION) == (None, {})
    for step in (9, 10, 100, 101):
        write(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-700").write_text("a file")
    for name in ("checkpoint-800-good", "checkpoint-best", "my-checkpoint-900"):
        (tmp_path / name).mkdir()
    flip(tmp_path / "checkpoint-101" / "optimizer.pt", 5)
    (tmp_path / "checkpoint-100" / DIGESTS).unlink()
    found, refused = last_valid_checkpoint(tmp_path, CONFIGURATION)
    assert found == tmp_path / "checkpoint-10"
    assert [path.name for path in refused] == ["checkpoint-101", "checkpoint-100"]
    assert last_valid_checkpoint(tmp_path, {"optim": "adafactor"})[0] is None


# ---- killed while saving --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing of it catches this."""


CALLS = ((os, ("mkdir", "rename", "unlink", "rmdir", "fsync", "open")), (io, ("open",)))


def dies(monkeypatch, number: int, error: BaseException, action, *arguments) -> bool:
    """Lets `action` die in its call with this number to the file system; whether there is one."""
    calls: list[str] = []

    def counted(name, original):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == number + 1:
                raise error
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as context, suppress(Killed, OSError):
        for module, names in CALLS:
            for name in names:
                context.setattr(module, name, counted(name, getattr(module, name)))
        action(*arguments)
    return len(calls) > number


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["kill", "disk"])
@pytest.mark.parametrize("before", ["checkpoint-4", "checkpoint-2"])
def test_one_whole_checkpoint_stays_at_whatever_call_saving_ends(tmp_path, monkeypatch, before, error):
    """With a checkpoint before, which is of the same step or an older one."""
    found = []
    for number in range(1000):
        run = tmp_path / str(number)
        write(run / before, "old")
        died = dies(monkeypatch, number, error, write, run / "checkpoint-4", "new")
        recover(run)
        assert not any(path.name.startswith(".") for path in run.iterdir())
        checkpoint, refused = last_valid_checkpoint(run, CONFIGURATION)
        assert refused == {}
        found.append(content(checkpoint))
        write(run / "checkpoint-4", "again")
        assert content(last_valid_checkpoint(run, CONFIGURATION)[0]) == "again"
        if not died:
            break
    assert len(found) > 15
    assert found == sorted(found, reverse=True) and set(found) == {"old", "new"}  # all old, then all new


def test_and_again_while_clearing_up(tmp_path, monkeypatch):
    twice, died = 0, True
    for number in range(1000):
        for second in range(1000):
            run = tmp_path / f"{number}-{second}"
            write(run / "checkpoint-4", "old")
            died = dies(monkeypatch, number, Killed(), write, run / "checkpoint-4", "new")
            again = dies(monkeypatch, second, Killed(), recover, run)
            twice += again
            recover(run)
            checkpoint, refused = last_valid_checkpoint(run, CONFIGURATION)
            assert refused == {} and content(checkpoint) in ("old", "new")
            assert [path.name for path in run.iterdir()] == ["checkpoint-4"]
            if not again:
                break
        if not died:
            break
    assert twice > 20


def test_everything_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed, missing = set(), []
    fsync, rename = os.fsync, os.rename

    def noted(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def looked_at(source, target):
        paths = [path for path in Path(source).rglob("*") if path.is_file()]
        missing.extend(path for path in [*paths, Path(source)] if path.stat().st_ino not in flushed)
        assert len(paths) == 4
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(os, "rename", looked_at)
    write(tmp_path / "checkpoint-2")
    assert missing == []
    assert tmp_path.stat().st_ino in flushed


# ---- which ones stay ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, (), (2, 4, 10)),
        (0, (), (2, 4, 10)),
        (2, (10,), (4, 10)),
        (1, (10, 2), (2, 10)),
    ],
)
def test_the_oldest_are_deleted_but_not_what_must_be_kept(tmp_path, limit, keep, left):
    (tmp_path / "checkpoint-1-good").mkdir()
    for step in (2, 4, 10):
        write(tmp_path / f"checkpoint-{step}")
    delete_oldest(tmp_path, limit, {tmp_path / f"checkpoint-{step}" for step in keep})
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == list(left)
    assert (tmp_path / "checkpoint-1-good").exists()


def test_a_newer_one_that_is_damaged_is_deleted_before_valid_ones(tmp_path):
    for step in (2, 4, 10):
        write(tmp_path / f"checkpoint-{step}")
    flip(tmp_path / "checkpoint-10" / "optimizer.pt", 3)
    delete_oldest(tmp_path, 2, {tmp_path / "checkpoint-4"})
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]


def test_later_ones_are_set_aside_and_all_can_be_removed(tmp_path):
    for text in ("old", "new"):
        for step in (2, 4, 10):
            write(tmp_path / f"checkpoint-{step}", text)
        aside = set_aside_after(tmp_path, 2)
        assert aside == checkpoints(tmp_path / "set_aside") and len(aside) == 2
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
        assert {content(path) for path in aside} == {text}
    start_checkpoint(tmp_path / "checkpoint-12")
    remove_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set_aside"]
