"""Trains a student from recipe to summary: models, data, steps, validations, checkpoints."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vaopd.config import RunConfig, load_config
from vaopd.display import Display
from vaopd.distributed.world import World, processes
from vaopd.errors import ConfigError, told_once
from vaopd.evaluation.validation import ValidationResult, Validator
from vaopd.lock import FolderLock
from vaopd.methods import Method
from vaopd.problems.manifest import MANIFEST, check_unchanged
from vaopd.problems.sources import Source
from vaopd.records import write_json, write_text
from vaopd.training import run_folder
from vaopd.training.best import Best, better, mark_best, restore_best
from vaopd.training.callbacks import Callback
from vaopd.training.checkpoint import (
    checkpoint_path,
    load_checkpoint,
    newest_checkpoint,
    remove_old_checkpoints,
    save_checkpoint,
)
from vaopd.training.data import NOTHING, RunData, read_data
from vaopd.training.export import push_final, unready, write_final
from vaopd.training.extension import extension
from vaopd.training.given import Given, recorded
from vaopd.training.result import RunResult, describe
from vaopd.training.schedule import is_due, learning_rate, problems_of_step, total_steps
from vaopd.training.setup import build_step, check_machine, settle_engine
from vaopd.training.skipping import Skips
from vaopd.training.startup import ValidationTime, check_prompts, encode_first
from vaopd.training.step import Step
from vaopd.training.stopping import StopRequest
from vaopd.training.tracker import Tracker
from vaopd.unread import unread_line


def train(
    config: RunConfig,
    output: str | Path,
    *,
    method: Method[Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
    callbacks: Sequence[Callback] = (),
    data: Mapping[str, Source] = NOTHING,
) -> RunResult:
    """Train a student by the recipe and return the result.

    Under torchrun or a similar launcher, every process calls this and gets the same result.

    Args:
        config: The resolved recipe.
        output: Run folder; created here.
        method: Your own method, used instead of ``config.method``; ``config.yaml`` records the file
            and the name of its class, so that the run can be resumed.
        resume: Continue from the newest checkpoint of an existing run folder.
        overwrite: Replace an old run folder as soon as the new run is ready to begin.
        console: Where progress is shown; the default is standard error.
        callbacks: Called at steps, validations and checkpoints, in the main process.
        data: Problems by ``train`` and ``validation`` (a ``datasets.Dataset`` or a list of
            ``Problem``), used instead of the sources of the recipe.

    Raises:
        ConfigError: ``resume`` and ``overwrite`` are both set, the folder holds the run of
            another recipe, or a tracker is not installed.
        RunFolderError: The folder exists and neither ``resume`` nor ``overwrite`` is set, the
            folder is not a run, or another process writes it.
        VaopdError: Any other problem that the user can correct, in one sentence.
    """
    output, config = Path(output), recorded(config, method, data)
    if resume and overwrite:
        raise ConfigError("--resume keeps the run folder and --overwrite removes it; give only one")
    told_once(lambda: check_machine(config))
    start: run_folder.Start = "resume" if resume else "overwrite" if overwrite else "new"
    place = processes(config.training.parallel, config.training.device)
    shown = console or Console(stderr=True)
    with run_folder.shortage_explained(output), place as world:
        result = _train(config, output, world, start, Given(shown, callbacks, data))
        is_main = world.is_main
    name = config.training.push_to_hub
    if name is not None and is_main and not result.is_stopped:
        # Here no other process waits for the upload.
        push_final(output, name, partial(shown.print, markup=False, highlight=False))
    return result


def _train(
    config: RunConfig, output: Path, world: World, start: run_folder.Start, given: Given
) -> RunResult:
    world.same("options", f"{config.to_yaml()}{start}")
    shown = given.console if world.is_main else Console(quiet=True)
    say = partial(shown.print, markup=False, highlight=False)
    config = settle_engine(config, world, partial(say, soft_wrap=True))
    world.on_main(lambda: run_folder.check_start(config, output, start))
    resume = start == "resume"
    lock = FolderLock(output, say)
    with ExitStack() as resources:
        resources.callback(lock.release)
        if world.on_main(output.is_dir):
            world.on_main(lock.acquire)
        data = read_data(config, world, shown, output if resume else None, given.data)
        run = world.agree_unless_sharded(
            lambda: build_run(config, output, data, shown, world, resources)
        )
        run.tracker.callbacks += given.callbacks
        resources.callback(run.end)
        world.same("problems", json.dumps(run.manifest, indent=1))
        world.share_weights(run.student.model)
        run.prepare(is_new=not resume)
        if not resume:
            world.on_main(lambda: run_folder.claim(output, lock, overwrite=start == "overwrite"))
        return run.execute(resume)


def build_run(
    config: RunConfig,
    output: Path,
    data: RunData,
    console: Console,
    world: World,
    resources: ExitStack,
) -> "Run":
    """Return the run of a recipe; ``resources`` closes the run's teacher and sampler.

    A collective if the models are sharded.

    Raises:
        ConfigError: There are too few problems, or some training problems are also held out.
        ModelError: A model cannot be loaded.
    """
    started, display = time.perf_counter(), Display(console)
    # Report errors in the problems before a model is loaded.
    world.agree_if_sharded(lambda: (data.manifest, total_steps(config.training, len(data.train))))
    step = build_step(config, world, resources, log=output / "vllm.log", say=display.say)
    tracker = world.agree_if_sharded(lambda: Tracker(config, output, step, display.say))
    run = Run(config, output, data, step, tracker, display)
    run.started = started
    return run


class Run:
    """Holds the state of a run: its parts, its problems and its output folder.

    Every process of a run has one. Only the main process writes files and shows progress.
    """

    def __init__(
        self,
        config: RunConfig,
        output: Path,
        data: RunData,
        step: Step,
        tracker: Tracker,
        display: Display,
    ) -> None:
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        self.config = config
        self.output = output
        self.step = step
        self.student, self.teacher, self.world = step.student, step.teacher, step.world
        self.tracker = tracker
        self.display = display
        self._take(data)
        self.is_begun = False
        self.about_prompts: list[str] = []
        self.validator: Validator | None = None
        self.validation_time: ValidationTime | None = None
        self.before: ValidationResult | None = None
        self.after: ValidationResult | None = None
        self.best: Best | None = None

    def _take(self, data: RunData) -> None:
        """Set the problems for training and for validation."""
        self.data, self.problems, self.manifest = data, data.train, data.manifest
        self.steps = total_steps(self.config.training, len(self.problems))

    def prepare(self, is_new: bool) -> None:
        """Check the prompts of a new run and prepare validation, before the folder is created.

        Raises:
            ProblemError: A prompt is too long or cannot be encoded.
            ConfigError: The held-out problems have nothing that a validation can measure.
        """
        if is_new:
            family, console = self.student.family, self.display.console
            check = partial(check_prompts, self.data, family, self.config, console)
            self.about_prompts, bad = self.world.on_main(check)
            if any(bad.values()):
                self.world.agree(lambda: self._take(self.data.without(bad)))
            encoder = self.step.pipeline.encoder
            self.world.on_main(lambda: encode_first(self.data, self.config, encoder))
        self.validator = self.world.agree(self._make_validator)

    def _make_validator(self) -> Validator | None:
        held_out = self.data.held_out
        if not held_out:
            return None
        time = ValidationTime(self.config, len(held_out), self.world.size, self.display.say)
        self.validation_time = time
        sampler = self.step.pipeline.validation_sampler
        return Validator(self.config, held_out, self.teacher, self.world, time.on_token, sampler)

    def execute(self, resume: bool) -> RunResult:
        """Create or reopen the folder, take all remaining steps and write the summary."""
        done = self._reopen() if resume else 0
        self.world.on_main(lambda: self._begin(done))
        has_launcher = self.config.training.parallel != "none"
        with self.display, StopRequest(self.display.say, has_launcher=has_launcher) as stop:
            self._say_what_comes(done)
            if done == 0:
                self.before = self._validate(0)
            done = self._take_steps(done, stop)
            if done < self.steps:
                return self._result(done)
            self._export()
        result, file = self._result(done), self.output / "summary.json"
        self.world.on_main(lambda: write_json(file, self.tracker.summary(result)))
        return result

    def end(self) -> None:
        """Tell the callbacks, also after an error in this process alone."""
        if self.world.is_main and self.is_begun:
            self.tracker.end()

    def _begin(self, done: int) -> None:
        write_text(self.output / "config.yaml", self.config.to_yaml())
        write_json(self.output / MANIFEST, self.manifest)
        if done == 0:
            write_json(self.output / "environment.json", run_folder.environment(self.world))
        self.is_begun = True
        self.tracker.start(done)

    def _result(self, done: int) -> RunResult:
        return RunResult(
            self.output,
            done,
            self.before,
            self.after,
            round(self._seconds(), 1),
            best=self.best,
            skipped_steps=self.step.skips.total,
            is_stopped=done < self.steps,
            skipped_rows=self.data.num_skipped(),
            text_only=self.data.num_text_only(),
        )

    def _take_steps(self, done: int, stop: StopRequest) -> int:
        """Take the steps after ``done`` until the last or a request to stop.

        Returns the number of the last step taken.
        """
        training = self.config.training
        bar = self.display.start("training", self.steps, done)
        coming = problems_of_step(self.problems, done + 1, training) if done < self.steps else []
        is_stopping = self.world.any(stop.is_made)
        while done < self.steps and not is_stopping:
            done = number = done + 1
            problems = coming
            if number < self.steps:
                coming = problems_of_step(self.problems, number + 1, training)
            rate = learning_rate(training, number, self.steps)
            for group in self.step.optimizer.param_groups:
                group["lr"] = rate
            result = self.step.run(problems, number, coming if number < self.steps else ())
            record = partial(self.tracker.step, result, problems, number, rate)
            row = self.world.on_main(record)
            if not result.skipped_in_a_row:
                # Only now: this loss shows that the newest checkpoint can be used.
                self.world.on_main(self._remove_old_checkpoints)
            self.display.step(bar, row, self.steps)
            is_last = number == self.steps
            if is_last or is_due(training.validate_every, number):
                self.after = self._validate(number)
                self.best = better(self.best, number, self.after)
            # Save at every new best, so that the newest checkpoint is never older than the best
            # validation that it records.
            is_best = self.best is not None and self.best.step == number
            # Ask once, so that the same answer decides about saving and about stopping.
            is_stopping = self.world.any(stop.is_made)
            if is_last or is_best or is_stopping or is_due(training.save_every, number):
                self._save(number)
        self.display.finish(bar)
        return done

    def _validate(self, step: int) -> ValidationResult | None:
        validator, validation_time = self.validator, self.validation_time
        if validator is None or validation_time is None:
            return None
        bar = self.display.start("validating", validation_time.responses)
        self.step.pipeline.wait_for_samples()
        # The other processes sample the same number of responses at the same time.
        validation = validator.examine(
            self.student, lambda rows: self.display.advance(bar, rows * self.world.size), step
        )
        self.display.finish(bar)
        # All processes use the main process's numbers: they decide whether a checkpoint is saved.
        result = self.world.on_main(
            lambda: self.tracker.validation(step, validator.problems, validation)
        )
        self.display.say(f"validation at step {step}: {describe(result)}")
        return result

    def _save(self, step: int) -> None:
        state = {
            "step": step,
            "before": asdict(self.before) if self.before else None,
            "after": asdict(self.after) if self.after else None,
            "best": asdict(self.best) if self.best else None,
            "seconds": self._seconds(),
            "micro_batch_tokens": self.step.micro_batch_tokens,
            "skips": asdict(self.step.skips),
            "rollouts_ahead": self.step.pipeline.rollouts_ahead(),
        }
        folder = checkpoint_path(self.output, step)
        save_checkpoint(folder, self.student, self.step.optimizer, state, self.world)
        self.world.on_main(lambda: self._sort_checkpoints(step))

    def _sort_checkpoints(self, step: int) -> None:
        """Mark the best checkpoint; after the last step remove checkpoints that are not kept."""
        if self.best is not None and self.best.step == step:
            mark_best(self.output, self.best)
        self.tracker.checkpoint(step, checkpoint_path(self.output, step))
        if step == self.steps and not self.step.skips.in_a_row:
            self._remove_old_checkpoints()

    def _remove_old_checkpoints(self) -> None:
        training = self.config.training
        remove_old_checkpoints(self.output, training.keep_checkpoints, training.keep_every)

    def _export(self) -> None:
        """Write ``final/``, a Hugging Face model folder with whole weights and a model card."""
        self.display.say("saving the final model")
        dtype = self.config.training.save_dtype
        self.world.on_main(write_final(self.output, self.student, dtype, self.steps))

    def _seconds(self) -> float:
        """Return the seconds that the run took so far, including those before it was resumed."""
        return self.seconds_before + time.perf_counter() - self.started

    def _reopen(self) -> int:
        """Load the newest checkpoint, delete all records of later steps and return its step."""
        self.world.on_main(lambda: check_unchanged(self.output, self.manifest))
        newest = self.world.on_main(lambda: newest_checkpoint(self.output))
        step, best = 0, None
        if newest is not None:
            state = load_checkpoint(newest, self.student, self.step.optimizer, self.world)
            step = state["step"]
            self.seconds_before = state["seconds"]
            if self.config.training.micro_batch_tokens == "auto":
                # Keep the size that fit into memory: exact results depend on the micro-batches.
                self.step.micro_batch_tokens = state["micro_batch_tokens"]
            self.step.skips = Skips(**state.get("skips", {}))
            self.before = ValidationResult(**state["before"]) if state["before"] else None
            self.after = ValidationResult(**state["after"]) if state["after"] else None
            best = state.get("best")
            ahead = state.get("rollouts_ahead")
            if ahead is not None:
                coming = problems_of_step(self.problems, step + 1, self.config.training)
                self.step.pipeline.restore(coming, ahead)
        saved = self.world.on_main(lambda: load_config(self.output / "config.yaml"))
        if said := extension(saved.training, self.config.training, len(self.problems), step):
            self.display.say(said)
        self.best = self.world.on_main(lambda: restore_best(self.output, best))
        # Without a checkpoint the first validation is repeated, so its rows are deleted as well.
        kept = step if newest else -1
        self.world.on_main(lambda: run_folder.forget_after(self.output, kept))
        return step

    def _say_what_comes(self, done: int) -> None:
        about = self.validation_time.describe() if self.validation_time else None
        said = [*self.data.lines(), *self.about_prompts, about, unready(self.config)]
        for line in (self._headline(done), unread_line(self.config), *said):
            if line:
                self.display.say(line)

    def _headline(self, done: int) -> str:
        teacher = f" from {self.teacher.name}" if self.teacher else ""
        resumed = f", resumed after step {done}" if done else ""
        shared = f" in {self.world.size} processes ({self.world.parallel})"
        return (
            f"{self.config.method.name}: {self.student.name}{teacher}, {len(self.problems)} "
            f"problems, {self.steps} steps on {self.student.device}"
            f"{shared if self.world.size > 1 else ''}{resumed}"
        )
