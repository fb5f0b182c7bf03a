"""The configuration of a model that is small enough to train in every test."""

TINY_MODEL = {
    "language_model": {"d_model": 32, "n_layer": 2, "d_state": 16, "headdim": 16, "vocab_size": 32, "ssd_block": 16},
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
    },
}
UNTIED_MODEL = TINY_MODEL | {"language_model": TINY_MODEL["language_model"] | {"tie_embeddings": False}}
"""The same, with a head of its own."""
