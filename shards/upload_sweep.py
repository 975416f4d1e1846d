"""Parts of uploads that a killed process left in a bucket: nobody sees them, and they are paid for.

obstore cannot list them, so that boto3 does, where it is installed (``pip install coralbay[aws]``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from shards.credentials import aws_endpoint
from shards.schema import CHUNKS, INDEX, MANIFEST, REPORT, SERIES

CONNECT_S, READ_S = 10, 60
ADVICE = (
    "give the bucket a lifecycle rule that aborts incomplete multipart uploads "
    "(AbortIncompleteMultipartUpload)"
)
_OURS = re.compile(r"shard-\d{6}\.tar(\.idx|\.refs\.json)?|\.build/.+")
_SINGLE = (MANIFEST, INDEX, CHUNKS, SERIES, REPORT, "build.json", "exclusions.json")


def sweep_uploads(url: str) -> str:
    """Abort every upload in progress of a file that a build writes under ``url``.

    Call it while nobody else writes there. Only S3 keeps such parts without end and lets them be
    listed; for any other storage nothing is done.

    Returns:
        Empty, or a line for the user: what could not be done, and what to do instead.
    """
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("s3", "s3a"):
        return ""
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return (
            f"{url}: parts of uploads that a killed run left cannot be looked for without boto3 "
            f"(pip install 'coralbay[aws]'); {ADVICE}"
        )
    prefix = unquote(parts.path).strip("/")
    prefix = f"{prefix}/" if prefix else ""
    try:
        client = _client()
        for key, upload in _uploads(client, parts.netloc, prefix):
            client.abort_multipart_upload(Bucket=parts.netloc, Key=key, UploadId=upload)
    except (BotoCoreError, ClientError, ValueError) as exc:
        return (
            f"{url}: parts of uploads that a killed run left cannot be looked for "
            f"({_brief(exc)}); {ADVICE}"
        )
    return ""


def _client() -> Any:
    """boto3 with the endpoint, region and addressing that obstore takes from the environment."""
    import boto3
    from botocore.config import Config

    virtual = os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("1", "true")
    endpoint = aws_endpoint() or None
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        config=Config(
            s3={"addressing_style": "path" if endpoint and not virtual else "auto"},
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
        ),
    )


def _uploads(client: Any, bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Key and id of the uploads in progress of our files; some servers list all of a bucket."""
    for page in client.get_paginator("list_multipart_uploads").paginate(
        Bucket=bucket, Prefix=prefix
    ):
        for upload in page.get("Uploads", ()):
            key = upload["Key"]
            name = key[len(prefix) :]
            if key.startswith(prefix) and (name in _SINGLE or _OURS.fullmatch(name)):
                yield key, upload["UploadId"]


def _brief(error: BaseException) -> str:
    code = getattr(error, "response", {}).get("Error", {}).get("Code")
    return str(code or type(error).__name__)
