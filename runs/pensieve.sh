#!/usr/bin/env bash
# Pensieve (Yu et al., EuroSys 2025) without one mechanism at a time, Figures 13 and 14: eviction by recency, no ahead-of-time
# copies, no layer-wise loads, separate phases, no host tier. Two minutes on two cores. Arguments are further overrides:
#     runs/pensieve.sh 'seed=range(3)'
set -euo pipefail
kvarena experiment=pensieve_ablations "$@"
