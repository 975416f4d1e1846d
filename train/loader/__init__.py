"""The loader: batches of views from a dataset of shards.

``from train.loader import CTLoader, LoaderConfig``. Names are imported when they are asked for:
the subprocess that fetches and decodes imports modules of this package and must stay without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.data import DataConfig, StreamConfig
    from train.loader.base import Batch, CTLoader
    from train.loader.settings import LoaderConfig

__all__ = ["Batch", "CTLoader", "DataConfig", "LoaderConfig", "StreamConfig"]

_HOMES = {
    "Batch": "train.loader.base",
    "CTLoader": "train.loader.base",
    "DataConfig": "train.data",
    "LoaderConfig": "train.loader.settings",
    "StreamConfig": "train.data",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
