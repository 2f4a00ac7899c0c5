"""`python -m vl_borg_hooks` is the same command as `vl-borg-hooks`."""

from vl_borg_hooks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
