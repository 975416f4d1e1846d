"""Opens storage: a folder or a URL becomes a `Store`."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import HTTPStore, S3Store, from_url

from shards.backends import Store
from shards.bucket import ObjectStore
from shards.credentials import aws_settings
from shards.errors import NotADatasetError, ShardError
from shards.folder import FolderStore
from shards.policy import DEFAULT_POLICY, RequestPolicy

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")


def open_store(url: str | Path, policy: RequestPolicy = DEFAULT_POLICY) -> Store:
    """Open a folder, a ``file://`` URL or a bucket prefix (``s3:// gs:// az:// http(s)://``).

    Credentials and endpoints come from the environment, as obstore and the AWS tools take them;
    docs/storage.md says which.

    Args:
        url: what to open.
        policy: of its requests.

    Raises:
        NotADatasetError: no such folder.
        ShardError: the URL cannot be opened as storage.
    """
    text = str(url)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return _open_folder(Path(text), policy)
    if scheme[1].lower() == "file":
        return _open_folder(Path(unquote(text[len("file://") :])), policy)
    if scheme[1].lower() == "memory":
        raise ShardError(f"{text}: memory is no storage of a dataset; use a folder or a bucket")

    return ObjectStore(shown(text), partial(connect, text, policy), policy)


def shown(url: str) -> str:
    """A URL without what may be secret: user, password and query."""
    scheme, colon, rest = url.split("?", 1)[0].partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{colon}{place.rpartition('@')[2]}" + f"{slash}{path}".rstrip("/")


def client_options(url: str, timeout_s: float) -> dict[str, Any]:
    """HTTP settings of a store: obstore reads none from the environment once one is given here."""
    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout_s)}
    known = ("allow_http", "allow_invalid_certificates", "connect_timeout", "proxy_url")
    for prefix in _environment_of(url):
        for name in known:
            if value := os.environ.get(f"{prefix}_{name.upper()}"):
                yes = value.lower() in ("1", "true", "yes", "on")
                options[name] = yes if name.startswith("allow") else value
    if url.lower().startswith("http://"):
        options["allow_http"] = True
    return options


def _environment_of(url: str) -> tuple[str, ...]:
    scheme = urlsplit(url).scheme.lower()
    if scheme in ("gs", "gcs"):
        return ("GOOGLE",)
    if scheme in ("az", "azure", "adl", "abfs", "abfss"):
        return ("AZURE",)
    return ("AWS",) if scheme in ("s3", "s3a") else ("AZURE", "GOOGLE", "AWS")


def connect(url: str, policy: RequestPolicy, retrying: bool) -> Any:
    """A store of obstore's own.

    Args:
        url: of a bucket or a web server.
        policy: of its requests.
        retrying: obstore repeats what fails; else each call is one attempt.

    Raises:
        ShardError: the URL cannot be opened as storage.
    """
    try:
        return _connect_url(url, policy, retrying)
    except (BaseError, ValueError) as exc:
        reason = str(exc).strip().split("\n", 1)[0].replace(url, shown(url))
        raise ShardError(
            f"{shown(url)}: cannot open this URL as storage; use a folder or a URL that "
            f"starts with s3://, gs://, az://, https:// or file:// ({reason})"
        ) from exc


def _connect_url(url: str, policy: RequestPolicy, retrying: bool) -> Any:
    timeout_s = policy.upload_deadline_s if retrying else policy.deadline_s
    client: Any = client_options(url, timeout_s)
    retry: Any = {
        "max_retries": policy.attempts if retrying else 0,
        "retry_timeout": timedelta(seconds=policy.patience_s),
        "backoff": {
            "init_backoff": timedelta(seconds=policy.first_backoff_s),
            "max_backoff": timedelta(seconds=policy.max_backoff_s),
            "base": 2,
        },
    }
    scheme = urlsplit(url).scheme.lower()
    if scheme in ("s3", "s3a"):
        config: Any
        config, provider, endpoint = aws_settings()
        if endpoint.lower().startswith("http://"):
            client.setdefault("allow_http", True)
        return S3Store.from_url(
            url,
            config=config,
            client_options=client,
            retry_config=retry,
            credential_provider=provider,
        )
    if scheme in ("http", "https") and not _is_cloud(url):
        return HTTPStore.from_url(url, client_options=client, retry_config=retry)
    return from_url(url, client_options=client, retry_config=retry)


def _is_cloud(url: str) -> bool:
    """Whether an address of the web is a bucket by its host's name."""
    host = urlsplit(url).hostname or ""
    ours = ("amazonaws.com", "r2.cloudflarestorage.com", "core.windows.net", "fabric.microsoft.com")
    return host.endswith(ours)


def _open_folder(folder: Path, policy: RequestPolicy) -> FolderStore:
    if not folder.exists():
        raise NotADatasetError(
            f"{folder}: no such folder; give the folder that holds manifest.json"
        )
    if not folder.is_dir():
        raise NotADatasetError(f"{folder}: a file; give the folder that holds manifest.json")
    return FolderStore(folder, policy)
