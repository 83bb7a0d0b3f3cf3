"""Pushes an exported model folder to the Hugging Face hub; without torch."""

from dataclasses import dataclass
from pathlib import Path

from vaopd.errors import ConfigError, EngineError, ModelError
from vaopd.masking import masked_text
from vaopd.records import CHECKSUMS, damage

LEFT_OUT = [".*", "**/.*", "trainer_state/*"]
NO_TOKEN = "no token of the hub is here; run `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class HubTarget:
    """A model repository of the hub."""

    name: str
    is_private: bool = True
    """Of a new repository; an existing one keeps what it is, and is refused if it is public."""

    revision: str | None = None
    """Branch that gets the commit, made if it is not there; None = main."""

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.name)
        except HFValidationError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"--push {self.name} is not a name on the hub ({reason}); write OWNER/NAME"
            ) from None


def has_token() -> bool:
    """Return whether a token of the hub is in the environment or was stored by a login."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import OIDCError

    try:
        return get_token() is not None
    except OIDCError:  # of a workflow that exchanges its identity for a token
        return False


def push(folder: Path, target: HubTarget) -> str:
    """Upload a model folder as one commit and return its address on the hub.

    Files that the repository has already are not sent again, so that the same call goes on after
    an interruption. The token is that of ``HF_TOKEN`` or of ``hf auth login``.

    Raises:
        ModelError: A file differs from the checksums of the folder.
        EngineError: There is no token, or the hub refuses, cannot be reached or stops answering.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if found := damage(folder):
        raise ModelError(
            f"{folder} is not pushed: {found}; write the folder again, or remove its {CHECKSUMS} "
            "if you changed it on purpose"
        )
    if not has_token():
        raise EngineError(f"{target.name} is not pushed: {NO_TOKEN}")
    try:
        return _upload(folder, target)
    except HfHubHTTPError as error:
        raise EngineError(_refusal(target, error.response.status_code, str(error))) from None
    except EngineError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        # The library wraps some errors in one that only names the file.
        raise EngineError(_failure(target, str(error.__cause__ or error))) from None


def _upload(folder: Path, target: HubTarget) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(target.name, private=target.is_private, exist_ok=True)
    if target.is_private and not api.model_info(target.name).private:
        raise EngineError(
            f"{target.name} is not pushed: it exists and everybody can read it; give --public if "
            "that is meant, or another name"
        )
    if target.revision is not None:
        api.create_branch(target.name, branch=target.revision, exist_ok=True)
    done = api.upload_folder(
        repo_id=target.name,
        folder_path=folder,
        revision=target.revision,
        ignore_patterns=LEFT_OUT,
        commit_message="Upload a model exported by vaopd",
    )
    return done.commit_url


def _refusal(target: HubTarget, status: int, reason: str) -> str:
    remedies = {
        401: "its token is not valid; run `hf auth login` or set HF_TOKEN again",
        403: "its token may not write there; make one with write access, or choose another name",
        404: "no such repository, or its token may not see it; check the name and the token",
    }
    if status in remedies:
        return f"{target.name} is not pushed: the hub says {status}, {remedies[status]}"
    return _failure(target, reason)


def _failure(target: HubTarget, reason: str) -> str:
    from huggingface_hub import constants

    said = masked_text(" ".join(reason.split()))[:300]
    return (
        f"{target.name} is not pushed, or not whole ({constants.ENDPOINT}: {said}); nothing here "
        "is lost, and the same command goes on"
    )
