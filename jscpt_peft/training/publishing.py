"""Publishing by `JSCPTTrainer`: an adapter with a whole card, and nothing lost where the Hub fails."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from jscpt_peft.model.adapter_file import DIGEST_FILE
from jscpt_peft.serving.card import adapter_card, write_card

from .checkpoint import SET_ASIDE, UNFINISHED
from .distributed import by_first_process
from .run_record import settings, training_record
from .step_log import HISTORY_FILE

logger = logging.get_logger(__name__)

# Checkpoints, whole or not, hold optimizer states; training_args.bin is a pickle, which nobody should have to trust.
# Checkpoints that a strategy publishes keep theirs: no run goes on from one that is not whole.
UNPUBLISHED = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*", f"{UNFINISHED}*", f"{SET_ASIDE}/*", TRAINING_ARGS_NAME]
CHECKPOINT_STRATEGIES = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


class Publishing(Trainer):
    """Writes the whole card of an adapter into `output_dir`, and uploads both.

    The card has the training configuration and the accuracies of the last evaluation of the weights that are saved;
    where `recipes/train.py` has left its results of that evaluation, also their table and the figures. A card that
    somebody has edited stays.

    With `push_to_hub=True` a repository that cannot be reached or written ends the run before it starts; a push that
    fails later ends it after everything is on disk, and one during training is announced, no more.
    """

    task_names: list[str]
    adapter_name: str
    loaded_step: int | None
    logged_before_loading: int

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | Sequence[str] = (),
        model_name: str | None = None,
    ) -> None:
        """Writes README.md into `output_dir`.

        Args:
            language: of the class names, as the Hub abbreviates it.
            license: of the adapter; default: not stated.
            tags: further ones.
            model_name: title; default: the Hub id, if there is one.
        """
        if not self.is_world_process_zero():
            return
        log = self.state.log_history
        step, since = self.loaded_step, self.logged_before_loading
        if step is None:
            step, since = self.state.global_step, len(log)
        of_these_weights = [logs for logs in log[:since] if logs.get("step") == step] + log[since:]
        configuration = settings(
            self.model.active_jscpt_config, self.fixed_configuration(), self.reproducing_configuration()
        )
        card = adapter_card(
            self.accelerator.unwrap_model(self.model),
            name=self.hub_model_id,
            title=model_name,
            run=training_record(self.args, log, step, of_these_weights, configuration, self.task_names),
            license=license,
            adapter=self.adapter_name,
            tags=[tags] if isinstance(tags, str) else tags,
            **({"language": language} if language else {}),
        )
        if not write_card(card, self.args.output_dir):
            logger.warning(f"{self.args.output_dir}/README.md has been edited and is left as it is.")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As `Trainer.save_model`, with the card where it is the run's own folder that is written to."""
        super().save_model(output_dir, _internal_call=True)
        if output_dir is None or Path(output_dir).resolve() == Path(self.args.output_dir).resolve():
            try:
                self.create_model_card()
            except Exception as error:  # whatever it is: the adapter is saved, and what follows needs no card
                logger.warning(f"The card in {self.args.output_dir} was not written: {_one_line(error)}.")
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:  # noqa: ARG002 (Trainer's form)
        """As `Trainer`'s, of the adapter that is trained alone, and without the token of the Hub."""
        if not self.args.should_save:
            return
        folder = output_dir or self.args.output_dir
        self.model.save_pretrained(folder, selected_adapters=[self.adapter_name])
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        args = copy(self.args)
        args.hub_token = None
        try:
            torch.save(args, Path(folder, TRAINING_ARGS_NAME))
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(
                f"{folder}/{TRAINING_ARGS_NAME} could not be written ({_one_line(error)}): the adapter beside it is "
                "whole. Make room on the disk and save again."
            ) from error

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, if need be.

        Raises:
            OSError: the Hub cannot be reached, or refuses.
        """
        remedy = "Log in with `hf auth login` or give `hub_token`; or leave out `push_to_hub` and publish later."

        def init() -> None:
            with _hub_errors(f"`hub_model_id` {self._repository()!r} cannot be used", remedy):
                super(Publishing, self).init_hf_repo(token=token, private=private)

        by_first_process(init)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> CommitInfo | Future | None:
        """Saves the adapter and its card in `output_dir` and uploads it, without checkpoints.

        Args:
            commit_message, blocking, token, revision, private: as `Trainer`'s.
            card: arguments of `create_model_card`.

        Returns:
            The commit, or with `blocking=False` the future of it; `None` in all processes but the first.

        Raises:
            OSError: the push failed; the adapter is saved, and the message says how to push it later.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()  # what it uploads must not change
        self.save_model(_internal_call=True)
        commit = None

        def publish() -> None:
            nonlocal commit
            remedy = self._how_to_push_later(revision, private)
            with _hub_errors(f"{self._repository()!r} could not be pushed to the Hub", remedy):
                if self.hub_model_id is None:
                    super(Publishing, self).init_hf_repo(token=token, private=private)
                self.create_model_card(**card)
                commit = self._upload(commit_message, blocking, token, revision)

        by_first_process(publish)
        return commit

    def checkpoint_saved(self, checkpoint: Path) -> None:
        """Uploads what `hub_strategy` asks for, in the background; what goes wrong is logged.

        While an upload is not done, `every_save` leaves out the next one, unless `hub_always_push` lets it wait.
        """
        strategy = self.args.hub_strategy if self.args.push_to_hub else HubStrategy.END
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and strategy == HubStrategy.EVERY_SAVE and not self.args.hub_always_push:
            return
        self._finish_current_push()  # what it uploads must not change
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        output, message = Path(self.args.output_dir), f"Training in progress, step {self.state.global_step}"
        try:
            parts = CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, DIGEST_FILE
            for path in (path for part in parts for path in checkpoint.rglob(part)):
                copy = output / path.relative_to(checkpoint)
                copy.parent.mkdir(exist_ok=True)
                shutil.copy(path, copy)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output)
            self.create_model_card()
        except Exception as error:  # of the disk or of the card: training goes on
            logger.error(f"Step {self.state.global_step} is not pushed to the Hub: {_one_line(error)}.")
            return
        # The history is left out: it grows meanwhile.
        jobs = [self._upload(message, blocking=False, ignore_patterns=[*UNPUBLISHED, HISTORY_FILE])]
        if strategy in CHECKPOINT_STRATEGIES:
            place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else checkpoint.name
            about = {"folder_path": checkpoint, "path_in_repo": place, "ignore_patterns": None}
            jobs.append(self._upload(f"{message}, checkpoint", blocking=False, **about))
        for job in jobs:
            job.add_done_callback(_log_failure)
        self.push_in_progress = PushInProgress(jobs)

    def _upload(
        self,
        message: str | None,
        blocking: bool,
        token: str | None = None,
        revision: str | None = None,
        **options: Any,
    ) -> CommitInfo | Future:
        defaults = {"folder_path": self.args.output_dir, "ignore_patterns": UNPUBLISHED}
        return hf_api().upload_folder(
            repo_id=self.hub_model_id,
            commit_message=message,
            token=token or self.args.hub_token,
            run_as_future=not blocking,
            revision=revision or self.args.hub_revision,
            **{**defaults, **options},
        )

    def _repository(self) -> str:
        return self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).absolute().name

    def _how_to_push_later(self, revision: str | None, private: bool | None) -> str:
        excluded = [word for pattern in UNPUBLISHED for word in ("--exclude", pattern)]
        command = ["hf", "upload", self._repository(), str(self.args.output_dir), ".", *excluded]
        if self.args.hub_private_repo if private is None else private:
            command.append("--private")  # or else it would make a public repository
        revision = revision or self.args.hub_revision
        if revision:
            command += ["--revision", revision]
        return f"Nothing is lost, all is in {self.args.output_dir}. Push it later with: {shlex.join(command)}"


@contextmanager
def _hub_errors(what: str, remedy: str) -> Iterator[None]:
    """Any error of the Hub's client as an `OSError` of one line.

    They have no common base: the Hub's answers, the network's failures and refused cards are of three families.
    """
    try:
        yield
    except Exception as error:
        raise OSError(f"{what}: {_one_line(error)}. {remedy}") from error


def _log_failure(job: Future) -> None:
    if not job.cancelled() and job.exception() is not None:
        logger.error(f"A push to the Hub failed; training goes on. {_one_line(job.exception())}")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
