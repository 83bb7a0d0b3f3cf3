import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measured import Peaks, measure, real_config

from vaopd.doctor.architecture import measure as sizes_of
from vaopd.doctor.estimate import PHASES, Estimate, Lengths, estimate
from vaopd.doctor.remedies import remedies
from vaopd.doctor.trace import LiveBytes, by_depth
from vaopd.errors import ConfigError
from vaopd.models.architecture import read_config
from vaopd.records import read_json, write_json

CONFIGS = Path(__file__).parent / "configs"
CUDA = torch.device("cuda")  # a name only: estimates touch no device

SHAPES = {
    "full, many forwards, half precision": (
        "training.problems_per_step=4",
        "sampling.num_rollouts=2",
        "sampling.max_new_tokens=24",
        "training.micro_batch_tokens=300",
        "teacher.batch_tokens=300",
        "student.dtype=bfloat16",
        "teacher.dtype=bfloat16",
    ),
    "lora, recomputed": (
        "training.problems_per_step=3",
        "sampling.num_rollouts=3",
        "sampling.max_new_tokens=20",
        "student.lora.rank=8",
        "student.gradient_checkpointing=true",
    ),
}


@pytest.fixture(scope="module", params=SHAPES)
def peaks(request: pytest.FixtureRequest) -> Peaks:
    return measure(*SHAPES[request.param])


def test_the_estimate_of_each_phase_is_within_30_percent_of_the_measured_peak(peaks: Peaks):
    assert set(peaks.measured) == set(PHASES)
    errors = {phase: peaks.error(phase) for phase in PHASES}
    assert all(abs(error) <= 0.3 for error in errors.values()), errors


def test_live_bytes_counts_what_lives_and_no_views():
    outside = torch.zeros(1000)
    with LiveBytes() as live:
        first = torch.zeros(100)
        assert live.now == 400
        view = first.view(10, 10)
        second = view + 1
        assert live.now == 800
        del second
        assert live.now == 400
        outside.add_(1).view(10, 100)
    assert live.peak == 800


ONE_LAYER = f"student.model={CONFIGS / 'one-layer'}", f"teacher.model={CONFIGS / 'one-layer'}"


@functools.cache
def expected(*overrides: str, processes: int = 1) -> Estimate:
    """Return the estimate of a shallow model, which is quickly traced."""
    config = real_config("training.problems_per_step=4", *ONE_LAYER, *overrides)
    lengths = Lengths(image_pixels=9216, response_tokens=40)
    return estimate(config, CUDA, processes=processes, lengths=lengths)


def test_each_remedy_lowers_what_it_is_for():
    plain = expected()
    for override, phase in (
        ("student.gradient_checkpointing=true", "train"),
        ("student.activation_offload=true", "train"),
        ("training.micro_batch_tokens=400", "train"),
        ("training.optimizer=adamw8bit", "update"),
        ("student.lora.rank=4", "train"),
        ("teacher.park_hidden=true", "score"),
        ("teacher.batch_tokens=400", "score"),
        ("sampling.batch_tokens=400", "sample"),
    ):
        assert expected(override).total(phase) < plain.total(phase), override


def test_adapters_have_no_gradient_of_the_head_and_few_moments():
    plain, lora = expected(), expected("student.lora.rank=4")
    assert lora.parts["gradients"]["train"] < plain.parts["gradients"]["train"] / 10
    assert (
        lora.parts["optimizer moments"]["update"] < plain.parts["optimizer moments"]["update"] / 10
    )


@pytest.mark.parametrize(
    ("name", "total"),
    # Published: 2,127,532,032 and 8,767,123,696 parameters, and 31 billion.
    [
        ("qwen3-vl-2b", 2_127_532_032),
        ("qwen3-vl-8b", 8_767_123_696),
        ("qwen3-vl-30b-a3b", 31_070_754_032),
    ],
)
def test_sizes_come_from_a_configuration_alone(name: str, total: int):
    sizes = sizes_of(read_config(str(CONFIGS / name)))
    assert sizes.total == total
    assert not list((CONFIGS / name).glob("*.safetensors"))


