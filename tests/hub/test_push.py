"""Pushing a model: what arrives at the hub, and what is said when it does not."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import READ_ONLY, TOKEN, HubServer, Repository
from huggingface_hub import constants
from rich.console import Console

from vaopd.hub.card import is_unedited
from vaopd.records import CARD
from vaopd.training.run import train

NAME = "somebody/model"

# huggingface_hub's upload by LFS calls httpx2 in an old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


def test_a_push_sends_every_file_of_the_final_model(run: Callable, trained: Path, hub: HubServer):
    code, out, err = run("export", trained, "--push", NAME)
    assert code == 0, err
    assert f"{hub.url}/{NAME}/commit/" in one_line(out)
    repository = hub.repositories[NAME]
    assert repository.is_private
    sent = repository.branches["main"]
    final = {p.name: p.read_bytes() for p in (trained / "final").iterdir()}
    assert sent == final
    assert {"model.safetensors", "config.json", "checksums.json", CARD} <= sent.keys()
    # The example of the pushed card loads the model from the hub.
    assert f'name = "{NAME}"' in sent[CARD].decode()
    # Large files went by LFS.
    assert sent["model.safetensors"] in hub.blobs.values()


@pytest.mark.parametrize("options", [("--public",), ("--private",)])
def test_a_new_repository_is_public_only_if_that_is_asked(
    run: Callable, trained: Path, hub: HubServer, options: tuple[str, ...]
):
    assert run("export", trained, "--push", NAME, *options)[0] == 0
    assert hub.repositories[NAME].is_private == (options == ("--private",))


def test_a_private_push_never_goes_to_a_repository_that_everybody_reads(
    run: Callable, trained: Path, hub: HubServer
):
    hub.repositories[NAME] = Repository(is_private=False)
    code, _, err = run("export", trained, "--push", NAME)
    assert code == 1 and "everybody can read it; give --public" in one_line(err)
    assert hub.repositories[NAME].branches["main"] == {}
    assert run("export", trained, "--push", NAME, "--public")[0] == 0
    assert CARD in hub.repositories[NAME].branches["main"]


def test_a_revision_gets_the_files_and_main_stays(run: Callable, trained: Path, hub: HubServer):
    for _ in range(2):  # the second time the branch exists
        assert run("export", trained, "--push", NAME, "--revision", "v1")[0] == 0
    assert CARD in hub.repositories[NAME].branches["v1"]
    assert hub.repositories[NAME].branches["main"] == {}


def test_without_the_large_file_storage_of_the_hub_a_push_works_too(
    run: Callable, trained: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    # With hf_xet the library sends files in another order; no file is large for this hub.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.has_lfs = False
    assert run("export", trained, "--push", NAME)[0] == 0
    assert "model.safetensors" in hub.repositories[NAME].branches["main"]


def test_an_edited_card_is_pushed_as_it_is_and_the_model_still_loads(
    run: Callable, trained: Path, hub: HubServer, tmp_path: Path
):
    card = trained / "final" / CARD
    edited = card.read_text() + "\nWritten by hand.\n"
    card.write_text(edited)
    assert run("export", trained, "--push", NAME)[0] == 0
    assert hub.repositories[NAME].branches["main"][CARD].decode() == edited
    assert run("export", trained / "final", "--output", tmp_path / "again")[0] == 0
    assert is_unedited((tmp_path / "again" / CARD).read_text())


def test_a_damaged_model_is_not_pushed(run: Callable, trained: Path, hub: HubServer):
    with (trained / "final" / "tokenizer.json").open("a") as file:
        file.write(" ")
    code, _, err = run("export", trained, "--push", NAME)
    assert code == 1 and "tokenizer.json is not as it was written" in one_line(err)
    assert hub.requests == []


# --- refusals ----------------------------------------------------------------------------------


def test_without_a_token_nothing_is_sent(
    run: Callable, trained: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("HF_TOKEN")
    code, _, err = run("export", trained, "--push", NAME)
    assert code == 1
    assert one_line(err) == (
        f"error: {NAME} is not pushed: no token of the hub is here; run `hf auth login` or set "
        "HF_TOKEN"
    )
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "status", "remedy"),
    [
        ("hf_unknownToken0123456789", "401", "its token is not valid; run `hf auth login`"),
        (READ_ONLY, "403", "make one with write access, or choose another name"),
    ],
)
def test_a_token_that_may_not_write_is_one_sentence(
    run: Callable,
    trained: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    status: str,
    remedy: str,
):
    monkeypatch.setenv("HF_TOKEN", token)
    code, out, err = run("export", trained, "--push", NAME)
    assert code == 1
    assert f"the hub says {status}" in one_line(err) and remedy in err
    assert token not in out + err


def test_without_a_network_the_sentence_names_the_switch(
    run: Callable, trained: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, _, err = run("export", trained, "--push", NAME)
    assert code == 1 and "HF_HUB_OFFLINE" in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "new", "--revision", "v1"), "belong to --push"),
        (("--output", "new", "--public"), "belong to --push"),
        ((), "export needs --output DIR to write, --push OWNER/NAME, or both"),
        (("--push", "a/b/c"), "--push a/b/c is not a name on the hub"),
        (("--push", NAME, "--dtype", "bfloat16"), "give --output DIR"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_sent(
    run: Callable, trained: Path, hub: HubServer, arguments: tuple[str, ...], message: str
):
    code, _, err = run("export", trained, *arguments)
    assert code == 2 and message in one_line(err)
    assert hub.requests == []


def test_a_checkpoint_needs_an_output(run: Callable, trained: Path, hub: HubServer, tmp_path: Path):
    source = trained / "checkpoints" / "step_000001"
    code, _, err = run("export", source, "--push", NAME)
    assert code == 2 and "is not a plain model but a checkpoint" in one_line(err)
    output = tmp_path / "exported"
    assert run("export", source, "--push", NAME, "--output", output)[0] == 0
    sent = hub.repositories[NAME].branches["main"]
    assert sent["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert not any("trainer_state" in path for path in sent)


# --- a hub that dies -----------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["/preupload/", "/objects/batch", "PUT ", "/commit/"])
def test_after_a_hub_that_died_half_way_the_same_command_goes_on(
    run: Callable, trained: Path, hub: HubServer, tmp_path: Path, moment: str
):
    command = ("export", trained, "--push", NAME, "--output", tmp_path / "exported")
    hub.dies_at = moment
    code, _, err = run(*command)
    assert code == 1
    assert f"{NAME} is not pushed, or not whole" in one_line(err)
    assert "the same command goes on" in err and TOKEN not in err
    written = (tmp_path / "exported" / "model.safetensors").stat()
    hub.start()
    assert run(*command)[0] == 0
    sent = hub.repositories[NAME].branches["main"]
    assert sent.keys() == {path.name for path in (tmp_path / "exported").iterdir()}
    # Neither exported again nor, after LFS had it, sent again.
    assert (tmp_path / "exported" / "model.safetensors").stat() == written
    uploads = [request for request in hub.requests if request.startswith("PUT")]
    large = [path for path in (tmp_path / "exported").iterdir() if path.stat().st_size > 1e6]
    assert len(large) == 1
    assert len(uploads) == (2 if moment == "PUT " else 1)


def test_an_output_with_another_export_is_not_pushed(
    run: Callable, trained: Path, hub: HubServer, tmp_path: Path
):
    output = tmp_path / "exported"
    assert run("export", trained, "--output", output, "--dtype", "bfloat16")[0] == 0
    code, _, err = run("export", trained, "--output", output, "--push", NAME)
    assert code == 2 and "exists; choose another folder" in one_line(err)
    assert hub.requests == []


# --- at the end of a run -------------------------------------------------------------------------


def test_a_run_pushes_its_final_model_once_at_the_end(
    hub: HubServer, tmp_path: Path, make_recipe: Callable
):
    terminal = io.StringIO()
    recipe = make_recipe(push_to_hub=NAME)
    train(recipe, tmp_path / "run", console=Console(file=terminal, width=300))
    assert f"pushed the final model: {hub.url}/{NAME}/commit/" in terminal.getvalue()
    assert len(hub.repositories[NAME].messages) == 1
    assert hub.repositories[NAME].is_private
    written = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


def test_a_failed_push_does_not_fail_the_run_and_names_the_command_for_later(
    run: Callable,
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_recipe: Callable,
):
    monkeypatch.delenv("HF_TOKEN")
    output, terminal = tmp_path / "run", io.StringIO()
    result = train(make_recipe(push_to_hub=NAME), output, console=Console(file=terminal, width=500))
    assert result.steps == 1 and (output / "summary.json").is_file()
    first, last = (line for line in terminal.getvalue().splitlines() if "push_to_hub" in line)
    assert first.endswith("run `hf auth login` or set HF_TOKEN before the run ends")
    assert last.startswith("training.push_to_hub failed: ")
    command = last.partition("later: vaopd ")[2].split()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert run(*command)[0] == 0
    assert CARD in hub.repositories[NAME].branches["main"]
