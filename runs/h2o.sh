#!/usr/bin/env bash
# H2O (Zhang et al., NeurIPS 2023): what a fifth of the cache costs in quality, beside all other token-level policies and budgets
# (seven minutes), and what it buys in tokens per second (section 5.3, four minutes).
set -euo pipefail
kvarena experiment=quality_vs_budget
kvarena experiment=h2o_throughput
