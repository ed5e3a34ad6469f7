"""`python -m textseg_cli`: the `textseg` command for launchers that start modules, such as torchrun."""

from __future__ import annotations

from textseg_cli.main import main

if __name__ == "__main__":
    main()
