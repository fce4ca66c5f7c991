"""A `Trainer` that publishes an adapter with a whole card, and loses nothing where that fails."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from jscpt_peft.serving.card import adapter_card, write_card

from .checkpoint import ABANDONED, INCOMPLETE, REPLACED, SPOILED
from .distributed import by_first_process
from .resumable import ResumableTrainer
from .run_record import settings, training_record
from .step_log import HISTORY_FILE

logger = logging.get_logger(__name__)

# Checkpoints, whole or not, hold optimizer states; training_args.bin is a pickle, which nobody should have to trust.
# Checkpoints that a strategy publishes keep theirs: the seal names it, and no run goes on from one that is not whole.
UNPUBLISHED = [f"{prefix}*" for prefix in ("_", f"{PREFIX_CHECKPOINT_DIR}-", INCOMPLETE, REPLACED, SPOILED, ABANDONED)]
UNPUBLISHED += [TRAINING_ARGS_NAME, f"{Path(HISTORY_FILE).stem}.damaged*"]
CHECKPOINT_STRATEGIES = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


class PublishingTrainer(ResumableTrainer):
    """Writes the whole card of an adapter into `output_dir`, and uploads both.

    The card has the training configuration and the accuracies of the last evaluation of the weights that are saved;
    where `recipes/train.py` has left its results of that evaluation, also their table and the pictures. A card that
    somebody has edited stays.

    With `push_to_hub=True` a repository that cannot be reached or written ends the run before it starts; a push that
    fails later ends it after everything is on disk, and one during training is announced, no more.
    """

    task_names: list[str]
    # Step whose weights were loaded at the end of training, if any, and the length of the log then.
    best_loaded: tuple[int, int] | None = None

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        self.best_loaded = None
        return super().train(*args, **kwargs)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if Path(self.state.best_model_checkpoint, SAFETENSORS_WEIGHTS_NAME).exists():  # else `Trainer` has warned
            self.best_loaded = self.state.best_global_step, len(self.state.log_history)

    def _evaluations(self) -> tuple[int, list[Mapping[str, Any]]]:
        """The step that the weights are of, and what of the log is of these weights."""
        step, since = self.best_loaded or (self.state.global_step, len(self.state.log_history))
        log = self.state.log_history
        return step, [logs for logs in log[:since] if logs.get("step") == step] + log[since:]

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
        steps, evaluations = self._evaluations()
        fixed, reproducing = self.fixed_configuration(), self.reproducing_configuration()
        configuration = settings(self.model.active_jscpt_config, fixed, reproducing)
        card = adapter_card(
            self.accelerator.unwrap_model(self.model),
            name=self.hub_model_id,
            title=model_name,
            run=training_record(self.args, self.state.log_history, steps, evaluations, configuration, self.task_names),
            license=license,
            tags=[tags] if isinstance(tags, str) else tags,
            **({"language": language} if language else {}),
        )
        if not write_card(card, self.args.output_dir):
            logger.warning(f"{self.args.output_dir}/README.md has been edited and is left as it is.")

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, if need be.

        Raises:
            OSError: the Hub cannot be reached, or refuses.
        """
        by_first_process(lambda: self._init_hf_repo(token, private))

    def _init_hf_repo(self, token: str | None, private: bool | None) -> None:
        remedy = "Log in with `hf auth login` or give `hub_token`; or leave out `push_to_hub` and publish later."
        with _hub_errors(f"`hub_model_id` {self._repository()!r} cannot be used", remedy):
            super().init_hf_repo(token=token, private=private)

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
                    super(PublishingTrainer, self).init_hf_repo(token=token, private=private)
                self.create_model_card(**card)
                commit = self._upload(commit_message, blocking, token, revision)

        by_first_process(publish)
        return commit

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Uploads what `hub_strategy` asks for, in the background; what goes wrong is logged.

        Where the upload before is not done yet, `every_save` leaves this one out; with `hub_always_push` it waits, as
        the strategies do that upload checkpoints.
        """
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and self.args.hub_strategy == HubStrategy.EVERY_SAVE and not self.args.hub_always_push:
            return
        self._finish_current_push()  # what it uploads must not change, and may be deleted after this checkpoint
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        output, checkpoint = Path(self.args.output_dir), Path(checkpoint_folder)
        message = f"Training in progress, step {self.state.global_step}"
        try:
            for path in (*checkpoint.rglob(CONFIG_NAME), *checkpoint.rglob(SAFETENSORS_WEIGHTS_NAME)):
                copy = output / path.relative_to(checkpoint)
                copy.parent.mkdir(exist_ok=True)
                shutil.copy(path, copy)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output)
            self.create_model_card()
        except Exception as error:  # of the disk or of the card: training goes on
            logger.error(f"Step {self.state.global_step} is not pushed to the Hub: {_one_line(error)}.")
            return
        jobs = [self._upload(message, blocking=False, ignored=[*UNPUBLISHED, HISTORY_FILE])]  # which grows meanwhile
        if self.args.hub_strategy in CHECKPOINT_STRATEGIES:
            last = self.args.hub_strategy == HubStrategy.CHECKPOINT
            jobs.append(
                hf_api().upload_folder(
                    repo_id=self.hub_model_id,
                    folder_path=checkpoint,
                    path_in_repo="last-checkpoint" if last else checkpoint.name,
                    commit_message=f"{message}, checkpoint",
                    token=self.args.hub_token,
                    run_as_future=True,
                    revision=self.args.hub_revision,
                )
            )
        for job in jobs:
            job.add_done_callback(_log_failure)
        self.push_in_progress = PushInProgress(jobs)

    def _upload(
        self,
        message: str | None,
        blocking: bool,
        token: str | None = None,
        revision: str | None = None,
        ignored: Sequence[str] = UNPUBLISHED,
    ) -> CommitInfo | Future:
        return hf_api().upload_folder(
            repo_id=self.hub_model_id,
            folder_path=self.args.output_dir,
            commit_message=message,
            token=token or self.args.hub_token,
            run_as_future=not blocking,
            ignore_patterns=list(ignored),
            revision=revision or self.args.hub_revision,
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        token, self.args.hub_token = self.args.hub_token, None  # `Trainer` pickles its arguments: not with a secret
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if output_dir is None or Path(output_dir).resolve() == Path(self.args.output_dir).resolve():
            try:
                self.create_model_card()
            except Exception as error:  # whatever it is: the adapter is saved, and what follows needs no card
                logger.warning(f"The card in {self.args.output_dir} was not written: {_one_line(error)}.")

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
