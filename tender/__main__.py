"""`python3 -m tender`: the same command as the installed `tender`."""

from tender.cli.main import entry

if __name__ == "__main__":
    entry()
