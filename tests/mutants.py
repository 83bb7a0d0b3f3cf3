"""Makes plausible slips in a copy of the source and reports which of them the tests notice.

    python tests/mutants.py            all of them; `make mutants` does the same
    python tests/mutants.py WORD ..    those whose name holds one of the words

Each slip is made in a temporary copy of ``src``, and the tests that are nearest to it run against
the copy. The exit code is 0 if some test fails under every slip. The functions are tested by
themselves; most slips are in the wiring between a key of the recipe and the function it is for.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vaopd"

STUDENT = "training/student.py"
STEP = "training/step.py"
PIPELINE = "training/pipeline.py"
VA_OPD = "methods/va_opd.py"
SUPERVISED = "methods/supervised.py"
RUN = "training/run.py"
SETUP = "training/setup.py"
SCHEDULE = "training/schedule.py"
ENCODER = "models/prompt_encoder.py"
VALIDATION = "evaluation/validation.py"
TEACHER = "teacher/local.py"

WIRING = "tests/training/test_wiring.py"


@dataclass(frozen=True)
class Mutant:
    """A slip: ``old``, which is in the file once, becomes ``new``."""

    name: str
    file: str
    """Below ``src/vaopd``."""

    old: str
    new: str
    tests: tuple[str, ...]
    """The nearest ones, as pytest takes them."""


def effect(*keys: str) -> tuple[str, ...]:
    """Return the tests that change these keys of the recipe."""
    test = "tests/test_config_effects.py::test_another_value_of_the_key_is_seen_in_the_run"
    return tuple(f"{test}[{key}]" for key in keys)


def wiring(*names: str) -> tuple[str, ...]:
    """Return tests of the wiring by their names."""
    return tuple(f"{WIRING}::test_{name}" for name in names)


WEIGHTS = wiring("weights_of_a_step_follow_the_keys_of_the_method")
WEIGHT_OPTIONS = ("tests/training/test_weight_options.py",)
ASKED = wiring("rollouts_are_sampled_as_the_recipe_says")

REWARDS = ("tests/training/test_rewards.py",)
POLICY = ("tests/objective/test_policy.py",)

MUTANTS = (
    # Rows that join others, and sums whose order must not depend on threads.
    Mutant(
        "rows that join lie at the first columns",
        "rollouts/cache.py",
        "both[len(first) :, ..., length - second.shape[-2] :, :] = second",
        "both[len(first) :, ..., : second.shape[-2], :] = second",
        ("tests/rollouts/test_refilling.py",),
    ),
    Mutant(
        "rows that join see columns without a token",
        "rollouts/decoding.py",
        "(width - one.mask.shape[1], 0), value=False)",
        "(width - one.mask.shape[1], 0), value=True)",
        ("tests/rollouts/test_refilling.py",),
    ),
    Mutant(
        "rows that begin later take the numbers of the tokens of the others",
        "rollouts/decoding.py",
        "return self.uniforms.gather(1, self.drawn[:, None])[:, 0]",
        "return self.uniforms[:, int(self.counts.max())]",
        ("tests/rollouts/test_refilling.py",),
    ),
    Mutant(
        "gradients of the prompt's last position are added in the order of threads",
        "models/packing.py",
        "return nn.functional.embedding(places.to(model.device), hidden.flatten(0, 1))",
        "return hidden.flatten(0, 1)[places.to(model.device)]",
        ("tests/training/test_thread_order.py",),
    ),
    # Weights for vLLM, and products of bfloat16.
    Mutant(
        "a chunk of weights that overwrites the one before",
        "rollouts/vllm/transfer.py",
        "        used += tensor.nbytes\n",
        "",
        ("tests/rollouts/test_transfer.py::test_every_tensor_arrives_once_and_unchanged",),
    ),
    Mutant(
        "an update of weights that is not finished",
        "rollouts/vllm/transfer.py",
        '            servers.post("finish_weight_update")\n',
        "",
        (
            "tests/rollouts/test_transfer.py::"
            "test_an_update_begins_and_ends_around_its_chunks_and_the_connection_is_made_once",
        ),
    ),
    Mutant(
        "the gradient of a float32 product by absolute weights",
        "models/patches.py",
        "(wide @ weight.float()).to(input.dtype) if needs_input",
        "(wide @ weight.float().abs()).to(input.dtype) if needs_input",
        (
            "tests/models/test_patches.py::test_products_in_float32_and_their_gradients_are_those_of_"
            "float64_but_for_one_rounding",
        ),
    ),
    # Rewards.
    Mutant(
        "deviation of rewards over all siblings and not one fewer",
        "objective/policy.py",
        "(count - 1).clamp(min=1)",
        "count",
        POLICY,
    ),
    Mutant(
        "the better of both policy losses",
        "objective/policy.py",
        "return -torch.minimum(",
        "return -torch.maximum(",
        POLICY,
    ),
    Mutant(
        "the student stays near the masked image",
        "methods/papo.py",
        "loss = loss - options.perception_coefficient * gap",
        "loss = loss + options.perception_coefficient * gap",
        REWARDS,
    ),
    Mutant(
        "the student before training has its adapters",
        "models/adapters.py",
        "layer.enable_adapters(False)",
        "layer.enable_adapters(True)",
        REWARDS,
    ),
    Mutant(
        "wrong responses are rewarded",
        "training/pipeline.py",
        "one is not None and one.is_correct",
        "one is not None and not one.is_correct",
        REWARDS,
    ),
    Mutant(
        "the KL to the teacher of the first problems for all",
        "evaluation/teacher_divergence.py",
        "(prompts[0][part], prompts[1][part]), responses[part]",
        "(prompts[0][:PROBLEMS], prompts[1][:PROBLEMS]), responses[:PROBLEMS]",
        ("tests/evaluation/test_validation.py",),
    ),
    # Faults.
    Mutant(
        "checksums of a checkpoint not compared",
        "training/checkpoint.py",
        "(found := checkpoint_damage(folder))",
        '(found := "")',
        ("tests/training/test_checkpoint.py",),
    ),
    Mutant(
        "checksums of a copy made anew",
        "records.py",
        "if files and not (folder / CHECKSUMS).exists():",
        "if files:",
        ("tests/test_records.py",),
    ),
    Mutant(
        "card with a checksum",
        "records.py",
        "if path.is_file() and path.name != CARD)",
        "if path.is_file())",
        ("tests/hub/test_card.py",),
    ),
    Mutant(
        "card with the evaluations of other weights",
        "hub/results.py",
        'if protocol.get("weights") == origin.weights:',
        "if protocol:",
        ("tests/hub/test_card.py",),
    ),
    Mutant(
        "private push to a public repository",
        "hub/push.py",
        "if target.is_private and not api.model_info(target.name).private:",
        "if not api.model_info(target.name):",
        ("tests/hub/test_push.py",),
    ),
    Mutant(
        "failed push fails the run",
        "training/export.py",
        "except Exception as error:",
        "except ZeroDivisionError as error:",
        ("tests/hub/test_push.py",),
    ),
    Mutant(
        "records: checksums not compared",
        "training/ledger.py",
        "if _digest(content) != digest:",
        "if not content:",
        ("tests/training/test_ledger.py",),
    ),
    Mutant(
        "records: damaged ones dropped before they are found",
        "training/run_folder.py",
        "    check_records(output, step)\n",
        "",
        ("tests/training/test_ledger.py::test_nothing_is_deleted_if_a_record_is_damaged",),
    ),
    Mutant(
        "generation_config.json not checked",
        "models/pretrained.py",
        "    check_generation_settings(source, name)\n    model",
        "    model",
        ("tests/models/test_hostile_models.py::test_a_damaged_generation_config_is_not_ignored",),
    ),
    Mutant(
        "server: token compared by its beginning",
        "teacher/remote/server.py",
        "secrets.compare_digest(given, expected)",
        "expected.startswith(given)",
        ("tests/teacher/test_server.py::test_everything_but_health_asks_for_the_token",),
    ),
    Mutant(
        "server: redirects followed",
        "teacher/remote/pool.py",
        "follow_redirects=False",
        "follow_redirects=True",
        ("tests/teacher/test_hostile_servers.py::test_the_token_does_not_follow_a_redirect",),
    ),
    Mutant(
        "server: certificates not verified",
        "teacher/remote/tls.py",
        "return True",
        "return False",
        ("tests/teacher/test_tls.py::test_a_certificate_of_an_unknown_issuer_is_refused_at_once",),
    ),
    Mutant(
        "server: a busy one is given up after three rounds",
        "teacher/remote/pool.py",
        "time.monotonic() > deadline if busy else state.attempt_number >= most",
        "state.attempt_number >= most",
        (
            "tests/teacher/test_limits.py::test_a_trainer_waits_for_a_busy_server_as_often_as_it_says",
        ),
    ),
    Mutant(
        "lock file not compared with its path",
        "lock.py",
        "if self._is_at_path(file):\n                    self.file = file",
        "self.file = file",
        ("tests/test_folder_lock.py",),
    ),
    Mutant(
        "checkpoints removed after a skipped step",
        RUN,
        "if not result.skipped_in_a_row:",
        "if number:",
        ("tests/training/test_skipping.py",),
    ),
    Mutant(
        "spike without its floor",
        "training/skipping.py",
        "loss > usual + SPIKE_NATS and ",
        "",
        ("tests/training/test_skipping.py",),
    ),
    Mutant(
        "moved folder not noticed",
        "training/tracker.py",
        "if place is None or place != self.place:",
        "if place is None:",
        ("tests/training/test_shortages.py",),
    ),
    # Views.
    Mutant(
        "view.stage swapped",
        ENCODER,
        'if self.view.stage == "native":',
        'if self.view.stage != "native":',
        wiring("the_image_is_degraded_after_the_budget_or_at_its_own_size"),
    ),
    Mutant(
        "view.stage swapped for the small probe",
        ENCODER,
        'native = self.view.stage == "native"',
        'native = self.view.stage != "native"',
        wiring("the_small_probe_is_made_after_the_budget_or_at_the_images_own_size"),
    ),
    Mutant(
        "view.ratio dropped",
        ENCODER,
        "views.degrade(self._fit(image), self.view.name, self.view.ratio)",
        "views.degrade(self._fit(image), self.view.name)",
        effect("view.ratio-0"),
    ),
    Mutant(
        "data.max_prompt_tokens a constant",
        ENCODER,
        "if len(prompt) > self.data.max_prompt_tokens:",
        "if len(prompt) > 8192:",
        effect("data.max_prompt_tokens-0"),
    ),
    # Sampling.
    Mutant(
        "sampling stream without its step",
        PIPELINE,
        'stream=f"train {step}",',
        'stream="train",',
        wiring("every_step_has_sampling_noise_of_its_own"),
    ),
    Mutant(
        "sampling.temperature replaced by 1",
        PIPELINE,
        "temperature=options.temperature,",
        "temperature=1.0,",
        ASKED,
    ),
    Mutant("sampling.top_p replaced by 1", PIPELINE, "top_p=options.top_p,", "top_p=1.0,", ASKED),
    Mutant(
        "sampling.max_new_tokens a constant",
        PIPELINE,
        "max_new_tokens=options.max_new_tokens,",
        "max_new_tokens=16,",
        ASKED,
    ),
    Mutant(
        "sampling.num_rollouts a constant",
        PIPELINE,
        "num_rollouts=options.num_rollouts,",
        "num_rollouts=4,",
        ASKED,
    ),
    Mutant(
        "sampling without training.seed",
        PIPELINE,
        "seed=self.config.training.seed,",
        "seed=42,",
        ASKED,
    ),
    Mutant(
        "sampling.batch_tokens dropped",
        SETUP,
        "TransformersSampler(model, batch_tokens=config.sampling.batch_tokens)",
        "TransformersSampler(model)",
        effect("sampling.batch_tokens-0"),
    ),
    # Weights.
    Mutant("epsilon dropped", VA_OPD, '"epsilon": options.epsilon,', "", WEIGHTS),
    Mutant(
        "rollout_temperature dropped",
        VA_OPD,
        '"temperature": options.rollout_temperature,',
        "",
        WEIGHTS,
    ),
    Mutant(
        "deviation_floor dropped",
        VA_OPD,
        '"deviation_floor": options.deviation_floor,',
        "",
        WEIGHTS,
    ),
    Mutant(
        "no_suppress dropped",
        VA_OPD,
        "token = lift(token, batch.uniform, batch.problem_ids)",
        "pass",
        WEIGHT_OPTIONS,
    ),
    Mutant(
        "siblings not shuffled",
        VA_OPD,
        "return batch.permute(rollout) if options.shuffled else rollout",
        "return rollout",
        WEIGHT_OPTIONS,
    ),
    Mutant(
        "gradient not scaled to the norm of uniform weights",
        STEP,
        "parameter.grad *= wanted_norm / whole(found).clamp(min=1e-30)",
        "pass",
        WEIGHT_OPTIONS,
    ),
    Mutant(
        "minimum_advantage dropped",
        VA_OPD,
        "minimum_advantage=options.minimum_advantage,",
        "",
        WEIGHTS,
    ),
    Mutant("high_mass dropped", VA_OPD, "high_mass=options.high_mass,", "", WEIGHTS),
    Mutant(
        "high_fraction a constant",
        VA_OPD,
        "return batch.top(advantage, options.high_fraction)",
        "return batch.top(advantage, 0.2)",
        WEIGHTS,
    ),
    Mutant(
        "drop_fraction a constant",
        VA_OPD,
        "batch.top(sign * advantage, options.drop_fraction, purpose=",
        "batch.top(sign * advantage, 0.1, purpose=",
        effect("method.drop_fraction-0"),
    ),
    Mutant(
        "ties without the step",
        PIPELINE,
        'seed = f"{self.config.training.seed}\\x00{step}"',
        'seed = f"{self.config.training.seed}"',
        (
            "tests/training/test_step.py::"
            "test_ties_of_a_run_differ_by_seed_step_problem_and_sibling",
        ),
    ),
    # The update.
    Mutant(
        "the learning rate is logged and not set",
        RUN,
        'group["lr"] = rate',
        "pass",
        wiring("the_first_update_is_as_large_as_the_logged_learning_rate"),
    ),
    Mutant(
        "warmup_fraction a constant",
        SCHEDULE,
        "int(training.warmup_fraction * steps)",
        "int(0.05 * steps)",
        effect("training.warmup_fraction-0"),
    ),
    Mutant(
        "final_learning_rate_fraction a constant",
        SCHEDULE,
        "training.learning_rate, training.final_learning_rate_fraction",
        "training.learning_rate, 0.0",
        effect("training.final_learning_rate_fraction-0"),
    ),
    Mutant(
        "weight_decay a constant",
        STUDENT,
        '"weight_decay": training.weight_decay,',
        '"weight_decay": 0.1,',
        ("tests/training/test_run.py::test_the_optimizer_is_adamw_with_the_values_of_the_recipe",),
    ),
    Mutant(
        "betas constants",
        STUDENT,
        '"betas": training.betas,',
        '"betas": (0.9, 0.95),',
        ("tests/training/test_run.py::test_the_optimizer_is_adamw_with_the_values_of_the_recipe",),
    ),
    Mutant(
        "max_gradient_norm a constant",
        STEP,
        "clip_grad_norm_(parameters, self.config.training.max_gradient_norm)",
        "clip_grad_norm_(parameters, 1.0)",
        effect("training.max_gradient_norm-0"),
    ),
    Mutant(
        "label_smoothing dropped",
        SUPERVISED,
        "label_smoothing=self.options.label_smoothing,",
        "",
        wiring("label_smoothing_mixes_the_mean_over_all_ids_into_the_loss"),
    ),
    Mutant(
        "model.train() removed",
        STEP,
        "self.student.model.train()",
        "pass",
        wiring("gradients_are_made_in_training_mode"),
    ),
    Mutant(
        "share_prefix not passed to the student",
        STEP,
        "share_prefix=training.share_prefix,",
        "",
        effect("training.share_prefix-1"),
    ),
    Mutant(
        "gradient_checkpointing never turned on",
        STUDENT,
        "if config.student.gradient_checkpointing:",
        "if False:",
        effect("student.gradient_checkpointing-0"),
    ),
    Mutant(
        "random weights without training.seed",
        STUDENT,
        "seed=config.training.seed,",
        "",
        effect("training.seed-2"),
    ),
    Mutant(
        "data order without training.seed",
        SCHEDULE,
        'f"vaopd order {training.seed} {epoch}"',
        'f"vaopd order {epoch}"',
        effect("training.seed-0"),
    ),
    # The teacher, validation and what is written.
    Mutant(
        "teacher.batch_tokens a constant",
        TEACHER,
        "batch_tokens=config.teacher.batch_tokens,",
        "batch_tokens=16384,",
        effect("teacher.batch_tokens-0"),
    ),
    Mutant(
        "validation by the temperature of training",
        VALIDATION,
        "temperature=1.0 if is_sampled else options.temperature,",
        "temperature=self.config.sampling.temperature,",
        effect("validation.temperature-0"),
    ),
    Mutant(
        "validation by the seed of training",
        VALIDATION,
        "seed=options.seed,",
        "seed=self.config.training.seed,",
        effect("validation.seed-0"),
    ),
    Mutant(
        "validation with a constant high_fraction",
        VALIDATION,
        "high_fraction=high_fraction(self.config.method),",
        "high_fraction=0.2,",
        effect("method.high_fraction-2"),
    ),
    Mutant(
        "save_dtype dropped",
        RUN,
        "dtype = self.config.training.save_dtype",
        'dtype = "float32"',
        effect("training.save_dtype-0"),
    ),
    Mutant(
        "tolerance of numbers 1e-2",
        "grading/arithmetic.py",
        "Fraction(1, 10**6)",
        "Fraction(1, 10**2)",
        ("tests/grading/test_equality.py::test_unequal_values_are_not_equal",),
    ),
)


def occurrences(mutant: Mutant) -> int:
    """Return how often the text that a slip replaces is in its file; 0 if there is no file."""
    path = PACKAGE / mutant.file
    return path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0


def main(words: Sequence[str]) -> int:
    """Print what became of each slip and return the exit code."""
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    width = max((len(mutant.name) for mutant in chosen), default=0)
    # A test that fails without any slip would notice all of them.
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    if not chosen or run_tests(ROOT / "src", tests) != "survived":
        print("no slip has such a name" if not chosen else "the tests fail without any slip")
        return 1
    verdicts = []
    for mutant in chosen:
        verdicts.append(verdict(mutant))
        print(f"{mutant.name:{width}}  {verdicts[-1]}", flush=True)
    print(f"{verdicts.count('killed')} of {len(verdicts)} killed")
    return int(verdicts.count("killed") < len(verdicts))


def verdict(mutant: Mutant) -> str:
    """Return what the nearest tests make of a slip."""
    count = occurrences(mutant)
    if count != 1:
        return f"its text is {count} times in {mutant.file} and not once: correct the list"
    with tempfile.TemporaryDirectory(prefix="vaopd-mutant-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "vaopd" / mutant.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        return run_tests(source, mutant.tests)


def run_tests(source: Path, tests: Sequence[str]) -> str:
    """Return ``killed`` where a test fails on a source tree and ``survived`` where all pass."""
    environment = {**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode > 1:
        return f"pytest ends with {done.returncode}: {done.stdout.strip()[-300:]}"
    return "killed" if done.returncode else "survived"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
