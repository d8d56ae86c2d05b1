#!/usr/bin/env bash
# The workload on which other engines were measured (runs/LOG.md), with all K/V on the device, with a host tier, and with a disk.
# A few minutes on two cores; nox -s bench_vllm runs vLLM's CPU build on the same.
set -euo pipefail
kvarena experiment=peers "$@"
kvarena experiment=peers_host "$@"
kvarena experiment=peers_disk "$@"
