"""A folder uploaded to a model hub, with one line for what a hub refuses."""

import re
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from jaxmoral.errors import UserError

# What the library raises that the hub's client is built on, which differs by version.
_UNREACHED: tuple[type[Exception], ...] = HfHubHTTPError.__bases__
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def check_push(repository: str) -> None:
    """Raises UserError if the name is none of a repository, or there is no token to upload with."""
    if not _REPOSITORY.fullmatch(repository):
        raise UserError(f"--push: needs OWNER/NAME, got {repository!r}")
    if get_token() is None:
        raise UserError("--push: there is no token; run hf auth login, or set HF_TOKEN")


def push(folder: Path, repository: str) -> str:
    """Uploads a folder to a repository, which is made, private, if there is none.

    Returns:
      Its address.

    Raises:
      UserError: the hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Adapter from jaxmoral"
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = {401: "the token is not valid", 403: "the token may not write there"}.get(status)
        raise UserError(
            f"--push: {repository}: {reason or error.server_message or 'refused'} ({status})"
        ) from None
    except _UNREACHED as error:
        raise UserError(f"--push: the hub cannot be reached ({error})") from None
    return str(address)