def test_moments_and_weights_of_a_large_student_follow_from_its_parameters(
    monkeypatch: pytest.MonkeyPatch,
):
    # Activations are not asked for here.
    monkeypatch.setattr("vaopd.doctor.estimate.by_depth", lambda config, measure: 0)
    name = str(CONFIGS / "qwen3-vl-2b")
    result = estimate(real_config(f"student.model={name}", f"teacher.model={name}"), CUDA)
    # Float32 masters and two float32 moments; the frozen teacher in bfloat16.
    assert result.parts["student weights"]["train"] == 4 * 2_127_532_032
    assert result.parts["optimizer moments"]["train"] == 8 * 2_127_532_032
    assert result.parts["teacher weights"]["train"] == 2 * 2_127_532_032
    assert result.parts["gradients"] == dict.fromkeys(("train", "update"), 4 * 2_127_532_032)


def test_a_policy_near_its_start_holds_a_copy_of_it_unless_adapters_alone_learn(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("vaopd.doctor.estimate.by_depth", lambda config, measure: 0)
    shape = (
        f"student.model={CONFIGS / 'qwen3-vl-2b'}", "teacher.model=nowhere", "method.name=grpo",
        "sampling.temperature=1", "sampling.top_p=1",
    )  # fmt: skip
    full, lora, free = (
        estimate(real_config(*shape, *more), CUDA).parts
        for more in ((), ("student.lora.rank=4",), ("method.reference_coefficient=0",))
    )
    assert full["reference weights"]["train"] == 2 * 2_127_532_032
    assert "teacher weights" not in full
    assert "reference weights" not in lora | free


def test_the_loss_holds_the_gradient_of_the_head_where_the_head_learns(
    monkeypatch: pytest.MonkeyPatch,
):
    # So much that the loss is a part of it.
    monkeypatch.setattr("vaopd.doctor.estimate.by_depth", lambda config, measure: 2**40)
    name = str(CONFIGS / "qwen3-vl-2b")
    shape = (f"student.model={name}", f"teacher.model={name}")
    full, lora = (
        estimate(real_config(*shape, *more), CUDA).parts["loss chunk"]["train"]
        for more in ((), ("student.lora.rank=4",))
    )
    assert full - lora == 4 * 151_936 * 2_048
    assert lora >= 2**27  # a chunk of logits, three times


def test_deep_models_are_extended_from_shallow_ones_as_a_line():
    config = read_config("tiny:student")
    config.text_config.num_hidden_layers, config.vision_config.depth = 40, 30
    found = by_depth(
        config, lambda c: 7 + 11 * c.text_config.num_hidden_layers + 5 * c.vision_config.depth
    )
    assert found == 7 + 11 * 40 + 5 * 30
    assert config.text_config.num_hidden_layers == 40


def test_each_token_of_a_teacher_with_experts_is_computed_by_few_of_them(tmp_path: Path):
    config = read_json(CONFIGS / "qwen3-vl-30b-a3b" / "config.json")
    config["text_config"]["num_hidden_layers"] = config["vision_config"]["depth"] = 1
    config["vision_config"]["deepstack_visual_indexes"] = [0]
    write_json(tmp_path / "config.json", config)
    found = {}
    for dtype in ("float32", "bfloat16"):
        parts = expected(f"teacher.model={tmp_path}", f"teacher.dtype={dtype}").parts
        found[dtype] = parts["activations"]["score"]
        # All 128 experts of 3 x 2,048 x 768 weights, embeddings and head.
        experts = 128 * 3 * 2048 * 768 + 2 * 151_936 * 2048
        size = getattr(torch, dtype).itemsize
        assert experts < parts["teacher weights"]["score"] / size < 1.1 * experts
    # A copy of the chosen experts for each token would be larger than all experts.
    assert found["float32"] < 4 * 128 * 3 * 2048 * 768 / 2
    assert 0.45 < found["bfloat16"] / found["float32"] < 0.6


def test_several_processes_share_the_problems_of_a_step():
    one, four = expected(), expected(processes=4)
    states = "teacher hidden states"
    assert four.parts[states]["score"] == one.parts[states]["score"] / 4
    assert four.parts["student weights"] == one.parts["student weights"]


def test_a_sharded_teacher_that_writes_the_responses_is_gathered_whole(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("vaopd.doctor.estimate.by_depth", lambda config, measure: 0)
    shape = (
        f"student.model={CONFIGS / 'qwen3-vl-2b'}",
        f"teacher.model={CONFIGS / 'qwen3-vl-8b'}",
        "training.parallel=fsdp2",
    )
    own, teachers, vllm = (
        estimate(real_config(*shape, *more), CUDA, processes=8).parts["gathered weights"]["sample"]
        for more in (
            ("method.name=va_opd",),
            ("method.name=off_policy_kd",),
            ("method.name=off_policy_kd", "sampling.engine=vllm"),
        )
    )
    # Bfloat16, and the head in float32.
    assert own == 2 * 2_127_532_032 + 4 * 151_936 * 2_048
    assert teachers == 2 * 8_767_123_696 + 4 * 151_936 * 4_096
    assert vllm == 4 * 151_936 * 4_096


def test_a_contrast_keeps_the_hidden_states_of_both_views():
    plain, contrast = (
        estimate(real_config(f"method.target={target}"), CUDA).parts["teacher hidden states"]
        for target in ("teacher", "contrast")
    )
    assert contrast == {phase: 2 * size for phase, size in plain.items()}


def test_remedies_name_settings_for_the_phases_that_do_not_fit():
    config = real_config("training.problems_per_step=4", *ONE_LAYER)
    result = expected()
    assert remedies(config, result, result.peak) == []
    named = " ".join(remedies(config, result, result.total("update") - 1))
    assert "student.gradient_checkpointing=true" in named
    assert "student.lora.rank=16" in named


@pytest.mark.parametrize("given", ["training.parallel=fsdp2", "student.lora.rank=4"])
def test_remedies_go_together_with_what_the_recipe_has(given: str):
    config = real_config(given)
    for remedy in remedies(config, expected(), 0):
        setting, *more = remedy.split(" over more devices")
        # More devices help a recipe that is spread already.
        assert real_config(given, setting) != config or more, setting


VLLM = "sampling.engine=vllm"


def on_a_gpu(*overrides: str, capacity: int | None = 1000 * 2**20) -> Estimate:
    return estimate(real_config(VLLM, *overrides), CUDA, capacity=capacity)


def test_a_vllm_on_the_same_gpu_takes_its_share_unless_it_sleeps():
    share = 'sampling.vllm.arguments=[--gpu-memory-utilization, "0.4"]'
    awake, asleep = on_a_gpu(share), on_a_gpu(share, "sampling.vllm.sleep=true")
    assert awake.parts["vLLM"] == dict.fromkeys(PHASES, 400 * 2**20)
    assert asleep.parts["vLLM"] == {"sample": 400 * 2**20}
    assert on_a_gpu().parts["vLLM"]["train"] == 900 * 2**20
    assert (
        on_a_gpu("sampling.vllm.arguments=[--gpu_memory_utilization=0.25]").parts["vLLM"]["score"]
        == 250 * 2**20
    )
    assert any("vLLM takes 40%" in note for note in awake.notes)


@pytest.mark.parametrize(
    "elsewhere", ["sampling.vllm.gpus=[1]", "sampling.vllm.addresses=['http://a:1']"]
)
def test_a_vllm_on_other_gpus_takes_nothing_of_this_one(elsewhere: str):
    found = on_a_gpu(elsewhere)
    assert "vLLM" not in found.parts
    assert "vLLM runs on other devices, which are not counted" in found.notes


def test_sampling_elsewhere_needs_no_cache_here_but_the_weights_that_are_handed_over():
    ours = estimate(real_config("student.dtype=bfloat16"), CUDA)
    theirs = on_a_gpu("student.dtype=bfloat16")
    assert "key-value cache" in ours.parts and "key-value cache" not in theirs.parts
    student = sizes_of(read_config("tiny:student"), real_config().student)
    assert theirs.parts["weights for vLLM"] == {"sample": 2 * student.total}
    # All weights fit into the buffer, so it is only as large as they are.
    assert theirs.parts["buffer for vLLM"] == {"sample": 2 * student.total}
    # Nothing is rounded, so nothing is copied; files are written from main memory.
    assert "weights for vLLM" not in on_a_gpu("student.dtype=float32").parts
    files = on_a_gpu("sampling.vllm.transfer=files", "student.dtype=bfloat16").parts
    assert not {"weights for vLLM", "buffer for vLLM"} & set(files)


def test_a_share_that_is_not_a_number_is_one_sentence():
    with pytest.raises(ConfigError, match="--gpu-memory-utilization 'half', which is not a number"):
        on_a_gpu("sampling.vllm.arguments=[--gpu-memory-utilization=half]")


def test_remedies_for_a_shared_gpu_are_those_of_vllm():
    config = real_config(VLLM)
    found = on_a_gpu()
    named = remedies(config, found, found.total("update") - 1)
    assert "sampling.vllm.sleep=true" in named
    assert not any(remedy.startswith("sampling.batch_tokens") for remedy in named)
    asleep = real_config(VLLM, "sampling.vllm.sleep=true")
    assert "sampling.vllm.sleep=true" not in remedies(asleep, found, 0)


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"student: {{model: {CONFIGS / 'one-layer'}}}\n"
        f"teacher: {{model: {CONFIGS / 'one-layer'}}}\n"
        "data: {train: 'drawn:train?count=4', min_pixels: 1024, max_pixels: 1048576}\n"
        "sampling: {num_rollouts: 2, max_new_tokens: 8}\ntraining: {problems_per_step: 2}\n"
    )
    return path


def test_without_a_recipe_it_tells_versions_devices_and_extras(run: Callable):
    from vaopd import cli  # noqa: F401

    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    for word in ("torch", "transformers", "cpu", "peft", "bitsandbytes", "sdpa", "qwen3_vl"):
        assert word in out


def test_with_a_recipe_it_prints_an_estimate_and_loads_no_weights(
    run: Callable, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("vaopd.models.pretrained.read_weights", never)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", never)
    code, out, err = run("doctor", recipe)
    assert (code, err) == (0, "")
    for phase in PHASES:
        assert phase in out
    assert "fits" in out and "does not fit" not in out


def test_what_does_not_fit_is_told_with_the_settings_to_change(run: Callable, recipe: Path):
    code, out, _ = run("doctor", recipe, "sampling.max_new_tokens=2000", "--memory", "0.1")
    assert code == 0
    assert "does not fit; try" in out
    assert "student.gradient_checkpointing=true" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["student.model=no/such-model"], 1, "configuration of model 'no/such-model' cannot be"),
        (["student.model=tiny:new-huge"], 1, "no tiny architecture is called 'huge'"),
        (["student.lora.target_modules=[lm_head]", "student.lora.rank=2"], 2, "not a linear layer"),
        (["training.epoch=2"], 2, "did you mean training.epochs?"),
    ],
)
def test_what_cannot_be_estimated_is_one_sentence(
    run: Callable, recipe: Path, arguments: list[str], code: int, message: str
):
    found, out, err = run("doctor", recipe, *arguments)
    assert (found, out) == (code, "")
    assert message in err and len(err.strip().splitlines()) == 1
