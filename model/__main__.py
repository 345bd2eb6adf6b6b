"""``python -m livetalk_model``: the ``livetalk`` command."""

from .cli.main import entry

if __name__ == "__main__":
    entry()
