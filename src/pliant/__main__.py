"""`python -m pliant`, which is the command `pliant`."""

from pliant.cli import entry_of_module

if __name__ == "__main__":
    entry_of_module()
