import pytest

from vaopd.masking import masked, masked_text

SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", SECRET],
        ["--hf-token", SECRET],
        ["--api-key", SECRET],
        ["--api_key", SECRET],
        ["-password", SECRET],
        [f"--token={SECRET}"],
        [f"--judge-api-key={SECRET}"],
        [f"VAOPD_TEACHER_TOKEN={SECRET}"],
        [f"OPENAI_API_KEY={SECRET}"],
        [f"x.secret={SECRET}"],
        [f"sampling.vllm.arguments=[--api-key, {SECRET}]"],
        [f'sampling.vllm.arguments=["--api-key", "{SECRET}"]'],
        [f"method={{name: x, api_key: {SECRET}}}"],
        [f"method={{name: x, 'password': '{SECRET} {SECRET}'}}"],
        [f"--header=Authorization: Bearer {SECRET}"],
        ["--header", f"Bearer {SECRET}"],
        [f"teacher.addresses=[https://me:{SECRET}@host:1]"],
        [f"http://{SECRET}@host/"],
        ["--x", "hf_" + "s3cr3tvalue" * 3],
        ["sk-" + "s3cr3t-value" * 3],
    ],
)
def test_a_secret_of_a_command_line_is_hidden(arguments: list[str]):
    shown = " ".join(masked(["vaopd", "train", *arguments, "--resume"]))
    assert "s3cr3t" not in shown
    assert "***" in shown
    assert shown.startswith("vaopd train ") and shown.endswith(" --resume")


@pytest.mark.parametrize(
    "argument",
    [
        "training.micro_batch_tokens=16384",
        "sampling.max_new_tokens=10",
        "teacher.batch_tokens=1",
        "--token-file",
        "data.train=drawn:train?count=8&seed=0",
        "student.lora.target_modules=[q_proj, k_proj]",
        "teacher.addresses=[http://127.0.0.1:8777]",
        "--limit=10",
        "Qwen/Qwen3-VL-8B-Instruct@main",
        "runs/secret/final",
    ],
)
def test_other_arguments_stay_as_they_are(argument: str):
    assert masked_text(argument) == argument


def test_the_file_of_a_token_is_named():
    command = ["--token-file", "secrets/token.txt"]
    assert masked(command) == command
