"""Turn videos and annotations into shard folders.

`cli.py` has the commands. A build (`build.py`) reads a recipe (`recipe.py`) and its annotations (`reading.py`,
`sources/`), and builds shards (`shard.py`) in watched workers (`running.py`, `ma2mba.video.pool`). `shard.build_shard`
turns each clip into a sample (`sample.py`) or into a reject with its reason.
`encode.py` and `features.py` replace pictures by features, `audit.py` finds and repairs damage, `toy/` writes a toy
corpus.
"""
