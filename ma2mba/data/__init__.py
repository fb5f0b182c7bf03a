"""From shard folders to training batches.

Dataset  the samples of shard folders, by index (dataset.py)
Sampler  which samples form a step, and which rank gets them (sampler.py, buckets.py)
collate  samples -> one padded Batch (batch.py), whose Frames are read when a chunk needs them (frames.py)
Loader   prepares a rank's batches in background threads (loader.py)
cuts     where a batch is cut into chunks, and a chunk into slices of several ranks (cuts.py)
"""
