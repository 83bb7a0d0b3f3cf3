"""Suggests settings that lower the memory of a recipe."""

from vaopd.config import RunConfig, TrainingConfig
from vaopd.doctor.estimate import PHASES, Estimate


def remedies(config: RunConfig, result: Estimate, capacity: int) -> list[str]:
    """Return settings that lower the memory of the phases that do not fit, the cheapest first."""
    over = {phase for phase in PHASES if result.total(phase) > capacity}
    own, training = config.student, config.training
    found: list[str] = []
    # Do not suggest settings that the schema does not allow together with sharded weights.
    is_spread = training.parallel == "fsdp2"
    if "train" in over:
        if not own.gradient_checkpointing:
            found.append("student.gradient_checkpointing=true")
        if _budget(training) > 4096:
            found.append(f"training.micro_batch_tokens={_budget(training) // 2}")
        if not own.activation_offload and not is_spread:
            found.append("student.activation_offload=true")
        if not config.teacher.park_hidden:
            found.append("teacher.park_hidden=true")
    if over:
        found += _sampling_remedies(config, result, over)
    if "score" in over:
        found.append(f"teacher.batch_tokens={config.teacher.batch_tokens // 2}")
    if over and not own.has_adapters and not is_spread:
        found += ["training.optimizer=adamw8bit", "student.lora.rank=16"]
    if over and not own.has_adapters:
        found.append("training.parallel=fsdp2 over more devices")
    return found


def _sampling_remedies(config: RunConfig, result: Estimate, over: set[str]) -> list[str]:
    sampling = config.sampling
    if sampling.engine == "transformers":
        return [f"sampling.batch_tokens={sampling.batch_tokens // 2}"] if "sample" in over else []
    if "vLLM" not in result.parts:
        return []
    lower = 'sampling.vllm.arguments=[--gpu-memory-utilization, "0.4"]'
    can_sleep = not sampling.vllm.sleep and not config.training.rollout_lag
    return ["sampling.vllm.sleep=true", lower] if can_sleep else [lower]


def _budget(training: TrainingConfig) -> int:
    return 16384 if training.micro_batch_tokens == "auto" else training.micro_batch_tokens
