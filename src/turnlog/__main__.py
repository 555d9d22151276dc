"""``python -m turnlog`` is the ``turnlog`` command."""

from turnlog.cli.main import main

if __name__ == "__main__":
    main()
