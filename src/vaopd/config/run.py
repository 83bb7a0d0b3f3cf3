"""The one schema of a run: strict, with the paper's values as defaults, and its cross-checks."""

import yaml
from pydantic import model_validator

from vaopd.config.base import Section
from vaopd.config.methods import AnyMethodOptions, VaOpdOptions
from vaopd.config.sections import (
    DataConfig,
    SamplingConfig,
    StudentConfig,
    TeacherConfig,
    ValidationConfig,
    ViewConfig,
)
from vaopd.config.tracking import TrackingConfig
from vaopd.config.training import TrainingConfig


class RunConfig(Section):
    """Everything that decides a run."""

    student: StudentConfig
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig
    method: AnyMethodOptions = VaOpdOptions()
    view: ViewConfig = ViewConfig()
    sampling: SamplingConfig = SamplingConfig()
    validation: ValidationConfig = ValidationConfig()
    training: TrainingConfig = TrainingConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check_teacher(self) -> "RunConfig":
        teacher, samples = self.teacher, self.method.needs.responses == "teacher"
        if teacher.addresses and samples:
            raise ValueError(
                "teacher.addresses is set, but method.name=off_policy_kd samples from the teacher, "
                "which a server does not offer; use teacher.addresses=[] or another method"
            )
        if teacher.offload and (teacher.addresses or samples or teacher.quantization != "none"):
            raise ValueError(
                "teacher.offload=true parks a teacher that is loaded here, only scores and is not "
                "quantized; set it to false, or leave teacher.addresses, teacher.quantization and "
                "method.name=off_policy_kd out"
            )
        return self

    @model_validator(mode="after")
    def _check_lag(self) -> "RunConfig":
        needs_server = self.method.needs.views > 0 and bool(self.teacher.addresses)
        is_elsewhere = self.sampling.engine == "vllm" or needs_server
        is_on_policy = self.method.needs.responses == "student"
        if self.training.rollout_lag and not (is_elsewhere and is_on_policy):
            raise ValueError(
                "training.rollout_lag is 1, but no on-policy sampling or scoring of this recipe "
                "runs outside of the training process; set it to 0, or use an on-policy method "
                "with sampling.engine=vllm or teacher.addresses"
            )
        return self

    @model_validator(mode="after")
    def _check_policy_gradient(self) -> "RunConfig":
        sampling, name = self.sampling, getattr(self.method, "name", "")
        if self.method.needs.rewards and sampling.num_rollouts < 2:
            raise ValueError(
                f"sampling.num_rollouts is {sampling.num_rollouts}, but method.name={name} "
                "compares the rewards of siblings; set it to 2 or more"
            )
        if self.method.needs.sampled_logprobs and (sampling.temperature, sampling.top_p) != (1, 1):
            raise ValueError(
                f"sampling.temperature is {sampling.temperature} and sampling.top_p "
                f"{sampling.top_p}, but method.name={name} learns from samples of the student's "
                "own distribution; set both to 1"
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> "RunConfig":
        student, training = self.student, self.training
        needs_whole = {
            "student.quantization": student.quantization != "none",
            "student.activation_offload": student.activation_offload,
            "teacher.quantization": self.teacher.quantization != "none",
            "teacher.offload": self.teacher.offload,
            # Without an image a forward does not enter the vision tower, and the others wait there.
            "data.allow_text_only": self.data.allow_text_only,
            "training.optimizer": training.optimizer != "adamw",
            # A process that begins again alone would enter forwards that the others do not.
            "training.micro_batch_tokens": training.micro_batch_tokens == "auto",
        }
        unfit = ", ".join(key for key, is_set in needs_whole.items() if is_set)
        if training.parallel == "fsdp2" and unfit:
            raise ValueError(
                f"training.parallel is 'fsdp2', which does not go together with {unfit}; leave it "
                "at its default, or use training.parallel=ddp"
            )
        return self

    @model_validator(mode="after")
    def _check_vllm(self) -> "RunConfig":
        vllm, training = self.sampling.vllm, self.training
        if self.sampling.engine == "transformers":
            return self
        if training.rollout_lag and vllm.sleep:
            raise ValueError(
                "training.rollout_lag is 1, but with sampling.vllm.sleep vLLM does nothing while "
                "the student trains; set training.rollout_lag=0, or sampling.vllm.sleep=false"
            )
        return self

    @model_validator(mode="after")
    def _check_pixel_budget(self) -> "RunConfig":
        if self.data.min_pixels > self.data.max_pixels:
            raise ValueError(
                f"data.min_pixels is {self.data.min_pixels}, above data.max_pixels "
                f"{self.data.max_pixels}; lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _check_sharded_teacher(self) -> "RunConfig":
        # Whoever finds an image in its cache would skip forwards that the others wait in.
        if self.training.parallel == "fsdp2" and self.teacher.cache_vision_mb:
            raise ValueError(
                f"teacher.cache_vision_mb is {self.teacher.cache_vision_mb}, which a teacher that "
                "training.parallel=fsdp2 spreads cannot use; set it to 0 or use ddp"
            )
        return self

    @property
    def loads_teacher(self) -> bool:
        """Whether the method or the validation needs a teacher, here or elsewhere."""
        measures = self.data.validation is not None and self.validation.load_teacher
        return self.method.needs.teacher or measures

    @property
    def local_models(self) -> list[str]:
        """Names of the models that compute in the processes of a run."""
        teacher = self.loads_teacher and not self.teacher.addresses
        return [self.student.model, *([self.teacher.model] if teacher else ())]

    def with_engine(self, engine: str) -> "RunConfig":
        """Return the recipe with this ``sampling.engine``."""
        sampling = self.sampling.model_copy(update={"engine": engine})
        return self.model_copy(update={"sampling": sampling})

    def to_yaml(self) -> str:
        """Return the resolved configuration as a recipe that gives the same run."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
