"""The plugin for lmms-eval: `lmms-eval --model ma2mba` (docs/lmms_eval.md).

- `manifest.py` is what the entry point names. lmms-eval loads it with every start, so it imports nothing heavy.
- `model.py` is the model class. It and `manifest.py` are the only files that import lmms-eval.
- `messages.py` turns the messages of a task into prompts.
"""
