"""What a storage's error means: a fault of the data, of the service, or of how it was asked.

The texts are those of obstore 0.12 over object_store 0.14: its exceptions have no status of their
own, but name it, and quote the XML of S3, before a dump of their source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from shards.errors import CorruptShardError, ShardError

STORAGE_ERRORS = (BaseError, OSError, ShardError)
"""What a store may raise; anything else is a bug and is not caught."""


class Kind(Enum):
    """What to do about a fault."""

    MISSING = "missing"
    """No such object: final."""
    SHORT = "short"
    """The object ends before: final after a second look."""
    DENIED = "denied"
    """Credentials refused: final after a second try, which may find them renewed."""
    THROTTLED = "throttled"
    """Asked too fast: again, later, and fewer at once."""
    BROKEN = "broken"
    """5xx, reset, stall, part of an answer: again, later."""
    UNREACHABLE = "unreachable"
    """Nobody answers at the address: again, later."""
    EXISTS = "exists"
    """A conditional put found an object: an answer, not a fault."""
    WRONG = "wrong"
    """The storage cannot do what is asked: final."""


@dataclass(frozen=True)
class Fault:
    """A classified error."""

    kind: Kind
    brief: str
    """A few words without URLs, which may carry signatures."""
    hint: str = ""
    """What to do about it."""

    @property
    def code(self) -> str:
        """Name of its counter."""
        return self.kind.value


NO_ANSWER = "no answer in time"
"""A deadline was missed, ours or that of the library."""
_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})([A-Za-z ]*)")
_URL = re.compile(r"\w+://\S+")
_CREDENTIALS = re.compile(
    r"://(169\.254\.|metadata\.google\.internal|oauth2\.|accounts\.google|sts\.|login\.microsoft)"
)
"""Who gives credentials to machines in a cloud: asked when there are none in the environment."""
_BEYOND = re.compile("range was invalid|invalid( byte)? range", re.IGNORECASE)
_THROTTLED = {
    *("SlowDown", "TooManyRequests", "Throttling", "ThrottlingException", "ServerBusy"),
    *("RequestLimitExceeded", "RequestThrottled", "EC2ThrottledException"),
}
_AGAIN = {"RequestTimeout", "ConditionalRequestConflict", "OperationAborted", "InternalError"}
_HINTS = {
    "ExpiredToken": "the credentials have expired: renew them and run again",
    "TokenRefreshRequired": "the credentials have expired: renew them and run again",
    "InvalidToken": "the session token is not valid: renew the credentials and run again",
    "InvalidAccessKeyId": "the storage does not know this access key: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: check both",
    "RequestTimeTooSkewed": "this machine's clock is wrong: set it",
    "AuthorizationHeaderMalformed": "the bucket is in another region: set AWS_REGION",
}
_MAY_NOT = "check that these credentials may read (or write) there"
_NO_KEYS = (
    "no usable credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or "
    "AWS_SKIP_SIGNATURE=true for a public bucket (gs://, az://: GOOGLE_*, AZURE_*)"
)


def classify(exc: BaseException) -> Fault:
    """What an error of a store means."""
    if isinstance(exc, CorruptShardError):
        return Fault(Kind.SHORT, str(exc))
    if isinstance(exc, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return _missing(str(exc))
    if isinstance(exc, FileExistsError):
        return Fault(Kind.EXISTS, "exists")
    if isinstance(exc, PermissionError):
        return Fault(Kind.DENIED, "permission denied", "check the rights of the file and folders")
    if isinstance(exc, TimeoutError):
        return Fault(Kind.BROKEN, NO_ANSWER)
    if isinstance(exc, OSError):
        return Fault(Kind.BROKEN, exc.strerror or type(exc).__name__)
    return _of_obstore(exc)


def _missing(text: str) -> Fault:
    if _code(text) == "NoSuchBucket":
        return Fault(Kind.WRONG, "no such bucket", "check the URL and the endpoint")
    return Fault(Kind.MISSING, "no such object")


def _of_obstore(exc: BaseException) -> Fault:
    whole = str(exc)
    # The rest is a dump of many lines, for developers. What S3 says begins a line of its own, after
    # the declaration of XML.
    text = " ".join(whole.split("Debug source:", 1)[0].split())
    code, status, brief = _code(text), _status(text), _brief(text)
    if code in _THROTTLED or status in (429, 503):
        return Fault(Kind.THROTTLED, brief)
    if code in ("NoSuchBucket", "NoSuchKey"):  # of a listing, or in the middle of a body
        return _missing(text)
    if code in _AGAIN:
        return Fault(Kind.BROKEN, brief)
    if isinstance(exc, AlreadyExistsError) or code == "PreconditionFailed" or status == 412:
        return Fault(Kind.EXISTS, brief)
    if _is_denied(exc, code, status, text):
        keyless = not code and _CREDENTIALS.search(text)
        return Fault(Kind.DENIED, brief, _NO_KEYS if keyless else _HINTS.get(code, _MAY_NOT))
    if status == 416 or code == "InvalidRange" or _BEYOND.search(text):
        return Fault(Kind.SHORT, "ends before the bytes that are asked for")
    if status in (408, 425) or (status >= 500 and status != 501):
        return Fault(Kind.BROKEN, brief)
    return _of_connection(text, whole, brief)


def _of_connection(text: str, whole: str, brief: str) -> Fault:
    """Errors without an answer, and the rest."""
    if "builder error" in text:
        return Fault(Kind.WRONG, brief, "for a plain http:// endpoint set AWS_ALLOW_HTTP=true")
    if "Received redirect" in text:
        return Fault(Kind.WRONG, "redirected", "set AWS_REGION to the bucket's region")
    if "non-partial response" in text:
        return Fault(Kind.WRONG, "the server does not give ranges of bytes", "use another server")
    if "kind: Connect" in whole:
        cause = "unknown host" if '"dns error"' in whole else "no connection"
        return Fault(Kind.UNREACHABLE, cause, "check the URL, the endpoint and the network")
    if "HTTP error" in text or "header missing" in text.lower():
        stalled = "TimedOut" in whole
        return Fault(Kind.BROKEN, NO_ANSWER if stalled else "the connection broke")
    return Fault(Kind.WRONG, brief)


def _is_denied(exc: BaseException, code: str, status: int, text: str) -> bool:
    refused = isinstance(exc, PermissionDeniedError | UnauthenticatedError)
    # S3 answers a HEAD with expired credentials so, and a HEAD has no body that says why.
    nameless = status == 400 and not code and "performing HEAD" in text
    asked = _CREDENTIALS.search(text) is not None
    return refused or code in _HINTS or status in (401, 403) or nameless or asked


def _code(text: str) -> str:
    found = _CODE.search(text)
    return found[1] if found else ""


def _status(text: str) -> int:
    found = _STATUS.search(text)
    return int(found[1]) if found else 0


def _brief(text: str) -> str:
    if found := _CODE.search(text):
        return found[1]
    if found := _STATUS.search(text):
        return f"{found[1]}{found[2]}".strip()
    return _URL.sub("...", text)[:160]
