"""Errors of the shard layer.

ShardError                    anything wrong with a dataset; the message is one line for the user
├── NotADatasetError          no manifest at the URL
├── FormatVersionError        a dataset of another format or version
├── ContractError             the dataset's preprocessing is not what the reader must have
├── SelectionError            filters or weights that do not go with the dataset
│   └── WhereError                a filter expression that cannot be used
├── CorruptShardError         bytes that do not match their checksum, index or schema
└── ServiceError              the storage, not the data: never a verdict on a sample
    ├── StorageUnavailableError   it did not answer as it should for as long as patience lasts
    └── AccessDeniedError         it refuses the credentials, or there are none
"""


class ShardError(Exception):
    """A dataset cannot be used as asked; ``str()`` says what, where and what to do."""


class NotADatasetError(ShardError):
    """No ``manifest.json`` where one was expected."""


class FormatVersionError(ShardError):
    """The manifest or a shard is of a format or version this reader does not know."""


class ContractError(ShardError):
    """The dataset was preprocessed in a way the caller said it cannot use."""


class SelectionError(ShardError):
    """No samples can be chosen as asked: filters or weights do not go with the dataset."""


class WhereError(SelectionError):
    """A filter expression cannot be used; ``str()`` says where in it and why."""


class CorruptShardError(ShardError):
    """Stored bytes do not match their checksum, their index or their schema."""


class ServiceError(ShardError):
    """The storage does not serve: says nothing about the data; the run stops and can be resumed."""


class StorageUnavailableError(ServiceError):
    """Errors, stalls or resets that outlast the patience of the request policy."""


class AccessDeniedError(ServiceError):
    """Credentials are refused, expired or missing."""
