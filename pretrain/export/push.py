"""An exported folder as a model repository on a hub of Hugging Face's kind."""

from pathlib import Path

from pretrain.export import open_clip
from pretrain.export.card import CARD_FILE
from pretrain.export.hub import CODE_FILE, PICTURES_CONFIG, PICTURES_FILE
from pretrain.export.native import TOKENIZER_FILE
from pretrain.export.onnx import ONNX_FILES
from pretrain.export.tokenizer import TOKENIZER_CONFIG, TOKENIZER_JSON
from pretrain.models.starting import CONFIG_FILE, MODEL_FILE, WEIGHTS_FILE

# What an export of any format writes: nothing else in the folder is published.
_OURS = (
    *(CARD_FILE, CONFIG_FILE, MODEL_FILE, WEIGHTS_FILE, TOKENIZER_FILE),
    *(TOKENIZER_JSON, TOKENIZER_CONFIG),
    *(CODE_FILE, PICTURES_FILE, PICTURES_CONFIG, *ONNX_FILES),
    *(open_clip.CONFIG_FILE, open_clip.WEIGHTS_FILE),
)
_OPTION = "--push_to_hub"
_LOGIN = "set HF_TOKEN to a token that may write, or run `hf auth login`"


def check_push(repository: str) -> None:
    """ValueError where it is plain beforehand that `repository` (OWNER/NAME) cannot be written."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ValueError(f"{_OPTION} {repository}: {error}") from error
    if repository.count("/") != 1:
        raise ValueError(f"{_OPTION} {repository}: give the repository as OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{_OPTION} {repository}, but HF_HUB_OFFLINE is set: unset it, or export "
                         f"without {_OPTION}")  # fmt: skip
    if get_token() is None:
        raise ValueError(f"{_OPTION} {repository} needs a token, found none: {_LOGIN}")


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Make the repository where there is none, and upload the export in `folder`; its address.

    Files of an earlier export that this one lacks are deleted there; other files stay. ValueError
    where the hub cannot be reached, refuses, or shows publicly what is to be private.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    hub, kept = HfApi(), f"the export is whole in {folder}"
    try:
        # None: the owner's default, which an organisation can set to private.
        hub.create_repo(repository, private=private or None, exist_ok=True)
        if private and not hub.repo_info(repository).private:
            raise ValueError(
                f"--private true, but {hub.endpoint}/{repository} is there and public: nothing was "
                "uploaded; make it private there, or choose another name"
            )
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(_OURS),
            delete_patterns=list(_OURS),
            commit_message="Upload a model exported by clipa-pretrain",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = error.server_message or error
        remedy = f"{_LOGIN}; " if status in (401, 403) else ""
        raise ValueError(
            f"{_OPTION} {repository}: {hub.endpoint} refused ({status}: {said}); {remedy}{kept}"
        ) from error
    except (HTTPError, OSError) as error:
        raise ValueError(
            f"{_OPTION} {repository}: {hub.endpoint} cannot be reached ({error}); check the "
            f"network and HF_ENDPOINT; {kept}"
        ) from error
    return f"{hub.endpoint}/{repository}"
