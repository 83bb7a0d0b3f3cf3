"""The client against a real service on 127.0.0.1, whose model is in this process."""

from collections.abc import Callable

import httpx2
import pytest
import torch
from fastapi import FastAPI, Response

from vaopd.config import DataConfig, RunConfig, ViewConfig
from vaopd.errors import AlignmentError, ConfigError, EngineError, ModelError
from vaopd.models.loading import load_model
from vaopd.models.model import VisionLanguageModel
from vaopd.models.prompt_encoder import PromptEncoder
from vaopd.models.prompts import EncodedPrompt
from vaopd.problems.drawn import DrawnProblems
from vaopd.teacher.local import LocalTeacher
from vaopd.teacher.remote import pool
from vaopd.teacher.remote.client import RemoteTeacher, connect_teacher
from vaopd.teacher.teacher import Teacher, TeacherScores

CPU = torch.device("cpu")
RESPONSES = [
    [torch.tensor(ids, dtype=torch.long) for ids in group]
    for group in (
        [[5, 6, 7, 8], [9], []],
        [[10, 11], [12, 13, 14], [15, 16, 17, 18, 19]],
        [[], [], []],
        [[], [20], [21, 22]],
    )
]
LENGTHS = [4, 1, 0, 2, 3, 5, 0, 0, 0, 0, 1, 2]


