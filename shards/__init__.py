"""The on-disk contract and the stream: shards of CT volumes. No torch here."""
