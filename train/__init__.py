"""The run: loader, loop, checkpoints and the ``coralbay`` command."""