def sharp(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> VisionLanguageModel:
    """Draw weights of unit gain: at the default 0.02 every token looks like every other."""
    model = load_model(name, device=CPU, dtype=dtype, compute_dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.model.parameters():
            if weight.ndim > 1:
                drawn = torch.randn(weight.shape, generator=generator)
                weight.copy_(drawn * weight[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return sharp("tiny:new-teacher-s")


@pytest.fixture(scope="module")
def student() -> VisionLanguageModel:
    return sharp("tiny:new-student")


@pytest.fixture(scope="module")
def views(student: VisionLanguageModel) -> tuple[list[EncodedPrompt], list[EncodedPrompt]]:
    data = DataConfig(train="drawn:train", min_pixels=1, max_pixels=96 * 96)
    encoder = PromptEncoder(student, data, ViewConfig())
    pairs = [encoder.both(problem) for problem in DrawnProblems(num_problems=len(RESPONSES))]
    return [original for original, _ in pairs], [degraded for _, degraded in pairs]


Connect = Callable[..., RemoteTeacher]


@pytest.fixture
def connect(
    student: VisionLanguageModel, recipe: Callable[..., RunConfig], token: str, patience: None
):
    """Connect to addresses; whatever was connected is closed in the end."""
    teachers: list[RemoteTeacher] = []

    def make(*addresses: str, **options: object) -> RemoteTeacher:
        teachers.append(connect_teacher(recipe(*addresses, **options), student, CPU))
        return teachers[-1]

    yield make
    for teacher in teachers:
        teacher.close()


def check_same_bits(found: TeacherScores, expected: TeacherScores) -> None:
    for name in (
        "hidden",
        "degraded_hidden",
        "original_logprobs",
        "degraded_logprobs",
        "view_divergence",
    ):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None), name
        for one, two in zip(ours or [], theirs or [], strict=True):
            assert one.dtype == two.dtype, name
            assert one.shape == two.shape, name
            assert one.equal(two), name


# --- the same as a teacher in this process -----------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 150, 10_000])
@pytest.mark.parametrize(
    "options",
    [{}, {"with_divergence": True}, {"with_hidden": False}, {"with_degraded_hidden": True}],
    ids=str,
)
def test_scores_are_the_local_teachers_bit_for_bit(
    serve, connect: Connect, model, views, batch_tokens: int, options: dict
):
    remote = connect(serve(model).url, batch_tokens=batch_tokens)
    assert isinstance(remote, Teacher)
    local = LocalTeacher(model, batch_tokens=batch_tokens)
    found = remote.score(*views, RESPONSES, **options)
    assert [len(row) for row in found.original_logprobs] == LENGTHS
    check_same_bits(found, local.score(*views, RESPONSES, **options))
    assert remote.head.equal(model.head)
    assert remote.name == local.name == "tiny:new-teacher-s"


def test_without_the_degraded_view_there_are_no_scores_of_it(serve, connect: Connect, model, views):
    remote, local = connect(serve(model).url), LocalTeacher(model, batch_tokens=16384)
    found = remote.score(views[0], None, RESPONSES, with_divergence=True)
    assert found.degraded_logprobs is None
    check_same_bits(found, local.score(views[0], None, RESPONSES, with_divergence=True))


def test_siblings_in_rows_of_their_own_score_as_locally(
    serve, student, recipe, token, model, views
):
    config = recipe(serve(model).url, batch_tokens=300)
    training = config.training.model_copy(update={"share_prefix": False})
    remote = connect_teacher(config.model_copy(update={"training": training}), student, CPU)
    local = LocalTeacher(model, batch_tokens=300, share_prefix=False)
    check_same_bits(remote.score(*views, RESPONSES), local.score(*views, RESPONSES))
    remote.close()


def test_no_problems_and_no_tokens_are_no_request(serve, connect: Connect, model, views):
    served = serve(model)
    remote = connect(served.url)
    served.stop()
    assert remote.score([], [], []).hidden == []
    scores = remote.score([views[0][0]], None, [[RESPONSES[0][2]]])
    assert scores.hidden[0].shape == (0, 112)


def test_a_teacher_of_half_precision_sends_what_it_computed(serve, connect: Connect, views):
    half = sharp("tiny:new-teacher-s", torch.bfloat16)
    remote, local = connect(serve(half).url), LocalTeacher(half, batch_tokens=16384)
    found = remote.score(*views, RESPONSES)
    # Hidden states of a bfloat16 teacher, from pixels that travelled as bfloat16.
    check_same_bits(found, local.score(*views, RESPONSES))
    assert {rows.dtype for rows in found.hidden} == {torch.bfloat16}


def test_hidden_states_may_travel_in_half_precision(serve, connect: Connect, model, views):
    remote = connect(serve(model).url, transfer_dtype="bfloat16")
    local = LocalTeacher(model, batch_tokens=16384).score(*views, RESPONSES)
    found = remote.score(*views, RESPONSES)
    for ours, theirs in zip(found.hidden, local.hidden, strict=True):
        assert ours.equal(theirs.bfloat16())
    assert torch.cat(found.original_logprobs).equal(torch.cat(local.original_logprobs))


def test_an_image_travels_once_for_a_problem_and_view(
    serve, connect: Connect, model, views, monkeypatch: pytest.MonkeyPatch
):
    sent = []
    ask = pool.Address.ask

    def spy(self, question):
        sent.append(len(question.body or b""))
        return ask(self, question)

    monkeypatch.setattr(pool.Address, "ask", spy)
    remote = connect(serve(model).url)
    one = [views[0][0]], [views[1][0]]
    pixels = sum(p.image_inputs["pixel_values"].nbytes for (p,) in one)
    sent.clear()
    for siblings in (1, 8):
        remote.score(*one, [[torch.tensor([5, 6, 7])] * siblings])
    assert len(sent) == 2
    assert all(pixels < size < 1.2 * pixels for size in sent)


# --- several addresses ------------------------------------------------------------------------


def requests_of(served, token: str) -> float:
    answer = httpx2.get(f"{served.url}/metrics", headers={"Authorization": f"Bearer {token}"})
    (line,) = [
        row for row in answer.text.splitlines() if row.startswith("vaopd_teacher_requests_t")
    ]
    return float(line.split()[1])


def test_addresses_take_turns_and_the_scores_are_the_same(
    serve, connect: Connect, model, views, token
):
    both = serve(model), serve(model)
    remote = connect(*[one.url for one in both], batch_tokens=1)
    local = LocalTeacher(model, batch_tokens=1)
    check_same_bits(remote.score(*views, RESPONSES), local.score(*views, RESPONSES))
    # Three problems have tokens: requests 0 and 2 go to the first address.
    assert [requests_of(one, token) for one in both] == [2, 1]


def test_a_dead_address_is_replaced_by_the_other_and_asked_last_after_that(
    serve, connect: Connect, model, views, token
):
    both = serve(model), serve(model)
    remote = connect(*[one.url for one in both], batch_tokens=1)
    both[0].stop()
    local = LocalTeacher(model, batch_tokens=1)
    for _ in range(2):
        check_same_bits(remote.score(*views, RESPONSES), local.score(*views, RESPONSES))
    assert requests_of(both[1], token) == 6
    assert [address.is_resting for address in remote.servers.addresses] == [True, False]


def test_an_address_that_is_dead_at_the_beginning_is_left_for_later(
    serve, connect: Connect, model, views, caplog
):
    gone = serve(model)
    gone.stop()
    remote = connect(gone.url, serve(model).url)
    assert f"teacher {gone.url} does not answer" in caplog.text
    assert len(remote.score(*views, RESPONSES).hidden) == len(LENGTHS)


def test_without_any_server_one_sentence_names_all_addresses(serve, connect: Connect, model, views):
    both = serve(model), serve(model)
    remote = connect(*[one.url for one in both])
    for one in both:
        one.stop()
    with pytest.raises(EngineError, match="no teacher answers") as error:
        remote.score(*views, RESPONSES)
    assert all(one.url in str(error.value) for one in both)
    assert "go on with --resume" in str(error.value)
    with pytest.raises(EngineError, match="no teacher answers"):
        connect(both[0].url)


def test_an_address_whose_teacher_was_exchanged_is_refused(serve, connect: Connect, model, views):
    remote = connect(serve(model).url)
    stranger = serve(sharp("tiny:new-teacher-s", seed=1))
    remote.servers.addresses[0].http.base_url = httpx2.URL(stranger.url)
    with pytest.raises(EngineError, match="another teacher than the 'tiny:new-teacher-s'"):
        remote.score(*views, RESPONSES)


def test_two_servers_of_different_weights_are_refused(serve, connect: Connect, model):
    with pytest.raises(ModelError, match="differ in weights"):
        connect(serve(model).url, serve(sharp("tiny:new-teacher-s", seed=1)).url)


# --- what does not fit --------------------------------------------------------------------------


def test_a_missing_token_is_a_sentence_and_no_request(serve, connect: Connect, model, monkeypatch):
    monkeypatch.delenv("VAOPD_TEACHER_TOKEN")
    with pytest.raises(ConfigError, match="environment variable VAOPD_TEACHER_TOKEN"):
        connect("http://127.0.0.1:1")


def test_a_wrong_token_is_a_sentence(serve, connect: Connect, model):
    with pytest.raises(EngineError, match="refuses the token; set VAOPD_TEACHER_TOKEN"):
        connect(serve(model, token="another").url)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"protocol": 9}, EngineError, "has protocol 9 and this side 3; install the same version"),
        ({"name": "tiny:teacher-m"}, ConfigError, "teacher.model is 'tiny:new-teacher-s', but"),
        ({"quantization": "4bit"}, ConfigError, "teacher.quantization is 'none', but"),
        ({"tokenizer": "0" * 64}, ModelError, "have different tokenizers, of 640 and 640 ids"),
        ({"vocabulary_size": 9_000_000}, ModelError, "different tokenizers, of 640 and 9000000"),
        ({"hidden_size": 900_000}, EngineError, "1 fields of its description are wrong"),
        ({"chat_prompt": "<|im_start|>me"}, ModelError, "have different chat templates: from char"),
        ({"end_ids": [5]}, ModelError, "end their responses differently: id 5 "),
        ({"image_settings": {"patch_size": 14}}, ModelError, "prepare images differently"),
    ],
)
def test_a_teacher_that_does_not_fit_is_a_sentence(
    serve, connect: Connect, model, changes: dict, error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        connect(serve(model, **changes).url)


def test_another_precision_than_the_recipes_is_a_sentence(serve, connect: Connect, model):
    with pytest.raises(ConfigError, match=r"teacher.dtype is 'bfloat16', but .* serves 'float32'"):
        connect(serve(model).url, dtype="bfloat16")


def test_a_teacher_whose_vocabulary_differs_in_one_token_has_another_hash(serve, connect, student):
    stranger = sharp("tiny:new-teacher-s")
    stranger.tokenizer.add_tokens(["<another>"])
    with pytest.raises(ModelError, match="different tokenizers, of 640 and 641 ids"):
        connect(serve(stranger).url)


def test_a_request_over_the_limit_is_a_sentence_that_names_the_remedy(
    serve, connect: Connect, model, views
):
    remote = connect(serve(model, max_request_bytes=20_000).url)
    with pytest.raises(EngineError, match=r"over the 0.0 MB .*raise its --max-request-mb or lower"):
        remote.score(*views, RESPONSES)


def test_what_the_server_says_of_a_request_is_passed_on(serve, connect: Connect, model, views):
    remote = connect(serve(model).url)
    placeholder = torch.tensor([model.model.config.image_token_id])
    with pytest.raises(EngineError, match="responses must not contain"):
        remote.score([views[0][0]], None, [[placeholder]])


def test_views_of_different_prompts_are_never_sent(serve, connect: Connect, model, views):
    remote = connect(serve(model).url)
    with pytest.raises(AlignmentError, match="drawn:train:0:0"):
        remote.score([views[0][0]], [views[1][1]], [RESPONSES[0]])


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"", b"{}"])
def test_an_address_without_a_teacher_is_a_sentence(connect: Connect, body: bytes, start_app):
    with pytest.raises(EngineError, match="names no protocol of vaopd serve-teacher"):
        connect(start_app(lambda path: Response(body)).url)


def test_an_answer_that_makes_no_sense_is_asked_for_elsewhere(
    serve, connect: Connect, model, views, start_app, token
):
    """A proxy that passes everything except the scores, which it answers with its own page."""
    behind = serve(model)

    def answer(path: str) -> Response:
        if path == "score":
            return Response("<html>try later</html>")
        headers = {"Authorization": f"Bearer {token}"}
        return Response(httpx2.get(f"{behind.url}/{path}", headers=headers).content)

    broken = start_app(answer)
    remote = connect(broken.url, behind.url)
    local = LocalTeacher(model, batch_tokens=16384)
    check_same_bits(remote.score(*views, RESPONSES), local.score(*views, RESPONSES))
    alone = connect(broken.url)
    with pytest.raises(EngineError, match=r"no teacher answers: .*not a safetensors file"):
        alone.score(*views, RESPONSES)


@pytest.fixture
def start_app(serve_plain):
    def start(answer: Callable[[str], Response]):
        app = FastAPI()

        @app.api_route("/{path}", methods=["GET", "POST"])
        def anything(path: str) -> Response:
            return answer(path)

        return serve_plain(app)

    return start
