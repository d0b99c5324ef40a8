"""From a name or a folder to batches: sources, decoding, crops, loader."""
