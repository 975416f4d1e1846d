"""Archives in, samples out: raw DICOM and NIfTI become shards, each series with a verdict."""
