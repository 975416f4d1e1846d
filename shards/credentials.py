"""Credentials and endpoint of S3 as the AWS tools take them: environment, profile, config files."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from shards.errors import ShardError

RENEWED_AFTER = timedelta(minutes=5)
"""A profile's credentials are asked for again after so long: those of a role are good for at least
10 minutes whenever botocore gives them out."""
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE", "AWS_WEB_IDENTITY_TOKEN_FILE")
_CONTAINER = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_ENDPOINT_URL")


def aws_endpoint() -> str:
    """The S3 server that the environment names, or ""."""
    return next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")


def aws_settings() -> tuple[dict[str, Any], Any, str]:
    """(config, credential provider, endpoint) for obstore, beyond what it reads itself.

    obstore knows the environment, web identities, containers and machines in the cloud. Profiles
    and ``~/.aws`` are read by boto3, where there are no keys in the environment.

    Raises:
        ShardError: a profile is wanted, but boto3 is missing or does not know it.
    """
    endpoint = aws_endpoint()
    if any(os.environ.get(name) for name in (*_KEYS, *_CONTAINER)) or not _has_profile():
        return {}, None, endpoint
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as exc:
        raise ShardError(
            "AWS_PROFILE or ~/.aws/credentials: profiles are read by boto3, which is not installed;"
            " pip install 'coralbay[aws]', or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from exc
    return _from_profile(Boto3CredentialProvider, endpoint)


def _has_profile() -> bool:
    home = Path.home() / ".aws"
    files = (
        Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", home / "credentials")),
        Path(os.environ.get("AWS_CONFIG_FILE", home / "config")),
    )
    named = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    return bool(named) or any(file.is_file() for file in files)


def _from_profile(provider: Any, endpoint: str) -> tuple[dict[str, Any], Any, str]:
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        found = session.get_credentials()
        # A client knows the endpoint that the profile names, by each of the ways to name it.
        client = session.client("s3", region_name=session.region_name or "us-east-1")
    except (BotoCoreError, ValueError) as exc:
        raise ShardError(f"AWS profile: {exc}") from exc
    config: dict[str, Any] = {}
    if session.region_name:
        config["region"] = session.region_name
    named = str(client.meta.endpoint_url)
    if not endpoint and "amazonaws.com" not in named:
        config["endpoint"] = endpoint = named
    if found is None:
        return config, None, endpoint
    return config, provider(session, ttl=RENEWED_AFTER), endpoint
