#!/usr/bin/env bash
# How far the simulator is off: every system for real on this machine and simulated, five rounds, ten minutes on two quiet cores.
# With LLMServingSim's measured runs of vLLM beside: runs/fidelity.sh task.vllm=PATH/llmservingsim
set -euo pipefail
kvarena experiment=fidelity "$@"
