"""Train a head from a clone of the repository: the command `jakiro-train`, whose --help says more."""

from jakiro_export.training.cli import main

if __name__ == "__main__":
    main()
