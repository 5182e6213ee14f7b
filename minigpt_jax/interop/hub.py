"""Models on the Hugging Face Hub: which text is an id, download a model, upload a folder.

Its client is used as it is everywhere: cache, HF_HUB_OFFLINE, and the token of `hf auth login` or
HF_TOKEN. Nothing here needs JAX.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from minigpt_jax.errors import InputError, RunError, first_line
from minigpt_jax.interop.foreign_vocabulary import TOKENIZER_FILES
from minigpt_jax.runtime.files import sha256

# What import reads of a repository. No pickles: they can run code.
FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES)
# owner/name, perhaps with a revision. The configs name local runs runs/<name>.
_ID = re.compile(r"(?!runs/)([\w.-]+)/[\w.-]+(@[\w./-]+)?")
# An id that means the same weights forever.
_PINNED = re.compile(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}")
_REQUEST_NUMBER = re.compile(r"\s*\((Request ID|Amzn Trace ID|Amz CF ID): [^)]*\)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Answers of the hub that another attempt would not change. (408 and 429 mean: later.)
_REFUSALS = frozenset(range(400, 500)) - {408, 425, 429}


def is_hub_id(source: str) -> bool:
    """Whether `source` is an id of the hub, owner/name or owner/name@revision, and no local path.

    What exists here is local, and so is what would lie in a folder that is here.
    """
    match = _ID.fullmatch(source)
    return bool(match) and not Path(match[1]).exists()


def is_pinned(source: str) -> bool:
    """Whether `source` is an id with a commit, owner/name@<40 digits>."""
    return bool(_PINNED.fullmatch(source))


def download(source: str, files: Sequence[str] = FILES) -> Path:
    """The folder with the `files` (names and patterns) of the hub's model `source`.

    It lies in the client's cache, and its name is the commit. Processes may do this at the same
    time: the cache has locks. Raises InputError for a model that cannot be had and for a weight
    file that is not the hub's.
    """
    # Imported here and below: it takes a while, and local folders do not need it.
    from huggingface_hub import snapshot_download

    name, _, revision = source.partition("@")
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=[*files], ignore_patterns=["*/*"]
        )
    # The hub's own errors, and those of whichever HTTP library it uses.
    except Exception as error:
        raise InputError(
            f"{source}: no such folder, and it cannot be fetched from the hub "
            f"({_reason(error)}){_hint(error)}. minigpt import makes a run of a local folder "
            "with config.json and model.safetensors"
        ) from None
    _check_content(source, Path(folder))
    return Path(folder)


def check_upload(repository: str) -> None:
    """Raise InputError if `repository` is no owner/name, or if there is no token for the hub."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        problem = "" if "/" in repository else "it has no owner"
    except HFValidationError as error:
        problem = first_line(error)
    if problem:
        raise InputError(
            f"{repository!r} is no name of a repository ({problem}): expected owner/name"
        )
    if not (is_offline() or get_token()):
        raise InputError(
            f"{repository}: no token for the hub was found: hf auth login, or set HF_TOKEN"
        )


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to use the network."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def upload(folder: Path, repository: str, message: str, *, private: bool) -> str:
    """Upload `folder` as a model in one commit with this message; returns its address.

    `private` is for a repository that is new: one that exists keeps its visibility. Raises
    InputError where the hub refuses, RunError where a later attempt may succeed.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(folder_path=folder, repo_id=repository, commit_message=message)
        return done.commit_url
    # The hub's own errors, and those of whichever HTTP library it uses.
    except Exception as error:
        kind = InputError if _status(error) in _REFUSALS else RunError
        raise kind(
            f"{repository}: the upload to the hub failed ({_reason(error)}){_hint(error)}"
        ) from None


def _check_content(source: str, folder: Path) -> None:
    """Raise InputError for a weight file whose content is not what the hub has."""
    for path in sorted(folder.glob("*.safetensors")):
        # The cache has links to files, and names each large file by its SHA-256.
        name = path.readlink().name if path.is_symlink() else ""
        if _SHA256.fullmatch(name) and sha256(path) != name:
            raise InputError(
                f"{source}: {path.name} is damaged, its SHA-256 is not the hub's: "
                f"delete {path.resolve()}, then run the same command again"
            )


def _reason(error: BaseException) -> str:
    """An error of the client in one line."""
    # It says "404 Client Error.", an empty line, and then what was not found.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]) if _status(error) else first_line(error)
    # Each request has a number of its own; the same reason must be the same text.
    text = _REQUEST_NUMBER.sub("", text)
    # Of an upload, it says which file it was; what went wrong is the error behind it.
    behind = error.__cause__ if isinstance(error, RuntimeError) else None
    return f"{text} {first_line(behind)}" if behind else text


def _status(error: BaseException | None) -> int | None:
    """The number of the HTTP error behind an error of the client; None if it is of another kind."""
    if error is None:
        return None
    number = getattr(getattr(error, "response", None), "status_code", None)
    return number or _status(error.__cause__)


def _hint(error: Exception) -> str:
    """What the hub's 401, 403 and 404 mean: it does not tell strangers that a model exists."""
    if _status(error) not in (401, 403, 404):
        return ""
    return (
        ": the name may be wrong, or the token (HF_TOKEN, hf auth login) may be missing or not "
        "allow it; a gated model wants its terms accepted on its page first"
    )
