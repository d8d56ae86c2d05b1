"""The knobs of a Llama small enough to serve hundreds of workloads in a minute."""

KNOBS = {
    "name": "small",
    "kind": "random",
    "architecture": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "max_positions": 512,
    "tied_embeddings": False,
    "dtype": "float32",
    "config": {},
}
