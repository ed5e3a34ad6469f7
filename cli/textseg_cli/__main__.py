"""`python -m textseg_cli`: the `textseg` command for launchers that start modules.

`torchrun --nproc-per-node 2 -m textseg_cli -- train ...`: without the two dashes torchrun would take our
`--run` for a beginning of its own `--run-path`.
"""

from __future__ import annotations

from textseg_cli.main import main

if __name__ == "__main__":
    main()
