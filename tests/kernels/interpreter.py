"""Runs Triton kernels under the interpreter for the tests: pickled (kernel, arguments) in, changed tensors out."""

from __future__ import annotations

import os
import pickle
import sys

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which the kernels' modules do

from kvarena.kernels.attention_call import AttentionCall
from kvarena.kernels.triton_attention import triton_attention
from kvarena.kernels.triton_write import triton_write


def main() -> None:
    """Serve until the input ends."""
    results, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            kernel, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        if kernel == "attention":
            call = AttentionCall(**arguments)
            triton_attention(call)
            changed = {"out": call.out, "lse": call.lse}
        else:
            triton_write(**arguments)
            changed = {"pool": arguments["pool"]}
        pickle.dump(changed, results)
        results.flush()


if __name__ == "__main__":
    main()
