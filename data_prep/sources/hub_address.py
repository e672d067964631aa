"""Addresses of datasets on a hub of Hugging Face's kind, and what can go wrong there, as one line.

Spelt as HfFileSystem of huggingface_hub spells them: hf://datasets/OWNER/NAME@REVISION/PATH.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from data_prep.sources.far import Place, reason_of

_SCHEME = "hf://"
_DEFAULT_REVISION = "main"
# A revision with a slash in it is one of these, or has %2F there.
_ADDRESS = re.compile(
    r"hf://(?:datasets/)?(?P<dataset>[^/@]+/[^/@]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?"
)
_OTHER_KINDS = ("models", "spaces", "buckets", "kernels")
_LOGIN = "set HF_TOKEN to a token that may read it, or run `hf auth login`"


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A dataset at a revision, or some of its files: a path, a folder or a glob pattern."""

    dataset: str
    revision: str = _DEFAULT_REVISION
    path: str = ""

    def __str__(self) -> str:
        path = "/" + self.path if self.path else ""
        return f"{_SCHEME}datasets/{self.dataset}@{self.revision}{path}"


def is_hub_address(source: str) -> bool:
    """Whether a source lies on a hub."""
    return source.startswith(_SCHEME)


def parse_address(source: str) -> HubAddress:
    """What an address names. ValueError tells how one is spelt."""
    found = _ADDRESS.fullmatch(source)
    if found is None or found["dataset"].partition("/")[0] in (*_OTHER_KINDS, "datasets"):
        raise ValueError(
            f"source={source}: a dataset on the hub is hf://datasets/OWNER/NAME, or some of its "
            "files hf://datasets/OWNER/NAME@REVISION/PATH; change --source"
        )
    revision = unquote(found["revision"] or _DEFAULT_REVISION)
    path = (found["path"] or "").strip("/")
    names = unquote(f"{found['dataset']}/{revision}/{path}").split("/")
    if {".", ".."} & set(names):
        raise ValueError(f"source={source}: . and .. are not names on the hub; change --source")
    return HubAddress(dataset=found["dataset"], revision=revision, path=path)


class Hub(Place):
    """A hub: its errors, and what to do about them."""

    def is_passing(self, error: Exception) -> bool:
        """Whether the same request may succeed a moment later."""
        import huggingface_hub.errors as hub

        reason = _reason(error)
        if _is_no_file(error) or _is_no_file(reason):
            return False
        response = getattr(reason, "response", None)
        if response is not None:
            status: int = response.status_code
            return status == 429 or status >= 500
        passing = isinstance(reason, (hub.HTTPError, OSError))
        passing = passing and getattr(reason, "errno", None) is None
        return passing and not isinstance(reason, hub.OfflineModeIsEnabled)

    @contextmanager
    def asking(self, address: str) -> Iterator[None]:
        """ValueError says on one line what the hub, or the way there, has against a request."""
        import huggingface_hub.errors as hub

        try:
            yield
        except (hub.HTTPError, hub.HFValidationError, OSError) as error:
            raise ValueError(f"source={address}: {self.describe(error)}") from error

    def describe(self, error: Exception) -> str:
        """What happened, and what to do about it."""
        return _describe(error)


HUB = Hub()


def _describe(error: Exception) -> str:
    """What happened, and what to do about it."""
    import huggingface_hub.errors as hub
    from huggingface_hub import constants, get_token

    reason = _reason(error)
    status = getattr(getattr(reason, "response", None), "status_code", None)
    said = getattr(reason, "server_message", None) or reason
    if isinstance(reason, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it, or name files on this machine with --source"
    if isinstance(reason, hub.RevisionNotFoundError):
        return "no such revision; name a branch, a tag or a commit behind the @"
    if isinstance(reason, hub.GatedRepoError):
        return (
            f"its owner grants access on {constants.ENDPOINT} only ({said}); ask there, and "
            f"{_LOGIN}"
        )
    if isinstance(reason, hub.RepositoryNotFoundError) or status in (401, 403):
        # A private dataset looks like none to who may not see it.
        token = "no token was found" if get_token() is None else "a token was sent"
        return f"no such dataset, or a private one ({token}; {said}): change --source, or {_LOGIN}"
    if status is not None:
        return (
            f"{constants.ENDPOINT} refused ({status}: {said}); give the same command again to go on"
        )
    if isinstance(reason, hub.HFValidationError):
        return f"{reason}; change --source"
    if _is_no_file(reason):
        return f"no such file on {constants.ENDPOINT} ({reason}); change --source"
    if getattr(reason, "errno", None) is not None and not isinstance(reason, ConnectionError):
        return f"{reason}; make room, or name another folder with --cache"
    return (
        f"{constants.ENDPOINT} cannot be reached or did not send all ({reason}); check the network "
        "and HF_ENDPOINT, and give the same command again to go on"
    )


def _reason(error: Exception) -> BaseException:
    """What an error came from, where that says more."""
    inner = reason_of(error)
    return inner.__cause__ if _is_no_file(inner) and inner.__cause__ else inner


def _is_no_file(error: BaseException) -> bool:
    """Whether it is HfFileSystem's own word for what is not on the hub."""
    return type(error) is FileNotFoundError and error.errno is None
