"""The run-time check of signatures, on in every test and in no release."""

import io
from typing import IO

from beartype import BeartypeConf, FrozenDict, beartype

checked = beartype(
    conf=BeartypeConf(
        # An int is good where a float is annotated, as for mypy.
        is_pep484_tower=True,
        # typing.IO wants more than the readers have: no "mode" on an io.BytesIO, say.
        hint_overrides=FrozenDict({IO[bytes]: io.IOBase}),
    )
)
