"""The simulator held against real runs: this machine's own, and vLLM's as others measured them."""
