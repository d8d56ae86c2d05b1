#!/usr/bin/env bash
# Latency against load up to saturation, as Pensieve's and vLLM's papers draw it: each system by itself, rates found on the way.
# A minute on one core. Arguments are further overrides:
#     runs/throughput_latency.sh system=vllm,pensieve,cachedattention model=llama-2-13b
set -euo pipefail
kvarena experiment=throughput_latency "$@"
