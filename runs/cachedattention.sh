#!/usr/bin/env bash
# CachedAttention (Gao et al., ATC 2024): one mechanism less at a time (section 4.3, on the virtual clock, two minutes), then what
# each medium adds (section 4.3.5, real K/V and real files, three minutes). Arguments are further overrides of both.
set -euo pipefail
kvarena experiment=cachedattention_ablations "$@"
kvarena experiment=cache_media "$@"
