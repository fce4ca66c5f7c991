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
    SEAL,
    check_checkpoint,
    clear_remains,
    delete_oldest,
    finish_checkpoint,
    last_valid_checkpoint,
    sealed_configuration,
    staging_directory,
    start_checkpoint,
)

CONFIGURATION = {"optim": "sgd", "tasks": {"photo": ["cat", "dog"]}, "towers": ("text", "vision")}


def write(final: Path, text: str = "content", configuration=CONFIGURATION) -> Path:
    """A checkpoint of three files that begin with `text`."""
    start_checkpoint(final)
    folder = staging_directory(final)
    (folder / "second").mkdir()
    for name in ("adapter.safetensors", "optimizer.pt", "second/adapter.safetensors"):
        (folder / name).write_bytes(f"{text} of {name}".encode() * 20)
    finish_checkpoint(final, configuration)
    return final


def content(checkpoint: Path) -> str:
    """The text of its files, which must be the same."""
    (text,) = {path.read_text().split()[0] for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL}
    return text


def damaged(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(position: int):
    """Flips the lowest bit of one byte."""
    return lambda data: data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def refusal(checkpoint: Path, configuration=CONFIGURATION) -> str:
    with pytest.raises(ValueError) as refused:
        check_checkpoint(checkpoint, configuration)
    return str(refused.value)


def test_a_whole_checkpoint_is_accepted_and_tells_its_configuration(tmp_path):
    checkpoint = write(tmp_path / "checkpoint-2")
    check_checkpoint(checkpoint, CONFIGURATION)
    check_checkpoint(checkpoint, {})
    assert sealed_configuration(checkpoint) == json.loads(json.dumps(CONFIGURATION))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    (checkpoint / "notes.txt").write_text("a user's own file")
    check_checkpoint(checkpoint, CONFIGURATION)


class TestDamage:
    @pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.pt", "second/adapter.safetensors"])
    def test_of_any_file(self, tmp_path, name):
        checkpoint = write(tmp_path / "checkpoint-2")
        path = checkpoint / name
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(flip(position)(whole))
            assert refusal(checkpoint) == f"its file {name} is not what was written (its digest differs)"
        for shorter in (0, 1, len(whole) - 1):
            path.write_bytes(whole[:shorter])
            assert refusal(checkpoint) == f"its file {name} has {shorter} bytes instead of {len(whole)}"
        path.write_bytes(whole + b"x")
        assert refusal(checkpoint) == f"its file {name} has {len(whole) + 1} bytes instead of {len(whole)}"
        path.unlink()
        assert refusal(checkpoint) == f"its file {name} is missing"

    def test_no_seal(self, tmp_path):
        checkpoint = write(tmp_path / "checkpoint-2")
        (checkpoint / SEAL).unlink()
        assert refusal(checkpoint) == f"it has no {SEAL}, so it was not written to its end"
        assert refusal(tmp_path / "checkpoint-3") == "there is no such directory"

    def test_of_any_bit_of_the_seal(self, tmp_path):
        """It is refused, or the bit says nothing of the files: never another error, never a file that goes unread."""
        checkpoint = write(tmp_path / "checkpoint-2")
        whole = (checkpoint / SEAL).read_bytes()
        files = json.loads(whole)["files"]
        refused = 0
        for position in range(len(whole)):
            (checkpoint / SEAL).write_bytes(flip(position)(whole))
            try:
                check_checkpoint(checkpoint, CONFIGURATION)
            except ValueError:
                refused += 1
            else:
                assert json.loads((checkpoint / SEAL).read_bytes())["files"] == files
        assert refused > len(whole) / 2

    @pytest.mark.parametrize("length", [0, 1, 40, -3])
    def test_a_truncated_seal(self, tmp_path, length):
        checkpoint = write(tmp_path / "checkpoint-2")
        damaged(checkpoint / SEAL, lambda data: data[:length])
        assert refusal(checkpoint) == f"its {SEAL} is damaged"

    @pytest.mark.parametrize(
        "seal", ["[]", "{}", "null", '{"files": [], "configuration": {}}', '{"files": {"a": 1}, "configuration": {}}']
    )
    def test_a_seal_of_another_form(self, tmp_path, seal):
        checkpoint = write(tmp_path / "checkpoint-2")
        (checkpoint / SEAL).write_text(seal)
        assert refusal(checkpoint) == f"its {SEAL} is damaged"

    def test_a_file_that_the_disk_does_not_give_back(self, tmp_path, monkeypatch):
        old, new = write(tmp_path / "checkpoint-2"), write(tmp_path / "checkpoint-4")
        original = io.open

        def broken(path, *args, **kwargs):
            if Path(path) == new / "optimizer.pt":
                raise OSError(errno.EIO, "Input/output error")
            return original(path, *args, **kwargs)

        monkeypatch.setattr(io, "open", broken)
        found, refused = last_valid_checkpoint(tmp_path, CONFIGURATION)
        assert found == old
        assert "its file optimizer.pt cannot be read ([Errno 5] Input/output error)" in refused[new]


class TestConfiguration:
    def test_another_value_is_named(self, tmp_path):
        checkpoint = write(tmp_path / "checkpoint-2")
        message = refusal(checkpoint, {**CONFIGURATION, "optim": "adamw_torch"})
        assert message == 'it was made with `optim` = "sgd", this run has "adamw_torch"'
        message = refusal(checkpoint, {**CONFIGURATION, "tasks": {"photo": ["dog", "cat"]}})
        assert message.startswith("it was made with `tasks` = ")

    def test_an_entry_that_the_checkpoint_does_not_know(self, tmp_path):
        checkpoint = write(tmp_path / "checkpoint-2")
        assert refusal(checkpoint, {**CONFIGURATION, "new": 1}) == "it was made with `new` = null, this run has 1"

    def test_long_values_are_shortened(self, tmp_path):
        checkpoint = write(tmp_path / "checkpoint-2", configuration={"tasks": ["a class of many"] * 100})
        assert len(refusal(checkpoint, {"tasks": ["a class of many"] * 101})) < 300


class TestLastValid:
    def test_newest_by_number(self, tmp_path):
        for step in (10, 9, 100):
            write(tmp_path / f"checkpoint-{step}")
        assert last_valid_checkpoint(tmp_path, CONFIGURATION) == (tmp_path / "checkpoint-100", {})

    def test_newer_ones_are_passed_over_with_their_reasons(self, tmp_path):
        for step in (1, 2, 3, 4):
            write(tmp_path / f"checkpoint-{step}")
        damaged(tmp_path / "checkpoint-4" / "optimizer.pt", flip(5))
        (tmp_path / "checkpoint-3" / SEAL).unlink()
        found, refused = last_valid_checkpoint(tmp_path, CONFIGURATION)
        assert found == tmp_path / "checkpoint-2"
        assert {path.name: reason.split(" ")[2] for path, reason in refused.items()} == {
            "checkpoint-4": "optimizer.pt",
            "checkpoint-3": "no",
        }

    def test_none(self, tmp_path):
        assert last_valid_checkpoint(tmp_path / "nowhere", CONFIGURATION) == (None, {})
        assert last_valid_checkpoint(tmp_path, CONFIGURATION) == (None, {})
        other = write(tmp_path / "checkpoint-2", configuration={"optim": "adafactor"})
        found, refused = last_valid_checkpoint(tmp_path, CONFIGURATION)
        assert found is None and list(refused) == [other]

    def test_what_is_no_checkpoint_is_not_looked_at(self, tmp_path):
        whole = write(tmp_path / "checkpoint-2")
        (tmp_path / "checkpoint-7").write_text("a file")
        for name in ("checkpoint-8-good", "checkpoint-best", "my-checkpoint-9"):
            (tmp_path / name).mkdir()
        assert last_valid_checkpoint(tmp_path, CONFIGURATION) == (whole, {})


class Killed(BaseException):
    """The process is gone: nothing of it catches this."""


CALLS = ((os, ("mkdir", "rename", "unlink", "rmdir", "fsync", "open")), (io, ("open",)))


def kill_before(monkeypatch, number: int, error: BaseException) -> list[str]:
    """Whatever is asked of the file system next, the call with this number raises instead; lists the calls."""
    calls: list[str] = []

    def counted(name, original):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == number + 1:
                raise error
            return original(*args, **kwargs)

        return call

    for module, names in CALLS:
        for name in names:
            monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return calls


def dies(monkeypatch, number: int, error: BaseException, action, *arguments) -> bool:
    """Lets `action` die in its call with this number; whether there is one."""
    with monkeypatch.context() as context, suppress(Killed, OSError):
        calls = kill_before(context, number, error)
        action(*arguments)
    return len(calls) > number


class TestKilledWhileSaving:
    """At every call to the file system in turn, with a checkpoint before, which is of the same step or an older one.

    `OSError` is what a broken disk makes of the same calls.
    """

    @pytest.mark.parametrize(
        "error", [Killed(), OSError(errno.ENOSPC, "No space left on device")], ids=["kill", "disk"]
    )
    @pytest.mark.parametrize("before", ["checkpoint-4", "checkpoint-2"])
    def test_one_whole_checkpoint_stays(self, tmp_path, monkeypatch, before, error):
        found = []
        for number in range(1000):
            run = tmp_path / str(number)
            old, final = write(run / before, "old"), run / "checkpoint-4"
            died = dies(monkeypatch, number, error, write, final, "new")
            clear_remains(run)
            assert [path for path in run.iterdir() if path.name.startswith(".")] == []
            checkpoint, refused = last_valid_checkpoint(run, CONFIGURATION)
            assert refused == {}
            found.append(content(checkpoint))
            assert old.exists()
            write(final, "again")
            assert content(last_valid_checkpoint(run, CONFIGURATION)[0]) == "again"
            if not died:
                break
        assert len(found) > 15
        assert found == sorted(found, reverse=True) and set(found) == {"old", "new"}  # all old, then all new

    def test_and_again_while_clearing_up(self, tmp_path, monkeypatch):
        twice = 0
        for number in range(1000):
            died = True
            for second in range(1000):
                run = tmp_path / f"{number}-{second}"
                write(run / "checkpoint-4", "old")
                died = dies(monkeypatch, number, Killed(), write, run / "checkpoint-4", "new")
                died_again = dies(monkeypatch, second, Killed(), clear_remains, run)
                twice += died_again
                clear_remains(run)
                checkpoint, refused = last_valid_checkpoint(run, CONFIGURATION)
                assert refused == {} and content(checkpoint) in ("old", "new")
                assert [path.name for path in run.iterdir()] == ["checkpoint-4"]
                if not died_again:
                    break
            if not died:
                break
        assert twice > 20

    def test_everything_is_on_disk_before_it_gets_its_name(self, tmp_path, monkeypatch):
        flushed, missing = set(), []
        fsync, rename = os.fsync, os.rename

        def noted(descriptor):
            flushed.add(os.fstat(descriptor).st_ino)
            fsync(descriptor)

        def looked_at(source, target):
            if Path(target).name == "checkpoint-2":
                paths = [path for path in Path(source).rglob("*") if path.is_file()]
                missing.extend(path for path in [*paths, Path(source)] if path.stat().st_ino not in flushed)
                assert len(paths) == 4
            rename(source, target)

        monkeypatch.setattr(os, "fsync", noted)
        monkeypatch.setattr(os, "rename", looked_at)
        write(tmp_path / "checkpoint-2")
        assert missing == []
        assert tmp_path.stat().st_ino in flushed

    def test_an_old_checkpoint_that_was_put_aside_comes_back_although_the_disk_does_not_let_go(
        self, tmp_path, monkeypatch
    ):
        old = write(tmp_path / "checkpoint-4", "old")
        old.rename(tmp_path / ".replaced-checkpoint-4")
        (tmp_path / ".incomplete-checkpoint-4").mkdir()

        def refuse(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as context:
            context.setattr(os, "rmdir", refuse)
            clear_remains(tmp_path)
        assert content(last_valid_checkpoint(tmp_path, CONFIGURATION)[0]) == "old"


class TestDeleteOldest:
    @pytest.fixture
    def run(self, tmp_path):
        for step in (2, 4, 10):
            write(tmp_path / f"checkpoint-{step}")
        return tmp_path

    def left(self, run):
        return sorted(path.name for path in run.iterdir())

    @pytest.mark.parametrize("limit", [None, 0, 3, 9])
    def test_nothing_is_over_the_limit(self, run, limit):
        delete_oldest(run, limit, set())
        assert self.left(run) == ["checkpoint-10", "checkpoint-2", "checkpoint-4"]

    def test_the_newest_stay(self, run):
        delete_oldest(run, 2, {run / "checkpoint-10"})
        assert self.left(run) == ["checkpoint-10", "checkpoint-4"]
        delete_oldest(run, 1, {run / "checkpoint-10"})
        assert self.left(run) == ["checkpoint-10"]

    def test_what_must_be_kept_stays(self, run):
        delete_oldest(run, 2, {run / "checkpoint-10", run / "checkpoint-2"})
        assert self.left(run) == ["checkpoint-10", "checkpoint-2"]
        delete_oldest(run, 1, {run / "checkpoint-10", run / "checkpoint-2"})
        assert self.left(run) == ["checkpoint-10", "checkpoint-2"]

    def test_a_newer_one_that_is_damaged_goes_before_valid_ones(self, run):
        damaged(run / "checkpoint-10" / "optimizer.pt", flip(3))
        delete_oldest(run, 2, {run / "checkpoint-4"})
        assert self.left(run) == ["checkpoint-2", "checkpoint-4"]

    def test_a_copy_under_another_name_is_not_touched(self, run):
        (run / "checkpoint-1-good").mkdir()
        delete_oldest(run, 1, {run / "checkpoint-10"})
        assert self.left(run) == ["checkpoint-1-good", "checkpoint-10"]
